"""Vector code that numba does not write by itself: look up 32 codes at once in registers (AVX2).

A block is 8 words of codes (4 where a tile is too small). Its bytes are shifted and masked until
each holds one code; `pshufb` then looks up one byte of each entry's FP32 pattern for all codes at
once, as the byte permute does on a GPU, and byte interleaving puts the patterns together. FP16
entries are exact in three such bytes, one-byte entries in two, and the codes of a uniform grid
need no table. A table of more than 16 entries is looked up 16 at a time. `vector_slots` says which
code ends in which lane, so that the activations can be brought into that order once per call.
"""

from collections.abc import Callable, Sequence
from functools import cache

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.layouts.codes import Field, codes_per_group, quad_parts, words_per_group

ENTRIES = ("fp16", "int8", "u7", "grid")  # as stored by `pack_lut`; grid: the code itself
PAIRS = "int8-pairs"  # as stored by `pack_vector`: 16 first components, then 16 second ones
LANE_ENTRIES = 16  # that one `pshufb` chooses from
ACCUMULATORS = 4  # independent sums, to hide the latency of a fused multiply-add
_PATTERN_BYTES = {
    "fp16": (1, 2, 3),
    "int8": (2, 3),
    "u7": (2, 3),
}  # bytes of an FP32 pattern that can be nonzero

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_HALF, _FLOAT = ir.HalfType(), ir.FloatType()


@cache
def available() -> bool:
    """Whether this machine has the instructions: AVX2, FMA and F16C on x86-64."""
    features = binding.get_host_cpu_features()
    return all(features.get(name, False) for name in ("avx2", "fma", "f16c"))


def code_fields(bits: int) -> tuple[int, ...]:
    """Lowest bits of the codes in a byte; codes of 3 bits have a nibble, wide ones a byte."""
    return tuple(range(0, 8, {2: 2, 3: 4, 4: 4}.get(bits, 8)))


def vector_slots(bits: int, block: int) -> list[tuple[int, int, int]]:
    """(word plane, word of the block, lowest bit of the code in it) per lane, in order of use.

    At 3 bits plane 3 is the word of codes gathered from the spare bits of the other three; from 5
    bits on plane q holds quad q.
    """
    out = []
    for plane in range(codes_per_group(bits) // (4 * len(code_fields(bits)))):
        for field in code_fields(bits):
            for quarter in range(4):  # byte interleaving leaves words q and q + 4 in one vector
                for word in range(quarter, block, 4):
                    out += [(plane, word, 8 * byte + field) for byte in range(4)]
    return out


class _Emitter:
    """Emits one `tile_dot`; everything known before compilation is an attribute."""

    def __init__(self, builder: ir.IRBuilder, entries: str, bits: int, block: int) -> None:
        self.builder, self.entries, self.bits, self.block = builder, entries, bits, block
        self.bytes = ir.VectorType(_I8, 4 * block)
        self.words = ir.VectorType(_I32, block)
        self.floats = ir.VectorType(_FLOAT, block)

    def call(self, name: str, result: ir.Type, arguments: Sequence[ir.Value]) -> ir.Value:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, arguments)

    def load(self, pointer: ir.Value, kind: ir.Type, align: int) -> ir.Value:
        value = self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()))
        value.align = align
        return value

    def splat(self, kind: ir.VectorType, value: float) -> ir.Constant:
        return ir.Constant(kind, [value] * kind.count)

    def shuffle(self, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
        mask = ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes))
        return self.builder.shuffle_vector(a, b, mask)

    def interleave(self, a: ir.Value, b: ir.Value, *, high: bool) -> ir.Value:
        """Alternate the elements of a and b from the low or high half of each 128-bit lane."""
        per_lane = a.type.count * 4 // self.block
        start = per_lane // 2 if high else 0
        lanes = []
        for lane in range(self.block // 4):
            for element in range(per_lane // 2):
                position = lane * per_lane + start + element
                lanes += [position, a.type.count + position]
        return self.shuffle(a, b, lanes)

    def table_planes(self, pointer: ir.Value) -> list[dict[int, ir.Value]]:
        """Per 16 entries: FP32 byte -> that byte of each, a `pshufb` table in each 128-bit lane."""
        stored = 2 * LANE_ENTRIES  # bytes of FP16 entries, the only ones of wide tables
        starts = [stored * k for k in range(max(1, (1 << self.bits) // LANE_ENTRIES))]
        return [self.lane_planes(self.builder.gep(pointer, [ir.Constant(_I64, s)])) for s in starts]

    def lane_planes(self, pointer: ir.Value) -> dict[int, ir.Value]:
        builder, entries = self.builder, min(1 << self.bits, LANE_ENTRIES)
        kind = "int8" if self.entries == PAIRS else self.entries
        stored = 2 * entries if kind == "fp16" else entries
        raw = self.load(pointer, ir.VectorType(_I8, stored), 1)
        if kind == "fp16":
            if self.bits <= 4:  # stored as a plane of low bytes, then one of high bytes
                order = [part for j in range(entries) for part in (j, entries + j)]
                raw = self.shuffle(raw, raw, order)
            halves = builder.bitcast(raw, ir.VectorType(_HALF, entries))
            values = builder.fpext(halves, ir.VectorType(_FLOAT, entries))
        else:
            floats = ir.VectorType(_FLOAT, entries)
            values = builder.uitofp(raw, floats)
            if kind == "int8":  # stored as entry + 128
                values = builder.fsub(values, self.splat(floats, 128.0))
        patterns = builder.bitcast(values, ir.VectorType(_I8, 4 * entries))
        return {
            byte: self.shuffle(
                patterns,
                patterns,
                [4 * (j % entries) + byte for j in range(16)] * (self.block // 4),
            )
            for byte in _PATTERN_BYTES[kind]
        }

    def word_planes(self, pointer: ir.Value, stride: ir.Value) -> list[ir.Value]:
        """The block's words as `vector_slots` numbers them."""
        builder, count = self.builder, words_per_group(self.bits)
        offsets = [builder.mul(stride, ir.Constant(_I64, plane)) for plane in range(count)]
        planes = [self.load(builder.gep(pointer, [offset]), self.words, 4) for offset in offsets]
        if count == 1:
            return planes
        if self.bits > 4:
            return [self.byte_quad(planes, parts) for parts in quad_parts(self.bits)]
        spare = self.splat(self.words, 0)
        for plane, word in enumerate(planes):
            shifted = builder.lshr(word, self.splat(self.words, 3 - plane))
            spare = builder.or_(
                spare, builder.and_(shifted, self.splat(self.words, 0x11111111 << plane))
            )
        return [*planes, spare]

    def byte_quad(self, planes: Sequence[ir.Value], parts: Sequence[Field]) -> ir.Value:
        """Words whose bytes are codes of 5 to 7 bits, from the planes of their parts."""
        builder, quad = self.builder, self.splat(self.words, 0)
        for word, low, width, bit in parts:
            mask = ((1 << width) - 1 << low) * 0x01010101
            move = builder.lshr if bit > low else builder.shl
            shifted = move(planes[word], self.splat(self.words, abs(bit - low)))
            quad = builder.or_(quad, builder.and_(shifted, self.splat(self.words, mask)))
        return quad

    def looked_up(self, codes: ir.Value, tables: list[dict[int, ir.Value]]) -> dict[int, ir.Value]:
        """FP32 byte -> that byte of every code's entry."""
        builder, found = self.builder, {}
        shuffle = "avx2.pshuf.b" if self.block == 8 else "ssse3.pshuf.b.128"
        for number, planes in enumerate(tables):
            index = codes
            if len(tables) > 1:  # 0x70 + code, or 0x80 and more for codes of other tables: zero
                mine = builder.xor(codes, self.splat(self.bytes, LANE_ENTRIES * number))
                name = f"llvm.uadd.sat.v{4 * self.block}i8"
                index = self.call(name, self.bytes, [mine, self.splat(self.bytes, 0x70)])
            for byte, table in planes.items():
                entry = self.call(f"llvm.x86.{shuffle}", self.bytes, [table, index])
                found[byte] = builder.or_(found[byte], entry) if number else entry
        return found

    def decode(self, codes: ir.Value, tables: list[dict[int, ir.Value]]) -> list[ir.Value]:
        """Bytes that hold one code each -> four vectors of FP32 values."""
        builder, zero = self.builder, self.splat(self.bytes, 0)
        pairs = ir.VectorType(_I16, 2 * self.block)
        if self.entries == "grid":
            byte = {0: codes}
        else:
            byte = self.looked_up(codes, tables)
        out = []
        for high in (False, True):
            low_pair = self.interleave(byte.get(0, zero), byte.get(1, zero), high=high)
            high_pair = self.interleave(byte.get(2, zero), byte.get(3, zero), high=high)
            low_pair, high_pair = (builder.bitcast(p, pairs) for p in (low_pair, high_pair))
            for part in (False, True):
                word = builder.bitcast(self.interleave(low_pair, high_pair, high=part), self.words)
                grid = self.entries == "grid"
                out.append(
                    builder.sitofp(word, self.floats)
                    if grid
                    else builder.bitcast(word, self.floats)
                )
        return out

    def values(
        self, words: Sequence[ir.Value], tables: Sequence[list[dict[int, ir.Value]]]
    ) -> list[ir.Value]:
        """All codes of a block, in the order of `vector_slots`; a table per component."""
        builder, out = self.builder, []
        mask = self.splat(self.bytes, (1 << self.bits) - 1)
        for word in words:
            for field in code_fields(self.bits):
                shifted = builder.lshr(word, self.splat(self.words, field)) if field else word
                codes = builder.bitcast(shifted, self.bytes)
                codes = builder.and_(codes, mask)
                for component in tables:
                    out += self.decode(codes, component)
        return out

    def horizontal_sum(self, vector: ir.Value) -> ir.Value:
        while vector.type.count > 1:
            half = vector.type.count // 2
            low = self.shuffle(vector, vector, range(half))
            high = self.shuffle(vector, vector, range(half, 2 * half))
            vector = self.builder.fadd(low, high)
        return self.builder.extract_element(vector, ir.Constant(_I32, 0))

    def tile_dot(self, pointers: Sequence[ir.Value], groups: ir.Value) -> ir.Value:
        """Sum over the codes of a tile of value * activation; pointers: words, x, table."""
        builder = self.builder
        words, x, table = pointers
        tables = [[] if self.entries == "grid" else self.table_planes(table)]
        if self.entries == PAIRS:
            second = builder.gep(table, [ir.Constant(_I64, 1 << self.bits)])
            tables.append(self.table_planes(second))
        zero = self.splat(self.floats, 0.0)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(ACCUMULATORS)]
        position = cgutils.alloca_once_value(builder, x)
        start, step = ir.Constant(_I64, 0), ir.Constant(_I64, self.block)
        with cgutils.for_range_slice(builder, start, groups, step) as (group, _):
            here = builder.load(position)
            block_words = self.word_planes(builder.gep(words, [group]), groups)
            values = self.values(block_words, tables)
            for number, value in enumerate(values):
                offset = ir.Constant(_I64, number * self.block)
                activation = self.load(builder.gep(here, [offset]), self.floats, 4)
                total = sums[number % ACCUMULATORS]
                terms = [value, activation, builder.load(total)]
                fused = self.call(f"llvm.fma.v{self.block}f32", self.floats, terms)
                builder.store(fused, total)
            end = ir.Constant(_I64, len(values) * self.block)
            builder.store(builder.gep(here, [end]), position)
        parts = [builder.load(total) for total in sums]
        while len(parts) > 1:
            parts = [builder.fadd(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return self.horizontal_sum(parts[0])

    def gathered_dot(self, pointers: Sequence[ir.Value], groups: ir.Value, dim: int) -> ir.Value:
        """The same with one-byte codes that name `dim` bytes of the table, entry + 128 each."""
        builder = self.builder
        words, x, table = pointers
        codes = builder.bitcast(words, _I8.as_pointer())
        sums = [
            cgutils.alloca_once_value(builder, self.splat(self.floats, 0.0))
            for _ in range(ACCUMULATORS)
        ]
        per_value = self.block // dim  # codes that make up a vector
        count = builder.mul(groups, ir.Constant(_I64, 4))
        start, step = ir.Constant(_I64, 0), ir.Constant(_I64, per_value * ACCUMULATORS)
        with cgutils.for_range_slice(builder, start, count, step) as (first, _):
            for number, total in enumerate(sums):
                position = builder.add(first, ir.Constant(_I64, number * per_value))
                values = self.gathered(codes, position, table, dim)
                offset = builder.mul(position, ir.Constant(_I64, dim))
                activation = self.load(builder.gep(x, [offset]), self.floats, 4)
                terms = [values, activation, builder.load(total)]
                fused = self.call(f"llvm.fma.v{self.block}f32", self.floats, terms)
                builder.store(fused, total)
        first, *rest = [builder.load(total) for total in sums]
        for part in rest:
            first = builder.fadd(first, part)
        return self.horizontal_sum(first)

    def gathered(self, codes: ir.Value, position: ir.Value, table: ir.Value, dim: int) -> ir.Value:
        """The entries of as many codes as fill a vector of floats."""
        builder, entry = self.builder, ir.IntType(8 * dim)
        found = ir.Constant(_I64, 0)
        for number in range(self.block // dim):
            here = builder.gep(codes, [builder.add(position, ir.Constant(_I64, number))])
            code = builder.zext(builder.load(here), _I64)
            address = builder.gep(table, [builder.mul(code, ir.Constant(_I64, dim))])
            one = builder.zext(self.load(address, entry, 1), _I64)
            found = builder.or_(found, builder.shl(one, ir.Constant(_I64, 8 * dim * number)))
        signed = builder.xor(found, ir.Constant(_I64, 0x8080808080808080))
        stored = builder.bitcast(signed, ir.VectorType(_I8, self.block))
        return builder.sitofp(builder.sext(stored, self.words), self.floats)


@cache
def tile_dot(entries: str, bits: int, block: int) -> Callable:
    """numba function (words, word, groups, x, first, table, entry) -> float32.

    entries: one of ENTRIES, PAIRS, or `gathered2` and `gathered4` for vectors that codes of eight
    bits name.

    words: int32, the tile starts at flat position `word` and has `groups` groups, a multiple of
    `block` (8 or 4); x: float32 in the order of `vector_slots`, from `first` on; table: uint8,
    the row's entries start at flat position `entry` (ignored for "grid").
    """

    @intrinsic
    def dot(_context, words, word, groups, x, first, table, entry):
        signature = types.float32(words, word, groups, x, first, table, entry)

        def generate(context, builder, signature, values):
            def pointer(array: int, offset: int) -> ir.Value:
                kind = signature.args[array]
                data = context.make_array(kind)(context, builder, value=values[array]).data
                return builder.gep(data, [values[offset]])

            emitter = _Emitter(builder, entries, bits, block)
            pointers = [pointer(0, 1), pointer(3, 4), pointer(5, 6)]
            if entries.startswith("gathered"):
                return emitter.gathered_dot(pointers, values[2], int(entries[-1]))
            return emitter.tile_dot(pointers, values[2])

        return signature, generate

    return dot


@intrinsic
def half_to_float(_context, bits):
    """uint16 holding an FP16 number -> float32."""

    def generate(_context, builder, _signature, values):
        return builder.fpext(builder.bitcast(values[0], _HALF), _FLOAT)

    return types.float32(bits), generate
