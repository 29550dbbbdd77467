"""Inline-assembly steps: decode `pack` groups of one row, multiply, add to an FP32 accumulator.

Triton numbers the operands of inline assembly outputs first, `pack` registers per tensor, so one
invocation sees `pack` consecutive groups of a lane. All of them add to one accumulator, which lives
in element 0; the other elements stay zero and cost nothing once compiled.

A *group* is one 32-bit word of codes or several (`layouts.codes`, as the order of slots); a *pair*
is two FP16 values in one register (half2); a *quad* is four bytes in one register.
"""

import struct
from dataclasses import dataclass
from functools import cache

from kernels.layouts.codes import codes_per_group, words_per_group
from kernels.ptx_pairs import decode_pairs
from kernels.ptx_quads import quad_products

CHAIN = 16  # half2 products added in FP16 before their sum is promoted to FP32

# Pairs of columns per code of a vector codebook.
VECTOR_PAIRS = {"vector1": 0.5, "vector2": 1, "gathered2": 1, "gathered4": 2}

# Adds tid.x >> 24, which is always zero: the compiler can no longer prove that the address of the
# table is the same in all lanes, and keeps the table in vector registers. PRMT takes at most one
# uniform register, so a table in uniform registers costs one more move per decoded weight.
HIDE_UNIFORMITY = "{ .reg .b32 t; mov.u32 t, %tid.x; shr.u32 t, t, 24; add.u32 $0, $1, t; }"

_SCRATCH = (
    ".reg .b32 s, m, e, f, p, q, t, u, v, g, L, H, h, a, ah, am, al, one",
    ".reg .b16 h0, h1",
    ".reg .f32 f0, f1, sum",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One inline-assembly step and the operands its kernel has to supply."""

    text: str
    constraints: str
    words: int  # registers of codes per group
    inputs: int  # activation registers per group: pairs, or the quads of both planes
    table: int  # registers of the row's table


def table_words(kind: str, bits: int) -> int:
    """32-bit registers that hold one row's table."""
    entry_bytes = {"fp16": 2, "int16": 2, "int8": 1, "u7": 1, "u7sum": 1, "sym": 1, "uniform": 0}
    return (entry_bytes[kind] << bits) // 4


@cache
def exact_step(kind: str, bits: int, pack: int) -> Step:
    """acc += sum of decoded value * activation, products in FP16 chains of at most `CHAIN`.

    Operands: words, activation pairs, table, acc -> acc.
    """
    words, pairs, table = words_per_group(bits), codes_per_group(bits) // 2, table_words(kind, bits)
    names, constraints = _operands(pack, "f", "r" * (words + pairs + table) + "f")
    out, codes, x, entries, acc = _split(names, 1, words, pairs, table, 1)
    lines = [f"mov.f32 sum, {acc[0][0]}"]
    for lane in range(pack):
        lines += _products(
            decode_pairs(kind, bits, _lane(codes, lane), _lane(entries, 0)), _lane(x, lane),
            first=lane * pairs, last=pack * pairs - 1,
        )  # fmt: skip
    return Step(
        text=_text(lines, out[0], acc[0]),
        constraints=constraints,
        words=words,
        inputs=pairs,
        table=table,
    )


@cache
def grouped_step(bits: int, pack: int, gain: float, centre: float) -> Step:
    """acc += scale * (gain * sum of entry * activation + (centre - zero) * sum of activations).

    Operands: words, activation pairs, (scale, zero) as half2, sum of activations, acc -> acc.
    """
    words, pairs = words_per_group(bits), codes_per_group(bits) // 2
    names, constraints = _operands(pack, "f", "r" * (words + pairs + 1) + "ff")
    out, codes, x, scale_zero, total, acc = _split(names, 1, words, pairs, 1, 1, 1)
    lines = ["mov.f32 sum, 0f00000000"]
    for lane in range(pack):
        lines += _products(
            decode_pairs("uniform", bits, _lane(codes, lane), []), _lane(x, lane),
            first=lane * pairs, last=pack * pairs - 1,
        )  # fmt: skip
    lines += [
        f"mov.b32 {{h0, h1}}, {scale_zero[0][0]}",
        "cvt.f32.f16 f0, h0",
        "cvt.f32.f16 f1, h1",
        f"sub.f32 f1, {_float(centre)}, f1",
        f"mul.f32 f1, f1, {total[0][0]}",
        f"fma.rn.f32 f1, sum, {_float(gain)}, f1",
        f"fma.rn.f32 sum, f0, f1, {acc[0][0]}",
    ]
    return Step(
        text=_text(lines, out[0], acc[0]),
        constraints=constraints,
        words=words,
        inputs=pairs,
        table=0,
    )


@cache
def vector_step(kind: str, bits: int, pack: int) -> Step:
    """acc += scale * sum of entry * activation; the kinds of `VECTOR_PAIRS`.

    Operands: words, activation pairs, table, scale, acc -> acc. For the gathered kinds `words` are
    the entries themselves, one per code.
    """
    codes, gathered = codes_per_group(bits), kind.startswith("gathered")
    words = codes if gathered else words_per_group(bits)
    pairs = int(codes * VECTOR_PAIRS[kind])
    table = 0 if gathered else (1 << bits) * int(2 * VECTOR_PAIRS[kind]) // 4
    names, constraints = _operands(pack, "f", "r" * (words + pairs + table) + "ff")
    out, own, x, entries, scale, acc = _split(names, 1, words, pairs, table, 1, 1)
    lines = ["mov.f32 sum, 0f00000000"]
    for lane in range(pack):
        lines += _products(
            decode_pairs(kind, bits, _lane(own, lane), _lane(entries, 0)), _lane(x, lane),
            first=lane * pairs, last=pack * pairs - 1,
        )  # fmt: skip
    lines.append(f"fma.rn.f32 sum, sum, {scale[0][0]}, {acc[0][0]}")
    return Step(
        text=_text(lines, out[0], acc[0]),
        constraints=constraints,
        words=words,
        inputs=pairs,
        table=table,
    )


@cache
def bilevel_step(bits: int, pack: int) -> Step:
    """acc += scale0 * (first half of 32 codes) + scale1 * (second half), per lane.

    Operands: `bits` words, 16 activation pairs, scale0, scale1, acc -> acc. Of every word the first
    half of its pairs is in the first half; 3-bit codes are one group of three words.
    """
    names, constraints = _operands(pack, "f", "r" * (bits + 16) + "fff")
    out, own, x, scale0, scale1, acc = _split(names, 1, bits, 16, 1, 1, 1)
    lines = [".reg .f32 total", f"mov.f32 total, {acc[0][0]}"]
    for lane in range(pack):
        codes, pairs = _lane(own, lane), _lane(x, lane)
        if bits == 3:
            decoded = decode_pairs("uniform", 3, codes, [])
            halves = [(decoded[:8], pairs[:8]), (decoded[8:], pairs[8:])]
        else:
            by_word = [decode_pairs("uniform", bits, [word], []) for word in codes]
            half = 8 // bits  # pairs of a word
            halves = [
                (
                    [pair for word in by_word for pair in word[h * half : (h + 1) * half]],
                    [
                        pairs[k * bits + p]
                        for p in range(bits)
                        for k in range(h * half, (h + 1) * half)
                    ],
                )
                for h in (0, 1)
            ]
        for scale, (decode, activations) in zip((scale0, scale1), halves, strict=True):
            lines += ["mov.f32 sum, 0f00000000", *_products(decode, activations, first=0, last=7)]
            lines.append(f"fma.rn.f32 total, sum, {scale[0][lane]}, total")
    lines.append("mov.f32 sum, total")
    text = _text(lines, out[0], acc[0])
    return Step(text=text, constraints=constraints, words=bits, inputs=16, table=0)


@cache
def pair_sums_step(pairs: int, pack: int) -> tuple[str, str]:
    """The sum of the activations in `pairs` registers, per lane; operands x -> sums."""
    names, constraints = _operands(pack, "f", "r" * pairs)
    out, x = _split(names, 1, pairs)
    lines = [f".reg .f32 {', '.join(f'r{lane}' for lane in range(pack))}"]
    for lane in range(pack):
        first, *rest = _lane(x, lane)
        lines += [f"mov.b32 a, {first}", *(f"add.rn.f16x2 a, a, {term}" for term in rest)]
        lines += ["mov.f32 sum, 0f00000000", *_promote("a"), f"mov.f32 r{lane}, sum"]
    lines += [f"mov.f32 {out[0][lane]}, r{lane}" for lane in range(pack)]
    return _join([*_SCRATCH, *lines]), constraints


@cache
def int_step(kind: str, bits: int, pack: int) -> Step:
    """acc += scale * sum of table byte * (256 * high + low), summed exactly in 32-bit integers.

    Operands: words, high plane quads, low plane quads, table, scale, acc -> acc.
    """
    words, quads, table = words_per_group(bits), codes_per_group(bits) // 4, table_words(kind, bits)
    names, constraints = _operands(pack, "f", "r" * (words + 2 * quads + table) + "ff")
    out, codes, high, low, entries, scale, acc = _split(names, 1, words, quads, quads, table, 1, 1)
    lines = [f"mov.f32 sum, {acc[0][0]}", "mov.b32 ah, 0", "mov.b32 am, 0", "mov.b32 al, 0"]
    for lane in range(pack):
        planes = [_lane(high, lane), _lane(low, lane)]
        for quad in quad_products(kind, bits, _lane(codes, lane), _lane(entries, 0), planes):
            lines += quad
    lines += _combine_int16() if kind == "int16" else ["mad.lo.s32 al, ah, 256, al"]
    lines += ["cvt.rn.f32.s32 f0, al"]
    lines += ["fma.rn.f32 f0, f1, 0f47800000, f0"] if kind == "int16" else []  # 65536
    lines.append(f"fma.rn.f32 sum, f0, {scale[0][0]}, sum")
    return Step(
        text=_text(lines, out[0], acc[0]),
        constraints=constraints,
        words=words,
        inputs=2 * quads,
        table=table,
    )


@cache
def sum_step(pairs: int, pack: int) -> tuple[str, str]:
    """acc += sum of all activations in `pairs` registers per group; operands x, acc -> acc."""
    names, constraints = _operands(pack, "f", "r" * pairs + "f")
    out, x, acc = _split(names, 1, pairs, 1)
    lines = [f"mov.f32 sum, {acc[0][0]}"]
    terms = [x[pair][lane] for lane in range(pack) for pair in range(pairs)]
    for start in range(0, len(terms), CHAIN):
        first, *rest = terms[start : start + CHAIN]
        lines.append(f"mov.b32 a, {first}")
        lines += [f"add.rn.f16x2 a, a, {term}" for term in rest]
        lines += _promote("a")
    return _text(lines, out[0], acc[0]), constraints


@cache
def decode_step(kind: str, bits: int) -> Step:
    """Decode only: words, table -> one half2 output per pair, in slot order."""
    words, pairs, table = words_per_group(bits), codes_per_group(bits) // 2, table_words(kind, bits)
    names, constraints = _operands(1, "r" * pairs, "r" * (words + table))
    out, codes, entries = _split(names, pairs, words, table)
    lines: list[str] = []
    for pair, decode in enumerate(decode_pairs(kind, bits, _lane(codes, 0), _lane(entries, 0))):
        lines += [*decode, f"mov.b32 o{pair}, h"]
    lines += [f"mov.b32 {out[pair][0]}, o{pair}" for pair in range(pairs)]
    # Outputs are written last: an output may share its register with an input.
    registers = f".reg .b32 {', '.join(f'o{pair}' for pair in range(pairs))}"
    text = _join([*_SCRATCH, registers, *lines])
    return Step(text=text, constraints=constraints, words=words, inputs=pairs, table=table)


@cache
def mma_step(kind: str, bits: int, tokens: int, *, has_zero: bool) -> Step:
    """acc += W X^T for 16 rows, 16 neighbouring groups of codes and 8 or 16 tokens.

    A lane holds four groups of row lane / 4 and of row lane / 4 + 8, and the same columns of token
    lane / 4 (and + 8): decoded pairs are A fragments as they stand. The order of K within a product
    is free as long as both sides agree. Results are C fragments, four to a lane.
    Operands: words of the upper rows, of the lower rows, pairs per 8 tokens, table of the upper
    rows, of the lower rows, acc per 8 tokens, and with `has_zero` sums of the activations in the
    same form -> acc and sums.
    Source: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
    """
    pack = 4
    words, pairs, table = words_per_group(bits), codes_per_group(bits) // 2, table_words(kind, bits)
    blocks = tokens // 8
    results = blocks * (1 + has_zero)
    inputs = "r" * (2 * words + blocks * pairs + 2 * table) + "f" * results
    names, constraints = _operands(pack, "f" * results, inputs)
    out, upper, lower, x, table_upper, table_lower, start = _split(
        names, results, words, words, blocks * pairs, table, table, results
    )
    sums = [[f"c{result}_{part}" for part in range(pack)] for result in range(results)]
    lines = [f".reg .f32 {', '.join(name for four in sums for name in four)}"]
    for side in ("u", "l"):
        lines.append(f".reg .b32 {', '.join(f'{side}{pair}' for pair in range(pairs))}")
    for result in range(results):
        lines += [f"mov.f32 {sums[result][part]}, {start[result][part]}" for part in range(pack)]
    for lane in range(pack):
        for side, codes, entries in (("u", upper, table_upper), ("l", lower, table_lower)):
            decoded = decode_pairs(kind, bits, _lane(codes, lane), _lane(entries, 0))
            for pair, decode in enumerate(decoded):
                lines += [*decode, f"mov.b32 {side}{pair}, h"]
        for pair in range(0, pairs, 2):
            a = f"{{u{pair}, l{pair}, u{pair + 1}, l{pair + 1}}}"
            for block in range(blocks):
                first, second = (x[block * pairs + pair + k][lane] for k in (0, 1))
                lines.append(_mma(sums[block], a, f"{{{first}, {second}}}"))
                if has_zero:
                    lines.append(_mma(sums[blocks + block], _ONES, f"{{{first}, {second}}}"))
    for result in range(results):
        lines += [f"mov.f32 {out[result][part]}, {sums[result][part]}" for part in range(pack)]
    return Step(
        text=_join([*_SCRATCH, "mov.b32 one, 0x3C003C00", *lines]),
        constraints=constraints,
        words=words,
        inputs=pairs,
        table=table,
    )


_ONES = "{one, one, one, one}"


def _mma(sums: list[str], a: str, b: str) -> str:
    c = "{" + ", ".join(sums) + "}"
    return f"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {c}, {a}, {b}, {c}"


def _products(decoded: list[list[str]], x: list[str], *, first: int, last: int) -> list[str]:
    """Multiply decoded pairs with activations in chains; pairs are numbered first.. of 0..last."""
    lines = []
    for number, (decode, activation) in enumerate(zip(decoded, x, strict=True), start=first):
        term = f"a, h, {activation}"
        product = f"fma.rn.f16x2 {term}, a" if number % CHAIN else f"mul.rn.f16x2 {term}"
        lines += [*decode, product]
        if number % CHAIN == CHAIN - 1 or number == last:
            lines += _promote("a")
    return lines


def _float(value: float) -> str:
    return "0f" + struct.pack(">f", value).hex().upper()


def _combine_int16() -> list[str]:
    """al + 256 * am stays an integer; ah * 65536 would overflow 32 bits and is added in FP32."""
    return ["mad.lo.s32 al, am, 256, al", "cvt.rn.f32.s32 f1, ah"]


def _promote(half2_sum: str) -> list[str]:
    return [
        f"mov.b32 {{h0, h1}}, {half2_sum}",
        "cvt.f32.f16 f0, h0",
        "cvt.f32.f16 f1, h1",
        "add.f32 f0, f0, f1",
        "add.f32 sum, sum, f0",
    ]


def _operands(pack: int, outputs: str, inputs: str) -> tuple[list[list[str]], str]:
    """Register names per tensor and the constraint string; `r` is 32 bits, `f` is FP32."""
    kinds = [f"={kind}" for kind in outputs for _ in range(pack)]
    kinds += [kind for kind in inputs for _ in range(pack)]
    count = len(outputs) + len(inputs)
    names = [[f"${tensor * pack + lane}" for lane in range(pack)] for tensor in range(count)]
    return names, ",".join(kinds)


def _split(names: list[list[str]], *counts: int) -> list[list[list[str]]]:
    parts, start = [], 0
    for count in counts:
        parts.append(names[start : start + count])
        start += count
    return parts


def _lane(tensors: list[list[str]], lane: int) -> list[str]:
    return [registers[lane] for registers in tensors]


def _text(lines: list[str], out: list[str], acc: list[str]) -> str:
    """Outputs are written last: an output may share its register with an input."""
    rest = [f"mov.f32 {out[lane]}, {acc[lane]}" for lane in range(1, len(out))]
    return _join([*_SCRATCH, *lines, f"mov.f32 {out[0]}, sum", *rest])


def _join(lines: list[str]) -> str:
    return "{ " + " ".join(f"{line};" for line in lines) + " }"
