"""FP16 GEMV: y = W x, our own baseline beside the vendor's; batch 1, FP32 sums."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_tensor, fail
from kernels.configs import programs_wanted
from kernels.device import four_rows, store_rows
from kernels.launch import output, row_groups, start, workspace

BLOCK = 512  # columns per warp and step: two 128-bit loads per lane and row


def fp16_gemv_ref(x: Tensor, weight: Tensor) -> Tensor:
    """y = W x in FP64, plain PyTorch, any device. x (K,), weight (N, K) -> (N,) float64."""
    return weight.double() @ x.double()


@triton.jit
def _add_columns(
    sums, x_ptr, weight_ptr, rows, column, K: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    inside = column < K
    if MASKED:
        x = tl.load(x_ptr + column, mask=inside, other=0.0).to(tl.float32)
    else:
        x = tl.load(x_ptr + column).to(tl.float32)
    out = ()
    for row in tl.static_range(4):
        where = weight_ptr + rows[row].to(tl.int64) * K + column
        if MASKED:
            weight = tl.load(where, mask=inside, other=0.0)
        else:
            weight = tl.load(where)
        out = out + (sums[row] + weight.to(tl.float32) * x,)  # noqa: RUF005
    return out


@triton.jit
def fp16_gemv_kernel(
    x_ptr, weight_ptr, y_ptr, partials_ptr, counters_ptr, N,
    K: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (row groups, parts)."""
    group, part = tl.program_id(0), tl.program_id(1)
    rows = four_rows(group, N)
    lanes = tl.arange(0, BLOCK)
    zero = tl.zeros((BLOCK,), tl.float32)
    sums = (zero, zero, zero, zero)
    PART: tl.constexpr = K // BLOCK // PARTS
    for step in range(PART):
        column = (part * PART + step) * BLOCK + lanes
        sums = _add_columns(sums, x_ptr, weight_ptr, rows, column, K, False)
    if K % BLOCK > 0:
        if part == PARTS - 1:
            column = K // BLOCK * BLOCK + lanes
            sums = _add_columns(sums, x_ptr, weight_ptr, rows, column, K, True)
    values = (tl.sum(sums[0], 0), tl.sum(sums[1], 0), tl.sum(sums[2], 0), tl.sum(sums[3], 0))
    store_rows(values, y_ptr, partials_ptr, counters_ptr, group, part, N, PARTS)


def fp16_gemv(
    x: Tensor,
    weight: Tensor,
    *,
    out: Tensor | None = None,
    parts: int | None = None,
    counters: Tensor | None = None,
) -> Tensor:
    """Triton twin of `fp16_gemv_ref`. x (K,), weight (N, K) float16 -> (N,) float16.

    parts divides K // 512; `counters` as in `lut_gemv`.

    Raises: LayoutError.
    """
    check_tensor("weight", weight, dtype=torch.float16, shape=(None, None))
    rows, columns = weight.shape
    check_tensor("x", x, dtype=torch.float16, shape=(columns,), device=weight.device)
    blocks, groups = columns // BLOCK, row_groups(rows)
    if parts is None:
        wanted = -(-programs_wanted(x.device) // groups)
        parts = max(part for part in range(1, wanted + 1) if blocks % part == 0)
    if parts != 1 and (parts < 1 or blocks == 0 or blocks % parts):
        raise fail("parts", parts, f"a divisor of the {blocks} full blocks of a row")
    y = output(out, rows, x)
    partials, counters = workspace(rows, parts, counters, x)
    args = (x, weight, y, partials, counters, rows)
    constants = {"K": columns, "PARTS": parts, "BLOCK": BLOCK, "num_warps": 1}
    start(fp16_gemv_kernel, (groups, parts), *args, **constants)
    return y
