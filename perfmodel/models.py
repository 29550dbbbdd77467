"""Model shapes, from Hugging Face `config.json` files; the presets are such files too."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from perfmodel import names
from perfmodel.errors import SpecError, UsageError
from perfmodel.families import FAMILIES, About, Config
from perfmodel.records import to_record
from perfmodel.shape import ModelShape
from perfmodel.strict_yaml import Document, read_text

PRESETS = Path(__file__).parent / "presets"
MAX_CONFIG_BYTES = 1024 * 1024


def load_model(model: str) -> ModelShape:
    """Model by preset name, alias, or path of a `config.json` (or of its folder).

    Raises: UnknownNameError; SpecError if the file is wrong or the architecture unsupported.
    """
    if model.endswith(".json") or (model and _is_folder(model)):
        return read_model(Path(model))
    index = names.index_by_name(dict.fromkeys(model_names(), ()))
    found = index.get(names.normalised(model)) or names.resolve("model", model, _alias_index())
    return _preset(found)


def read_model(path: Path) -> ModelShape:
    """Model from a `config.json`, or from the folder that holds it and gives it its name.

    Raises: SpecError if the file is wrong or the architecture unsupported.
    """
    path = path / "config.json" if path.is_dir() else path
    name = path.parent.resolve().name if path.stem == "config" else path.stem
    return _shape(_read_config(path), name=name, source=str(path))


@lru_cache
def model_names() -> tuple[str, ...]:
    """Built-in models in order of family and size."""
    return tuple(sorted((path.stem for path in PRESETS.glob("*.json")), key=_by_size))


def preset_about(name: str) -> About:
    """Aliases, source and verification of a built-in model."""
    about = _read_config(PRESETS / f"{name}.json").about
    if about is None:
        raise SpecError(f"presets/{name}.json: found no key about, expected it in a preset")
    return about


def _by_size(name: str) -> tuple[str, float]:
    family, _, size = name.rpartition("-")
    return family, float(size.rstrip("b"))


@lru_cache
def _alias_index() -> dict[str, str]:
    return names.index_by_name({name: preset_about(name).aliases for name in model_names()})


@lru_cache
def _preset(name: str) -> ModelShape:
    return _shape(
        _read_config(PRESETS / f"{name}.json"), name=name, source=preset_about(name).source
    )


def _is_folder(text: str) -> bool:
    try:
        return Path(text).is_dir()
    except (OSError, ValueError):  # too long for a path, or with a NUL in it
        return False


def _read_config(path: Path) -> Config:
    text = read_text(path, max_bytes=MAX_CONFIG_BYTES)
    try:
        raw: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SpecError(
            f"{path}: found no valid JSON ({problem}), expected a config.json"
        ) from None
    if not isinstance(raw, dict):
        found = "a list" if isinstance(raw, list) else "a bare value"
        raise SpecError(f"{path}: found {found}, expected the object of a config.json")
    _refuse_unsupported(path, raw.get("architectures"), raw.get("model_type"))
    config_type, _ = FAMILIES[raw["architectures"][0]]
    return to_record(Document(source=str(path), value=raw), config_type)


def _refuse_unsupported(path: Path, architectures: Any, model_type: Any) -> None:
    """Name the architecture before any complaint about its keys.

    Raises: SpecError.
    """
    if not isinstance(architectures, list) or len(architectures) != 1:
        found = f"{architectures!r}" if architectures else f"none (model_type {model_type!r})"
        raise SpecError(f"{path}: architectures: found {found}, expected exactly one name")
    if not isinstance(architectures[0], str):
        found = f"{architectures[0]!r}"
        raise SpecError(f"{path}: architectures: found {found}, expected a name")
    if architectures[0] not in FAMILIES:
        raise SpecError(
            f"{path}: architectures: found {architectures[0]}, which is not supported; "
            f"expected one of {', '.join(FAMILIES)}"
        )


def _shape(config: Config, *, name: str, source: str) -> ModelShape:
    """The shape that a config describes.

    Raises: SpecError if its numbers contradict each other.
    """
    try:
        _, shape = FAMILIES[config.architectures[0]]
        return shape(config, name, source)
    except UsageError as error:
        raise SpecError(f"{source}: {error}") from None
