"""How the GPU command times a kernel: cold through a CUDA graph, isolated through the profiler.

Cold: one graph launches the kernel over distinct copies of its weights that together exceed twice
the L2, so that every launch reads its weights from DRAM and no launch waits for the host. Isolated:
the device time of single calls, each after a read of more than the L2 (a flush by writing would
leave dirty lines whose write-back competes with the kernel).
"""

from collections.abc import Callable
from dataclasses import dataclass

L2_MULTIPLE = 2  # copies of the weights exceed this many times the L2
LEAST_LAUNCHES = 50  # per graph


class NotColdError(ValueError):
    """A rotation of buffers that would be served from the L2."""


def copies_for(weight_bytes: int, l2_bytes: int) -> int:
    """Distinct copies so that rotating over them always misses the L2."""
    return max(2, L2_MULTIPLE * l2_bytes // weight_bytes + 1)


def assert_cold(copies: int, weight_bytes: int, l2_bytes: int) -> None:
    """Raises: NotColdError unless the copies exceed the L2 as often as they should."""
    if copies * weight_bytes <= L2_MULTIPLE * l2_bytes:
        total = copies * weight_bytes
        raise NotColdError(
            f"{copies} copies of {weight_bytes} bytes are {total}, "
            f"expected more than {L2_MULTIPLE} x {l2_bytes} bytes of L2"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdGraph:
    """A captured rotation; `replay_s` runs it once."""

    graph: object
    launches: int

    def replay_s(self) -> float:
        """Seconds per launch of one replay, between two events on the stream."""
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / self.launches


def capture(call: Callable[[int], None], copies: int) -> ColdGraph:
    """A graph of whole rounds of call(0) ... call(copies - 1), at least LEAST_LAUNCHES calls."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for copy in range(min(copies, 3)):  # compile and load outside the capture
            call(copy)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    launches = -(-LEAST_LAUNCHES // copies) * copies
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in range(launches):
            call(launch % copies)
    graph.replay()
    torch.cuda.synchronize()
    return ColdGraph(graph=graph, launches=launches)


def isolated_s(call: Callable[[], None], l2_bytes: int, repeats: int) -> list[float]:
    """Device seconds of single calls, all their kernels summed, weights flushed before each."""
    import torch

    from bench.gpu_rates import READ_WORDS, read_all

    programs = -(-L2_MULTIPLE * l2_bytes // (4 * READ_WORDS))
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


def seconds_between(kernels: list[tuple[str, float]], marker: str) -> list[float]:
    """Sums of the seconds of the kernels that follow each one called `marker`."""
    calls: list[float] = []
    for name, seconds in kernels:
        if name == marker:
            calls.append(0.0)
        elif calls:
            calls[-1] += seconds
    return calls
