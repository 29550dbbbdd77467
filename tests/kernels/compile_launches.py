"""Compile what the launchers launch, for a GPU that is not there.

`python -m tests.kernels.compile_launches sm_90 5x1000 70x64 ...` (without TRITON_INTERPRET): every
subject of the GPU command is called at every shape on CPU tensors, with `start` replaced by a
compilation that specializes arguments as Triton's launcher would. The interpreter accepts Python
that the compiler refuses; tails and split rows compile nowhere else. Prints a JSON line per launch
that fails or spills, and a last one with the number of kernels compiled.
"""

import importlib
import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.gpu_subjects import SUBJECTS, prepare
from kernels.compile_report import parse_resources, run_tool
from kernels.launch import new_counters

H200_PROGRAMS = 13 * 132  # so that small matrices split their rows as they would there
MODULES = ("activations", "csr_spmv", "dequantize", "fp16_gemv", "lut_csr_fused", "lut_gemm",
           "lut_gemv", "uniform_gemv", "launch")  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "maxnreg")
TYPES = {
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.uint8: "*u8",
}


class Compiler:
    """Stands in for `kernels.launch.start`."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)
        self.done: set[str] = set()
        self.spills: list[tuple[str, int]] = []

    def start(self, kernel, _grid, *args, **constants) -> None:
        options = {name: constants.pop(name) for name in OPTIONS if name in constants}
        values = dict(zip(kernel.arg_names, args, strict=False)) | constants
        fixed = {p.name for p in kernel.params if p.is_constexpr}
        signature, constexprs, attributes = {}, {}, {}
        for number, name in enumerate(kernel.arg_names):
            value = values[name]
            if name in fixed or (isinstance(value, int) and value == 1):
                signature[name] = "constexpr"
                constexprs[(number,)] = value
                continue
            tensor = isinstance(value, torch.Tensor)
            signature[name] = TYPES[value.dtype] if tensor else "i32"
            if (value.data_ptr() if tensor else value) % 16 == 0:
                attributes[(number,)] = [["tt.divisibility", 16]]
        key = f"{kernel.fn.__name__} {signature} {constexprs} {attributes} {options}"
        if key in self.done:
            return
        source = ASTSource(kernel, signature, constexprs, attributes)
        compiled = triton.compile(source, target=self.target, options=options)
        self.done.add(key)
        used = parse_resources(run_tool("cuobjdump", compiled.asm["cubin"], "-res-usage"))
        if used["STACK"] + used["LOCAL"]:
            self.spills.append((kernel.fn.__name__, used["STACK"] + used["LOCAL"]))


def cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"[-400:]


def main(target: str, *shapes: str) -> None:
    compiler = Compiler(int(target.removeprefix("sm_")))
    for name in MODULES:
        module = importlib.import_module(f"kernels.{name}")
        for attribute, stand_in in (
            ("start", compiler.start),
            ("programs_wanted", lambda _device: H200_PROGRAMS),
        ):
            if hasattr(module, attribute):
                setattr(module, attribute, stand_in)
    for kernel, subject in SUBJECTS.items():
        for shape in shapes:
            rows, columns = map(int, shape.split("x"))
            prepared = prepare(subject, (rows, columns), "cpu")
            x = torch.zeros(prepared.shape(columns), dtype=torch.float16)
            out = torch.zeros(prepared.shape(rows), dtype=torch.float16)
            try:
                prepared.run(x, prepared.weights, out, new_counters(rows, x.device))
            except Exception as error:
                print(json.dumps({"kernel": kernel, "shape": shape, "error": cause(error)}))
    for function, size in compiler.spills:
        print(json.dumps({"kernel": function, "error": f"spills {size} bytes"}))
    print(json.dumps({"compiled": len(compiler.done)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
