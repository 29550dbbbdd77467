"""What is finished, kept so that a crash at any moment loses at most the block in work.

A finished block is two files in the output folder: a shard `<block>.safetensors` and a manifest
`ledger/<block>.json` that holds the SHA-256 of the shard and the identity of the work: hashes of
the input tensors and of the statistics, method, settings and code version. Both are written to a
temporary file, flushed to the disk and renamed, the shard first; a block is done when its manifest
exists, its identity is that of the work asked for, and the shard has the hash it promises.
Identical work gives identical bytes, so a second writer can at worst do a block twice.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
from safetensors.torch import save
from torch import Tensor

from quantizer.checkpoints.safe_files import MAX_HEADER_BYTES, read_json, shard_path
from quantizer.errors import CheckpointError, IdentityError, OutputError

FOLDER = "ledger"
SCHEMA = "quantizer.manifest/1"
METADATA = "quantizer"  # the one metadata key of a shard: with several, their order is random
_CHUNK = 1 << 20

State = Literal["done", "missing", "damaged"]


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a piece of work this one and no other."""

    block: str
    inputs: str  # SHA-256 of the tensors of the block
    method: str
    settings: str  # JSON of the settings of every layer
    statistics: str  # SHA-256 of the statistics, or what they follow from; "" without
    code: str  # version of the algorithms

    @property
    def key(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A finished block."""

    schema: str
    key: str
    identity: Identity
    shard: str
    shard_bytes: int
    shard_sha256: str


def manifest_path(folder: Path, block: str) -> Path:
    return folder / FOLDER / f"{block}.json"


def read_manifest(folder: Path, block: str) -> Manifest | None:
    """The manifest of a block, None where there is none.

    Raises: CheckpointError if it is damaged.
    """
    path = manifest_path(folder, block)
    if not path.exists():
        return None
    try:
        manifest = msgspec.convert(read_json(path, MAX_HEADER_BYTES), Manifest)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if manifest.schema != SCHEMA or manifest.key != manifest.identity.key:
        raise CheckpointError(f"{path}: does not agree with itself; it was changed by hand")
    return manifest


def state(folder: Path, identity: Identity) -> State:
    """Whether this work is done; a damaged shard or manifest is to be made again.

    Raises: IdentityError naming the field in which finished work differs from what is asked for.
    """
    try:
        manifest = read_manifest(folder, identity.block)
    except CheckpointError:
        return "damaged"
    if manifest is None:
        return "missing"
    for field in Identity.__struct_fields__:
        found, expected = getattr(manifest.identity, field), getattr(identity, field)
        if found != expected:
            raise IdentityError(
                f"{folder}: block {identity.block} is finished with another {field}: found "
                f"{_short(found)}, expected {_short(expected)}; use another --out"
            )
    return "damaged" if problem_of(folder, manifest) else "done"


def problem_of(folder: Path, manifest: Manifest) -> str | None:
    """What is wrong with the shard of a manifest, None if nothing is."""
    try:
        path = shard_path(folder, manifest.shard)
        size = path.stat().st_size
        if size != manifest.shard_bytes:
            return f"{path}: has {size} bytes, expected {manifest.shard_bytes}"
        found = file_sha256(path)
    except (CheckpointError, OSError) as error:
        return str(error)
    if found != manifest.shard_sha256:
        return f"{path}: SHA-256 is {found[:16]}, expected {manifest.shard_sha256[:16]}"
    return None


def commit(folder: Path, identity: Identity, tensors: dict[str, Tensor], metadata: str) -> Manifest:
    """Write shard and manifest of a finished block; both appear whole or not at all.

    Raises: OutputError on a full disk or a read-only folder; nothing wrong is left behind.
    """
    shard = f"{identity.block}.safetensors"
    ordered = {name: tensors[name].contiguous() for name in sorted(tensors)}
    content = save(ordered, metadata={METADATA: metadata})
    write_durably(folder / shard, content)
    manifest = Manifest(
        schema=SCHEMA,
        key=identity.key,
        identity=identity,
        shard=shard,
        shard_bytes=len(content),
        shard_sha256=hashlib.sha256(content).hexdigest(),
    )
    write_durably(manifest_path(folder, identity.block), as_json(manifest))
    return manifest


def verify(folder: Path) -> tuple[list[Manifest], list[str]]:
    """Recompute every hash: the manifests that are readable, and what is wrong, line by line.

    Raises: CheckpointError if there is no ledger.
    """
    names = sorted(path.stem for path in (folder / FOLDER).glob("*.json"))
    if not names:
        raise CheckpointError(f"{folder}: has no ledger; was it written by this quantizer?")
    manifests, problems = [], []
    for name in names:
        try:
            manifest = read_manifest(folder, name)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if manifest is not None:
            manifests.append(manifest)
            problem = problem_of(folder, manifest)
            problems += [problem] if problem else []
    return manifests, problems


def prepare(folder: Path) -> None:
    """Make the folder and its ledger.

    Raises: OutputError.
    """
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from None


def sweep(folder: Path, name: str) -> None:
    """Remove what a killed writer of `name` left; only the holder of its lease may."""
    for path in folder.glob(f".{name}.*.tmp"):
        path.unlink(missing_ok=True)


def write_durably(path: Path, content: bytes) -> None:
    """Replace `path` atomically, on the disk before this returns.

    Raises: OutputError; the old file, if there was one, is then untouched.
    """
    temporary = path.parent / f".{path.name.split('.')[0]}.{token()}.tmp"
    with replaced_durably(path, temporary), temporary.open("xb") as stream:
        stream.write(content)


@contextlib.contextmanager
def replaced_durably(path: Path, temporary: Path) -> Iterator[None]:
    """The block writes `temporary`; flushed to the disk, it takes the place of `path`.

    Raises: OutputError; nothing is left of `temporary`.
    """
    try:
        yield
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):  # a read-only folder cannot be cleaned, nor written
            temporary.unlink(missing_ok=True)


def token() -> str:
    """Tells the temporary files of several writers apart."""
    return secrets.token_hex(8)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def as_json(value: object) -> bytes:
    """Sorted, indented JSON: equal values give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1) + b"\n"


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."
