"""PTX fragments that turn words of codes into PRMT selectors and look up bytes.

Codes of 5 to 8 bits are no selectors: `byte_quads` leaves four of them as the bytes of a word.

Registers used by every fragment: `s` (selectors, low nibbles), `m` (which half of a 16-entry
table), `e`, `f` (the spare codes at 3 bits; `e`: a part of wide codes), `L` (a quad of bytes), `p`,
`q`, `t`, `u`, `v`, `g` (scratch).
Source: PTX ISA, "Data Movement and Conversion Instructions: prmt".
"""

from kernels.layouts.codes import quad_parts


def spare_word(words: list[str]) -> list[str]:
    """3 bits: `e` = the eight codes whose bit planes are bit 3 of the nibbles of three words."""
    return [
        f"shr.u32 e, {words[0]}, 3",
        "and.b32 e, e, 0x11111111",
        f"shr.u32 f, {words[1]}, 2",
        "lop3.b32 e, f, 0x22222222, e, 0xEA",
        f"shr.u32 f, {words[2]}, 1",
        "lop3.b32 e, f, 0x44444444, e, 0xEA",
    ]


def byte_quads(bits: int, words: list[str]) -> list[tuple[list[str], str]]:
    """5 to 8 bits: per quad its lines and the register that then holds four codes as bytes."""
    if bits == 8:
        return [([], words[0])]
    quads = []
    for parts in quad_parts(bits):
        lines = []
        for word, low, width, bit in parts:
            mask = f"0x{((1 << width) - 1 << low) * 0x01010101:08X}"
            register = "e" if low else "L"
            source = words[word] if bit == low else register
            if bit != low:
                move = "shr.u32" if bit > low else "shl.b32"
                lines.append(f"{move} {register}, {words[word]}, {abs(bit - low)}")
            lines.append(
                f"lop3.b32 L, {source}, {mask}, L, 0xEA"  # L | part
                if low
                else f"and.b32 L, {source}, {mask}"
            )
        quads.append((lines, "L"))
    return quads


def nibble_selectors(bits: int, words: list[str]) -> list[list[str]]:
    """Per quad, the lines that leave its four table indices in the low nibbles of `s`."""
    second = ["shr.u32 s, s, 16"]
    if bits == 2:
        even = [f"and.b32 s, {words[0]}, 0x33333333"]
        odd = [f"shr.u32 s, {words[0]}, 2", "and.b32 s, s, 0x33333333"]
        return [even, second, odd, second]
    if bits == 3:
        quads = []
        for index, word in enumerate(words):
            spare = spare_word(words) if index == 0 else []
            quads += [[*spare, f"and.b32 s, {word}, 0x77777777"], second]
        return [*quads, ["mov.b32 s, e"], second]
    which_half = [f"shr.u32 m, {words[0]}, 1", "lop3.b32 m, m, 0x44444444, 0x32103210, 0xEA"]
    return [[f"and.b32 s, {words[0]}, 0x77777777", *which_half], [*second, "shr.u32 m, m, 16"]]


def lookup(out: str, plane: list[str], bits: int) -> list[str]:
    """`out` = four bytes of a plane of 2**bits bytes, at the indices in `s` (and `m`)."""
    if bits == 2:
        return [f"prmt.b32 {out}, {plane[0]}, {plane[0]}, s"]
    if bits == 3:
        return [f"prmt.b32 {out}, {plane[0]}, {plane[1]}, s"]
    return [
        f"prmt.b32 p, {plane[0]}, {plane[1]}, s",
        f"prmt.b32 q, {plane[2]}, {plane[3]}, s",
        f"prmt.b32 {out}, p, q, m",
    ]


def u7_halves(word: str, table: list[str]) -> list[list[str]]:
    """4 bits, entries below 0x80: per quad, `p` from the lower and `q` from the upper 8 entries.

    A selector nibble with bit 3 set replicates the sign of a byte, which is 0 here. So one of the
    two lookups of each code is 0 and the other is the entry: OR them, or add both products.
    """
    low = f"prmt.b32 p, {table[0]}, {table[1]}, "
    high = f"prmt.b32 q, {table[2]}, {table[3]}, "
    return [
        [f"xor.b32 t, {word}, 0x88888888", low + word, high + "t"],
        [f"shr.u32 u, {word}, 16", "shr.u32 v, t, 16", low + "u", high + "v"],
    ]
