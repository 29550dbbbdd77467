"""Packed weights that the kernels read: frozen records, their packing and their unpacking.

Every record lists its stored bytes item by item in `nbytes_by_item`.
"""

from kernels.layouts.bilevel import BilevelWeight, pack_bilevel
from kernels.layouts.codebook import Codebook, LutWeight, pack_lut, table_values, to_fixed_point
from kernels.layouts.codes import (
    DEFAULT_TILE_CODES,
    PackedCodes,
    pack_codes,
    quad_slots,
    slot_fields,
    unpack_codes,
)
from kernels.layouts.sparse import CsrWeight, DenseRows, pack_csr, pack_hybrid
from kernels.layouts.uniform import UniformWeight, pack_uniform
from kernels.layouts.vector import VectorWeight, pack_vector
from kernels.layouts.weights import Weight, dequantized

__all__ = [
    "DEFAULT_TILE_CODES",
    "BilevelWeight",
    "Codebook",
    "CsrWeight",
    "DenseRows",
    "LutWeight",
    "PackedCodes",
    "UniformWeight",
    "VectorWeight",
    "Weight",
    "dequantized",
    "pack_bilevel",
    "pack_codes",
    "pack_csr",
    "pack_hybrid",
    "pack_lut",
    "pack_uniform",
    "pack_vector",
    "quad_slots",
    "slot_fields",
    "table_values",
    "to_fixed_point",
    "unpack_codes",
]
