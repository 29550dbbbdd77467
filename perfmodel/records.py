"""Plain values from a file -> a msgspec record, with errors that say where, what and why."""

import re
from collections.abc import Iterator
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from perfmodel.errors import SpecError
from perfmodel.strict_yaml import Document, Path_

Record = TypeVar("Record", bound=msgspec.Struct)

_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
}
_ONE_OF_THEM = object()
_PATH_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")


def to_record(document: Document, record_type: type[Record]) -> Record:
    """The document as a record: exact keys, exact types, bounds kept.

    Raises: SpecError `file:line:col: field: found ..., expected ...`.
    """
    _check_keys(document, document.value, record_type, ())
    try:
        return msgspec.convert(document.value, record_type)
    except msgspec.ValidationError as error:
        raise _as_spec_error(document, str(error)) from None


def field_paths(record_type: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    """Dotted names of every leaf field: name, memory.capacity_gb, ..."""
    for name, hint in get_type_hints(record_type).items():
        nested = _struct_in(hint)
        if nested is None:
            yield prefix + name
        else:
            yield from field_paths(nested, f"{prefix}{name}.")


def _struct_in(hint: Any) -> type[msgspec.Struct] | None:
    """The struct that a type hint is, or holds: S, S | None, list[S], Annotated[...]."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint
    found = (_struct_in(argument) for argument in get_args(hint))
    return next((struct for struct in found if struct is not None), None)


def _check_keys(
    document: Document, value: dict[str, Any], record_type: type[msgspec.Struct], path: Path_
) -> None:
    hints = get_type_hints(record_type, include_extras=True)
    strict = record_type.__struct_config__.forbid_unknown_fields
    for key in value:
        if strict and key not in hints:
            raise document.error((*path, key), _unknown_key(key, list(hints)), at_key=True)
    for key, item in value.items():
        if key in hints:
            _check_nested(document, item, hints[key], (*path, key))
    for info in msgspec.structs.fields(record_type):
        if info.required and info.name not in value:
            raise document.error(path, f"found no key {info.name}, expected it")


def _check_nested(document: Document, item: Any, hint: Any, path: Path_) -> None:
    """Records inside: alone, in a list, or as the values of a mapping."""
    record_type = _struct_in(hint)
    if record_type is None:
        return
    if isinstance(item, list):
        inside: list[tuple[Path_, Any]] = [((*path, i), element) for i, element in enumerate(item)]
    elif isinstance(item, dict) and get_origin(hint) is dict:
        inside = [((*path, key), element) for key, element in item.items()]
    else:
        inside = [(path, item)]
    for place, element in inside:
        if isinstance(element, dict):
            _check_keys(document, element, record_type, place)


def _unknown_key(key: str, known: list[str]) -> str:
    import difflib  # only needed for an error message

    near = difflib.get_close_matches(key, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of: {', '.join(known)}"
    return f"found an unknown key; {hint}"


def _as_spec_error(document: Document, message: str) -> SpecError:
    """msgspec says "Expected `float` > 0.0 - at `$.memory.l2_mib`"; say it our way."""
    problem, _, where = message.partition(" - at `$")
    path: list[str | int] = []
    value: Any = document.value
    for name, index in _PATH_STEP.findall(where.rstrip("`")):
        if index == "..." and isinstance(value, dict):  # msgspec does not say which value
            break
        step: str | int = name or (int(index) if index.isdigit() else 0)
        if isinstance(value, dict) and step not in value:  # a mapping of any keys: one of them
            value = _ONE_OF_THEM
            break
        path.append(step)
        value = value[step]
    expected = problem.removeprefix("Expected ").partition(", got ")[0]
    found = "nothing (null)" if value is None else _shown(value)
    return document.error(tuple(path), f"found {found}, expected {_in_words(expected)}")


def _in_words(expected: str) -> str:
    """msgspec's "`float | null`" or "`int` >= 1" in the words of a person who edits a file."""
    for name, word in _WORDS.items():
        expected = re.sub(rf"\b{name}\b", word, expected)
    whole = re.sub(r"\.0\b", "", expected)
    return whole.replace("`", "").replace(" | null", " or null")


def _shown(value: Any) -> str:
    if value is _ONE_OF_THEM:
        return "another value"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = f'"{value}"' if isinstance(value, str) else str(value).lower()
    return text if len(text) <= 60 else text[:57] + "..."
