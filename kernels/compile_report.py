"""Compile a kernel case for a GPU that is not there, and read what the compiler made of it.

Needs the triton wheel (Linux x86-64), which brings ptxas, nvdisasm and cuobjdump; no driver, no
CUDA toolkit. The process must have been started without TRITON_INTERPRET.
"""

import importlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kernels.case import KernelCase
from kernels.ceiling import Rates, decode_ceiling, dram_share
from kernels.sass import WARP_LANES, SassError, find_decode_loop, parse, spill_instructions

AMD_TARGETS = {"gfx942": 64}  # name -> lanes of a wavefront


class CompileError(RuntimeError):
    """A tool that is missing, or a kernel that a target's compiler refuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One case on one target. A field that the target has no notion of is None."""

    case: str
    target: str  # "sm_86" or "gfx942"
    registers: int
    spilled_bytes: int  # stack frame and local memory per thread
    spill_instructions: int
    shared_bytes: int
    warps: int
    loop_instructions: int | None = None
    unrolling: int | None = None
    outside_instructions: int | None = None  # prologue and epilogue, in no loop
    per_weight: Mapping[str, float] | None = None  # unit -> lane slots per weight
    weights_per_sm_cycle: float | None = None
    bound: str | None = None
    unknown_opcodes: tuple[str, ...] = ()
    dram_share: Mapping[str, float] | None = None  # device -> decode ceiling over DRAM bandwidth
    problem: str | None = None  # why there is no ceiling


def compile_case(case: KernelCase, target: str):
    """Triton's compiled kernel of a case, for "sm_86" or "gfx942". Raises: CompileError."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(case.module), case.function)
    if type(function).__name__ != "JITFunction":
        raise CompileError("TRITON_INTERPRET is set: start this process without it")
    index = {name: position for position, name in enumerate(function.arg_names)}
    source = ASTSource(
        fn=function,
        signature={name: case.signature.get(name, "constexpr") for name in function.arg_names},
        constexprs={(index[name],): value for name, value in case.constexprs.items()},
        attrs={(index[name],): [["tt.divisibility", 16]] for name in case.divisible},
    )
    if target.startswith("sm_"):
        gpu = GPUTarget("cuda", int(target.removeprefix("sm_")), WARP_LANES)
    else:
        gpu = GPUTarget("hip", target, AMD_TARGETS[target])
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    if case.maxnreg is not None:
        options["maxnreg"] = case.maxnreg
    return triton.compile(source, target=gpu, options=options)


def report(case: KernelCase, target: str, rates: Rates) -> Report:
    """Compile one case for one target and count. Raises: CompileError."""
    if target in AMD_TARGETS:
        return _amd_report(case, target)
    return _nvidia_report(case, target, rates)


def _nvidia_report(case: KernelCase, target: str, rates: Rates) -> Report:
    compiled = compile_case(case, target)
    program = parse(run_tool("nvdisasm", compiled.asm["cubin"], "-c"))
    resources = parse_resources(run_tool("cuobjdump", compiled.asm["cubin"], "-res-usage"))
    facts = {
        "case": case.name,
        "target": target,
        "registers": resources["REG"],
        "spilled_bytes": resources["STACK"] + resources["LOCAL"],
        "spill_instructions": spill_instructions(program),
        "shared_bytes": compiled.metadata.shared,
        "warps": case.num_warps,
    }
    weights_per_lane = case.weights_per_iteration / (WARP_LANES * case.num_warps)
    try:
        loop = find_decode_loop(program, case.invariants, weights_per_lane)
    except SassError as error:
        return Report(**facts, problem=str(error))
    number = int(target.removeprefix("sm_"))
    ceiling = decode_ceiling(loop, rates.architectures[number], rates)
    return Report(
        **facts,
        loop_instructions=len(loop.body),
        unrolling=loop.unrolling,
        outside_instructions=loop.outside,
        per_weight=ceiling.per_weight,
        weights_per_sm_cycle=ceiling.weights_per_sm_cycle,
        bound=ceiling.bound,
        unknown_opcodes=ceiling.unknown,
        dram_share={
            name: dram_share(ceiling, device, case.weight_bits)
            for name, device in rates.devices.items()
            if device.architecture == number
        },
    )


def _amd_report(case: KernelCase, target: str) -> Report:
    # LLVM ends the process on assembly of another vendor, so look before compiling.
    if "elementwise_inline_asm" in compile_case(case, "sm_80").asm["ttir"]:
        raise CompileError("the kernel holds inline PTX")
    compiled = compile_case(case, target)
    text = compiled.asm["amdgcn"]
    return Report(
        case=case.name,
        target=target,
        registers=_amd_field("vgpr_count", text),
        spilled_bytes=4 * _amd_field("vgpr_spill_count", text),
        spill_instructions=_amd_field("vgpr_spill_count", text),
        shared_bytes=compiled.metadata.shared,
        warps=case.num_warps,
        problem="instruction rates are known for NVIDIA alone",
    )


def _amd_field(name: str, text: str) -> int:
    found = re.search(rf"\.{name}:\s+(\d+)", text)
    if found is None:
        raise CompileError(f"no {name} in the AMD assembly")
    return int(found[1])


def parse_resources(text: str) -> dict[str, int]:
    """REG, STACK, SHARED and LOCAL as `cuobjdump -res-usage` prints them, in bytes but REG."""
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    if found is None:
        raise CompileError(f"cuobjdump printed no resource usage: {text[:200]!r}")
    names = ("REG", "STACK", "SHARED", "LOCAL")
    return dict(zip(names, map(int, found.groups()), strict=True))


def find_tool(name: str) -> str:
    """Path of nvdisasm or cuobjdump: Triton's own, else the PATH's. Raises: CompileError."""
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    path = str(bundled) if bundled.exists() else shutil.which(name)
    if path is None:
        raise CompileError(f"{name} is neither in the triton wheel nor on the PATH")
    return path


def run_tool(name: str, cubin: bytes, option: str) -> str:
    """What nvdisasm or cuobjdump prints about a cubin. Raises: CompileError."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [find_tool(name), option, file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own files
    if done.returncode:
        raise CompileError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
