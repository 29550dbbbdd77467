"""Which kernel multiplies M tokens with a weight: a plain rule, no search.

tokens   LUT of 2..4 bits, uniform per row    8-bit LUT, groups, act-order
1        GEMV, fused with the sparse part     GEMV (+ sparse SpMV)
2..16    GEMM, decoding once (+ sparse SpMM)  dequantize (+ sparse), matmul
more     dequantize (+ sparse), matmul        dequantize (+ sparse), matmul
"""

import torch
from torch import Tensor

from kernels.configs import gemm_tokens
from kernels.csr_spmv import csr_spmm, csr_spmv
from kernels.dequantize import dequantize
from kernels.layouts.codebook import LutWeight
from kernels.layouts.sparse import CsrWeight
from kernels.layouts.uniform import UniformWeight, dequantize_uniform
from kernels.lut_csr_fused import lut_csr_gemv
from kernels.lut_gemm import lut_gemm
from kernels.lut_gemv import lut_gemv
from kernels.uniform_gemv import uniform_gemv


def matmul_ref(
    x: Tensor, weight: LutWeight | UniformWeight, sparse: CsrWeight | None = None
) -> Tensor:
    """Y = X (W + S)^T in FP64, plain PyTorch. x (M, K) -> (M, N) float64."""
    from kernels.layouts.codebook import dequantize_lut
    from kernels.layouts.sparse import dequantize_csr

    dense = dequantize_lut(weight) if isinstance(weight, LutWeight) else dequantize_uniform(weight)
    if sparse is not None:
        dense = dense + dequantize_csr(sparse)
    return x.double() @ dense.double().T


def choose(weight: LutWeight | UniformWeight, tokens: int) -> str:
    """`gemv`, `gemm` or `dequantize`, from the table above."""
    if tokens == 1:
        return "gemv"
    return "gemm" if _has_gemm(weight) and tokens <= gemm_tokens(weight.device) else "dequantize"


def matmul(
    x: Tensor,
    weight: LutWeight | UniformWeight,
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
        y = lut_gemm(x, weight)
        return y if sparse is None else (y + csr_spmm(x, sparse)).to(x.dtype)
    if isinstance(weight, UniformWeight):
        if weight.act_order == "gather":
            return x @ dequantize_uniform(weight).to(x.dtype).T
        if weight.act_order == "fold":
            x = x.index_select(1, weight.order)
    return x @ dequantize(weight, sparse).T


def _gemv(
    x: Tensor, weight: LutWeight | UniformWeight, sparse: CsrWeight | None, path: str,
    counters: Tensor | None,
) -> Tensor:  # fmt: skip
    if isinstance(weight, UniformWeight):
        return uniform_gemv(x, weight, path=path, counters=counters)
    if sparse is None:
        return lut_gemv(x, weight, path=path, counters=counters)
    if weight.codes.bits < 8:
        return lut_csr_gemv(x, weight, sparse, path=path, counters=counters)
    rows = weight.shape[0]
    y = lut_gemv(x, weight, counters=counters, out=torch.empty(rows, device=x.device))
    return (y + csr_spmv(x, sparse, out=torch.empty_like(y))).to(x.dtype)


def _has_gemm(weight: LutWeight | UniformWeight) -> bool:
    if isinstance(weight, LutWeight):
        return weight.codes.bits < 8 and weight.codebook.kind != "int16"
    return weight.group_size >= weight.codes.columns and weight.act_order is None
