"""Benchmarks of the model itself: how fast it starts, and how fast it sweeps.

`make bench` runs them. Ratios and rates are in `extra_info`: both sides of a ratio are timed in
turn in this one run, because these machines are shared.
"""

import statistics
import subprocess
import sys
import time

from msgspec.structs import replace

from perfmodel.format_names import bits_format, parse_format
from perfmodel.formats import BitPolicy
from perfmodel.hardware import device_names, load_hardware
from perfmodel.models import load_model, model_names
from perfmodel.stack_files import load_stack
from perfmodel.sweep import Grid, blocks, sweep
from tests.perfmodel.test_sweep import predicted_row, random_grids

BARE = [sys.executable, "-c", "import yaml, msgspec, argparse"]
PREDICT = [sys.executable, "-m", "perfmodel", "predict", "--gpu", "a6000"]
PAIRS = 15


def wall_s(command: list[str]) -> float:
    start_s = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start_s


def test_start_of_predict_over_its_bare_imports(benchmark):
    wall_s(PREDICT)  # byte code is compiled once
    ratios = [wall_s(PREDICT) / wall_s(BARE) for _ in range(PAIRS)]
    benchmark.extra_info["predict_over_bare_imports"] = statistics.median(ratios)
    benchmark.pedantic(wall_s, args=(PREDICT,), rounds=5)
    print(f"\npredict over bare imports, median of {PAIRS} pairs: {statistics.median(ratios):.2f}")


def grid_of_100_000() -> Grid:
    fp16 = parse_format("fp16")
    policies = [
        BitPolicy(linear=bits_format(bits), lm_head=fp16, embedding=fp16)
        for bits in ("16", "8", "6", "5", "4", "3", "2")
    ]
    return Grid(
        machines=[(load_hardware(name), load_stack("ideal")) for name in device_names()],
        models=[load_model(name) for name in model_names()[:8]],
        policies=policies,
        phase="decode",
        accountings=["fused"],
        batches=[1, 2, 4, 8, 16, 32, 64],
        lengths=[0, 128, 512, 1024, 2048, 4096, 8192],
        new=0,
        tensor_parallel=[1],
        kv_bits=16,
    )


def rows_per_cpu_s(grid: Grid) -> float:
    start_s = time.process_time()
    count = sum(len(block["time_s"]) for block in blocks(grid))
    return count / (time.process_time() - start_s)


def test_sweep_of_10_000_random_configurations_is_predict(benchmark):
    grids = random_grids(seed=7, rows=10_000)
    rows = [(grid, row) for grid in grids for row in sweep(grid)][:10_000]
    start_s = time.process_time()
    wrong = [row for grid, row in rows if row != predicted_row(grid, row)]
    scalar_rows_per_s = len(rows) / (time.process_time() - start_s)
    million = replace(grid_of_100_000(), batches=range(1, 101))
    rate = benchmark.pedantic(rows_per_cpu_s, args=(million,), rounds=1)
    benchmark.extra_info |= {
        "compared": len(rows),
        "different": len(wrong),
        "configurations": million.size,
        "configurations_per_cpu_s": rate,
        "predict_per_cpu_s": scalar_rows_per_s,
    }
    print(f"\n{len(rows):,} random configurations, {len(wrong)} differ from predict")
    print(f"{million.size:,} configurations at {rate:,.0f} per second and core")
    print(f"predict: {scalar_rows_per_s:,.0f} per second and core")
    assert not wrong


def test_sweep_of_100_000_configurations(benchmark):
    grid = grid_of_100_000()
    one_device = replace(grid, machines=grid.machines[:1], batches=range(1, 64))
    rates = {"38 devices": rows_per_cpu_s(grid), "one device": rows_per_cpu_s(one_device)}
    benchmark.extra_info["configurations"] = grid.size
    benchmark.extra_info["configurations_per_cpu_s"] = rates
    benchmark.pedantic(rows_per_cpu_s, args=(grid,), rounds=3)
    for name, rate in rates.items():
        print(f"\n{name}: {rate:,.0f} configurations per second and core")
