"""Microbenchmarks: instructions per clock and SM, a kernel that only reads, one that does nothing.

Each instruction runs in eight independent chains per thread, as inline assembly, in a loop; the
lanes per clock come from the time relative to FFMA, whose rate is documented, so that no clock
needs to be known. The test set compiles these kernels and counts their machine code.
"""

from statistics import median

import triton
import triton.language as tl

from bench.timing import event_s

CHAINS = 8
ROUNDS = 64  # instructions per chain and trip of the loop
WARPS_PER_SM = 32
TRIPS = 2000

# Instruction -> (PTX of one step, SASS opcode, class of rates.yaml that it stands for). In a step
# {d} is its chain, {n} and {m} the next two, x and y inputs. Operands keep the compiler from
# merging steps: each reads other chains or values that it cannot know. A chain of BMMA is the four
# registers of its result.
STEPS = {
    "FFMA": ("fma.rn.f32 {d}, {d}, x, y", "FFMA", "fp32"),
    "PRMT": ("prmt.b32 {d}, {d}, {n}, x", "PRMT", "alu"),
    "LOP3": ("lop3.b32 {d}, {d}, {n}, {m}, 0x96", "LOP3", "alu"),
    "HFMA2": ("fma.rn.f16x2 {d}, {d}, x, y", "HFMA2", "half"),
    "IMAD": ("mad.lo.u32 {d}, {d}, {n}, x", "IMAD", "imad"),
    "DP4A": ("dp4a.s32.s32 {d}, {n}, x, {d}", "IDP", "imad"),
    "LDS": ("ld.volatile.shared.b32 t, [a+{offset}]; xor.b32 {d}, {d}, t", "LDS", "memory"),
    "BMMA": (
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
        "{{{d}, {d}b, {d}c, {d}d}}, {{x, y, x, y}}, {{x, y}}, {{{d}, {d}b, {d}c, {d}d}}",
        "BMMA", "tensor",
    ),
}  # fmt: skip


def block(instruction: str) -> str:
    """Assembly of ROUNDS x CHAINS instructions; operands: value, two inputs -> value."""
    step = STEPS[instruction][0]
    kind = "f32" if instruction == "FFMA" else "b32"
    names = [f"c{chain}" for chain in range(CHAINS)]
    lines = [f".reg .{kind} x, y, {', '.join(names)}", ".reg .b32 start"]
    if instruction == "LDS":  # a lane reads its own column of a 4 KiB array: no bank conflict
        lines += [
            ".shared .align 16 .b8 cells[4096]",
            ".reg .b32 t, a, i",
            "mov.u32 i, %tid.x; and.b32 i, i, 31; mov.u32 a, cells; mad.lo.u32 a, i, 4, a",
        ]
    lines += ["mov.b32 x, $2", "mov.b32 y, $3"]
    for number, name in enumerate(names):  # chains that start alike could be computed once
        lines += [f"add.u32 start, $1, {number}", f"mov.b32 {name}, start"]
        if instruction == "BMMA":
            lines += [f".reg .b32 {name}{part}; mov.b32 {name}{part}, start" for part in "bcd"]
    for round_ in range(ROUNDS):
        for chain in range(CHAINS):
            lines.append(
                step.format(
                    d=names[chain],
                    n=names[(chain + 1) % CHAINS],
                    m=names[(chain + 2) % CHAINS],
                    offset=128 * (chain * 4 + round_ % 4),
                )
            )
    combine = "add.f32" if instruction == "FFMA" else "xor.b32"
    lines += [f"{combine} c0, c0, {name}" for name in names[1:]]
    return "{ " + "; ".join([*lines, "mov.b32 $0, c0"]) + "; }"


@triton.jit
def instruction_loop(out_ptr, in_ptr, trips, TEXT: tl.constexpr, THREADS: tl.constexpr):
    """One value per thread through `trips` repetitions of the block; its inputs are unknown."""
    lane = tl.arange(0, THREADS)
    value = tl.load(in_ptr + lane)
    x = tl.load(in_ptr + THREADS + lane)
    y = tl.load(in_ptr + 2 * THREADS + lane)
    for _ in range(trips):
        value = tl.inline_asm_elementwise(
            TEXT, "=r,r,r,r", [value, x, y], dtype=tl.int32, is_pure=True, pack=1
        )
    tl.store(out_ptr + tl.program_id(0) * THREADS + lane, value)


READ_BLOCK = 1024  # words per load of a program
READ_BLOCKS = 16
READ_WORDS = READ_BLOCK * READ_BLOCKS  # per program
_BLOCK, _BLOCKS = tl.constexpr(READ_BLOCK), tl.constexpr(READ_BLOCKS)


@triton.jit
def read_all(x_ptr, out_ptr):
    """Sum of READ_WORDS int32; 128-bit loads, nothing written but one word per program."""
    lanes = tl.arange(0, _BLOCK)
    start = tl.program_id(0).to(tl.int64) * (_BLOCK * _BLOCKS)
    acc = tl.zeros((_BLOCK,), tl.int32)
    for step in tl.static_range(_BLOCKS):
        where = x_ptr + start + step * _BLOCK + lanes
        acc += tl.load(where, eviction_policy="evict_first")
    tl.store(out_ptr + tl.program_id(0), tl.sum(acc, 0))


@triton.jit
def nothing(x_ptr, OVERLAP: tl.constexpr):
    """One word; OVERLAP: the next launch may start before this one ends (sm_90, launch_pdl)."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    tl.store(x_ptr, 0)


def instruction_seconds(instruction: str) -> float:
    """Seconds per instruction, thread and SM's share: time x SMs / (threads x instructions)."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    threads, programs = 32 * 8, properties.multi_processor_count * WARPS_PER_SM // 8
    inputs = torch.rand(3 * threads, device="cuda").view(torch.int32)  # finite as FP32
    out = torch.empty(programs * threads, dtype=torch.int32, device="cuda")
    text = block(instruction)

    def launch() -> None:
        instruction_loop[(programs,)](
            out, inputs, TRIPS, TEXT=text, THREADS=threads, num_warps=threads // 32
        )

    for _ in range(2):
        launch()
    seconds = median(event_s(launch) for _ in range(7))
    done = programs * threads * TRIPS * ROUNDS * CHAINS
    return seconds * properties.multi_processor_count / done
