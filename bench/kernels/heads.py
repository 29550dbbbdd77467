"""The first rows of a packed weight, as a weight: what a CPU checks against FP64 in little time."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from kernels.layouts import CsrWeight, DenseRows, LutWeight, UniformWeight


def head(weights: tuple[Any, ...], rows: int) -> tuple[Any, ...] | None:
    """Views of the first rows of every record; None where one of them does not lie row by row."""
    heads = tuple(_head(weight, rows) for weight in weights)
    return None if any(found is None for found in heads) else heads


def _head(weight: Any, rows: int) -> Any:
    if isinstance(weight, Tensor):
        return weight[:rows]
    if isinstance(weight, LutWeight):
        book = weight.codebook
        scale = None if book.scale is None else book.scale[:rows]
        short = replace(book, table=book.table[:rows], scale=scale)
        return replace(weight, codes=_codes(weight, rows), codebook=short)
    if isinstance(weight, UniformWeight):
        return replace(weight, codes=_codes(weight, rows), scale_zero=weight.scale_zero[:rows])
    return _sparse_head(weight, rows) if isinstance(weight, CsrWeight) else None


def _codes(weight: LutWeight | UniformWeight, rows: int) -> Any:
    return replace(weight.codes, words=weight.codes.words[:rows])


def _sparse_head(weight: CsrWeight, rows: int) -> CsrWeight:
    nonzeros = int(weight.row_pointers[rows])
    dense = weight.dense_rows
    if dense is not None:
        kept = dense.rows < rows
        dense = DenseRows(values=dense.values[kept], rows=dense.rows[kept])
    return CsrWeight(
        row_pointers=weight.row_pointers[: rows + 1],
        columns=weight.columns[:nonzeros],
        values=weight.values[:nonzeros],
        shape=(rows, weight.shape[1]),
        dense_rows=dense,
    )
