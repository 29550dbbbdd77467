"""PTX fragments of the `exact` path: codes to half2 values, in slot order.

`decode_pairs` gives one list of lines per pair; after them register `h` holds the pair's two
values. Pairs share state (`s`, `L`, `H`, ...), so they run in order.

One-byte entries and uniform codes become halves without a conversion instruction: 0x6400 | u is
the half 1024 + u. One FMA then removes 1024 and the centre and scales by a power of two, exactly,
so that FP16 sums overflow no earlier than with an FP16 table of ordinary weights.
"""

import struct

from kernels.ptx_select import byte_quads, lookup, nibble_selectors, spare_word, u7_halves

ENTRY_SCALE = 2.0**-9  # of one-byte table entries: keeps entry - centre in +-0.25
INT8_CENTRE = 128  # int8 entries are stored as the byte entry + 128
U7_CENTRE = 64

_MERGE = [["prmt.b32 h, L, H, 0x5140"], ["prmt.b32 h, L, H, 0x7362"]]


def uniform_entry_scale(bits: int) -> float:
    """Scale of a decoded uniform code q - 2**(bits-1): keeps it in +-0.25."""
    return 2.0 ** -(bits + 1)


def half2(value: float) -> str:
    """Hex text of a half2 with both halves `value`; ValueError unless FP16 holds it exactly."""
    packed = struct.pack("<e", value)
    if struct.unpack("<e", packed)[0] != value:
        raise ValueError(f"half2 constant is {value!r}, expected a number that FP16 holds exactly")
    bits = int.from_bytes(packed, "little")
    return f"0x{bits:04X}{bits:04X}"


def decode_pairs(kind: str, bits: int, words: list[str], table: list[str]) -> list[list[str]]:
    """Lines per pair for one group: `words` registers of codes, `table` registers of the row."""
    return _KINDS[kind](bits, words, table)


def _after(lines: list[str], pairs: list[list[str]]) -> list[list[str]]:
    return [[*lines, *pairs[0]], *pairs[1:]]


def _affine(scale: float, offset: float) -> list[str]:
    """h = h * scale + offset; FMA takes its constants from registers."""
    return [f"mov.b32 p, {half2(scale)}", f"mov.b32 q, {half2(offset)}", "fma.rn.f16x2 h, h, p, q"]


def _centred(centre: int) -> list[str]:
    """h = 1024 + u becomes (u - centre) * ENTRY_SCALE."""
    return _affine(ENTRY_SCALE, -(1024 + centre) * ENTRY_SCALE)


def _bytes_to_pairs(centre: int) -> list[list[str]]:
    selectors = ("0x4140", "0x4342")
    return [[f"prmt.b32 h, L, 0x64646464, {sel}", *_centred(centre)] for sel in selectors]


def _fp16(bits: int, words: list[str], table: list[str]) -> list[list[str]]:
    if bits == 2:
        return _fp16_2bit(words[0], table)
    low, high = table[: len(table) // 2], table[len(table) // 2 :]
    pairs = []
    for select in nibble_selectors(bits, words):
        pairs += _after([*select, *lookup("L", low, bits), *lookup("H", high, bits)], _MERGE)
    return pairs


def _fp16_2bit(word: str, table: list[str]) -> list[list[str]]:
    """A byte c of `s` becomes the selector nibbles c, c + 4: a low byte and its high byte."""
    look = f"prmt.b32 h, {table[0]}, {table[1]}, s"
    pairs = []
    for k in range(4):
        shift = [f"shr.u32 s, {word}, {2 * k}"] if k else []
        mask = f"and.b32 s, {'s' if k else word}, 0x03030303"
        spread = "mad.lo.u32 s, s, 0x11, 0x40404040"
        pairs += [[*shift, mask, spread, look], ["shr.u32 s, s, 16", look]]
    return pairs


def _int8(bits: int, words: list[str], table: list[str]) -> list[list[str]]:
    pairs = []
    if bits == 2:  # a byte c of `s` becomes the selector nibbles c, 4: an entry below 0x64
        look = [f"prmt.b32 h, {table[0]}, 0x64646464, s", *_centred(INT8_CENTRE)]
        for k in range(4):
            shift = [f"shr.u32 s, {words[0]}, {2 * k}"] if k else []
            mask = f"lop3.b32 s, {'s' if k else words[0]}, 0x03030303, 0x40404040, 0xEA"
            pairs += [[*shift, mask, *look], ["shr.u32 s, s, 16", *look]]
        return pairs
    for select in nibble_selectors(bits, words):
        pairs += _after([*select, *lookup("L", table, bits)], _bytes_to_pairs(INT8_CENTRE))
    return pairs


def _vector2(bits: int, words: list[str], table: list[str]) -> list[list[str]]:
    """16 pairs of int8 entries, a plane per component: a code is a pair of columns."""
    _require_4(bits, "vector2")
    pairs = []
    for select in nibble_selectors(bits, words):
        look = [*select, *lookup("L", table[:4], bits), *lookup("H", table[4:], bits)]
        for merge in ("prmt.b32 g, L, H, 0x5140", "prmt.b32 g, L, H, 0x7362"):
            two = [
                [f"prmt.b32 h, g, 0x64646464, {selector}", *_centred(INT8_CENTRE)]
                for selector in ("0x4140", "0x4342")
            ]
            pairs += _after([*look, merge], two)
            look = []
    return pairs


def _gathered2(_bits: int, words: list[str], _table: list[str]) -> list[list[str]]:
    """Each word holds a pair of int8 entries in its low half."""
    return [[f"prmt.b32 h, {word}, 0x64646464, 0x4140", *_centred(INT8_CENTRE)] for word in words]


def _gathered4(_bits: int, words: list[str], _table: list[str]) -> list[list[str]]:
    """Each word holds four int8 entries: two pairs."""
    pairs = []
    for word in words:
        pairs += _after([f"mov.b32 L, {word}"], _bytes_to_pairs(INT8_CENTRE))
    return pairs


def _u7(bits: int, words: list[str], table: list[str]) -> list[list[str]]:
    _require_4(bits, "u7")
    pairs = []
    for halves in u7_halves(words[0], table):
        pairs += _after([*halves, "or.b32 L, p, q"], _bytes_to_pairs(U7_CENTRE))
    return pairs


def _sym(bits: int, words: list[str], table: list[str]) -> list[list[str]]:
    """Eight magnitudes; the signs of the first quad are bit 7 of each byte, of the second bit 3."""
    _require_4(bits, "sym")
    look = [*lookup("L", table[:2], 3), *lookup("H", table[2:], 3)]
    sign = "lop3.b32 H, {0}, 0x80808080, H, 0x6A"  # H ^ (signs & 0x80808080)
    first = [f"and.b32 s, {words[0]}, 0x77777777", *look, sign.format(words[0])]
    second = ["shr.u32 s, s, 16", *look, f"shl.b32 g, {words[0]}, 4", sign.format("g")]
    return [*_after(first, _MERGE), *_after(second, _MERGE)]


def _require_4(bits: int, kind: str) -> None:
    if bits != 4:
        raise ValueError(f"{kind} codebook has {bits} bits, expected 4")


def _uniform(bits: int, words: list[str], table: list[str]) -> list[list[str]]:
    """h = (q - 2**(bits-1)) * uniform_entry_scale(bits), from bit fields below the exponent."""
    del table
    if bits > 4:
        return _wide_uniform(bits, words)
    pairs = _fields(bits, words[0])
    if bits == 3:
        pairs = _after(spare_word(words), pairs)
        for word in (words[1], words[2], "e"):
            pairs += _fields(bits, word)
    return pairs


def _wide_uniform(bits: int, words: list[str]) -> list[list[str]]:
    scale, centre = uniform_entry_scale(bits), 2 ** (bits - 1)
    fma, pairs = _affine(scale, -(1024 + centre) * scale), []
    for lines, quad in byte_quads(bits, words):
        look = f"prmt.b32 h, {quad}, 0x64646464, "
        pairs += _after(lines, [[look + sel, *fma] for sel in ("0x4140", "0x4342")])
    return pairs


def _fields(bits: int, word: str) -> list[list[str]]:
    """The pairs of one word: equal fields of its two 16-bit halves. 3-bit codes sit in nibbles."""
    scale, centre = uniform_entry_scale(bits), 2 ** (bits - 1)
    pairs = []
    for byte in range(2):
        for shift in range(0, 8, 4 if bits == 3 else bits):
            mask = (2**bits - 1) << shift
            step = scale / 2**shift  # the half reads 1024 + q * 2**shift
            lines = [f"shr.u32 s, {word}, 8"] if byte and not shift else []
            source = "s" if byte else word
            lines.append(f"lop3.b32 h, {source}, 0x{mask:04X}{mask:04X}, 0x64006400, 0xEA")
            pairs.append([*lines, *_affine(step, -(1024 * step + centre * scale))])
    return pairs


_KINDS = {
    "fp16": _fp16,
    "int8": _int8,
    "u7": _u7,
    "sym": _sym,
    "uniform": _uniform,
    "vector1": _int8,
    "vector2": _vector2,
    "gathered2": _gathered2,
    "gathered4": _gathered4,
}
