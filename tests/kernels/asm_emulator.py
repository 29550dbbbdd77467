"""The PTX subset of our inline assembly, in numpy: Triton's interpreter runs the real kernels.

`install()` replaces `InterpreterBuilder.create_inline_asm`, which raises in Triton 3.6. Every
element of a tensor is one thread; registers are numpy arrays, 16 or 32 bits wide, held as
unsigned integers. An instruction outside the subset, a register that was never declared or
written, or a width that does not fit raises `AsmError` with the text of the instruction.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tests.kernels.ptx_ops import OPCODES, Array, mma_m16n8k16

MMA = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
REGISTER_BITS = {"r": 32, "f": 32, "h": 16}  # constraint letter -> width of its register


class AsmError(ValueError):
    """Assembly that the emulator does not know or that PTX would refuse."""


# ---- text to instructions -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Instruction:
    text: str
    opcode: str  # "{" and "}" open and close a scope, ".reg" declares
    operands: tuple[str, ...]


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_OPERAND = re.compile(r"\{[^}]*\}|[^,{}\s]+")


@lru_cache(maxsize=1024)
def _parse(asm: str) -> tuple[_Instruction, ...]:
    out = []
    for raw in _COMMENT.sub(" ", asm).split(";"):
        text = " ".join(raw.split())
        while text[:1] in ("{", "}"):
            out.append(_Instruction(text[0], text[0], ()))
            text = text[1:].lstrip()
        if not text:
            continue
        opcode, _, rest = text.partition(" ")
        if opcode == ".reg":
            kind, _, rest = rest.partition(" ")
            out.append(_Instruction(text, opcode, (kind, *re.split(r"\s*,\s*", rest))))
            continue
        out.append(_Instruction(text, opcode, tuple(_OPERAND.findall(rest))))
    return tuple(out)


def _immediate(token: str) -> int | None:
    """Value of an integer or 0f... float constant, None for anything else."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", token):
        return int(token[2:], 16)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", token):
        return int(token.rstrip("U"), 0) & 0xFFFFFFFF
    return None


class _Machine:
    """Registers of n threads that run the same instructions."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.bits: dict[str, int] = {}
        self.values: dict[str, Array] = {}
        self.scopes: list[list[str]] = []

    def declare(self, kind: str, names: Sequence[str]) -> None:
        width = re.fullmatch(r"\.[busf](16|32)", kind)
        if width is None:
            raise AsmError(f"register type {kind} is not emulated; have 16 and 32 bits")
        for name in names:
            if name in self.bits:
                raise AsmError(f"register {name} is declared twice")
            self.bits[name] = int(width[1])
            if self.scopes:
                self.scopes[-1].append(name)

    def read(self, token: str, bits: int) -> Array:
        constant = _immediate(token)
        if constant is not None:
            return np.full(self.threads, constant, np.uint32)
        if token in ("%tid.x", "%laneid"):  # an element does not know its thread: all are lane 0
            return np.zeros(self.threads, np.uint32)
        if token not in self.values:
            raise AsmError(f"{token} is read before it is written")
        self.check_width(token, bits)
        return self.values[token]

    def write(self, token: str, value: Array, bits: int) -> None:
        if token not in self.bits:
            raise AsmError(f"{token} is not a declared register")
        self.check_width(token, bits)
        self.values[token] = np.ascontiguousarray(value)

    def check_width(self, token: str, bits: int) -> None:
        if self.bits[token] != bits:
            raise AsmError(f"{token} has {self.bits[token]} bits, the instruction takes {bits}")

    def step(self, instruction: _Instruction) -> None:
        if instruction.opcode == "{":
            self.scopes.append([])
        elif instruction.opcode == "}":
            for name in self.scopes.pop():
                self.bits.pop(name)
                self.values.pop(name, None)
        elif instruction.opcode == ".reg":
            self.declare(instruction.operands[0], instruction.operands[1:])
        elif any(operand.startswith("{") for operand in instruction.operands):
            self.vector(instruction)
        else:
            self.execute(instruction)

    def vector(self, instruction: _Instruction) -> None:
        """Instructions with operands in braces: mov.b32 of two halves, and mma."""
        parts = [re.findall(r"[^{},\s]+", operand) for operand in instruction.operands]
        if instruction.opcode == MMA and [len(part) for part in parts] == [4, 4, 2, 4]:
            self.multiply_matrices(*parts)
        elif instruction.opcode == "mov.b32" and [len(part) for part in parts] == [2, 1]:
            (low, high), (source,) = parts
            word = self.read(source, 32)
            self.write(low, word & np.uint32(0xFFFF), 16)
            self.write(high, word >> np.uint32(16), 16)
        elif instruction.opcode == "mov.b32" and [len(part) for part in parts] == [1, 2]:
            (target,), (low, high) = parts
            word = self.read(low, 16) | (self.read(high, 16) << np.uint32(16))
            self.write(target, word, 32)
        else:
            raise AsmError("the instruction is not emulated with these operands")

    def multiply_matrices(self, *parts: Sequence[str]) -> None:
        if self.threads % 32:
            raise AsmError(f"mma takes whole warps, found {self.threads} threads")
        targets, *sources = parts
        results = mma_m16n8k16(*([self.read(name, 32) for name in part] for part in sources))
        for name, value in zip(targets, results, strict=True):
            self.write(name, value, 32)

    def execute(self, instruction: _Instruction) -> None:
        opcode = OPCODES.get(instruction.opcode)
        if opcode is None:
            raise AsmError("the instruction is not emulated")
        target, *sources = instruction.operands
        if len(sources) != opcode.operands:
            raise AsmError(f"takes {opcode.operands} sources, found {len(sources)}")
        values = [self.read(source, opcode.source_bits) for source in sources]
        self.write(target, opcode.run(*values), opcode.result_bits)


def run_asm(asm: str, constraints: str, inputs: Sequence[Array]) -> list[Array]:
    """Run one block of inline assembly on every element of its inputs.

    inputs: flat arrays of one length, 32 bits wide for "r" and "f", 16 for "h". `$0`, `$1`, ...
    name the outputs, then the inputs, as in LLVM. Returns one unsigned array per output.
    Raises: AsmError, with the instruction that could not run.
    """
    letters = [part.strip() for part in constraints.split(",")]
    outputs = [letter for letter in letters if letter.startswith("=")]
    if len(letters) != len(outputs) + len(inputs):
        raise AsmError(f"constraints {constraints!r} do not fit {len(inputs)} inputs")
    machine = _Machine(len(inputs[0]) if inputs else 1)
    for number, letter in enumerate(letters):
        kind = letter.lstrip("=&")
        if kind not in REGISTER_BITS:
            raise AsmError(f"constraint {letter!r} is not emulated")
        machine.bits[f"${number}"] = REGISTER_BITS[kind]
        if not letter.startswith("="):
            value = inputs[number - len(outputs)]
            if value.dtype.itemsize * 8 != REGISTER_BITS[kind]:
                raise AsmError(f"${number} is {value.dtype}, its constraint is {letter!r}")
            unsigned = value.view(f"u{value.dtype.itemsize}").astype(np.uint32)
            machine.values[f"${number}"] = unsigned
    for instruction in _parse(asm):
        try:
            machine.step(instruction)
        except AsmError as error:
            raise AsmError(f"{instruction.text!r}: {error}") from None
    return [
        machine.read(f"${number}", REGISTER_BITS[letter.lstrip("=&")]).astype(
            np.uint16 if letter.endswith("h") else np.uint32
        )
        for number, letter in enumerate(outputs)
    ]


def run_packed(asm: str, constraints: str, inputs: Sequence[Array], pack: int) -> list[Array]:
    """`run_asm` on `pack` consecutive elements at a time, one register for each of them.

    Triton packs elements that one thread owns; which ones depends on the layout. Here they are
    neighbours, so assembly must not depend on more than that its operands are packed alike.
    """
    if len(inputs[0]) % pack:
        raise AsmError(f"{len(inputs[0])} elements do not divide into packs of {pack}")
    columns = [np.ascontiguousarray(flat[lane::pack]) for flat in inputs for lane in range(pack)]
    results = run_asm(asm, constraints, columns)
    groups = [results[start : start + pack] for start in range(0, len(results), pack)]
    return [np.stack(group, axis=1).reshape(-1) for group in groups]


# ---- Triton's interpreter -------------------------------------------------------------------


class _Call:
    """What Triton's builder returns for an asm block: its results by number."""

    def __init__(self, handles: list) -> None:
        self.handles = handles

    def get_result(self, number: int) -> object:
        return self.handles[number]


def _create_inline_asm(_builder, asm, constraints, values, types, _is_pure, pack) -> _Call:
    from triton.runtime import interpreter

    arrays = np.broadcast_arrays(*(value.data for value in values))
    shape = arrays[0].shape
    results = run_packed(asm, constraints, [array.reshape(-1) for array in arrays], pack)
    handles = []
    for result, kind in zip(results, types, strict=True):
        dtype = interpreter._get_np_dtype(kind.scalar)
        data = result.view(dtype).reshape(shape)
        handles.append(interpreter.TensorHandle(data, kind.scalar))
    return _Call(handles)


def install() -> None:
    """Make `tl.inline_asm_elementwise` run in Triton's interpreter. Idempotent."""
    from triton.runtime import interpreter

    interpreter.InterpreterBuilder.create_inline_asm = _create_inline_asm
