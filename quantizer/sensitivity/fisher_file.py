"""Fisher diagonals of a model on disk, with what they were made from."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import msgspec
from safetensors.torch import save_file
from torch import Tensor

from quantizer.checkpoints.checkpoint import Checkpoint, hash_tensors, read_tensors
from quantizer.checkpoints.checkpoint_model import decoder_blocks, load_model
from quantizer.checkpoints.safe_files import read_header
from quantizer.errors import CheckpointError, IdentityError, OutputError
from quantizer.evaluation.calibration import Calibration
from quantizer.run import ledger
from quantizer.run.lease import patiently_leased
from quantizer.sensitivity.fisher import fisher_statistics

FisherKind = Literal["sequence", "token"]
NAME = "fisher.safetensors"
FILE_MODE = 0o644


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What Fisher diagonals were made from."""

    kind: FisherKind
    model_sha256: str
    ids_sha256: str
    sequences: int
    tokens: int


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """Metadata of a file of Fisher diagonals."""

    provenance: Provenance
    sha256: str  # of the diagonals


def ensure_fisher(
    path: Path,
    checkpoint: Checkpoint,
    calibration: Calibration,
    kind: FisherKind,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make the file unless it is there and from the same model and tokens.

    Raises: IdentityError naming the field that differs, CheckpointError, OutputError.
    """
    expected = Provenance(
        kind=kind,
        model_sha256=model_sha256(checkpoint),
        ids_sha256=calibration.sha256,
        sequences=calibration.ids.shape[0],
        tokens=calibration.ids.shape[1],
    )
    lease = path.with_suffix(".lease")
    if not path.exists():
        with patiently_leased(lease):
            ledger.sweep(path.parent, path.stem)
            if not path.exists():
                write_fisher(path, _diagonals(checkpoint, calibration, kind, progress), expected)
    check_fisher(path, expected)


def check_fisher(path: Path, expected: Provenance) -> None:
    """Raises: IdentityError naming a field that differs, CheckpointError for damage."""
    metadata = read_header(path)[1]
    try:
        contents = msgspec.json.decode(metadata[ledger.METADATA], type=Contents)
    except (KeyError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{path}: is no file of Fisher diagonals: {error}") from None
    for field in Provenance.__struct_fields__:
        have, want = getattr(contents.provenance, field), getattr(expected, field)
        if have != want:
            raise IdentityError(
                f"{path}: was made with another {field}: found {have}, expected {want}; remove it, "
                "or name another file"
            )
    names = sorted(read_header(path)[0])
    if _sha256(read_tensors(path, [name]) for name in names) != contents.sha256:
        raise CheckpointError(f"{path}: is damaged: its SHA-256 is another; remove it")


def write_fisher(path: Path, diagonals: dict[str, Tensor], provenance: Provenance) -> None:
    """Raises: OutputError; the file appears whole or not at all."""
    temporary = path.parent / f".{path.stem}.{ledger.token()}.tmp"
    ordered = {name: diagonals[name].contiguous() for name in sorted(diagonals)}
    sha256 = _sha256({name: tensor} for name, tensor in ordered.items())
    contents = msgspec.json.encode(Contents(provenance=provenance, sha256=sha256))
    with ledger.replaced_durably(path, temporary):
        try:
            save_file(ordered, temporary, {ledger.METADATA: contents.decode()})
            temporary.chmod(FILE_MODE)  # safetensors makes files that only their owner reads
        except Exception as error:  # safetensors wraps the OSError of a full disk in its own type
            raise OutputError(f"{path}: cannot be written: {error}") from None


def _sha256(parts: Iterable[dict[str, Tensor]]) -> str:
    """One tensor at a time: the file may be twice as large as the model."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hash_tensors(part).encode())
    return digest.hexdigest()


def model_sha256(checkpoint: Checkpoint) -> str:
    """Hash of all shards, file by file."""
    digest = hashlib.sha256()
    for shard in sorted({info.shard for info in checkpoint.tensors.values()}):
        digest.update(ledger.file_sha256(checkpoint.folder / shard).encode())
    return digest.hexdigest()


def _diagonals(
    checkpoint: Checkpoint,
    calibration: Calibration,
    kind: FisherKind,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Tensor]:
    model = load_model(checkpoint.folder)
    blocks = decoder_blocks(model, checkpoint)
    return fisher_statistics(
        model, calibration.ids, blocks=blocks, token=kind == "token", progress=progress
    )
