"""Read NVIDIA machine code as `nvdisasm -c` prints it: instructions, loops, the decode loop.

Pure text work: no GPU, no CUDA tools, nothing compiled here.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

WARP_LANES = 32
UNROLLINGS = (1, 2, 4, 8, 16)  # how often ptxas may have copied the body of a loop
INVARIANT_TOLERANCE = 0.05  # ptxas moves constants by HFMA2 on sm_120, selects by PRMT

_INSTRUCTION = re.compile(
    r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z][A-Z0-9_.]*)(?P<operands>[^;]*);"
)
_LABEL = re.compile(r"^\s*(?P<label>\.L\w+):")
_TARGET = re.compile(r"\.L\w+")


class SassError(ValueError):
    """Machine code in which the decode loop cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One machine instruction: `opcode` with its modifiers, such as "LDG.E.128"."""

    opcode: str
    operands: str

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def words(self) -> int:
        """32-bit words that one lane moves: 4 for a 128-bit access."""
        modifiers = self.opcode.split(".")
        return 4 if "128" in modifiers else 2 if "64" in modifiers else 1


@dataclass(frozen=True, slots=True)
class Program:
    """Instructions in order, and the loops among them as ranges of positions."""

    instructions: tuple[Instruction, ...]
    loops: tuple[range, ...]

    @property
    def innermost_loops(self) -> tuple[range, ...]:
        def holds(outer: range, inner: range) -> bool:
            return outer != inner and outer.start <= inner.start and inner.stop <= outer.stop

        return tuple(a for a in self.loops if not any(holds(a, b) for b in self.loops))


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLoop:
    """The loop that decodes weights, and how many weights one lane decodes in one trip."""

    body: tuple[Instruction, ...]
    weights_per_lane: float
    unrolling: int
    outside: int  # instructions of the program that are in no loop

    def per_weight(self, opcode: str) -> float:
        return sum(i.base == opcode for i in self.body) / self.weights_per_lane


def parse(text: str) -> Program:
    """Instructions and loops of the first function in a disassembly.

    A loop is a branch to an earlier label; the branch to itself that pads the end of a function
    is none.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label:
            labels[label["label"]] = len(instructions)
            continue
        found = _INSTRUCTION.search(line)
        if found:
            instructions.append(Instruction(found["opcode"], found["operands"].strip()))
    loops = []
    for position, instruction in enumerate(instructions):
        target = _TARGET.search(instruction.operands) if instruction.base == "BRA" else None
        start = labels.get(target[0], position) if target else position
        if start < position:
            loops.append(range(start, position + 1))
    return Program(tuple(instructions), tuple(loops))


def find_decode_loop(
    program: Program, invariants: Mapping[str, float], weights_per_lane: float
) -> DecodeLoop:
    """The innermost loop whose instruction counts fit the invariants of the decode technique.

    invariants: opcode -> instructions per weight, such as {"PRMT": 2.0, "HFMA2": 0.5}.
    weights_per_lane: weights one lane decodes in one trip of the loop as written.
    The largest loop wins if several fit. Raises: SassError, with the counts of every loop.
    """
    if not invariants:
        raise SassError("a kernel without invariants: its decode loop cannot be recognised")
    loops = program.innermost_loops
    outside = len(program.instructions) - sum(len(loop) for loop in loops)
    fitting = []
    for loop in loops:
        body = program.instructions[loop.start : loop.stop]
        for unrolling in UNROLLINGS:
            found = DecodeLoop(
                body=body,
                weights_per_lane=weights_per_lane * unrolling,
                unrolling=unrolling,
                outside=outside,
            )
            if all(_fits(found.per_weight(op), count) for op, count in invariants.items()):
                fitting.append(found)
    if not fitting:
        raise SassError(_no_loop(program, invariants, weights_per_lane))
    return max(fitting, key=lambda found: len(found.body))


def _fits(found: float, expected: float) -> bool:
    return abs(found - expected) <= INVARIANT_TOLERANCE * max(expected, 1 / 4)


def _no_loop(program: Program, invariants: Mapping[str, float], weights_per_lane: float) -> str:
    def describe(counts: Mapping[str, float]) -> str:
        return ", ".join(f"{opcode} {count:.3f}" for opcode, count in counts.items())

    seen = []
    for loop in program.innermost_loops:
        counts = base_counts(program.instructions[loop.start : loop.stop])
        per_weight = {opcode: counts[opcode] / weights_per_lane for opcode in invariants}
        seen.append(f"{len(loop)} instructions: {describe(per_weight)}")
    return (
        f"no loop has {describe(invariants)} per weight; "
        f"innermost loops: {'; '.join(seen) or 'none'}"
    )


def base_counts(body: Iterable[Instruction]) -> Counter[str]:
    """Instructions by opcode without modifiers."""
    return Counter(instruction.base for instruction in body)


def spill_instructions(program: Program) -> int:
    """Accesses to local memory: registers that did not fit."""
    return sum(instruction.base in ("LDL", "STL") for instruction in program.instructions)
