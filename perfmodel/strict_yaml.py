"""YAML files written by people, read without surprises.

PyYAML follows YAML 1.1, where `010` is 8, `4:20` is 260, `no` is false and `1e3` is text; its C
loader crashes on deep nesting, and aliases can grow a small file without bound. Here a file is
read event by event, and whatever two YAML readers could take differently is refused with its
place: `file:line:col: field: found ..., expected ...`.
"""

import math
import re
from pathlib import Path
from typing import Any, cast

import msgspec
import yaml

from perfmodel.errors import SpecError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 12
MAX_NUMBER_CHARS = 40

Path_ = tuple[str | int, ...]
Mark = tuple[int, int]

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]*)\.[0-9]+([eE][-+][0-9]+)?")
_WORDS = {"": None, "null": None, "~": None, "true": True, "false": False}
_NUMBER_IN_YAML_1_2 = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+|0x[0-9a-fA-F]+"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
# What readers of YAML 1.1 or 1.2 take for something else than text, and what to write instead.
_AMBIGUOUS = (
    (re.compile(r"y|n|yes|no|on|off|null|true|false", re.I), "true, false, null or quotes"),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?"), "quotes around a date"),
    (re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE), "a finite number"),
    (re.compile(r"[-+]?0[0-9xob_][^.]*|[^:]*:.*"), "a decimal number or quotes"),
    (re.compile(r".*"), "a number such as 1000, 0.5 or 1.0e+3, or quotes around text"),
)


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """Plain values of a file, and where each of them stands (nowhere, if they are not YAML)."""

    source: str
    value: dict[str, Any]
    marks: dict[Path_, Mark] = {}
    key_marks: dict[Path_, Mark] = {}

    def error(self, path: Path_, problem: str, *, at_key: bool = False) -> SpecError:
        """SpecError `source:line:col: field: problem` for the value (or key) at `path`."""
        mark = (self.key_marks if at_key else self.marks).get(path)
        where = f"{self.source}:{mark[0]}:{mark[1]}: " if mark else f"{self.source}: "
        return SpecError(where + (f"{dotted(path)}: {problem}" if path else problem))


def dotted(path: Path_) -> str:
    """("memory", "chips", 0) -> "memory.chips[0]"."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_text(path: Path, *, max_bytes: int = MAX_BYTES) -> str:
    """UTF-8 text of a file of at most `max_bytes`.

    Raises: SpecError if the file can't be read, is too large or is not UTF-8.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(max_bytes + 1)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(raw) > max_bytes:
        raise SpecError(f"{path}:1:1: found more than {max_bytes} bytes, expected at most that")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        start_of_line = raw.rfind(b"\n", 0, error.start) + 1
        column = len(raw[start_of_line : error.start].decode("utf-8-sig")) + 1
        found = f"byte 0x{raw[error.start]:02x}"
        raise SpecError(f"{path}:{line}:{column}: found {found}, expected UTF-8 text") from None


def parse_yaml(text: str, *, source: str) -> Document:
    """One mapping of plain values, with the place of each.

    Raises: SpecError at the first thing that is not plain, unambiguous YAML.
    """
    reader: _Reader | None = None
    try:
        reader = _Reader(text, source)
        return reader.document()
    except SpecError:
        raise  # a ValueError too
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if isinstance(error, yaml.scanner.ScannerError):  # where the quote or key began
            mark = error.context_mark or mark
        where = f"{mark.line + 1}:{mark.column + 1}" if mark is not None else "1:1"
        problem = str(error.problem).replace("character '\\t' that cannot start any token", "a tab")
        raise SpecError(f"{source}:{where}: {problem}, expected plain YAML") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        found = f"character {error.character:#x}"
        raise SpecError(f"{source}:{line}:{column}: found {found}, expected text") from None
    except (ValueError, OverflowError):  # PyYAML leaves an escape beyond Unicode to chr()
        line, column = reader.place if reader else (1, 1)
        problem = "found an escape that is no character, expected Unicode"
        raise SpecError(f"{source}:{line}:{column}: {problem}") from None


def plain_scalar(text: str) -> Any:
    """Value of an unquoted scalar: null, bool, int, float or text.

    Raises: SpecError "found ..., expected ..." if YAML readers could disagree about it.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text) or _FLOAT.fullmatch(text):
        if len(text) > MAX_NUMBER_CHARS:
            raise SpecError(f"found a number of {len(text)} digits, expected at most 40")
        value = int(text) if _INTEGER.fullmatch(text) else float(text)
        if not math.isfinite(value):
            raise SpecError(f"found {text}, expected a finite number")
        return value
    sure_text = not (_NUMBER_IN_YAML_1_2.fullmatch(text) or _is_no_text_in_yaml_1_1(text))
    for pattern, expected in _AMBIGUOUS[: 2 if sure_text else None]:
        if pattern.fullmatch(text):
            problem = f"found {text}, which YAML readers take differently"
            raise SpecError(f"{problem}; expected {expected}")
    return text


def _is_no_text_in_yaml_1_1(text: str) -> bool:
    """Whether PyYAML's own rules make a number, date or merge key of it."""
    resolvers = yaml.SafeLoader.yaml_implicit_resolvers
    return any(pattern.match(text) for _, pattern in resolvers.get(text[0], ()))


class _Reader:
    """Walks PyYAML's events (pure Python, no recursion in the parser) with a bounded depth."""

    def __init__(self, text: str, source: str) -> None:
        self._loader = yaml.SafeLoader(text)
        self._source = source
        self._marks: dict[Path_, Mark] = {}
        self._key_marks: dict[Path_, Mark] = {}

    def document(self) -> Document:
        event = self._next()
        while isinstance(event, (yaml.StreamStartEvent, yaml.DocumentStartEvent)):
            event = self._next()
        if not isinstance(event, yaml.MappingStartEvent):
            raise self._error(event, (), f"found {_kind(event)}, expected `key: value` lines")
        value = self._node(event, ())
        self._next()
        after = self._next()
        if not isinstance(after, yaml.StreamEndEvent):
            raise self._error(after, (), "found a second document, expected one")
        return Document(
            source=self._source, value=value, marks=self._marks, key_marks=self._key_marks
        )

    def _next(self) -> Any:
        return cast(Any, self._loader).get_event()

    @property
    def place(self) -> Mark:
        """How far the text has been read."""
        mark = self._loader.get_mark()
        return mark.line + 1, mark.column + 1

    def _error(self, event: Any, path: Path_, problem: str) -> SpecError:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        place = f"{dotted(path)}: " if path else ""
        return SpecError(f"{self._source}:{line}:{column}: {place}{problem}")

    def _node(self, event: Any, path: Path_) -> Any:
        self._marks[path] = (event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.AliasEvent):
            raise self._error(
                event, path, f"found alias *{event.anchor}, expected the value itself"
            )
        if event.anchor is not None:
            raise self._error(event, path, f"found anchor &{event.anchor}, expected a plain value")
        if event.tag is not None:
            raise self._error(event, path, f"found tag {event.tag}, expected an untagged value")
        if len(path) > MAX_DEPTH:
            raise self._error(
                event, path[:1], f"found more than {MAX_DEPTH} levels, expected fewer"
            )
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        return self._scalar(event, path)

    def _scalar(self, event: Any, path: Path_) -> Any:
        unprintable = next((c for c in event.value if not (c.isprintable() or c == "\n")), None)
        if unprintable is not None:
            found = f"found character {ord(unprintable):#x}"
            raise self._error(event, path, f"{found}, expected printable text")
        if event.style is not None:
            return event.value
        try:
            return plain_scalar(event.value)
        except SpecError as error:
            raise self._error(event, path, str(error)) from None

    def _sequence(self, path: Path_) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._node(event, (*path, len(items))))
        return items

    def _mapping(self, path: Path_) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._error(event, path, "found a key that is not text, expected a name")
            if event.value == "<<":
                raise self._error(event, path, "found a merge key <<, expected the keys themselves")
            key = self._node(event, (*path, event.value))
            if not isinstance(key, str):
                raise self._error(event, path, f"found key {event.value!r}, expected a name")
            if key in mapping:
                raise self._error(event, (*path, key), "found this key twice, expected it once")
            self._key_marks[*path, key] = self._marks[*path, key]
            mapping[key] = self._node(self._next(), (*path, key))
        return mapping


def _kind(event: Any) -> str:
    """What stands where the mapping of a file should be."""
    if isinstance(event, yaml.SequenceStartEvent):
        return "a list"
    empty = isinstance(event, yaml.StreamEndEvent) or getattr(event, "value", "?") == ""
    return "an empty file" if empty else "text"
