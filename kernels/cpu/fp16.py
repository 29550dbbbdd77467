"""numba twin of the FP16 GEMV: FP16 weights widened in registers, FP32 sums."""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from kernels.checks import check_tensor
from kernels.cpu.simd import half_to_float


# The sum of a row may be taken in any order, so that it can be taken in vectors.
@njit(parallel=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def _fp16_gemv(weight, x, y):
    for n in prange(weight.shape[0]):
        total = np.float32(0)
        for k in range(x.shape[0]):
            total += half_to_float(weight[n, k]) * x[k]
        y[n] = total


def fp16_gemv(x: Tensor, weight: Tensor) -> Tensor:
    """y = W x. x (K,) FP16, weight (N, K) FP16 -> (N,) FP32, on the CPU.

    Raises: LayoutError.
    """
    check_tensor("weight", weight, dtype=torch.float16, shape=(None, None))
    rows, columns = weight.shape
    check_tensor("x", x, dtype=torch.float16, shape=(columns,), device=weight.device)
    y = torch.empty(rows, dtype=torch.float32)
    halves = weight.view(torch.int16).numpy().view(np.uint16)
    _fp16_gemv(halves, x.float().numpy(), y.numpy())
    return y
