"""Rows of several weights with the same inputs as one weight: fused q, k, v and gate, up.

Every layout here is row-major, so nothing is decoded: words, tables and scales are stacked.
"""

from collections.abc import Sequence

import torch

from kernels.layouts.codebook import Codebook, LutWeight
from kernels.layouts.codes import PackedCodes
from kernels.layouts.sparse import CsrWeight, DenseRows, start_rows_of
from kernels.layouts.uniform import UniformWeight
from kernels.layouts.weights import Weight


def concat_rows(
    weights: Sequence[Weight], sparse: Sequence[CsrWeight | None]
) -> tuple[Weight, CsrWeight | None] | None:
    """One weight of all rows in this order; None where one launch could not read it.

    That is so when formats or tiles differ, when only some have a sparse part, when act-order
    gives the weights different orders of their columns, and when tables serve blocks of rows.
    """
    first = weights[0]
    if not all(isinstance(weight, LutWeight | UniformWeight) for weight in weights):
        return None
    if len({_geometry(weight) for weight in weights}) > 1:
        return None
    if len({part is None or part.chunk_nnz for part in sparse}) > 1:
        return None
    codes = PackedCodes(
        words=torch.cat([weight.codes.words for weight in weights]),
        bits=first.codes.bits,
        columns=first.codes.columns,
        tile_codes=first.codes.tile_codes,
        order=first.codes.order,
    )
    parts = [part for part in sparse if part is not None]
    apart = _concat_sparse(parts) if parts else None
    if isinstance(first, LutWeight):
        return LutWeight(codes=codes, codebook=_concat_tables([w.codebook for w in weights])), apart
    if first.order is not None and not all(torch.equal(w.order, first.order) for w in weights):
        return None
    uniform = UniformWeight(
        codes=codes,
        scale_zero=torch.cat([weight.scale_zero for weight in weights]),
        group_size=first.group_size,
        act_order=first.act_order,
        order=first.order,
    )
    return uniform, apart


def _geometry(weight: LutWeight | UniformWeight) -> tuple[object, ...]:
    """What all rows of one launch share."""
    codes = weight.codes
    shared = (codes.bits, codes.columns, codes.tile_codes, codes.order, codes.words.device)
    if isinstance(weight, LutWeight):
        return (*shared, weight.codebook.kind)
    return (*shared, weight.group_size, weight.act_order)


def _concat_tables(books: Sequence[Codebook]) -> Codebook:
    scales = [book.scale for book in books]
    return Codebook(
        kind=books[0].kind,
        bits=books[0].bits,
        table=torch.cat([book.table for book in books]),
        scale=None if scales[0] is None else torch.cat(scales),
    )


def _concat_sparse(parts: Sequence[CsrWeight]) -> CsrWeight:
    nnz = rows = 0
    pointers, dense_numbers = [parts[0].row_pointers[:1]], []
    for part in parts:
        pointers.append(part.row_pointers[1:] + nnz)
        if part.dense_rows is not None:
            dense_numbers.append(part.dense_rows.rows + rows)
        nnz, rows = nnz + part.nnz, rows + part.shape[0]
    row_pointers, chunk_nnz = torch.cat(pointers), parts[0].chunk_nnz
    dense = [part.dense_rows.values for part in parts if part.dense_rows is not None]
    return CsrWeight(
        row_pointers=row_pointers,
        columns=torch.cat([part.columns for part in parts]),
        values=torch.cat([part.values for part in parts]),
        shape=(rows, parts[0].shape[1]),
        chunk_nnz=chunk_nnz,
        start_rows=start_rows_of(row_pointers, nnz, chunk_nnz) if chunk_nnz else None,
        dense_rows=DenseRows(values=torch.cat(dense), rows=torch.cat(dense_numbers))
        if dense
        else None,
    )
