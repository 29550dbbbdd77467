"""Which kernel multiplies M tokens with a weight: a plain rule, no search.

tokens   LUT of 2..4 bits, uniform per row    LUT of 5..8 bits, groups, act-order
1        GEMV, fused with the sparse part     GEMV (+ sparse SpMV)
2..16    GEMM, decoding once (+ sparse SpMM)  dequantize (+ sparse), matmul
more     dequantize (+ sparse), matmul        dequantize (+ sparse), matmul

Vector codebooks and bilevel scales have a GEMV, fused with the sparse part; for more tokens torch
dequantizes them.
"""

import torch
from torch import Tensor

from kernels.bilevel_gemv import bilevel_gemv
from kernels.configs import gemm_tokens
from kernels.csr_spmv import csr_spmm, csr_spmv
from kernels.dequantize import dequantize
from kernels.layouts.bilevel import BilevelWeight
from kernels.layouts.codebook import REGISTER_BITS, LutWeight
from kernels.layouts.sparse import CsrWeight
from kernels.layouts.uniform import UniformWeight
from kernels.layouts.vector import VectorWeight
from kernels.layouts.weights import Weight, dequantized
from kernels.lut_csr_fused import lut_csr_gemv
from kernels.lut_gemm import ROWS, lut_gemm
from kernels.lut_gemv import lut_gemv
from kernels.uniform_gemv import uniform_gemv
from kernels.vector_gemv import vector_gemv


def matmul_ref(x: Tensor, weight: Weight, sparse: CsrWeight | None = None) -> Tensor:
    """Y = X (W + S)^T in FP64, plain PyTorch. x (M, K) -> (M, N) float64."""
    return x.double() @ dequantized(weight, sparse).double().T


def paths(weight: Weight) -> tuple[str, ...]:
    """The paths that the GEMV of a weight has; `int` of an FP16 table needs its fixed point."""
    if isinstance(weight, UniformWeight):
        has_int = weight.group_size >= weight.codes.columns and weight.act_order != "gather"
    else:
        has_int = isinstance(weight, LutWeight) and weight.codes.bits in REGISTER_BITS
        has_int = has_int and weight.codebook.kind != "sym"
    return ("exact", "int") if has_int else ("exact",)


def choose(weight: Weight, tokens: int) -> str:
    """`gemv`, `gemm` or `dequantize`, from the table above."""
    if tokens == 1:
        return "gemv"
    return "gemm" if _has_gemm(weight) and tokens <= gemm_tokens(weight.device) else "dequantize"


def matmul(
    x: Tensor,
    weight: Weight,
    sparse: CsrWeight | None = None,
    *,
    path: str = "exact",
    counters: Tensor | None = None,
) -> Tensor:
    """Y = X (W + S)^T. x (M, K) float16, M >= 1 -> (M, N) float16.

    path and counters are those of the GEMVs; several tokens always take the exact values.

    Raises: LayoutError.
    """
    chosen = choose(weight, x.shape[0])
    if chosen == "gemv":
        return _gemv(x[0], weight, sparse, path, counters)[None]
    if chosen == "gemm":
        blocks = -(-weight.shape[0] // ROWS)  # fewer than the GEMV's groups of four rows
        y = lut_gemm(x, weight, counters=None if counters is None else counters[:blocks])
        return y if sparse is None else (y + csr_spmm(x, sparse)).to(x.dtype)
    if isinstance(weight, VectorWeight | BilevelWeight):
        return x @ dequantized(weight, sparse).to(x.dtype).T
    if isinstance(weight, UniformWeight):
        if weight.act_order == "gather":
            return x @ dequantized(weight).to(x.dtype).T
        if weight.act_order == "fold":
            x = x.index_select(1, weight.order)
    return x @ dequantize(weight, sparse).T


def _gemv(
    x: Tensor, weight: Weight, sparse: CsrWeight | None, path: str, counters: Tensor | None
) -> Tensor:  # fmt: skip
    if isinstance(weight, VectorWeight):
        return vector_gemv(x, weight, counters=counters)
    if isinstance(weight, BilevelWeight):
        return bilevel_gemv(x, weight, sparse, counters=counters)
    if isinstance(weight, UniformWeight):
        return uniform_gemv(x, weight, path=path, counters=counters)
    if sparse is None:
        return lut_gemv(x, weight, path=path, counters=counters)
    if weight.codes.bits in REGISTER_BITS:
        return lut_csr_gemv(x, weight, sparse, path=path, counters=counters)
    y = torch.empty(weight.shape[0], device=x.device)
    lut_gemv(x, weight, path=path, counters=counters, out=y)
    return (y + csr_spmv(x, sparse, out=torch.empty_like(y))).to(x.dtype)


def _has_gemm(weight: Weight) -> bool:
    if isinstance(weight, LutWeight):
        return weight.codes.bits in REGISTER_BITS and weight.codebook.kind != "int16"
    if not isinstance(weight, UniformWeight):
        return False
    return weight.group_size >= weight.codes.columns and weight.act_order is None
