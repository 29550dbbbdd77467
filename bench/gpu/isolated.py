"""Device time of single calls by torch's profiler (CUPTI), the weights flushed from L2 before each.

The flush reads: one that writes would leave dirty lines whose write-back competes with the kernel.
"""

from collections.abc import Callable, Sequence

from bench.timing import CACHE_MULTIPLE


def isolated_s(call: Callable[[], object], l2_bytes: int, *, repeats: int) -> list[float]:
    """Seconds of each call, all its kernels summed."""
    import torch

    from bench.gpu.rates import READ_WORDS, read_all

    programs = -(-CACHE_MULTIPLE * l2_bytes // (4 * READ_WORDS))
    flush = torch.zeros(programs * READ_WORDS, dtype=torch.int32, device="cuda")
    sink = torch.empty(programs, dtype=torch.int32, device="cuda")

    def flush_then_call() -> None:
        read_all[(programs,)](flush, sink, num_warps=4)
        call()

    flush_then_call()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(repeats):
            flush_then_call()
        torch.cuda.synchronize()
    events = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda event: event.time_range.start)
    kernels = [(event.name, event.time_range.elapsed_us() * 1e-6) for event in events]
    return seconds_between(kernels, marker="read_all")


def seconds_between(kernels: Sequence[tuple[str, float]], *, marker: str) -> list[float]:
    """Sums of the seconds of the kernels that follow each one called `marker`."""
    calls: list[float] = []
    for name, seconds in kernels:
        if name == marker:
            calls.append(0.0)
        elif calls:
            calls[-1] += seconds
    return calls
