"""Is a kernel right? Against FP64, in poisoned memory between canaries, and every time the same."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.kernels.heads import head
from bench.kernels.prepare import Prepared

HALF_LIMIT = 4e-3  # relative L2 error: FP16 products in chains of 16, and an FP16 result
FLOAT_LIMIT = 1e-4  # FP32 products and sums
CANARY = 64  # elements on either side of a result that must keep their value


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Relative L2 error, the most that is allowed, and what is wrong in words (nothing: "")."""

    error: float
    limit: float
    why: str

    @property
    def ok(self) -> bool:
        return not self.why


def check(prepared: Prepared, *, repeats: int = 1, rows: int | None = None) -> Checked:
    """Run a subject on random activations; `repeats` more calls must give the same bits.

    rows: hold only so many rows, the first ones, against FP64, where the layout allows it.
    """
    x, out, counters = prepared.inputs()
    buffer = torch.full((out.numel() + 2 * CANARY,), 7.0, dtype=out.dtype, device=out.device)
    out = buffer[CANARY:-CANARY].view(out.shape).fill_(torch.nan)
    first = prepared.run(x, prepared.weights, out, counters).clone()
    error, limit = _error(prepared, x, first, rows), limit_of(first)
    wrong = [] if error <= limit else ["error"]  # a NaN is wrong too
    changed = torch.zeros((), dtype=torch.bool, device=out.device)
    for _ in range(repeats):  # nothing waits for the device, which others may use meanwhile
        out.fill_(torch.nan)
        changed |= prepared.run(x, prepared.weights, out, counters).ne(first).any()
    if bool(changed):
        wrong.append("differs from run to run")
    if not bool((buffer[:CANARY] == 7).all() and (buffer[-CANARY:] == 7).all()):
        wrong.append("wrote outside its output")
    if bool(counters.any()):
        wrong.append("left its counters set")
    return Checked(error=error, limit=limit, why=", ".join(wrong))


def _error(prepared: Prepared, x: Tensor, found: Tensor, rows: int | None) -> float:
    shape = prepared.shape
    first = head(prepared.weights, rows) if rows and rows < shape[0] else None
    if first is None:
        return relative_error(found, prepared.reference(x))
    if not bool(found.isfinite().all()):
        return math.nan
    part = replace(prepared, weights=first, shape=(rows, shape[1]))
    return relative_error(found[..., :rows], part.reference(x))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference over that of what was expected."""
    return float((found.double() - expected).norm() / expected.norm())


def limit_of(found: Tensor) -> float:
    """The most error that a result of this type may have."""
    return FLOAT_LIMIT if found.dtype == torch.float32 else HALF_LIMIT
