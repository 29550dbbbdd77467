"""`torch.library` operators: what torch.compile, fake tensors and opcheck see.

`memwall::linear` takes a weight as flat tensors and plain values (`layouts.tensors`). Interpreted
kernels are opaque custom ops; on CUDA a `triton_op` lets Inductor see the kernels inside. Arrival
counters are zero before and after every call, so no argument counts as mutated.
"""

import torch
from torch import Tensor

from kernels.csr_spmv import csr_spmv
from kernels.dispatch import matmul
from kernels.fp16_gemv import fp16_gemv
from kernels.launch import INTERPRETED
from kernels.layouts.tensors import csr_from_tensors, from_tensors


def _operator(name: str, function: object) -> object:
    if INTERPRETED:
        return torch.library.custom_op(f"memwall::{name}", function, mutates_args=())
    return torch.library.triton_op(f"memwall::{name}", function, mutates_args=())


def _linear(
    x: Tensor,
    words: Tensor,
    table: Tensor | None,
    scale: Tensor | None,
    order: Tensor | None,
    levels: Tensor | None,
    counters: Tensor | None,
    kind: str,
    bits: int,
    columns: int,
    tile_codes: int,
    group_size: int,
    subrow: int,
    act_order: str,
    path: str,
) -> Tensor:
    """Y = X W^T; x (M, K) float16 -> (M, N) float16."""
    tensors = {"words": words, "table": table, "scale": scale, "order": order, "levels": levels}
    meta = {
        "kind": kind,
        "bits": bits,
        "columns": columns,
        "tile_codes": tile_codes,
        "group_size": group_size,
        "subrow": subrow,
        "act_order": act_order,
    }
    weight, _ = from_tensors(tensors, meta)
    return matmul(x, weight, path=path, counters=counters)


def _sparse_linear(
    x: Tensor,
    words: Tensor,
    table: Tensor,
    scale: Tensor | None,
    order: Tensor | None,
    row_pointers: Tensor,
    sparse_columns: Tensor,
    values: Tensor,
    dense_values: Tensor | None,
    dense_rows: Tensor | None,
    counters: Tensor | None,
    kind: str,
    bits: int,
    columns: int,
    tile_codes: int,
    path: str,
) -> Tensor:
    """Y = X (W + S)^T with a LUT or a bilevel weight; x (M, K) float16 -> (M, N) float16."""
    tensors = {
        "words": words,
        "table": table,
        "scale": scale,
        "order": order,
        "row_pointers": row_pointers,
        "columns": sparse_columns,
        "values": values,
        "dense_values": dense_values,
        "dense_rows": dense_rows,
    }
    meta = {"kind": kind, "bits": bits, "columns": columns, "tile_codes": tile_codes}
    weight, sparse = from_tensors(tensors, meta)
    return matmul(x, weight, sparse, path=path, counters=counters)


def _csr(
    x: Tensor,
    row_pointers: Tensor,
    columns: Tensor,
    values: Tensor,
    start_rows: Tensor | None,
    dense_values: Tensor | None,
    dense_rows: Tensor | None,
    chunk_nnz: int,
) -> Tensor:
    """y = S x; x (K,) float16 -> (N,) float16."""
    tensors = {
        "row_pointers": row_pointers,
        "columns": columns,
        "values": values,
        "start_rows": start_rows,
        "dense_values": dense_values,
        "dense_rows": dense_rows,
    }
    shape = (row_pointers.shape[0] - 1, x.shape[0])
    return csr_spmv(x, csr_from_tensors(tensors, shape, chunk_nnz))


def _fp16(x: Tensor, weight: Tensor) -> Tensor:
    """y = W x; x (K,), weight (N, K) float16 -> (N,) float16."""
    return fp16_gemv(x, weight)


linear = _operator("linear", _linear)
sparse_linear = _operator("sparse_linear", _sparse_linear)
csr = _operator("csr_spmv", _csr)
fp16 = _operator("fp16_gemv", _fp16)


@linear.register_fake
def _(x: Tensor, words: Tensor, *rest: object) -> Tensor:
    del rest
    return x.new_empty((x.shape[0], words.shape[0]))


@sparse_linear.register_fake
def _(x: Tensor, words: Tensor, *rest: object) -> Tensor:
    del rest
    return x.new_empty((x.shape[0], words.shape[0]))


@csr.register_fake
def _(x: Tensor, row_pointers: Tensor, *rest: object) -> Tensor:
    del rest
    return x.new_empty(row_pointers.shape[0] - 1)


@fp16.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(weight.shape[0])
