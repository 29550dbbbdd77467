"""Compile-time constants of the GEMV kernels: which assembly step, and how to undo its scaling.

Plain numbers and strings from (kind, bits, tile), so that launchers and the ahead-of-time report
compile the same kernel. Imports no triton.
"""

from kernels import ptx
from kernels.layouts.codes import codes_per_group, quad_parts, words_per_group
from kernels.layouts.vector import IN_REGISTERS, subrow_groups
from kernels.ptx_pairs import ENTRY_SCALE, INT8_CENTRE, U7_CENTRE, uniform_entry_scale

WARP = 32  # lanes; a tile is read by one warp
GEMM_REGISTERS = 255  # left alone, ptxas stops `lut_gemm_kernel` at 168 and spills
GEMM_TOKENS = {5: 8, 7: 8}  # per launch: 16 spill there; 16 at other widths
# Groups of codes per warp and step.
GROUPED_BLOCK = {2: 128, 3: 64, 4: 128, 5: 64, 6: 128, 7: 64, 8: 128}
# Groups of codes per lane and step of the vector kernels, by (dim, bits): at most 32 registers of
# activations.
VECTOR_PACK = {
    (1, 2): 4,
    (1, 3): 2,
    (1, 4): 4,
    (2, 4): 4,
    (2, 5): 1,
    (2, 6): 2,
    (2, 8): 4,
    (4, 8): 4,
}
BILEVEL_PACK = 2
SCALES = {"fp16": 0, "sym": 0, "int8": 1, "int16": 1, "u7": 2, "u7sum": 2, "uniform": 2}


def exact_constants(kind: str, bits: int, tile_codes: int) -> dict[str, object]:
    """Constants of `exact_rows` and `scale_rows`: FP16 products of the decoded entries."""
    pack = tile_codes // codes_per_group(bits) // WARP
    step = ptx.exact_step(kind, bits, pack)
    has_zero = SCALES[kind] == 2
    sum_text, sum_constraints = ptx.sum_step(step.inputs, pack) if has_zero else ("", "")
    return {
        **_operands(step),
        "SUM_TEXT": sum_text,
        "SUM_CONSTRAINTS": sum_constraints,
        **_decoded_scaling(kind, bits),
    }


def decode_constants(kind: str, bits: int) -> dict[str, object]:
    """Constants of the kernels that decode first and multiply later."""
    step = ptx.decode_step(kind, bits)
    return {
        "PAIRS": step.inputs,
        "TABLE": step.table,
        "TEXT": step.text,
        "CONSTRAINTS": step.constraints,
        **_decoded_scaling(kind, bits),
    }


def gather_constants(bits: int) -> dict[str, object]:
    """Constants of the kernels that look codes of 5 to 8 bits up in memory, one by one."""
    quads = quad_parts(bits)
    return {
        "BITS": bits,
        "WORDS": words_per_group(bits),
        "QUADS": len(quads),
        "SPLIT": len(quads[0]),
        "FIELDS": tuple(number for parts in quads for part in parts for number in part),
    }


def int_constants(kind: str, bits: int, tile_codes: int) -> dict[str, object]:
    """Constants of `int_rows` and `scale_rows`: integer products of entries as they are stored."""
    pack = tile_codes // codes_per_group(bits) // WARP
    step = ptx.int_step(kind, bits, pack)
    return {**_operands(step), **_scaling(kind, 1.0, -INT8_CENTRE if kind == "int8" else 0.0)}


def mma_constants(kind: str, bits: int, tokens: int) -> dict[str, object]:
    """Constants of `lut_gemm_kernel` for up to 8 or up to 16 tokens."""
    step = ptx.mma_step(kind, bits, 8 if tokens <= 8 else 16, has_zero=SCALES[kind] == 2)
    return {
        "TOKEN_BLOCKS": 1 if tokens <= 8 else 2,
        "WORDS": step.words,
        "PAIRS": step.inputs,
        "TABLE": step.table,
        "TEXT": step.text,
        "CONSTRAINTS": step.constraints,
        **_decoded_scaling(kind, bits),
    }


def grouped_constants(bits: int) -> dict[str, object]:
    """Constants of `grouped_gemv`, besides the geometry of the row."""
    block = GROUPED_BLOCK[bits]
    pack = block // WARP
    gain, centre = 1 / uniform_entry_scale(bits), float(2 ** (bits - 1))
    step = ptx.grouped_step(bits, pack, gain, centre)
    sum_text, sum_constraints = ptx.sum_step(step.inputs, pack)
    return {
        "BLOCK": block,
        "WORDS": step.words,
        "INPUTS": step.inputs,
        "TEXT": step.text,
        "CONSTRAINTS": step.constraints,
        "SUM_TEXT": sum_text,
        "SUM_CONSTRAINTS": sum_constraints,
    }


def vector_kind(dim: int, bits: int) -> str:
    """How a vector codebook is looked up: from registers, or by a gather per code."""
    return f"{'vector' if (dim, bits) in IN_REGISTERS else 'gathered'}{dim}"


def vector_constants(dim: int, bits: int, subrow: int | None = None) -> dict[str, object]:
    """Constants of `vector_gemv`, besides the geometry of rows and tables.

    The groups of a lane have one scale: sub-rows of fewer groups make it take fewer.
    """
    joined = 0 if subrow is None else subrow_groups(dim, bits, subrow)
    pack = min(VECTOR_PACK[dim, bits], joined or WARP)
    step = ptx.vector_step(vector_kind(dim, bits), bits, pack)
    codes = {"BITS": bits, "WORDS": words_per_group(bits), "QUADS": 0, "SPLIT": 0, "FIELDS": ()}
    return {
        "BLOCK": WARP * pack,
        "DIM": dim,
        **(codes if step.table else gather_constants(bits)),
        "INPUTS": step.inputs,
        "TABLE": step.table,
        "SUBROW": joined,
        "TEXT": step.text,
        "CONSTRAINTS": step.constraints,
        "GAIN": (0.5 if joined else 1) / ENTRY_SCALE,  # blockwise scales come doubled
    }


def bilevel_constants(bits: int) -> dict[str, object]:
    """Constants of `bilevel_gemv`, besides the geometry of rows."""
    step = ptx.bilevel_step(bits, BILEVEL_PACK)
    sum_text, sum_constraints = ptx.pair_sums_step(step.inputs // 2, BILEVEL_PACK)
    return {
        "BLOCK": WARP * BILEVEL_PACK,
        "WORDS": step.words,
        "TEXT": step.text,
        "CONSTRAINTS": step.constraints,
        "SUM_TEXT": sum_text,
        "SUM_CONSTRAINTS": sum_constraints,
        "GAIN": 1 / uniform_entry_scale(bits),
        "CENTRE": float(2 ** (bits - 1)),
    }


def _operands(step: ptx.Step) -> dict[str, object]:
    return {
        "WORDS": step.words,
        "INPUTS": step.inputs,
        "TABLE": step.table,
        "TEXT": step.text,
        "CONSTRAINTS": step.constraints,
    }


def _decoded_scaling(kind: str, bits: int) -> dict[str, object]:
    """What undoes the FP16 decoders: they yield (entry - CENTRE) / GAIN."""
    gain, centre = 1.0, 0.0
    if kind == "int8":
        gain = 1 / ENTRY_SCALE
    elif kind == "u7":
        gain, centre = 1 / ENTRY_SCALE, float(U7_CENTRE)
    elif kind == "uniform":
        gain, centre = 1 / uniform_entry_scale(bits), float(2 ** (bits - 1))
    return _scaling(kind, gain, centre)


def _scaling(kind: str, gain: float, centre: float) -> dict[str, object]:
    return {"SCALES": SCALES[kind], "GAIN": gain, "CENTRE": centre}
