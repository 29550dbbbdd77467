"""Guards for files from outside: names that stay in their folder, headers of a sane size.

safetensors itself refuses holes, overlaps and offsets that do not fit the file; it accepts tensor
names such as `../../x` and shapes such as [0, 2**60], and transformers joins shard names from an
index unchecked (transformers issue 47176). Both are refused here before anything is allocated.
"""

import math
import re
from pathlib import Path
from typing import Any

import msgspec

from quantizer.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the cap of safetensors
MAX_CONFIG_BYTES = 1_000_000
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 8
LENGTH_BYTES = 8  # little-endian length of the header, first in the file
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U16", "U32", "BOOL")

_TENSOR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]*(\.[A-Za-z0-9_\-]+)*")
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors")


class TensorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Where a tensor is and what it is, from a header."""

    shard: str  # file name inside the checkpoint folder
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_json(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON object of at most `max_bytes`.

    Raises: CheckpointError.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise CheckpointError(f"{path}: {size} bytes, expected at most {max_bytes}")
        value = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: found {type(value).__name__}, expected a JSON object")
    return value


def shard_path(folder: Path, name: object) -> Path:
    """The path of a shard that an index or manifest names: a plain file of this folder.

    Raises: CheckpointError for a path, a foreign suffix, or a link that leaves the folder.
    """
    if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
        raise CheckpointError(
            f"{folder}: shard name {_shown(name)}, expected a plain name ending in .safetensors"
        )
    path = folder / name
    if path.resolve().parent != folder.resolve():
        raise CheckpointError(f"{path}: is a link out of its folder")
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing, or no file")
    return path


def check_tensor_name(path: Path, name: str) -> None:
    """Raises: CheckpointError unless the name is dotted words of at most 256 characters."""
    if len(name) > 256 or not _TENSOR_NAME.fullmatch(name):
        raise CheckpointError(f"{path}: tensor name {_shown(name)}, expected dotted words")


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata of a safetensors file, from its header alone.

    Raises: CheckpointError.
    """
    raw, size = _header_bytes(path)
    try:
        table: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
        metadata = msgspec.convert(table.pop("__metadata__", {}), dict[str, str])
        entries = msgspec.convert(table, dict[str, _Entry])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: header is not that of safetensors: {error}") from None
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"{path}: {len(entries)} tensors, expected at most {MAX_TENSORS}")
    data_bytes = size - LENGTH_BYTES - len(raw)
    return {name: _checked(path, name, entries[name], data_bytes) for name in entries}, metadata


def _header_bytes(path: Path) -> tuple[bytes, int]:
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES or length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
                raise CheckpointError(
                    f"{path}: header of {length} bytes in a file of {size}; truncated, or no "
                    "safetensors file"
                )
            return stream.read(length), size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _checked(path: Path, name: str, entry: _Entry, data_bytes: int) -> TensorInfo:
    check_tensor_name(path, name)
    if entry.dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name} has dtype {entry.dtype}, which is not supported")
    begin, end = entry.data_offsets
    if not 0 <= begin <= end <= data_bytes:
        raise CheckpointError(
            f"{path}: {name} ends at byte {end} of {data_bytes}; the file is truncated"
        )
    bits = 8 if entry.dtype == "BOOL" else int("".join(filter(str.isdigit, entry.dtype)))
    shape = entry.shape
    if len(shape) > MAX_DIMENSIONS or any(n < 0 or n >= 2**40 for n in shape):
        raise CheckpointError(f"{path}: {name} has shape {_shown(shape)}, which is absurd")
    if math.prod(shape) * bits // 8 != end - begin:
        raise CheckpointError(f"{path}: {name} of shape {shape} has {end - begin} bytes")
    return TensorInfo(shard=path.name, dtype=entry.dtype, shape=tuple(shape), nbytes=end - begin)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
