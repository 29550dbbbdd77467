"""Names as people type them: "RTX A6000", "rtx_a6000" and "a6000" are one device."""

import re
from collections.abc import Iterable, Mapping

from perfmodel.errors import UnknownNameError

_VENDOR_WORDS = re.compile(
    r"nvidia|geforce|tesla|quadro|jetson|instinct|radeon|apple|amd|rtx|meta(?!l)|[ _\-]"
)


def normalised(name: str) -> str:
    """Lower case, without blanks, hyphens, underscores, vendor words or a hub owner ("org/")."""
    tail = name.lower().rpartition("/")[2]
    return _VENDOR_WORDS.sub("", tail) or tail


def index_by_name(names: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Normalised name or alias -> canonical name."""
    index = {normalised(canonical): canonical for canonical in names}
    for canonical, aliases in names.items():
        for alias in aliases:
            index.setdefault(normalised(alias), canonical)
    return index


def near_matches(name: str, index: Mapping[str, str], limit: int = 3) -> list[str]:
    """Up to `limit` canonical names that look like `name`, best first."""
    import difflib  # only needed for an error message

    close = difflib.get_close_matches(normalised(name), index, n=limit, cutoff=0.5)
    return list(dict.fromkeys(index[match] for match in close))


def resolve(kind: str, name: str, index: Mapping[str, str]) -> str:
    """Canonical name for what was typed.

    Raises: UnknownNameError, with near matches.
    """
    found = index.get(normalised(name))
    if found is None:
        raise UnknownNameError(kind, name, sorted(set(index.values())), near_matches(name, index))
    return found
