"""Sparse part of a weight: CSR with 2-byte columns, and the densest rows kept as dense vectors.

A nonzero is a u16 column (int32 where K >= 65536) and an FP16 value: 4 bytes instead of the 8 of a
plain CSR. `start_rows` gives the row of every `chunk_nnz`-th nonzero, so that programs can share
nonzeros evenly however skewed the rows are. u16 columns are stored as int16 bit patterns, which
every torch operation knows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.checks import LayoutError, check_choice, check_range, check_tensor, fail

NARROW_COLUMNS = 65536  # columns below this fit u16
CHUNK_SIZES = (32, 64, 128, 256, 512, 1024)  # a program holds its nonzeros in registers
DENSE_ROWS = 10  # SqueezeLLM keeps the ten densest rows apart (arXiv 2306.07629, section 4.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseRows:
    """Rows of the sparse part stored with all K values."""

    values: Tensor  # (D, K) float16
    rows: Tensor  # (D,) int32, ascending

    def nbytes_by_item(self) -> dict[str, int]:
        return {"dense_rows": self.values.nbytes + self.rows.nbytes}


@dataclass(frozen=True, slots=True, kw_only=True)
class CsrWeight:
    """A sparse (N, K) matrix; with `dense_rows`, those rows are empty in the CSR part."""

    row_pointers: Tensor  # (N + 1,) int32
    columns: Tensor  # (nnz,) int16 holding u16, or int32
    values: Tensor  # (nnz,) float16
    shape: tuple[int, int]
    chunk_nnz: int | None = None
    start_rows: Tensor | None = None  # (chunks,) int32: row of nonzero c * chunk_nnz
    dense_rows: DenseRows | None = None

    @property
    def nnz(self) -> int:
        return self.values.numel()

    @property
    def device(self) -> torch.device:
        return self.values.device

    def nbytes_by_item(self) -> dict[str, int]:
        start = {} if self.start_rows is None else {"start_rows": self.start_rows.nbytes}
        dense = {} if self.dense_rows is None else self.dense_rows.nbytes_by_item()
        return {
            "sparse_values": self.values.nbytes,
            "sparse_indices": self.columns.nbytes,
            "row_pointers": self.row_pointers.nbytes,
            **start,
            **dense,
        }


def pack_csr(
    row_pointers: Tensor,
    columns: Tensor,
    values: Tensor,
    *,
    shape: tuple[int, int],
    chunk_nnz: int | None = None,
) -> CsrWeight:
    """Pack integer row pointers (N + 1,) and columns (nnz,), ascending in each row, FP16 values.

    Raises: LayoutError on shapes, dtypes, devices, columns outside 0..K-1 or unsorted pointers.
    """
    integers = (torch.int32, torch.int64)
    rows, width = shape
    device = getattr(values, "device", None)
    check_tensor("values", values, dtype=torch.float16, shape=(None,))
    nnz = values.numel()
    check_tensor("columns", columns, dtype=integers, shape=(nnz,), device=device)
    check_tensor("row_pointers", row_pointers, dtype=integers, shape=(rows + 1,), device=device)
    check_range("columns", columns, 0, width)
    ends = int(row_pointers[0]), int(row_pointers[-1])
    if ends != (0, nnz):
        raise fail("first and last of row_pointers", ends, (0, nnz))
    if bool((row_pointers.diff() < 0).any()):
        raise LayoutError("row_pointers is descending somewhere, expected ascending")
    _check_ascending(row_pointers, columns, width)
    start_rows = None
    if chunk_nnz is not None:
        start_rows = start_rows_of(row_pointers, nnz, chunk_nnz)
    narrow = width < NARROW_COLUMNS
    return CsrWeight(
        row_pointers=row_pointers.to(torch.int32),
        columns=_to_u16(columns) if narrow else columns.to(torch.int32),
        values=values,
        shape=shape,
        chunk_nnz=chunk_nnz,
        start_rows=start_rows,
    )


def pack_hybrid(
    row_pointers: Tensor,
    columns: Tensor,
    values: Tensor,
    *,
    shape: tuple[int, int],
    dense: int = DENSE_ROWS,
) -> CsrWeight:
    """Like `pack_csr`, with the `dense` rows of most nonzeros stored as dense vectors.

    Raises: LayoutError as `pack_csr`, and unless 1 <= dense <= N.
    """
    whole = pack_csr(row_pointers, columns, values, shape=shape)
    if not 1 <= dense <= shape[0]:
        raise fail("dense", dense, f"1..{shape[0]}")
    counts = whole.row_pointers.diff()
    rows = torch.topk(counts, dense).indices.sort().values
    row_of = torch.repeat_interleave(torch.arange(shape[0], device=counts.device), counts)
    vectors = torch.zeros((dense, shape[1]), dtype=torch.float16, device=values.device)
    slot = torch.full((shape[0],), -1, device=values.device)
    slot[rows] = torch.arange(dense, device=values.device)
    apart = slot[row_of] >= 0
    vectors[slot[row_of[apart]], columns[apart].long()] = values[apart]
    counts[rows] = 0
    rest = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    packed = pack_csr(rest, columns[~apart], values[~apart], shape=shape)
    return CsrWeight(
        row_pointers=packed.row_pointers,
        columns=packed.columns,
        values=packed.values,
        shape=shape,
        dense_rows=DenseRows(values=vectors, rows=rows.to(torch.int32)),
    )


def csr_from_dense(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row pointers, columns and FP16 values of the nonzeros of an (N, K) matrix."""
    rows, columns = matrix.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=matrix.shape[0])
    pointers = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return pointers, columns, matrix[rows, columns].to(torch.float16)


def dequantize_csr(weight: CsrWeight) -> Tensor:
    """The (N, K) FP32 matrix, dense rows included: plain PyTorch, any device, no sync."""
    out = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    counts = weight.row_pointers.diff()
    rows = torch.arange(weight.shape[0], device=weight.device)
    row_of = torch.repeat_interleave(rows, counts, output_size=weight.nnz)
    out.index_put_((row_of, wide_columns(weight)), weight.values.float(), accumulate=True)
    if weight.dense_rows is not None:
        out[weight.dense_rows.rows.long()] += weight.dense_rows.values.float()
    return out


def wide_columns(weight: CsrWeight) -> Tensor:
    """(nnz,) int64 columns."""
    columns = weight.columns.long()
    return columns & 0xFFFF if weight.columns.dtype == torch.int16 else columns


def check_csr(weight: CsrWeight) -> None:
    """Check a record built by hand or loaded; shapes and dtypes, not the values.

    Raises: LayoutError.
    """
    rows, width = weight.shape
    nnz, device = weight.nnz, weight.device
    column_dtype = torch.int16 if width < NARROW_COLUMNS else torch.int32
    check_tensor("values", weight.values, dtype=torch.float16, shape=(None,))
    check_tensor("columns", weight.columns, dtype=column_dtype, shape=(nnz,), device=device)
    pointers = weight.row_pointers
    check_tensor("row_pointers", pointers, dtype=torch.int32, shape=(rows + 1,), device=device)
    if weight.start_rows is not None:
        shape = (chunk_count(nnz, weight.chunk_nnz),)
        check_tensor("start_rows", weight.start_rows, dtype=torch.int32, shape=shape, device=device)
    if weight.dense_rows is not None:
        dense = weight.dense_rows
        shape = (dense.rows.numel(), width)
        check_tensor("dense values", dense.values, dtype=torch.float16, shape=shape, device=device)
        check_tensor("dense rows", dense.rows, dtype=torch.int32, shape=shape[:1], device=device)


def chunk_count(nnz: int, chunk_nnz: int) -> int:
    """Chunks of `chunk_nnz` nonzeros; an empty matrix still has one, which writes the zeros."""
    return max(1, -(-nnz // chunk_nnz))


def _check_ascending(row_pointers: Tensor, columns: Tensor, width: int) -> None:
    counts = row_pointers.diff().long()
    rows = torch.repeat_interleave(torch.arange(counts.numel(), device=columns.device), counts)
    if bool(((rows * width + columns).diff() <= 0).any()):
        raise LayoutError("columns is not ascending within a row, expected each column once")


def start_rows_of(row_pointers: Tensor, nnz: int, chunk_nnz: int) -> Tensor:
    check_choice("chunk_nnz", chunk_nnz, CHUNK_SIZES)
    first = torch.arange(chunk_count(nnz, chunk_nnz), device=row_pointers.device) * chunk_nnz
    rows = torch.searchsorted(row_pointers.contiguous(), first.to(row_pointers.dtype), right=True)
    rows = rows - 1
    rows[0] = 0  # the first chunk also writes the empty rows before the first nonzero
    return rows.to(torch.int32)


def _to_u16(columns: Tensor) -> Tensor:
    wide = columns.to(torch.int32)
    return torch.where(wide >= 32768, wide - 65536, wide).to(torch.int16)
