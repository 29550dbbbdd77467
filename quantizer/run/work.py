"""The unit of work: one decoder block, from the tensors on disk to a finished shard."""

import hashlib
import time
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from kernels.layouts.tensors import to_tensors
from quantizer.checkpoints.checkpoint import (
    OUTSIDE,
    Checkpoint,
    hash_tensors,
    load_tensors,
    open_checkpoint,
    read_tensors,
)
from quantizer.errors import CheckpointError, IdentityError
from quantizer.methods.matrix import QuantizedMatrix, Settings, Statistics
from quantizer.methods.registry import needs, quantize_matrix
from quantizer.run import ledger
from quantizer.run.lease import lease_path, leased

BlockState = Literal["made", "kept", "busy"]


class BlockTask(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a worker on another machine has to know; paths are on a shared folder."""

    source: str
    out: str
    block: str  # block-00007, or `outside`
    settings: dict[str, Settings]  # by name of the linear layer
    code: str  # `code_version` of whoever gives the work
    fisher: str | None = None  # statistics file


class BlockResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a block."""

    block: str
    state: BlockState
    seconds: float


class LayerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One quantized layer as its shard's metadata describes it."""

    format: str
    shape: tuple[int, int]
    nbytes: int  # of all packed tensors, without the bias
    meta: dict[str, int | str]  # for kernels.layouts.tensors.from_tensors
    notes: dict[str, float | int | str]


def block_name(block: int) -> str:
    return f"block-{block:05d}"


def block_number(name: str) -> int | str:
    return OUTSIDE if name == OUTSIDE else int(name.removeprefix("block-"))


@cache
def code_version() -> str:
    """SHA-256 of the sources that make the bytes; workers of a cluster must agree on it."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for folder in (root / "quantizer", root / "kernels" / "layouts"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def run_block(task: BlockTask) -> BlockResult:
    """Quantize a block whose layers do not depend on other blocks, unless it is done or held.

    Raises: CheckpointError, IdentityError, OutputError; what a method raises.
    """
    begin = time.perf_counter()
    if task.code != code_version():
        raise IdentityError(
            f"{task.block}: this worker runs other sources than the run that asks it; install the "
            "same version on every machine"
        )
    out = Path(task.out)
    with leased(lease_path(out, task.block)) as mine:
        if not mine:
            return BlockResult(block=task.block, state="busy", seconds=0.0)
        ledger.sweep(out, task.block)
        ledger.sweep(out / ledger.FOLDER, task.block)
        checkpoint = open_checkpoint(Path(task.source))
        tensors = load_tensors(checkpoint, checkpoint.names_of(block_number(task.block)))
        fisher = fisher_of(task)
        identity = identity_of(task, tensors, hash_tensors(fisher) if fisher else "")
        state: BlockState = "kept"
        if ledger.state(out, identity) != "done":
            statistics = {name: Statistics(fisher=fisher[name]) for name in fisher}
            matrices = {
                name: quantize_matrix(
                    tensors[f"{name}.weight"], statistics.get(name, Statistics()), settings
                )
                for name, settings in task.settings.items()
            }
            commit_block(out, identity, tensors, matrices)
            state = "made"
    return BlockResult(block=task.block, state=state, seconds=time.perf_counter() - begin)


def identity_of(task: BlockTask, tensors: dict[str, Tensor], statistics: str) -> ledger.Identity:
    """The identity of this work; statistics is a hash, or what stands for one."""
    methods = sorted({settings.method for settings in task.settings.values()})
    return ledger.Identity(
        block=task.block,
        inputs=hash_tensors(tensors),
        method=",".join(methods),
        settings=msgspec.json.encode(task.settings, order="sorted").decode(),
        statistics=statistics,
        code=task.code,
    )


def commit_block(
    out: Path,
    identity: ledger.Identity,
    tensors: dict[str, Tensor],
    matrices: dict[str, QuantizedMatrix],
) -> None:
    """Packed layers and the rest of the block as one shard.

    Raises: OutputError.
    """
    packed = {name: tensor for name, tensor in tensors.items() if not _replaced(name, matrices)}
    layers = {}
    settings = msgspec.json.decode(identity.settings, type=dict[str, Settings])
    for name, matrix in matrices.items():
        parts, meta = to_tensors(matrix.weight, matrix.sparse)
        packed |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        layers[name] = LayerRecord(
            format=settings[name].format,
            shape=matrix.weight.shape,
            nbytes=sum(tensor.nbytes for tensor in parts.values()),
            meta=meta,
            notes=matrix.notes,
        )
    ledger.commit(out, identity, packed, msgspec.json.encode(layers, order="sorted").decode())


def layer_records(metadata: dict[str, str], shard: Path) -> dict[str, LayerRecord]:
    """The layers that a shard's metadata describes.

    Raises: CheckpointError.
    """
    try:
        return msgspec.json.decode(metadata[ledger.METADATA], type=dict[str, LayerRecord])
    except (KeyError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{shard}: describes no quantized layers: {error}") from None


def packed_bits(records: dict[str, LayerRecord]) -> float:
    """True bits per weight: bytes of the packed tensors over the weights of the linear layers."""
    weights = sum(record.shape[0] * record.shape[1] for record in records.values())
    return 8 * sum(record.nbytes for record in records.values()) / weights


def settings_by_block(
    checkpoint: Checkpoint, settings: dict[str, Settings]
) -> dict[str, dict[str, Settings]]:
    """Block name -> settings of its layers; what is outside the blocks is copied."""
    blocks: dict[str, dict[str, Settings]] = {OUTSIDE: {}}
    for block in range(checkpoint.blocks):
        names = checkpoint.linear_names(block)
        blocks[block_name(block)] = {name: settings[name] for name in names}
    return blocks


def needed(settings: dict[str, Settings]) -> frozenset[str]:
    """The statistics that any of the layers needs."""
    return frozenset().union(*(needs(one) for one in settings.values()))


def fisher_of(task: BlockTask) -> dict[str, Tensor]:
    """Fisher diagonals of the layers of a task that need them, by layer name.

    Raises: CheckpointError.
    """
    wanted = [name for name, settings in task.settings.items() if "fisher" in needs(settings)]
    if not wanted:
        return {}
    if task.fisher is None:
        raise CheckpointError(
            f"block {task.block} needs Fisher statistics, and has no file of them"
        )
    tensors = read_tensors(Path(task.fisher), [f"{name}.weight" for name in wanted])
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()) or bool((tensor < 0).any()):
            raise CheckpointError(f"{task.fisher}: {name} is not finite and non-negative")
    return {name.removesuffix(".weight"): tensor for name, tensor in tensors.items()}


def _replaced(name: str, matrices: dict[str, Any]) -> bool:
    return name.removesuffix(".weight") in matrices and name.endswith(".weight")
