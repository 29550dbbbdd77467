"""What every launcher does: pick the grid, pad the activations, start a kernel on this stream."""

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from kernels.checks import check_tensor, fail
from kernels.configs import programs_wanted
from kernels.layouts.codes import PackedCodes

# Triton decides when a kernel is decorated, so the variable is read once, as the kernels are.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
ROWS = 4  # rows of the weight per program


def start(kernel: object, grid: tuple[int, ...], *args: object, **constants: object) -> None:
    """Launch on the current stream, visible to torch.compile when it traces a `triton_op`."""
    if INTERPRETED:
        kernel[grid](*args, **constants)
        return
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    if device.type != "cuda":
        raise fail("device of x", device, "cuda, or TRITON_INTERPRET=1 before the import")
    with torch.cuda.device(device):
        torch.library.wrap_triton(kernel)[grid](*args, **constants)


def row_groups(rows: int) -> int:
    return -(-rows // ROWS)


def split_parts(codes: PackedCodes, groups: int, device: torch.device) -> int:
    """Parts of K so that the grid fills the device: a divisor of the full tiles of a row."""
    wanted = -(-programs_wanted(device) // groups)
    return max(part for part in range(1, wanted + 1) if codes.full_tiles % part == 0)


def check_parts(parts: int, codes: PackedCodes) -> None:
    """Raises: LayoutError unless `parts` divides the full tiles of a row (or is 1)."""
    if parts != 1 and (parts < 1 or codes.full_tiles == 0 or codes.full_tiles % parts):
        raise fail("parts", parts, f"a divisor of the {codes.full_tiles} full tiles of a row")


def new_counters(rows: int, device: torch.device) -> Tensor:
    """Arrival counters of a split launch: zero before and after every launch.

    Launches that may run at the same time need counters of their own.
    """
    return torch.zeros(row_groups(rows), dtype=torch.int32, device=device)


def workspace(
    rows: int, parts: int, counters: Tensor | None, unused: Tensor, *, shared: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Partial sums and counters; `unused` stands in for both when no output is shared."""
    shared = parts > 1 if shared is None else shared
    if not shared:
        return unused, unused
    partials = torch.empty(row_groups(rows) * ROWS * parts, device=unused.device)
    if counters is None:
        return partials, new_counters(rows, unused.device)
    shape = (row_groups(rows),)
    check_tensor("counters", counters, dtype=torch.int32, shape=shape, device=unused.device)
    return partials, counters


def output(out: Tensor | None, rows: int, x: Tensor) -> Tensor:
    """`out` after a check, or a new (N,) tensor of the activations' dtype."""
    if out is None:
        return torch.empty(rows, dtype=x.dtype, device=x.device)
    dtypes = (torch.float16, torch.float32)
    check_tensor("out", out, dtype=dtypes, shape=(rows,), device=x.device)
    return out


def activation_words(x: Tensor, codes: PackedCodes) -> Tensor:
    """Pairs of FP16 activations as int32, padded with zeros where K is no multiple of 128."""
    missing = codes.padded_columns - codes.columns
    if missing:
        x = torch.nn.functional.pad(x, (0, missing))
    return x.view(torch.int32)


def tiling(codes: PackedCodes, parts: int) -> Mapping[str, int]:
    """The compile-time geometry of a row."""
    return {
        "FULL": codes.full_tiles,
        "TAIL": codes.tail_groups,
        "PARTS": parts,
        "T": codes.tile_groups,
    }
