"""PTX fragments of the `int` path: codes to quads of bytes, and their DP4A products.

`quad_products` gives one list of lines per quad, which adds the quad's products with the two
activation planes to integer accumulators. A one-byte table has two: `ah` += entry * high plane,
`al` += entry * low plane. A 16-bit table (`int16`: a signed high and an unsigned low byte plane)
has three: `ah`, `am` (both mixed products) and `al`.
Source: PTX ISA, "Integer Arithmetic Instructions: dp4a".
"""

from kernels.ptx_select import byte_quads, lookup, nibble_selectors, spare_word, u7_halves

SIGNED, UNSIGNED = "dp4a.s32.s32", "dp4a.u32.s32"


def quad_products(
    kind: str, bits: int, words: list[str], table: list[str], planes: list[list[str]]
) -> list[list[str]]:
    """Lines per quad of one group; `planes` are the registers of the high and the low plane."""
    if kind == "int16":
        return _int16(bits, words, table, planes)
    if kind in ("u7", "u7sum"):
        return _u7(words[0], table, planes, merge=kind == "u7")
    if kind == "uniform":
        decoded = _uniform_quads(bits, words)
    else:
        quads = nibble_selectors(bits, words)
        decoded = [([*select, *lookup("L", table, bits)], "L") for select in quads]
    return [[*lines, *_both_planes(reg, planes, quad)] for quad, (lines, reg) in enumerate(decoded)]


def _both_planes(reg: str, planes: list[list[str]], quad: int) -> list[str]:
    return [
        f"{UNSIGNED} ah, {reg}, {planes[0][quad]}, ah",
        f"{UNSIGNED} al, {reg}, {planes[1][quad]}, al",
    ]


def _u7(word: str, table: list[str], planes: list[list[str]], *, merge: bool) -> list[list[str]]:
    """OR the two half-table lookups, or leave the sum to twice as many DP4A (less ALU work)."""
    quads = []
    for quad, halves in enumerate(u7_halves(word, table)):
        if merge:
            lines = ["or.b32 L, p, q", *_both_planes("L", planes, quad)]
        else:
            lines = [line for reg in "pq" for line in _both_planes(reg, planes, quad)]
        quads.append([*halves, *lines])
    return quads


def _int16(
    bits: int, words: list[str], table: list[str], planes: list[list[str]]
) -> list[list[str]]:
    low, high = table[: len(table) // 2], table[len(table) // 2 :]
    quads = []
    for quad, select in enumerate(nibble_selectors(bits, words)):
        x_high, x_low = planes[0][quad], planes[1][quad]
        quads.append(
            [
                *select,
                *lookup("L", low, bits),
                *lookup("H", high, bits),
                f"{SIGNED} ah, H, {x_high}, ah",
                f"{SIGNED} am, H, {x_low}, am",
                f"{UNSIGNED} am, L, {x_high}, am",
                f"{UNSIGNED} al, L, {x_low}, al",
            ]
        )
    return quads


def _uniform_quads(bits: int, words: list[str]) -> list[tuple[list[str], str]]:
    """Per quad its lines and the register that holds four codes as bytes."""
    if bits > 4:
        return byte_quads(bits, words)
    mask = (2**bits - 1) * 0x01010101
    step = 4 if bits == 3 else bits  # 3-bit codes sit in nibbles
    quads = []
    for index, word in enumerate([*words, "e"] if bits == 3 else words):
        for shift in range(0, 8, step):
            lead = spare_word(words) if bits == 3 and index == 0 and shift == 0 else []
            move = [f"shr.u32 L, {word}, {shift}"] if shift else []
            source = "L" if shift else word
            quads.append(([*lead, *move, f"and.b32 L, {source}, 0x{mask:08X}"], "L"))
    return quads
