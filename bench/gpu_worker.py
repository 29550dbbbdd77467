"""A worker of the GPU command: one stage for one kernel or shape; prints JSON lines.

`python -m bench.gpu_worker probe | check KERNEL | cold SHAPE | tune SHAPE | isolated SHAPE |
sanitize TOOL | touch`. Runs in a process of its own, so that an illegal access ends this job alone.
"""

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import triton

from bench.gpu_rates import STEPS, instruction_seconds, read_bytes_per_s
from bench.gpu_subjects import SUBJECTS, Prepared, clone, prepare
from bench.gpu_timing import assert_cold, capture, copies_for, isolated_s
from kernels import configs
from kernels.ceiling import load_rates
from kernels.launch import new_counters

# Odd shapes first: rows that are no multiple of four, columns of less than a tile, of many tiles
# and of a ragged tail; then the shapes that are timed.
CHECK_SHAPES = ((37, 1000), (70, 64), (35, 4224), (130, 11008), (4096, 4096), (22016, 4096))
ERROR_LIMIT = 4e-3  # relative L2: FP16 products in chains of 16, and an FP16 output
REPEATS = 10  # a kernel must give the same bits every time
CANARY = 64  # elements on either side of an output that must keep their value
REPLAYS = 30
BATCH = 10  # kernels whose weight copies are in memory together
UNSTEADY = 0.05  # interquartile range over median above which a timing is flagged
THROTTLED = ("hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake_slowdown")
TOUCH_SHAPES = CHECK_SHAPES[:3:2]  # compiled and cached by the check already
TUNED_KERNELS = ("lut3-fp16-exact", "lut4-fp16-exact", "lut4-u7-int", "lut3-int8-int")
TUNED_WARPS = (4, 6, 8, 10, 13, 16, 20, 24, 32, 48)


def emit(kind: str, **facts: object) -> None:
    print(json.dumps({"kind": kind, **facts}), flush=True)


def shape_of(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def l2_bytes() -> int:
    return torch.cuda.get_device_properties(0).L2_cache_size


# ---- what machine this is ----------------------------------------------------------------------


def probe() -> None:
    """Environment, bandwidth of a reading kernel, instruction rates."""
    properties = torch.cuda.get_device_properties(0)
    number = 10 * properties.major + properties.minor
    rates = load_rates()
    word = properties.name.lower()
    device = next((d for name, d in rates.devices.items() if name in word.replace(" ", "")), None)
    emit(
        "environment",
        gpu=properties.name,
        capability=number,
        sm_count=properties.multi_processor_count,
        l2_bytes=properties.L2_cache_size,
        dram_bytes_per_s=device.dram_bytes_per_s if device else None,
        torch=torch.__version__,
        triton=triton.__version__,
        python=platform.python_version(),
        **smi(),
    )
    emit("read_bandwidth", bytes_per_s=read_bytes_per_s(2 << 30), bytes=2 << 30)
    limits = rates.architectures[number].limits
    seconds = {name: instruction_seconds(name) for name in STEPS}
    full_rate = _lanes(limits, "fp32")
    for name, (_, opcode, kind) in STEPS.items():
        emit(
            "rate",
            instruction=name,
            opcode=opcode,
            lanes_per_clock_per_sm=full_rate * seconds["FFMA"] / seconds[name],
            assumed=_lanes(limits, kind),
            clock_hz=1 / (seconds["FFMA"] * full_rate),
        )


def _lanes(limits: dict, kind: str) -> int:
    return min(limit.lanes for limit in limits.values() if limit.classes and kind in limit.classes)


def smi() -> dict[str, str]:
    """Clocks, temperature, power and throttling as nvidia-smi reports them; empty without it."""
    if shutil.which("nvidia-smi") is None:
        return {}
    for prefix in ("clocks_event_reasons", "clocks_throttle_reasons"):  # new and old name
        fields = ["driver_version", "clocks.sm", "clocks.mem", "temperature.gpu", "power.draw"]
        fields += [f"{prefix}.{reason}" for reason in THROTTLED]
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return dict(zip(fields, done.stdout.splitlines()[0].split(", "), strict=True))
    return {}


def throttled(state: dict[str, str]) -> list[str]:
    return [name for name, value in state.items() if "_reasons." in name and value == "Active"]


# ---- correctness -------------------------------------------------------------------------------


def check(
    kernel: str, shapes: Sequence[tuple[int, int]] = CHECK_SHAPES, device: str = "cuda"
) -> None:
    """Fresh random weights and activations against FP64; poisoned output, canaries, repeats."""
    for number, shape in enumerate(shapes):
        prepared = prepare(SUBJECTS[kernel], shape, device, seed=number)
        facts = check_one(prepared, shape, device)
        ok = not facts["why"]
        text = f"{shape[0]}x{shape[1]}"
        emit("check", kernel=kernel, shape=text, limit=ERROR_LIMIT, ok=ok, **facts)


def check_one(prepared: Prepared, shape: tuple[int, int], device: str) -> dict[str, object]:
    """Relative L2 error, and what is wrong in words (nothing: an empty string)."""
    rows, columns = shape
    x = torch.randn(prepared.shape(columns), device=device).half()
    counters = new_counters(rows, torch.device(device))
    size = (prepared.batch * rows + 2 * CANARY,)
    buffer = torch.full(size, float("nan"), dtype=torch.float16, device=device)
    buffer[:CANARY], buffer[-CANARY:] = 7.0, 7.0
    out = buffer[CANARY:-CANARY].view(prepared.shape(rows))
    prepared.run(x, prepared.weights, out, counters)
    first = out.clone()
    expected = prepared.reference(x, prepared.weights)
    error = float((first.double() - expected).norm() / expected.norm())
    wrong = []
    if not error <= ERROR_LIMIT:  # a NaN is wrong too
        wrong.append("error")
    for _ in range(REPEATS):
        out.fill_(float("nan"))
        prepared.run(x, prepared.weights, out, counters)
        if not torch.equal(out, first):
            wrong.append("differs from run to run")
            break
    if not bool((buffer[:CANARY] == 7).all() and (buffer[-CANARY:] == 7).all()):
        wrong.append("wrote outside its output")
    if bool(counters.any()):
        wrong.append("left its counters set")
    return {"error": error, "why": ", ".join(wrong)}


# ---- time --------------------------------------------------------------------------------------


class Rotation:
    """A kernel of one shape with enough copies of its weights to miss the L2 at every call."""

    def __init__(self, kernel: str, shape: tuple[int, int]) -> None:
        rows, columns = shape
        self.prepared = prepare(SUBJECTS[kernel], shape, "cuda")
        size = self.prepared.weight_bytes
        self.copies = copies_for(size, l2_bytes())
        assert_cold(self.copies, size, l2_bytes())
        first = self.prepared.weights
        self.weights = [first] + [tuple(clone(w) for w in first) for _ in range(self.copies - 1)]
        self.x = torch.randn(self.prepared.shape(columns), device="cuda").half()
        self.out = torch.empty(self.prepared.shape(rows), dtype=torch.float16, device="cuda")
        self.counters = new_counters(rows, torch.device("cuda"))
        self.bytes = size + self.x.nbytes + self.out.nbytes

    def call(self, copy: int) -> None:
        self.prepared.run(self.x, self.weights[copy], self.out, self.counters)


def cold(text: str) -> None:
    """Every kernel at one shape, replays interleaved so that clock drift meets all alike.

    In batches, so that an early end leaves whole results of the most important kernels.
    """
    names = list(SUBJECTS)
    for start in range(0, len(names), BATCH):
        rotations = {name: Rotation(name, shape_of(text)) for name in names[start : start + BATCH]}
        samples = interleaved(rotations)
        state = smi()
        for name, rotation in rotations.items():
            facts = {"copies": rotation.copies, "l2_bytes": l2_bytes(), "state": state}
            emit_timing("cold", name, text, rotation, samples[name], **facts)


def interleaved(rotations: dict[str, Rotation]) -> dict[str, list[float]]:
    graphs = {name: capture(r.call, r.copies) for name, r in rotations.items()}
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(REPLAYS):
        for name, graph in graphs.items():
            samples[name].append(graph.replay_s())
    return samples


def emit_timing(
    kind: str, kernel: str, shape: str, rotation: Rotation, samples: list[float], **facts: object
) -> None:
    """One timing line with all samples, flagged where it is not to be trusted."""
    low, middle, high = torch.tensor(samples).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    flags = ["throttled"] * bool(throttled(facts["state"]))
    flags += ["unsteady"] * (high - low > UNSTEADY * middle)
    flags += ["not positive"] * (min(samples) <= 0)
    emit(
        kind,
        kernel=kernel,
        shape=shape,
        batch=rotation.prepared.batch,
        bytes=rotation.bytes,
        samples_s=samples,
        flag=" ".join(flags),
        timing_mode="cuda graph" if kind == "cold" else "profiler",
        l2_policy=kind,
        **facts,
    )


def isolated(text: str) -> None:
    """Device time of single calls after a read flush."""
    for name in SUBJECTS:
        rotation = Rotation(name, shape_of(text))
        samples = isolated_s(lambda r=rotation: r.call(0), l2_bytes(), repeats=20)
        emit_timing("isolated", name, text, rotation, samples, state=smi())


def tune(text: str) -> None:
    """The settings of kernels/configs.py by cold time: warps per SM, and the 7-bit table's step."""
    capability = torch.cuda.get_device_capability()
    shipped = configs.LAUNCH_TABLES.get(capability, configs.DEFAULT_TABLE)
    for kernel in TUNED_KERNELS:
        steps = ("u7", "u7sum") if kernel == "lut4-u7-int" else (shipped.int_u7_step,)
        tables = {
            f"warps {warps} {step}": replace(shipped, warps_per_sm=warps, int_u7_step=step)
            for step in steps
            for warps in sorted({*TUNED_WARPS, shipped.warps_per_sm})
        }
        rotation = Rotation(kernel, shape_of(text))
        seconds = {}
        for setting, table in tables.items():
            configs.LAUNCH_TABLES[capability] = table
            graph = capture(rotation.call, rotation.copies)
            seconds[setting] = sorted(graph.replay_s() for _ in range(9))[4]
        configs.LAUNCH_TABLES[capability] = shipped
        now = f"warps {shipped.warps_per_sm} {shipped.int_u7_step}"
        emit("tune", kernel=kernel, shape=text, shipped=now, seconds_by_setting=seconds)


# ---- memory errors and races -------------------------------------------------------------------


def touch() -> None:
    """Run every kernel once on small odd shapes: what compute-sanitizer watches."""
    for kernel, subject in SUBJECTS.items():
        if subject.family == "cublas":
            continue
        check(kernel, TOUCH_SHAPES)


def sanitize(tool: str) -> None:
    """`touch` under one tool of compute-sanitizer, with the caching allocator out of the way."""
    import os

    program = shutil.which("compute-sanitizer")
    if program is None:
        emit("sanitizer", tool=tool, errors=None, detail="compute-sanitizer is not installed")
        return
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [program, "--tool", tool, sys.executable, "-m", "bench.gpu_worker", "touch"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found = re.search(r"ERROR SUMMARY: (\d+) error", done.stdout)
    problems = [line for line in done.stdout.splitlines() if "=========" in line]
    emit(
        "sanitizer",
        tool=tool,
        errors=int(found[1]) if found else None,
        detail="" if found and found[1] == "0" else " / ".join(problems[:4])[:400],
        checked=done.stdout.count('"kind": "check"'),
    )


STAGES: dict[str, Callable[..., None]] = {
    "probe": probe,
    "check": check,
    "cold": cold,
    "tune": tune,
    "isolated": isolated,
    "sanitize": sanitize,
    "touch": touch,
}


def main(arguments: Sequence[str]) -> int:
    stage, *rest = arguments
    STAGES[stage](*rest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
