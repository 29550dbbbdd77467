"""How weights are stored: every byte of a quantized (N, K) matrix, item by item.

N = out features (rows, output channels), K = in features. Two accountings exist and are named:
*stored* counts the bytes of the real packed tensors, *paper* counts what the papers' tables count
(formats whose name ends in `@paper`).
"""

from fractions import Fraction
from typing import Literal

import msgspec

from perfmodel.units import bytes_of_bits, ceil_div

ITEMS = (
    "codes",
    "codebook",
    "scales",
    "order",
    "sparse_values",
    "sparse_indices",
    "row_pointers",
    "start_rows",
    "dense_rows",
)
SparseLayout = Literal["rows", "hybrid", "balanced"]
POINTER_BITS = 32
SHORT_INDEX_COLUMNS = 65_536  # columns below this fit in an unsigned 16-bit index


class Codebook(msgspec.Struct, frozen=True, kw_only=True):
    """Lookup table that a code points into; one per `rows` x `columns` weights."""

    entries: int
    entry_bits: int
    dim: int = 1  # weights per entry: vector quantization if above 1
    scale_bits: int = 0  # scale and zero of the table itself
    rows: int = 1
    columns: int | None = None  # None: the whole row

    def tables(self, n: int, k: int) -> int:
        return ceil_div(n, self.rows) * (1 if self.columns is None else ceil_div(k, self.columns))

    def bits(self, n: int, k: int) -> dict[str, int]:
        tables = self.tables(n, k)
        return {
            "codebook": tables * self.entries * self.dim * self.entry_bits,
            "scales": tables * self.scale_bits,
        }


class Scales(msgspec.Struct, frozen=True, kw_only=True):
    """Scale and zero per group of `group` weights of a row; SpQR adds statistics per block."""

    bits_per_group: int
    group: int | None = None  # None: one per row
    row_multiple: int = 1  # rows are padded to it, columns to `k_multiple`
    k_multiple: int = 1
    block_rows: int = 1
    bits_per_block: int = 0  # second level: per block_rows x group weights

    def bits(self, n: int, k: int) -> int:
        padded_k = ceil_div(k, self.k_multiple) * self.k_multiple
        groups = 1 if self.group is None else ceil_div(padded_k, self.group)
        rows = ceil_div(n, self.row_multiple) * self.row_multiple
        blocks = ceil_div(n, self.block_rows) * groups
        return rows * groups * self.bits_per_group + blocks * self.bits_per_block


class Sparse(msgspec.Struct, frozen=True, kw_only=True):
    """Values kept apart from the codes, as compressed sparse rows."""

    density: Fraction  # nonzeros / (N K)
    value_bits: int = 16
    index_bits: int | None = None  # None: 16 where K < 65536, else 32
    row_pointers: bool = True
    nonzeros_per_start_row: int | None = None  # balanced kernel: one start row per so many
    dense_rows: int = 0  # densest rows stored in full, with their numbers
    dense_value_bits: int = 16

    @property
    def layout(self) -> SparseLayout:
        """Which kernel reads it: a thread per row, the densest rows apart, or equal chunks."""
        if self.nonzeros_per_start_row:
            return "balanced"
        return "hybrid" if self.dense_rows else "rows"

    def nonzeros(self, n: int, k: int) -> int:
        return round(self.density * n * k)

    def bits(self, n: int, k: int) -> dict[str, int]:
        nonzeros = self.nonzeros(n, k)
        index_bits = self.index_bits or (16 if k < SHORT_INDEX_COLUMNS else 32)
        chunk = self.nonzeros_per_start_row
        return {
            "sparse_values": nonzeros * self.value_bits,
            "sparse_indices": nonzeros * index_bits,
            "row_pointers": (n + 1) * POINTER_BITS if self.row_pointers else 0,
            "start_rows": ceil_div(nonzeros, chunk) * POINTER_BITS if chunk else 0,
            "dense_rows": self.dense_rows * (k * self.dense_value_bits + POINTER_BITS),
        }


class WeightFormat(msgspec.Struct, frozen=True, kw_only=True):
    """Storage of one weight matrix; its name is what the command line takes."""

    name: str
    code_bits: Fraction  # per weight
    k_multiple: int = 1  # rows are padded to a multiple of this many codes
    codebook: Codebook | None = None
    scales: Scales | None = None
    order_bits: int = 0  # per column: activation order
    sparse: Sparse | None = None

    def itemised_bytes(self, n: int, k: int) -> dict[str, int]:
        """Bytes of an (n, k) matrix by item of `ITEMS`, zeros included."""
        padded_k = ceil_div(k, self.k_multiple) * self.k_multiple
        bits = dict.fromkeys(ITEMS, 0)
        bits["codes"] = ceil_div(
            self.code_bits.numerator * n * padded_k, self.code_bits.denominator
        )
        if self.codebook:
            bits |= self.codebook.bits(n, k)
        if self.scales:
            bits["scales"] += self.scales.bits(n, k)
        bits["order"] = self.order_bits * k
        if self.sparse:
            bits |= self.sparse.bits(n, k)
        return {item: bytes_of_bits(count) for item, count in bits.items()}

    def weight_bytes(self, n: int, k: int) -> int:
        """Bytes of an (n, k) matrix."""
        return sum(self.itemised_bytes(n, k).values())

    def bits_per_weight(self, n: int, k: int) -> float:
        """Bits of an (n, k) matrix over its n k weights."""
        return 8 * self.weight_bytes(n, k) / (n * k)


class BitPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Which format each tensor of a model has."""

    linear: WeightFormat  # the linear layers of the blocks
    lm_head: WeightFormat
    embedding: WeightFormat
    overrides: tuple[tuple[str, WeightFormat], ...] = ()  # by op name, e.g. ("down_proj", w4)

    def format_of(self, tensor: str) -> WeightFormat:
        """Format of a tensor named as its op: q_proj, ..., lm_head, embedding."""
        for name, weight_format in self.overrides:
            if name == tensor:
                return weight_format
        if tensor in ("lm_head", "embedding"):
            return self.lm_head if tensor == "lm_head" else self.embedding
        return self.linear
