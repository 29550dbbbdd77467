"""Stages of `bench all` on a GPU; each writes its lines to the results as they come."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import torch

from bench.environment import Environment
from bench.gpu.isolated import isolated_s
from bench.gpu.rates import STEPS, instruction_seconds
from bench.kernels.check import check
from bench.kernels.contest import Bench, Results, rule_of
from bench.kernels.prepare import prepare, rotation
from bench.kernels.subjects import AIMED, subject
from bench.timing import cuda_graph_sampler
from kernels import configs
from kernels.ceiling import load_rates

# Odd shapes first: rows that are no multiple of four, columns of less than a tile, of many tiles
# and of a ragged tail; then shapes that are timed.
CHECK_SHAPES = ((37, 1000), (70, 64), (35, 4224), (130, 11008), (4096, 4096), (22016, 4096))
REPEATS = 1000  # a kernel must give the same bits every time
PROFILED = 20  # calls under the profiler
TUNED = ("squeezellm-w3", "squeezellm-w4", "squeezellm-w4-u7:int", "squeezellm-w3-int8:int")
TUNED_WARPS = (4, 6, 8, 10, 13, 16, 20, 24, 32, 48)


def shape_of(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def rates(_environment: Environment, results: Results) -> None:
    """Lanes per clock and SM of single instructions; the clock from FFMA, whose rate is known."""
    properties = torch.cuda.get_device_properties(0)
    architecture = load_rates().architectures[10 * properties.major + properties.minor]
    seconds = {name: instruction_seconds(name) for name in STEPS}
    full_rate = _lanes(architecture.limits, "fp32")
    for name, (_, opcode, kind) in STEPS.items():
        results.add_line(
            {
                "kind": "rate",
                "instruction": name,
                "opcode": opcode,
                "lanes_per_clock_per_sm": full_rate * seconds["FFMA"] / seconds[name],
                "assumed": _lanes(architecture.limits, kind),
                "clock_hz": 1 / (seconds["FFMA"] * full_rate),
            }
        )


def _lanes(limits: dict, kind: str) -> int | None:
    """The rate that rates.yaml has for a class; None where it limits nothing."""
    found = [limit.lanes for limit in limits.values() if limit.classes and kind in limit.classes]
    return min(found, default=None)


def check_subject(
    environment: Environment,
    results: Results,
    name: str,
    *,
    shapes: Sequence[tuple[int, int]] | None = None,
    repeats: int | None = None,
    device: str | None = None,
) -> None:
    """Fresh random weights and activations against FP64, at CHECK_SHAPES; REPEATS runs alike."""
    repeats = REPEATS if repeats is None else repeats
    for number, shape in enumerate(CHECK_SHAPES if shapes is None else shapes):
        text = f"{shape[0]}x{shape[1]}"
        prepared = prepare(subject(name), shape, environment.kind, device=device, seed=number)
        found = check(prepared, repeats=repeats)
        facts = {"error": found.error, "limit": found.limit, "ok": found.ok, "why": found.why}
        results.add_line({"kind": "check", "name": name, "shape": text, **facts})


def isolated(environment: Environment, results: Results, text: str) -> None:
    """Device time of single calls, beside which the graph's times of the same shape must lie."""
    rows, columns = shape_of(text)
    bench = Bench(environment=environment, results=results, rule=rule_of(environment.kind))
    for name in AIMED:
        asked = subject(name)
        params = {"rows": rows, "columns": columns, "batch": asked.batch, **asked.options}
        modes = {"timing_mode": "profiler"}
        if results.is_done(bench.key("isolated", asked.weights, params, **modes)):
            continue
        prepared = prepare(asked, (rows, columns), environment.kind)
        call = rotation(prepared, 1)
        samples = isolated_s(lambda call=call: call(0), environment.cache_bytes, repeats=PROFILED)
        bench.keep(
            "isolated", asked.weights, params, tuple(samples), bytes_moved=prepared.bytes_moved,
            **modes,
        )  # fmt: skip


def tune(environment: Environment, results: Results, text: str) -> None:
    """The settings of kernels/configs.py by cold time: warps per SM, and the 7-bit table's step."""
    capability = torch.cuda.get_device_capability()
    shipped = configs.LAUNCH_TABLES.get(capability, configs.DEFAULT_TABLE)
    bench = Bench(environment=environment, results=results, rule=rule_of(environment.kind))
    for name in TUNED:
        steps = ("u7", "u7sum") if "u7" in name else (shipped.int_u7_step,)
        tables = {
            f"warps {warps} {step}": replace(shipped, warps_per_sm=warps, int_u7_step=step)
            for step in steps
            for warps in sorted({*TUNED_WARPS, shipped.warps_per_sm})
        }
        prepared = prepare(subject(name), shape_of(text), environment.kind)
        copies = bench.cold_copies(prepared.weight_bytes)
        call, seconds = rotation(prepared, copies), {}
        for setting, table in tables.items():
            configs.LAUNCH_TABLES[capability] = table
            sample = cuda_graph_sampler(call, copies)
            seconds[setting] = median(sample() for _ in range(9))
        configs.LAUNCH_TABLES[capability] = shipped
        now = f"warps {shipped.warps_per_sm} {shipped.int_u7_step}"
        line = {"kind": "tune", "name": name, "shape": text, "shipped": now}
        results.add_line({**line, "seconds_by_setting": seconds})


def peer(_environment: Environment, results: Results, name: str) -> None:
    """One kernel of another project, in this process alone: what it breaks is this job."""
    from bench.peers.contest import try_alone

    try_alone(results, name)
