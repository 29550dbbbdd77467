"""A codebook and a sparse part that together give the chosen values back exactly."""

import torch
from torch import Tensor

from kernels.layouts import CsrWeight, pack_csr, pack_hybrid
from perfmodel.format_names import DENSEST_ROWS, NONZEROS_PER_START_ROW
from quantizer.methods.codebooks import Table


def widen_dense_rows(mask: Tensor) -> Tensor:
    """The mask with its densest rows set: a row stored in full costs the same however full."""
    rows = torch.topk(mask.sum(dim=1), min(DENSEST_ROWS, mask.shape[0])).indices
    wider = mask.clone()
    wider[rows] = True
    return wider


def split_off(weight: Tensor, mask: Tensor, table: Table) -> tuple[Tensor, Tensor, int]:
    """(N, K) uint8 codes, (nnz,) FP16 remainders of the masked values in row order, and misses.

    A masked value has the code nearest zero, and its remainder w - c is in the sparse part. Where
    c + FP16(w - c) does not round to the FP16 value of w, the code that comes nearest to it is
    taken instead: which code stands there is free. Values much smaller than every entry may still
    miss, by 2^-12 of the entry at most; how many do is the third result.
    """
    rows, columns = mask.nonzero(as_tuple=True)
    values = weight[rows, columns][:, None]  # (nnz, 1)
    tables = table.values[rows]  # (nnz, E)
    remainders = (values - tables).to(torch.float16)
    sums = tables + remainders.float()
    near_zero = tables.abs().argmin(dim=1, keepdim=True)
    exact = sums.to(torch.float16) == values.to(torch.float16)
    closest = (sums - values).abs().argmin(dim=1, keepdim=True)
    picked = torch.where(exact.gather(1, near_zero), near_zero, closest)
    misses = int((~exact.gather(1, picked)).sum())
    codes = table.codes.clone()
    codes[rows, columns] = picked[:, 0].to(torch.uint8)
    return codes, remainders.gather(1, picked)[:, 0].contiguous(), misses


def pack_sparse(mask: Tensor, remainders: Tensor, layout: str) -> CsrWeight:
    """Compressed sparse rows of the masked places: plain, with start rows, or with dense rows."""
    columns = mask.nonzero(as_tuple=True)[1]
    pointers = torch.nn.functional.pad(mask.sum(dim=1).cumsum(0), (1, 0))
    shape = (mask.shape[0], mask.shape[1])
    if layout == "hybrid":
        dense = min(DENSEST_ROWS, shape[0])
        return pack_hybrid(pointers, columns, remainders, shape=shape, dense=dense)
    chunk = NONZEROS_PER_START_ROW if layout == "balanced" else None
    return pack_csr(pointers, columns, remainders, shape=shape, chunk_nnz=chunk)
