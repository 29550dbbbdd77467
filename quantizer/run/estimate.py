"""What a job will take, before it starts: bytes and memory by formula, time by probe."""

import os
from pathlib import Path

import msgspec
import torch

from quantizer.checkpoints.checkpoint import OUTSIDE, Checkpoint
from quantizer.evaluation.calibration import Calibration
from quantizer.methods.matrix import Settings
from quantizer.run.probe import Seconds, files_s, methods_s, passes_s
from quantizer.run.work import needed

FLOAT_BYTES = 4
WORKING_COPIES = 6  # of a block's weights in float32 while it is quantized: a generous guess
ACTIVATION_COPIES = 24  # of the hidden states, for the backward pass of one block


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What to expect. Bytes of the output are exact but for the number of sparse values."""

    output_bytes: int
    peak_memory_bytes: int
    time_s: Seconds  # without the start of processes
    layers: int
    bits_per_weight: float


def estimate(
    checkpoint: Checkpoint,
    settings: dict[str, Settings],
    calibration: Calibration | None,
    *,
    workers: int = 1,
) -> Estimate:
    """What quantizing will take on this machine with so many workers."""
    shapes = {name: checkpoint.tensors[f"{name}.weight"].shape for name in settings}
    weights = sum(n * k for n, k in shapes.values())
    packed = sum(settings[name].weight_format.weight_bytes(*shapes[name]) for name in settings)
    kept = checkpoint.nbytes - sum(checkpoint.tensors[f"{name}.weight"].nbytes for name in settings)
    wanted = needed(settings)
    return Estimate(
        output_bytes=packed + kept,
        peak_memory_bytes=_peak_bytes(checkpoint, calibration, wanted, workers),
        time_s=_time_s(checkpoint, settings, calibration, workers),
        layers=len(settings),
        bits_per_weight=8 * packed / weights,
    )


def free_bytes(folder: Path) -> int:
    """Free space where `folder` is or will be."""
    import shutil

    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _peak_bytes(
    checkpoint: Checkpoint, calibration: Calibration | None, wanted: frozenset[str], workers: int
) -> int:
    def elements(names: list[str]) -> int:
        return sum(torch.Size(checkpoint.tensors[name].shape).numel() for name in names)

    blocks = [elements(checkpoint.names_of(block)) for block in range(checkpoint.blocks)]
    outside = elements(checkpoint.names_of(OUTSIDE))
    block_bytes = max(blocks) * FLOAT_BYTES * WORKING_COPIES
    if calibration is None or not wanted:
        return block_bytes * workers
    windows, tokens = calibration.ids.shape
    width = int(checkpoint.config["hidden_size"])
    states = windows * tokens * width * FLOAT_BYTES
    if "fisher" in wanted:
        model = (sum(blocks) * 2 + outside) * FLOAT_BYTES  # weights, and their diagonals
        logits = 3 * tokens * int(checkpoint.config["vocab_size"]) * FLOAT_BYTES
        pass_bytes = model + max(blocks) * FLOAT_BYTES + logits
        pass_bytes += tokens * width * FLOAT_BYTES * (ACTIVATION_COPIES + checkpoint.blocks)
        return max(pass_bytes, block_bytes * workers)
    widest = max(checkpoint.tensors[f"{n}.weight"].shape[1] for n in checkpoint.linear_names(0))
    hessians = len(checkpoint.family.linears) * widest**2 * FLOAT_BYTES
    return block_bytes + 2 * states + 2 * hessians + outside * FLOAT_BYTES


def _time_s(
    checkpoint: Checkpoint,
    settings: dict[str, Settings],
    calibration: Calibration | None,
    workers: int,
) -> Seconds:
    """Methods on the workers, which share the cores; everything else in one process."""
    in_order = bool(needed(settings) - {"fisher"})  # block after block, in the driver
    at_once = 1 if in_order else workers
    threads = max(1, (os.cpu_count() or 1) // at_once)
    reads = 2 + ("fisher" in needed(settings))
    return (
        methods_s(checkpoint, settings, threads).times(1 / at_once)
        + passes_s(checkpoint, calibration, settings)
        + files_s(checkpoint, reads * checkpoint.nbytes)
    )
