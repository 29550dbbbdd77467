"""The numba twins against torch's FP32 GEMV on this CPU, side by side in one run.

`pytest bench/test_cpu_kernels.py`. Every round times one torch GEMV and one twin, each on the next
of several copies that together exceed twice the last-level cache, so that weights come from DRAM.
GB/s counts the stored bytes of the weight alone.
"""

import time
from itertools import cycle
from pathlib import Path
from statistics import median

import pytest
import torch

from kernels.cpu import csr_gemv, lut_gemv, uniform_gemv
from kernels.layouts import pack_csr, pack_lut, pack_uniform

ROUNDS = 30
SHAPES = [(4096, 4096), (11008, 4096)]  # rows, columns: LLaMA-7B attention and MLP
SPARSE_DENSITY = 0.0045
DEFAULT_CACHE_BYTES = 32 << 20


def last_level_cache_bytes() -> int:
    """Size of the largest cache that Linux reports, or a usual one where it reports none."""
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [int(file.read_text().strip().removesuffix("K")) << 10 for file in files]
    return max(sizes, default=DEFAULT_CACHE_BYTES)


def copies_needed(weight_bytes: int) -> int:
    return 2 * last_level_cache_bytes() // weight_bytes + 2


def lut(shape, bits):
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    return pack_lut(codes, torch.randn(shape[0], 2**bits).half(), bits=bits)


def u7(shape, _bits):
    codes = torch.randint(0, 16, shape, dtype=torch.uint8)
    entries = torch.randint(0, 128, (shape[0], 16), dtype=torch.uint8)
    return pack_lut(codes, entries, bits=4, kind="u7", scale=torch.rand(shape[0], 2).half())


def grid(shape, bits, group_size=None):
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    groups = shape[1] // (group_size or shape[1])
    scale_zero = torch.rand(shape[0], groups, 2).half()
    return pack_uniform(codes, scale_zero, bits=bits, group_size=group_size)


def grid_g128(shape, bits):
    return grid(shape, bits, 128)


def csr(shape, _bits):
    counts = torch.binomial(torch.full((shape[0],), float(shape[1])), torch.tensor(SPARSE_DENSITY))
    rows = [torch.randperm(shape[1])[: int(n)].sort().values for n in counts]
    pointers = torch.nn.functional.pad(counts.long().cumsum(0), (1, 0))
    columns = torch.cat(rows)
    return pack_csr(pointers, columns, torch.randn(len(columns)).half(), shape=shape)


CASES = {
    "lut2": (lut, 2, lut_gemv),
    "lut3": (lut, 3, lut_gemv),
    "lut4": (lut, 4, lut_gemv),
    "lut8": (lut, 8, lut_gemv),
    "u7-4": (u7, 4, lut_gemv),
    "grid3": (grid, 3, uniform_gemv),
    "grid4": (grid, 4, uniform_gemv),
    "grid8": (grid, 8, uniform_gemv),
    "grid4-g128": (grid_g128, 4, uniform_gemv),
    "csr-0.45%": (csr, 16, csr_gemv),
}


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def baseline(request):
    """(shape, function that runs one torch FP32 GEMV on the next copy)."""
    shape = request.param
    copies = copies_needed(4 * shape[0] * shape[1])
    matrices = cycle([torch.randn(shape) for _ in range(copies)])
    x = torch.randn(shape[1])
    return shape, lambda: torch.mv(next(matrices), x)


@pytest.mark.parametrize("case", CASES)
def test_cpu_kernel(benchmark, capsys, baseline, case):
    shape, run_torch = baseline
    pack, bits, gemv = CASES[case]
    torch.manual_seed(0)
    first = pack(shape, bits)
    weight_bytes = sum(first.nbytes_by_item().values())
    count = copies_needed(weight_bytes)
    weights = cycle([first, *(_copy(first) for _ in range(count - 1))])
    x = torch.randn(shape[1]).half()
    torch_s = []

    def one_torch_then_next_weight():
        start = time.perf_counter()
        run_torch()
        torch_s.append(time.perf_counter() - start)
        return (x, next(weights)), {}

    gemv(x, first)  # compile
    benchmark.group = f"{shape[0]}x{shape[1]}"
    benchmark.pedantic(gemv, setup=one_torch_then_next_weight, rounds=ROUNDS, warmup_rounds=3)
    if benchmark.stats is None:  # --benchmark-disable
        return
    twin_s, baseline_s = benchmark.stats.stats.median, median(torch_s)
    facts = {
        "weight_bytes": weight_bytes,
        "copies": count,
        "gb_per_s": weight_bytes / twin_s / 1e9,
        "torch_fp32_s": baseline_s,
        "torch_fp32_gb_per_s": 4 * shape[0] * shape[1] / baseline_s / 1e9,
        "speedup_over_torch_fp32": baseline_s / twin_s,
    }
    benchmark.extra_info.update(facts)
    with capsys.disabled():
        print(
            f"\n{case:11} {shape[0]}x{shape[1]}: {twin_s * 1e3:6.2f} ms, "
            f"{facts['gb_per_s']:5.1f} GB/s; torch FP32 {baseline_s * 1e3:6.2f} ms, "
            f"{facts['torch_fp32_gb_per_s']:5.1f} GB/s; {facts['speedup_over_torch_fp32']:.2f}x"
        )


def _copy(record):
    """The same packed weight in memory of its own."""
    fields = {name: getattr(record, name) for name in record.__slots__}
    for name, value in fields.items():
        if isinstance(value, torch.Tensor):
            fields[name] = value.clone()
        elif hasattr(value, "nbytes_by_item"):
            fields[name] = _copy(value)
    return type(record)(**fields)
