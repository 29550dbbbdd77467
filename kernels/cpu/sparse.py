"""numba twin of the CSR GEMV: rows in shares of equal work, the densest rows as dense vectors."""

import numpy as np
import torch
from numba import get_num_threads, njit, prange
from torch import Tensor

from kernels.checks import check_tensor
from kernels.cpu.simd import half_to_float
from kernels.layouts.sparse import NARROW_COLUMNS, CsrWeight, check_csr

SHARES_PER_CORE = 4  # more shares than cores, so that a slow one does not hold up the rest


@njit(parallel=True, nogil=True)
def _csr_gemv(first_rows, row_pointers, columns, values, x, y):
    """y += CSR @ x; share s owns the rows from first_rows[s] to first_rows[s + 1]."""
    for share in prange(first_rows.shape[0] - 1):
        for n in range(first_rows[share], first_rows[share + 1]):
            total = np.float32(0)
            for k in range(row_pointers[n], row_pointers[n + 1]):
                total += half_to_float(values[k]) * x[columns[k]]
            y[n] += total


@njit(parallel=True, nogil=True)
def _dense_gemv(rows, values, x, y):
    for d in prange(rows.shape[0]):
        sums = np.zeros(8, np.float32)
        whole = x.shape[0] // 8 * 8
        for k in range(0, whole, 8):
            for lane in range(8):
                sums[lane] += half_to_float(values[d, k + lane]) * x[k + lane]
        for k in range(whole, x.shape[0]):
            sums[0] += half_to_float(values[d, k]) * x[k]
        y[rows[d]] += sums.sum()


def csr_gemv(x: Tensor, weight: CsrWeight, *, out: Tensor | None = None) -> Tensor:
    """y = S x, or out += S x. x (K,) FP16 -> (N,) FP32, on the CPU, dense rows included.

    Raises: LayoutError.
    """
    check_csr(weight)
    rows, width = weight.shape
    check_tensor("x", x, dtype=torch.float16, shape=(width,), device=weight.device)
    if out is None:
        out = torch.zeros(rows, dtype=torch.float32)
    check_tensor("out", out, dtype=torch.float32, shape=(rows,), device=x.device)
    y, wide = out.numpy(), x.float().numpy()
    columns = weight.columns.numpy()
    columns = columns.view(np.uint16) if width < NARROW_COLUMNS else columns
    pointers = weight.row_pointers.numpy()
    _csr_gemv(_first_rows(pointers), pointers, columns, _half_bits(weight.values), wide, y)
    if weight.dense_rows is not None:
        dense = weight.dense_rows
        _dense_gemv(dense.rows.numpy(), _half_bits(dense.values), wide, y)
    return out


def _half_bits(tensor: Tensor) -> np.ndarray:
    return tensor.view(torch.int16).numpy().view(np.uint16)


def _first_rows(row_pointers: np.ndarray) -> np.ndarray:
    """Rows at which shares of equal work begin; a row costs as much as one more nonzero."""
    shares = SHARES_PER_CORE * get_num_threads()
    work = row_pointers.astype(np.int64) + np.arange(len(row_pointers))
    goals = np.linspace(0, work[-1], shares + 1)
    first = np.searchsorted(work, goals)
    first[0], first[-1] = 0, len(row_pointers) - 1
    return first
