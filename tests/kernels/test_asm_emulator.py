"""The PTX emulator against a second, scalar implementation in Python integers, bit for bit."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest

from tests.kernels.asm_emulator import MMA, AsmError, run_asm, run_packed
from tests.kernels.ptx_ops import OPCODES

WORDS = 3000
EDGES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x88888888, 31, 32, 33]


def words(seed: int, count: int = WORDS) -> np.ndarray:
    """Random words, the corner cases first, rotated by the seed so that operands differ."""
    random = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)
    random[: len(EDGES)] = np.roll(np.array(EDGES, np.uint32), seed)
    return random


def run(opcode: str, *operands: np.ndarray, result: str = "=r") -> list[int]:
    sources = ", ".join(f"${i + 1}" for i in range(len(operands)))
    constraints = ",".join([result, *("r" for _ in operands)])
    return run_asm(f"{opcode} $0, {sources};", constraints, operands)[0].tolist()


def signed(value: int, bits: int = 32) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def prmt(a: int, b: int, selector: int) -> int:
    pool = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    out = bytearray()
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = pool[nibble & 7]
        out.append((0xFF if byte & 0x80 else 0) if nibble & 8 else byte)
    return int.from_bytes(out, "little")


def lop3(a: int, b: int, c: int, table: int) -> int:
    bits = ((a >> i & 1, b >> i & 1, c >> i & 1) for i in range(32))
    return sum((table >> (4 * x + 2 * y + z) & 1) << i for i, (x, y, z) in enumerate(bits))


def bfe(a: int, position: int, length: int, *, is_signed: bool) -> int:
    position, length = position & 255, length & 255
    sign = a >> min(position + length - 1, 31) & 1 if is_signed and length else 0
    kept = [i < length and position + i <= 31 for i in range(32)]
    return sum((a >> position + i & 1 if kept[i] else sign) << i for i in range(32))


def dp4a(a: int, b: int, c: int, kinds: tuple[str, str]) -> int:
    def byte(word: int, i: int, kind: str) -> int:
        value = word >> 8 * i & 255
        return signed(value, 8) if kind == "s32" else value

    return (sum(byte(a, i, kinds[0]) * byte(b, i, kinds[1]) for i in range(4)) + c) & 0xFFFFFFFF


INTEGER = {
    "not.b32": lambda a: ~a,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "shl.b32": lambda a, b: a << b if b < 32 else 0,
    "shr.b32": lambda a, b: a >> b,
    "shr.u32": lambda a, b: a >> b,
    "shr.s32": lambda a, b: signed(a) >> min(b, 31),
    "neg.s32": lambda a: -a,
    "min.u32": min,
    "max.u32": max,
    "min.s32": lambda a, b: min(signed(a), signed(b)),
    "max.s32": lambda a, b: max(signed(a), signed(b)),
    "prmt.b32": prmt,
    "lop3.b32": lop3,
    "bfe.u32": lambda a, b, c: bfe(a, b, c, is_signed=False),
    "bfe.s32": lambda a, b, c: bfe(a, b, c, is_signed=True),
    **{f"mov.{kind}": lambda a: a for kind in ("b32", "u32", "s32", "f32")},
    **{f"add.{kind}": lambda a, b: a + b for kind in ("u32", "s32")},
    **{f"sub.{kind}": lambda a, b: a - b for kind in ("u32", "s32")},
    **{f"mul.lo.{kind}": lambda a, b: a * b for kind in ("u32", "s32")},
    **{f"mad.lo.{kind}": lambda a, b, c: a * b + c for kind in ("u32", "s32")},
    **{
        f"dp4a.{left}.{right}": lambda a, b, c, kinds=(left, right): dp4a(a, b, c, kinds)
        for left in ("u32", "s32")
        for right in ("u32", "s32")
    },
}


@pytest.mark.parametrize("opcode", INTEGER)
def test_integer_instruction(opcode):
    columns = [words(seed + 1) for seed in range(OPCODES[opcode].operands)]
    if opcode.startswith(("shl", "shr")):
        columns[1] %= np.uint32(40)
    if opcode.startswith("bfe"):
        columns[1], columns[2] = columns[1] % np.uint32(48), columns[2] % np.uint32(48)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    assert run(opcode, *columns) == [INTEGER[opcode](*row) & 0xFFFFFFFF for row in rows]


# ---- floating point: exact fractions, rounded once by our own code ---------------------------


def round_to(value: Fraction, fraction_bits: int, least_exponent: int, overflow: int) -> Fraction:
    """Nearest multiple of the spacing at `value`, ties to even, infinite at 2**overflow."""
    if value == 0:
        return value
    exponent = math.floor(math.log2(abs(value)))
    while Fraction(2) ** exponent > abs(value):
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= abs(value):
        exponent += 1
    spacing = Fraction(2) ** (max(exponent, least_exponent) - fraction_bits)
    rounded = round(value / spacing) * spacing  # Fraction.__round__ is half to even
    return rounded if abs(rounded) < Fraction(2) ** overflow else math.copysign(math.inf, value)


def half(value: Fraction) -> float:
    return float(round_to(value, 10, -14, 16))


def single(value: Fraction) -> float:
    return float(round_to(value, 23, -126, 128))


def finite_halves(seed: int) -> np.ndarray:
    """(WORDS, 2) float16 of every exponent, subnormal ones too, none infinite or NaN."""
    raw = np.random.default_rng(seed).integers(0, 2**16, (WORDS, 2), dtype=np.uint16)
    raw[(raw & 0x7C00) == 0x7C00] &= 0xBFFF
    return raw.view(np.float16)


def finite_floats(seed: int, exponent_range: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mantissa = rng.integers(2**23, 2**24, WORDS) * rng.choice([-1, 1], WORDS)
    return np.ldexp(mantissa.astype(np.float64), rng.integers(-exponent_range, 0, WORDS)).astype(
        np.float32
    )


OPERATIONS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "fma": lambda a, b, c: a * b + c,
}


def same(found: np.ndarray, expected: list[float]) -> None:
    """Equal values; the sign of a zero is compared by the tests that are about it."""
    np.testing.assert_array_equal(found.astype(np.float64), np.array(expected))


@pytest.mark.parametrize("opcode", [name for name in OPCODES if name.endswith(".f16x2")])
def test_half_pair_instruction_rounds_once(opcode):
    operation = OPERATIONS[opcode.split(".")[0]]
    columns = [finite_halves(seed) for seed in range(OPCODES[opcode].operands)]
    packed = [np.ascontiguousarray(column).view(np.uint32)[:, 0] for column in columns]
    found = np.array(run(opcode, *packed), np.uint32).view(np.float16)
    flat = (column.reshape(-1).tolist() for column in columns)
    same(found, [half(operation(*map(Fraction, row))) for row in zip(*flat, strict=True)])


@pytest.mark.parametrize(
    "opcode", [n for n in OPCODES if n.endswith(".f32") and n.split(".")[0] in OPERATIONS]
)
def test_single_instruction_rounds_once(opcode):
    operation = OPERATIONS[opcode.split(".")[0]]
    columns = [finite_floats(seed, 40) for seed in range(OPCODES[opcode].operands)]
    found = np.array(run(opcode, *(c.view(np.uint32) for c in columns)), np.uint32)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    same(found.view(np.float32), [single(operation(*map(Fraction, row))) for row in rows])


def test_fma_f32_where_two_roundings_would_differ():
    # The exact sum lies 2**-70 below a tie of float32; float64 rounds it to the tie itself.
    left, right = (1 + 2.0**-23) * 2.0**-24, 1 - 2.0**-23
    columns = [np.array([v], np.float32).view(np.uint32) for v in (left, right, 1 + 2.0**-23)]
    assert run("fma.rn.f32", *columns) == [0x3F800001]


def test_overflow_gives_infinity_as_the_hardware_does():
    top = np.array([0x7BFF7BFF], np.uint32)  # 65504 twice
    assert run("add.rn.f16x2", top, top) == [0x7C007C00]


@pytest.mark.parametrize(
    ("opcode", "expected"),
    [("cvt.rn.f32.s32", signed), ("cvt.rn.f32.u32", lambda v: v)],
)
def test_integer_to_float_conversion(opcode, expected):
    column = words(3)
    found = np.array(run(opcode, column), np.uint32).view(np.float32)
    same(found, [single(Fraction(expected(v))) for v in column.tolist()])


def test_half_to_float_and_back_through_16_bit_registers():
    asm = """{ .reg .b16 low, high; .reg .f32 u, v;  // unpack, widen, narrow, pack
      mov.b32 {low, high}, $1; cvt.f32.f16 u, low; cvt.f32.f16 v, high;
      cvt.rn.f16.f32 low, u; cvt.rn.f16.f32 high, v; mov.b32 $0, {low, high}; }"""
    pairs = np.ascontiguousarray(finite_halves(5)).view(np.uint32)[:, 0]
    assert run_asm(asm, "=r,r", [pairs])[0].tolist() == pairs.tolist()


def test_float_pair_conversion_puts_the_first_source_in_the_high_half():
    high, low = finite_floats(1, 30), finite_floats(2, 30)
    found = run("cvt.rn.f16x2.f32", high.view(np.uint32), low.view(np.uint32))
    halves = [struct.unpack("<2e", word.to_bytes(4, "little")) for word in found]
    same(np.array(halves)[:, 0], [half(Fraction(float(v))) for v in low])
    same(np.array(halves)[:, 1], [half(Fraction(float(v))) for v in high])


def test_mov_b16_between_half_registers():
    pair = np.array([0x1234ABCD], np.uint32)
    asm = "{ .reg .b16 a, b, c; mov.b32 {a, b}, $1; mov.b16 c, b; mov.b32 $0, {c, a}; }"
    assert run_asm(asm, "=r,r", [pair])[0].tolist() == [0xABCD1234]


def test_every_opcode_has_a_test():
    tested = set(INTEGER) | {"mov.b16", "cvt.f32.f16", "cvt.rn.f16.f32", "cvt.rn.f16x2.f32"}
    tested |= {"cvt.rn.f32.s32", "cvt.rn.f32.u32"}
    tested |= {n for n in OPCODES if n.split(".")[0] in OPERATIONS and n.split(".")[-1][0] == "f"}
    assert set(OPCODES) == tested


# ---- matrices ----------------------------------------------------------------------------------


def test_mma_multiplies_the_fragments_of_every_warp():
    rng = np.random.default_rng(0)
    a, b = rng.integers(-8, 9, (2, 16, 16)), rng.integers(-8, 9, (2, 16, 8))
    c = rng.integers(-8, 9, (2, 16, 8))

    def pack(low: int, high: int) -> int:
        return int.from_bytes(struct.pack("<2e", low, high), "little")

    registers = {name: [] for name in ("a0", "a1", "a2", "a3", "b0", "b1", "c0", "c1", "c2", "c3")}
    for warp in range(2):
        for lane in range(32):
            group, k = lane // 4, 2 * (lane % 4)
            for i, (row, first) in enumerate(((0, 0), (8, 0), (0, 8), (8, 8))):
                x = a[warp][group + row]
                registers[f"a{i}"].append(pack(x[first + k], x[first + k + 1]))
            for i in range(2):
                y = b[warp][:, group]
                registers[f"b{i}"].append(pack(y[8 * i + k], y[8 * i + k + 1]))
            for i, (row, n) in enumerate(((0, 0), (0, 1), (8, 0), (8, 1))):
                value = struct.pack("<f", c[warp][group + row][k + n])
                registers[f"c{i}"].append(int.from_bytes(value, "little"))
    asm = f"{MMA} {{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, {{$10,$11,$12,$13}};"
    inputs = [np.array(column, np.uint32) for column in registers.values()]
    found = run_asm(asm, ",".join(["=r"] * 4 + ["r"] * 10), inputs)
    for warp in range(2):
        expected = a[warp] @ b[warp] + c[warp]
        for lane in range(32):
            row, n = lane // 4, 2 * (lane % 4)
            mine = [found[i].view(np.float32)[32 * warp + lane] for i in range(4)]
            there = [expected[row + r][n + j] for r in (0, 8) for j in (0, 1)]
            assert mine == there
    with pytest.raises(AsmError, match="mma takes whole warps, found 31 threads"):
        run_asm(asm, ",".join(["=r"] * 4 + ["r"] * 10), [column[:31] for column in inputs])


# ---- program text -----------------------------------------------------------------------------


def test_two_outputs_immediates_and_scopes():
    asm = """{ .reg .b32 t; and.b32 t, $2, 0x0F0F0F0F; shr.u32 $0, t, 8; }
             { .reg .b32 t; xor.b32 t, $2, $3; add.u32 $1, t, 1; }"""
    a, b = words(1), words(2)
    first, second = run_asm(asm, "=r,=&r,r,r", [a, b])
    assert first.tolist() == ((a & 0x0F0F0F0F) >> 8).tolist()
    assert second.tolist() == ((a ^ b) + np.uint32(1)).tolist()


def test_thread_number_is_zero():
    asm = "{ .reg .u32 t; mov.u32 t, %tid.x; shr.u32 t, t, 24; add.u32 $0, $1, t; }"
    assert run_asm(asm, "=r,r", [words(1)])[0].tolist() == words(1).tolist()


def test_float_constraint_keeps_the_bits():
    found = run_asm("mov.f32 $0, 0f3F800000;", "=f,f", [np.zeros(3, np.float32)])[0]
    assert found.view(np.float32).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("asm", "message"),
    [
        ("popc.b32 $0, $1;", r"'popc.b32 \$0, \$1': the instruction is not emulated"),
        ("and.b32 $0, t, $1;", "t is read before it is written"),
        ("{ .reg .b32 t; and.b32 $0, t, $1; }", "t is read before it is written"),
        ("mov.b32 t, $1;", "t is not a declared register"),
        ("{ .reg .b32 t; .reg .b32 t; }", "declared twice"),
        ("{ .reg .b64 t; }", "register type .b64 is not emulated"),
        ("{ .reg .b16 t; mov.b32 t, $1; }", "t has 16 bits, the instruction takes 32"),
        ("and.b32 $0, $1;", "takes 2 sources, found 1"),
        ("@p mov.b32 $0, $1;", "'@p mov.b32 .*not emulated"),
        ("{ .reg .b32 t; mov.b32 t, $1; } mov.b32 $0, t;", "t is read before it is written"),
    ],
)
def test_what_is_not_emulated_raises_with_its_text(asm, message):
    with pytest.raises(AsmError, match=message):
        run_asm(asm, "=r,r", [words(1)])


def test_constraints_that_do_not_fit_raise():
    with pytest.raises(AsmError, match="do not fit 2 inputs"):
        run_asm("mov.b32 $0, $1;", "=r,r", [words(1), words(2)])
    with pytest.raises(AsmError, match="constraint 'l' is not emulated"):
        run_asm("mov.b32 $0, $1;", "=r,l", [words(1)])
    with pytest.raises(AsmError, match=r"\$1 is uint16"):
        run_asm("mov.b32 $0, $1;", "=r,r", [words(1).astype(np.uint16)])


def test_packed_elements_are_neighbours_with_a_register_each():
    asm = "add.u32 $0, $2, $3; sub.u32 $1, $4, $5;"  # $2, $3: two elements of a; $4, $5: of b
    a, b = np.arange(6, dtype=np.uint32), np.arange(10, 70, 10, dtype=np.uint32)
    found = run_packed(asm, "=r,=r,r,r,r,r", [a, b], pack=2)[0]
    assert found.view(np.int32).tolist() == [1, -10, 5, -10, 9, -10]
    with pytest.raises(AsmError, match="6 elements do not divide into packs of 4"):
        run_packed(asm, "=r,=r,r,r,r,r", [a, b], pack=4)
