"""Compile what the launchers launch, for a GPU that is not there.

`python -m tests.kernels.compile_launches sm_90 all 0/1 37x1000 70x64`, without TRITON_INTERPRET:
every subject of the GPU command is called at every shape on CPU tensors, with `start` replaced by
what Triton's launcher compiles before it launches. The interpreter accepts Python that the compiler
refuses; tails and split rows compile nowhere else. 0/1 is all of the subjects, 0/2 every other one;
`distinct` leaves out those that differ in their bits alone.
Prints a JSON line per launch that fails or spills, and a last one with the number of kernels.
"""

import importlib
import json
import re
import sys
from dataclasses import replace

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from bench.kernels.prepare import prepare
from bench.kernels.subjects import Subject, default_subjects, subject
from kernels.compile_report import parse_resources, run_tool

WIDE = ("squeezellm-w5", "gptq-w7", "gptq-w6-g128")  # not among the default subjects
H200_PROGRAMS = 13 * 132  # so that small matrices split their rows as they would there
MODULES = ("activations", "bilevel_gemv", "csr_spmv", "dequantize", "fp16_gemv", "lut_csr_fused",
           "lut_gemm", "lut_gemv", "uniform_gemv", "vector_gemv", "launch")  # fmt: skip


class AbsentGpu:
    """What Triton's launcher asks of a driver before it compiles."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


class Compiler:
    """`start` stands in for `kernels.launch.start`: Triton specializes and compiles, no launch."""

    def __init__(self) -> None:
        self.done: set[str] = set()
        self.spills: list[tuple[str, int]] = []

    def start(self, kernel, grid, *args, **constants) -> None:
        compiled = kernel.run(*args, grid=grid, warmup=True, **constants)
        if compiled.hash in self.done:
            return
        self.done.add(compiled.hash)
        used = parse_resources(run_tool("cuobjdump", compiled.asm["cubin"], "-res-usage"))
        if used["STACK"] + used["LOCAL"]:
            self.spills.append((compiled.metadata.name, used["STACK"] + used["LOCAL"]))


def cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"[-400:]


def chosen(which: str, share: str) -> list[Subject]:
    first, step = map(int, share.split("/"))
    subjects = [subject(name) for name in (*default_subjects("cuda"), *WIDE)]
    if which == "distinct":
        subjects = list({form(s): s for s in reversed(subjects)}.values())
    return subjects[first::step]


def form(asked: Subject) -> Subject:
    """The subject without what changes no kernel: bits (but 8), density, tokens of one range."""
    weights = re.sub(r"-w[234]|-s[0-9.]+", lambda word: word[0][:2], asked.weights)
    tokens = next(most for most in (1, 16, 32) if asked.batch <= most)
    return replace(asked, weights=weights, batch=tokens)


def main(target: str, which: str, share: str, *shapes: str) -> None:
    driver.set_active(AbsentGpu(int(target.removeprefix("sm_"))))
    compiler = Compiler()
    for name in MODULES:
        module = importlib.import_module(f"kernels.{name}")
        for attribute, stand_in in (
            ("start", compiler.start),
            ("programs_wanted", lambda _device: H200_PROGRAMS),
        ):
            if hasattr(module, attribute):
                setattr(module, attribute, stand_in)
    for asked in chosen(which, share):
        for shape in shapes:
            rows, columns = map(int, shape.split("x"))
            prepared = prepare(asked, (rows, columns), "cuda", device="cpu")
            x, out, counters = prepared.inputs()
            try:
                prepared.run(x, prepared.weights, out, counters)
            except Exception as error:
                print(json.dumps({"kernel": asked.name, "shape": shape, "error": cause(error)}))
    for function, size in compiler.spills:
        print(json.dumps({"kernel": function, "error": f"spills {size} bytes"}))
    print(json.dumps({"compiled": len(compiler.done)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
