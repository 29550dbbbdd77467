"""Every shipped kernel configuration, from the constants that the launchers compile.

K is 28672, the largest of the LLaMA shapes, so that the inner loop is not unrolled away.
"""

from collections.abc import Mapping

from kernels.bilevel_gemv import ELEMENT
from kernels.case import KernelCase
from kernels.csr_spmv import ROW_BLOCK
from kernels.fp16_gemv import BLOCK as FP16_BLOCK
from kernels.launch import ROWS
from kernels.layouts.bilevel import BITS as BILEVEL_BITS
from kernels.layouts.codebook import REGISTER_BITS
from kernels.layouts.codes import BITS, DEFAULT_TILE_CODES, K_ALIGN, codes_per_group
from kernels.layouts.vector import FORMS, table_block
from kernels.lut_csr_fused import sparse_constants
from kernels.lut_gemm import ROWS as GEMM_ROWS
from kernels.lut_gemm import STEP as GEMM_STEP
from kernels.plan import (
    BILEVEL_PACK,
    GEMM_REGISTERS,
    GEMM_TOKENS,
    WARP,
    bilevel_constants,
    exact_constants,
    gather_constants,
    grouped_constants,
    int_constants,
    mma_constants,
    vector_constants,
)
from kernels.sparse_device import SPARSE_BLOCK

COLUMNS = 28672

_TYPES = {
    "x_ptr": "*fp16",  # the int32 view of it is words_ptr
    "words_ptr": "*i32",
    "planes_ptr": "*i32",
    "block_ptr": "*fp32",
    "codes_ptr": "*i32",
    "table_ptr": "*i32",
    "scale_ptr": "*fp16",
    "levels_ptr": "*i16",
    "pointers_ptr": "*i32",
    "columns_ptr": "*i16",
    "values_ptr": "*fp16",
    "dense_ptr": "*fp16",
    "dense_rows_ptr": "*i32",
    "y_ptr": "*fp16",
    "partials_ptr": "*fp32",
    "dense_partials_ptr": "*fp32",
    "counters_ptr": "*i32",
    "N": "i32",
}
_OUTPUT = ("y_ptr", "partials_ptr", "counters_ptr", "N")
_TABLE = ("codes_ptr", "table_ptr", "scale_ptr")
_CSR = ("pointers_ptr", "columns_ptr", "values_ptr", "dense_ptr", "dense_rows_ptr")
_CSR_OUTPUT = ("y_ptr", "partials_ptr", "dense_partials_ptr", "counters_ptr", "N")
_X = {"exact": ("words_ptr",), "int": ("planes_ptr", "block_ptr")}

# (kind, bits) -> PRMT per weight; the step has no others than its lookups and merges.
_EXACT_PRMT = {
    ("fp16", 2): 0.5,
    ("fp16", 3): 1.0,
    ("fp16", 4): 2.0,
    ("int8", 2): 0.5,
    ("int8", 3): 0.75,
    ("int8", 4): 1.25,
    ("u7", 4): 1.0,
    ("sym", 4): 1.0,
}
_INT_PRMT = {
    ("int8", 2): 0.25,
    ("int8", 3): 0.25,
    ("int8", 4): 0.75,
    ("u7", 4): 0.5,
    ("u7sum", 4): 0.5,
    ("int16", 2): 0.5,
    ("int16", 3): 0.5,
    ("int16", 4): 1.5,
}

# (dim, bits, columns of a blockwise scale): the widest and, of the main setting, the narrowest.
BLOCKWISE = ((1, 2, 64), (2, 4, 16), (2, 4, 64), (2, 4, 256), (4, 8, 64))

# Acceptance: what decoding alone has to allow, as a share of DRAM bandwidth.
_ALWAYS = {"a5000": 1.0, "a6000": 1.0}
_H200 = {
    ("exact", "fp16", 3): 0.9,
    ("exact", "fp16", 4): 0.6,
    ("exact", "u7", 4): 1.0,
    ("int", "u7", 4): 1.3,
    ("int", "u7sum", 4): 1.3,
    ("int", "int8", 3): 1.7,
}


def kernel_cases(arch: int) -> tuple[KernelCase, ...]:
    """The shipped configurations; tiles are part of the format, so every architecture has these."""
    del arch
    luts = [_lut("exact", kind, bits) for kind, bits in _EXACT_PRMT]
    luts += [_lut("int", kind, bits) for kind, bits in _INT_PRMT]
    fused = [
        _fused(path, kind, bits)
        for path, kind, bits in (
            ("exact", "fp16", 3),
            ("exact", "fp16", 4),
            ("exact", "u7", 4),
            ("int", "u7", 4),
            ("int", "int8", 3),
        )
    ]
    gemms = [
        _gemm(kind, bits, tokens)
        for kind, bits in (("fp16", 2), ("fp16", 3), ("fp16", 4), ("u7", 4))
        for tokens in (8, 16)
    ]
    gemms += [_gemm("uniform", bits, GEMM_TOKENS.get(bits, 16)) for bits in (5, 6, 7)]
    uniform = [_uniform(path, bits) for path in _X for bits in BITS]
    uniform += [_grouped(bits) for bits in BITS]
    vectors = [_vector(dim, bits) for dim, bits in FORMS]
    vectors += [_vector(dim, bits, subrow) for dim, bits, subrow in BLOCKWISE]
    vectors += [_bilevel(bits, sparse) for bits in BILEVEL_BITS for sparse in (False, True)]
    gathers = [_gather(bits) for bits in BITS if bits not in REGISTER_BITS]
    return (*luts, *gathers, *fused, *gemms, *uniform, *vectors, _fp16(), _csr_rows())


def _lut(path: str, kind: str, bits: int) -> KernelCase:
    signature = _types(*_X[path], *_TABLE, *_OUTPUT)
    return KernelCase(
        name=f"lut{bits}-{kind}-{path}",
        module="kernels.lut_gemv",
        function=f"{path}_gemv",
        signature=signature,
        divisible=_pointers(signature),
        constexprs=_constants(path, kind, bits),
        **_expectations(path, kind, bits),
    )


def _fused(path: str, kind: str, bits: int) -> KernelCase:
    signature = _types("x_ptr", *_X[path], *_TABLE, *_CSR, *_CSR_OUTPUT)
    return KernelCase(
        name=f"lut{bits}-{kind}-{path}-csr",
        module="kernels.lut_csr_fused",
        function=f"{path}_csr_gemv",
        signature=signature,
        divisible=_pointers(signature),
        constexprs={**_constants(path, kind, bits), **sparse_constants(COLUMNS, 10)},
        **_expectations(path, kind, bits),
    )


def _gather(bits: int) -> KernelCase:
    signature = {**_types("words_ptr", "codes_ptr", *_OUTPUT), "table_ptr": "*fp16"}
    return KernelCase(
        name=f"lut{bits}-fp16-exact",
        module="kernels.lut_gemv",
        function="gather_gemv",
        weight_bits=bits,
        weights_per_iteration=ROWS * DEFAULT_TILE_CODES[bits],
        signature=signature,
        constexprs={**_geometry(bits), **gather_constants(bits)},
        divisible=_pointers(signature),
        invariants={"FFMA": 1.0},
        least_share=_ALWAYS,
    )


def _gemm(kind: str, bits: int, tokens: int) -> KernelCase:
    uniform = kind == "uniform"
    kernel = f"uniform{bits}" if uniform else f"lut{bits}-{kind}"
    signature = _types("words_ptr", *_TABLE, *_OUTPUT)
    signature = {"x_ptr": signature.pop("words_ptr"), **signature, "M": "i32"}
    return KernelCase(
        name=f"{kernel}-gemm{tokens}",
        module="kernels.lut_gemm",
        function="lut_gemm_kernel",
        signature=signature,
        divisible=_pointers(signature),
        constexprs={**_geometry(bits), **mma_constants(kind, bits, tokens)},
        weight_bits=bits,
        weights_per_iteration=GEMM_ROWS * GEMM_STEP * codes_per_group(bits),
        invariants={"PRMT": 0.5 if uniform else _EXACT_PRMT[kind, bits]},
        least_share=_ALWAYS,
        maxnreg=GEMM_REGISTERS,
    )


def _fp16() -> KernelCase:
    signature = _types("x_ptr", *_OUTPUT) | {"weight_ptr": "*fp16"}
    return KernelCase(
        name="fp16",
        module="kernels.fp16_gemv",
        function="fp16_gemv_kernel",
        signature=signature,
        divisible=_pointers(signature),
        constexprs={"K": COLUMNS, "PARTS": 1, "BLOCK": FP16_BLOCK},
        weight_bits=16,
        weights_per_iteration=ROWS * FP16_BLOCK,
        invariants={"FFMA": 1.0},
        least_share=_ALWAYS,
    )


def _csr_rows() -> KernelCase:
    """One thread per row: a nonzero (2-byte column and value) per thread and trip."""
    signature = _types("x_ptr", *_CSR[:3], "y_ptr", "N")
    return KernelCase(
        name="csr-rows",
        module="kernels.csr_spmv",
        function="rows_spmv",
        signature=signature,
        divisible=_pointers(signature),
        constexprs={"ROW_BLOCK": ROW_BLOCK},
        weight_bits=32,
        weights_per_iteration=ROW_BLOCK,
        invariants={"FFMA": 1.0},
    )


def _uniform(path: str, bits: int) -> KernelCase:
    """One scale per row: the LUT kernels with a step that needs no table."""
    signature = _types(*_X[path], *_TABLE, *_OUTPUT)
    return KernelCase(
        name=f"uniform{bits}-{path}",
        module="kernels.lut_gemv",
        function=f"{path}_gemv",
        signature=signature,
        divisible=_pointers(signature),
        constexprs=_constants(path, "uniform", bits),
        weight_bits=bits,
        weights_per_iteration=ROWS * DEFAULT_TILE_CODES[bits],
        invariants=_uniform_invariants(path, bits),
        least_share=_ALWAYS,
    )


def _uniform_invariants(path: str, bits: int) -> dict[str, float]:
    """Two FMAs per pair, one decodes and one multiplies; wide codes take a PRMT per pair."""
    if path == "int":
        return {"IDP": 0.5}
    return {"PRMT": 0.5} if bits > 4 else {"HFMA2": 1.0}


def _grouped(bits: int) -> KernelCase:
    group_size = 128
    constants = grouped_constants(bits)
    block = constants["BLOCK"] * codes_per_group(bits)
    signature = _types("words_ptr", "codes_ptr", "y_ptr", "N") | {"scale_ptr": "*i32"}
    return KernelCase(
        name=f"uniform{bits}-g{group_size}-exact",
        module="kernels.uniform_gemv",
        function="grouped_gemv",
        signature=signature,
        divisible=_pointers(signature),
        constexprs={
            "TOTAL": COLUMNS // codes_per_group(bits),
            "T": group_size // codes_per_group(bits),
            "ROW_SCALES": COLUMNS // group_size,
            "TILES_PER_SCALE": 1,
            **constants,
        },
        weight_bits=bits,
        weights_per_iteration=ROWS * block,
        invariants=_uniform_invariants("exact", bits),
        least_share=_ALWAYS,
    )


def _vector(dim: int, bits: int, subrow: int | None = None) -> KernelCase:
    """Tables that cost 0.125 bits per weight and their scales, as in GPTVQ's main setting."""
    constants = vector_constants(dim, bits, subrow)
    entries, codes = 2**bits, codes_per_group(bits)
    block_rows, block_columns = table_block(entries * dim * 64)
    table_bits = (entries * dim * 8 + 16) / (block_rows * block_columns)
    table = "*i16" if dim == 2 and not constants["TABLE"] else "*i32"
    words = "*i64" if dim == 4 else "*i32"
    signature = _types("words_ptr", *_TABLE, "levels_ptr", *_OUTPUT)
    signature |= {"table_ptr": table, "words_ptr": words}
    if subrow is None:  # what stands in for the blockwise scales
        signature["levels_ptr"] = "*i32"
    return KernelCase(
        name=f"gptvq{dim}d-w{bits / dim:g}{'' if subrow is None else f'-n{subrow}'}",
        module="kernels.vector_gemv",
        function="vector_gemv_kernel",
        signature=signature,
        divisible=_pointers(signature),
        constexprs={
            "TOTAL": COLUMNS // dim // codes,
            "T": K_ALIGN // dim // codes,
            "PARTS": 1,
            "ROW_SUBROWS": 0 if subrow is None else COLUMNS // subrow,
            "TABLE_ROWS": block_rows,
            "ROW_TABLES": COLUMNS // block_columns,
            "TILES_PER_TABLE": block_columns // K_ALIGN,
            **constants,
        },
        weight_bits=bits / dim + table_bits + (4 / subrow if subrow else 0),
        weights_per_iteration=ROWS * int(str(constants["BLOCK"])) * codes * dim,
        invariants={"HFMA2": 0.97 if subrow == 16 else 1.0},  # chains of 8 begin with an HMUL2
        least_share={"a6000": 1.0},
    )


def _bilevel(bits: int, sparse: bool) -> KernelCase:
    signature = _types("x_ptr", "words_ptr", "codes_ptr", *_CSR[:3], *_OUTPUT)
    signature |= {"first_ptr": "*i16", "second_ptr": "*i32"}
    if not sparse:  # what stands in for the sparse part
        signature |= {"pointers_ptr": "*i32", "columns_ptr": "*i32", "values_ptr": "*fp16"}
    constants = bilevel_constants(bits)
    return KernelCase(
        name=f"spqr{bits}{'-csr' if sparse else ''}",
        module="kernels.bilevel_gemv",
        function="bilevel_gemv_kernel",
        signature=signature,
        divisible=_pointers(signature),
        constexprs={
            "TOTAL": COLUMNS // ELEMENT,
            "TILE": K_ALIGN // ELEMENT,
            "PARTS": 1,
            "SPARSE": sparse,
            "SPARSE_BLOCK": SPARSE_BLOCK,
            **constants,
        },
        weight_bits=bits + 10 / 16,  # 6 per row and group, 64 per block of 16 rows
        weights_per_iteration=ROWS * WARP * BILEVEL_PACK * ELEMENT,
        invariants={"HFMA2": 0.98},  # some of the products are HMUL2 on some targets
        least_share=_ALWAYS,
    )


def _expectations(path: str, kind: str, bits: int) -> Mapping[str, object]:
    prmt = (_EXACT_PRMT if path == "exact" else _INT_PRMT)[kind, bits]
    h200 = _H200.get((path, kind, bits))
    return {
        "weight_bits": bits,
        "weights_per_iteration": ROWS * DEFAULT_TILE_CODES[bits],
        "invariants": {"PRMT": prmt},
        "least_share": {**_ALWAYS, **({"h200": h200} if h200 else {})},
    }


def _constants(path: str, kind: str, bits: int) -> dict[str, object]:
    constants = exact_constants if path == "exact" else int_constants
    return {**_geometry(bits), **constants(kind, bits, DEFAULT_TILE_CODES[bits])}


def _geometry(bits: int) -> dict[str, int]:
    tile, group = DEFAULT_TILE_CODES[bits], codes_per_group(bits)
    return {
        "FULL": COLUMNS // tile,
        "TAIL": COLUMNS % tile // group,
        "PARTS": 1,
        "T": tile // group,
    }


def _types(*names: str) -> dict[str, str]:
    return {name: _TYPES[name] for name in names}


def _pointers(signature: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for name, kind in signature.items() if kind.startswith("*"))
