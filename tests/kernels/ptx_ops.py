"""What each emulated PTX instruction computes, on numpy arrays: one element per thread.

Registers are uint32 arrays; a 16-bit register keeps its value in the low half.
Source: PTX ISA 8.7, chapters "Integer Arithmetic", "Logic and Shift", "Half Precision Floating
Point" and "Data Movement and Conversion".
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


def _signed(value: Array) -> Array:
    return value.view(np.int32)


def _halves(value: Array) -> Array:
    """(n,) words -> (n, 2) float16, low half first."""
    return value.view(np.float16).reshape(-1, 2)


def _from_halves(value: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(value.astype(np.float16)).view(np.uint32)[:, 0]


def _float(value: Array) -> Array:
    return value.view(np.float32)


def _from_float(value: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(value.astype(np.float32)).view(np.uint32)


def _shl(a: Array, b: Array) -> Array:
    return np.where(b > 31, 0, a << (b & np.uint32(31))).astype(np.uint32)


def _shr_u32(a: Array, b: Array) -> Array:
    return np.where(b > 31, 0, a >> (b & np.uint32(31))).astype(np.uint32)


def _shr_s32(a: Array, b: Array) -> Array:
    return (_signed(a) >> np.minimum(b, 31).astype(np.int32)).view(np.uint32)


def _prmt(a: Array, b: Array, selector: Array) -> Array:
    """Each nibble of the selector picks one of eight bytes; its bit 3 replicates the sign."""
    pool = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    out = np.zeros_like(a)
    for position in range(4):
        nibble = (selector >> np.uint32(4 * position)) & np.uint32(15)
        byte = (pool >> ((nibble & np.uint32(7)) * np.uint32(8)).astype(np.uint64)) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), 255, 0)
        byte = np.where(nibble & np.uint32(8), sign, byte).astype(np.uint32)
        out |= byte << np.uint32(8 * position)
    return out


def _lop3(a: Array, b: Array, c: Array, table: Array) -> Array:
    """Bit i of the result is bit (4 a_i + 2 b_i + c_i) of the table."""
    out = np.zeros_like(a)
    for minterm in range(8):
        wanted = np.uint32(0) - ((table >> np.uint32(minterm)) & np.uint32(1))
        x = a if minterm & 4 else ~a
        y = b if minterm & 2 else ~b
        z = c if minterm & 1 else ~c
        out |= x & y & z & wanted
    return out


def _bfe_u32(a: Array, position: Array, length: Array) -> Array:
    position, length = position & np.uint32(255), length & np.uint32(255)
    mask = np.where(length > 31, 0xFFFFFFFF, (np.uint32(1) << (length & np.uint32(31))) - 1)
    return (_shr_u32(a, position) & mask).astype(np.uint32)


def _bfe_s32(a: Array, position: Array, length: Array) -> Array:
    position, length = position & np.uint32(255), length & np.uint32(255)
    top = np.minimum(position.astype(np.int64) + length - 1, 31).clip(0)
    sign = np.where(length == 0, 0, (a.astype(np.int64) >> top) & 1)
    field = _bfe_u32(a, position, length).astype(np.int64)
    kept = np.minimum(length.astype(np.int64), (32 - position.astype(np.int64)).clip(0))
    return ((field | (-sign << kept)) & 0xFFFFFFFF).astype(np.uint32)


def _dp4a(a_dtype: type, b_dtype: type) -> Callable[..., Array]:
    def dp4a(a: Array, b: Array, c: Array) -> Array:
        left = a.view(a_dtype).reshape(-1, 4).astype(np.int64)
        right = b.view(b_dtype).reshape(-1, 4).astype(np.int64)
        return (((left * right).sum(axis=1) + c) & 0xFFFFFFFF).astype(np.uint32)

    return dp4a


def _fma_f16x2(a: Array, b: Array, c: Array) -> Array:
    # In float64 the product is exact, and the sum never lands on the wrong side of a float16
    # midpoint: either it is exact, or one addend is too small to reach the midpoint.
    exact = _halves(a).astype(np.float64) * _halves(b).astype(np.float64)
    return _from_halves(exact + _halves(c).astype(np.float64))


def _fma_f32(a: Array, b: Array, c: Array) -> Array:
    """One rounding: the float64 sum is rounded to odd, so that rounding it again is exact."""
    product = _float(a).astype(np.float64) * _float(b).astype(np.float64)  # exact: 48 bits
    addend = _float(c).astype(np.float64)
    with np.errstate(invalid="ignore"):
        total = product + addend
        part = total - product
        error = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    away = np.where((error > 0) == (total > 0), 1, -1)
    inexact = np.isfinite(total) & np.isfinite(error) & (error != 0) & (bits & 1 == 0)
    return _from_float(np.where(inexact, bits + away, bits).view(np.float64))


def _half_op(op: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def run(a: Array, b: Array) -> Array:
        exact = op(_halves(a).astype(np.float64), _halves(b).astype(np.float64))
        return _from_halves(exact)

    return run


def _float_op(op: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def run(a: Array, b: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return _from_float(op(_float(a), _float(b)))

    return run


def _half_to_float(a: Array) -> Array:
    return _from_float(a.astype(np.uint16).view(np.float16))


def _float_to_half(a: Array) -> Array:
    with np.errstate(over="ignore"):
        return _float(a).astype(np.float16).view(np.uint16).astype(np.uint32)


def _signed_op(op: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    return lambda a, b: op(_signed(a), _signed(b)).view(np.uint32)


@dataclass(frozen=True, slots=True)
class Opcode:
    """One PTX instruction: its function, its number of sources and its register widths."""

    run: Callable[..., Array]
    operands: int  # sources
    result_bits: int = 32
    source_bits: int = 32


def _opcodes() -> dict[str, Opcode]:
    table = {
        "not.b32": Opcode(lambda a: ~a, 1),
        "and.b32": Opcode(np.bitwise_and, 2),
        "or.b32": Opcode(np.bitwise_or, 2),
        "xor.b32": Opcode(np.bitwise_xor, 2),
        "shl.b32": Opcode(_shl, 2),
        "shr.b32": Opcode(_shr_u32, 2),
        "shr.u32": Opcode(_shr_u32, 2),
        "shr.s32": Opcode(_shr_s32, 2),
        "neg.s32": Opcode(lambda a: np.uint32(0) - a, 1),
        "min.u32": Opcode(np.minimum, 2),
        "max.u32": Opcode(np.maximum, 2),
        "min.s32": Opcode(_signed_op(np.minimum), 2),
        "max.s32": Opcode(_signed_op(np.maximum), 2),
        "prmt.b32": Opcode(_prmt, 3),
        "lop3.b32": Opcode(_lop3, 4),
        "bfe.u32": Opcode(_bfe_u32, 3),
        "bfe.s32": Opcode(_bfe_s32, 3),
        "fma.rn.f16x2": Opcode(_fma_f16x2, 3),
        "fma.rn.f32": Opcode(_fma_f32, 3),
        "mov.b16": Opcode(np.copy, 1, 16, 16),
        "cvt.f32.f16": Opcode(_half_to_float, 1, 32, 16),
        "cvt.rn.f16.f32": Opcode(_float_to_half, 1, 16, 32),
        "cvt.rn.f16x2.f32": Opcode(
            lambda high, low: (_float_to_half(high) << np.uint32(16)) | _float_to_half(low), 2
        ),
        "cvt.rn.f32.s32": Opcode(lambda a: _from_float(_signed(a)), 1),
        "cvt.rn.f32.u32": Opcode(_from_float, 1),
    }
    for kind in ("b32", "u32", "s32", "f32"):
        table[f"mov.{kind}"] = Opcode(np.copy, 1)
    for kind in ("u32", "s32"):  # modulo 2**32 both are the same operation
        table[f"add.{kind}"] = Opcode(np.add, 2)
        table[f"sub.{kind}"] = Opcode(np.subtract, 2)
        table[f"mul.lo.{kind}"] = Opcode(np.multiply, 2)
        table[f"mad.lo.{kind}"] = Opcode(lambda a, b, c: a * b + c, 3)
    for rounding in ("", ".rn"):
        for name, op in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply)):
            table[f"{name}{rounding}.f16x2"] = Opcode(_half_op(op), 2)
            table[f"{name}{rounding}.f32"] = Opcode(_float_op(op), 2)
    byte = {"u32": np.uint8, "s32": np.int8}
    for left, a_dtype in byte.items():
        for right, b_dtype in byte.items():
            table[f"dp4a.{left}.{right}"] = Opcode(_dp4a(a_dtype, b_dtype), 3)
    return table


OPCODES = _opcodes()


def mma_m16n8k16(a: list[Array], b: list[Array], c: list[Array]) -> list[Array]:
    """D = A B + C of every warp: A 16x16 and B 16x8 in FP16, C and D 16x8 in FP32.

    Registers of 32 x warps threads, in the fragments of the PTX ISA ("Matrix fragments for
    mma.m16n8k16 with floating point types"). Sums are exact, then rounded once; the tensor core
    rounds more often.
    """
    lane = np.arange(32)
    row, column = lane // 4, 2 * (lane % 4)
    pair = np.arange(2)

    def scatter(registers: list[Array], places: list[tuple[Array, Array]], shape: tuple) -> Array:
        out = np.zeros((len(registers[0]) // 32, *shape))
        for register, (rows, columns) in zip(registers, places, strict=True):
            halves = _halves(np.ascontiguousarray(register)).reshape(-1, 32, 2)
            out[:, rows, columns] = halves
        return out

    high = (0, 8, 0, 8)  # row offset of a0..a3; a2 and a3 lie 8 columns to the right
    a_places = [(row[:, None] + high[i], column[:, None] + 8 * (i // 2) + pair) for i in range(4)]
    b_places = [(column[:, None] + 8 * i + pair, row[:, None]) for i in range(2)]
    product = scatter(a, a_places, (16, 16)) @ scatter(b, b_places, (16, 8))
    out = []
    for i, register in enumerate(c):
        mine = product[:, row + 8 * (i // 2), column + i % 2].reshape(-1)
        out.append(_from_float(mine + _float(register).astype(np.float64)))
    return out
