"""The timing engine: distinct copies beyond the cache, interleaved samples, a stop rule, a verdict.

A call is timed by a sampler, which runs it and returns the seconds of one call. Weights are read
from DRAM because every call takes the next of several copies that together exceed twice the last
cache; that is asserted, not hoped. Subjects are sampled in turn, so that a drift of the clock
meets all of them alike. Policy and sources: docs/measuring.md.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from bench.cores import cores_allowed, waited_s
from bench.measurement import noise

CACHE_MULTIPLE = 2  # copies of the weights exceed this many times the last cache
LEAST_LAUNCHES = 50  # per CUDA graph

SLOW_CALLS = 4  # times the usual seconds for a subject that is too slow to give enough samples
LEAST_SAMPLE_S = 2e-4  # a shorter call is repeated within a sample of the CPU
DISTURBED = 0.02  # share of a CPU sample that was spent waiting for a core

Sampler = Callable[[], float | None]  # seconds of one call; None: disturbed, it does not count


class NotColdError(ValueError):
    """A rotation of buffers that would be served from the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """When a subject has been sampled enough, and when its samples are refused."""

    least_samples: int = 30
    most_samples: int = 1000
    fewest: int = 1  # below it the samples are refused, once the time is up
    least_s: float = 0.2  # spent in the subject
    most_s: float = 10.0  # spent in the subject
    steady: float = 0.01  # interquartile range over median at which sampling stops
    unsteady: float = 0.05  # ... above which the samples are refused

    def is_enough(self, samples_s: Sequence[float], spent_s: float) -> bool:
        """Whether a subject needs no further sample."""
        if len(samples_s) < self.fewest and spent_s < SLOW_CALLS * self.most_s:
            return False
        if spent_s >= self.most_s or len(samples_s) >= self.most_samples:
            return True
        if len(samples_s) < self.least_samples or spent_s < self.least_s:
            return False
        return noise(samples_s) <= self.steady


# A sample of a GPU is 50 calls or more: 200 of them say enough, and a run has hundreds of cases.
CUDA_RULE = StopRule(most_samples=200, least_s=0.05, most_s=0.5)

# A shared CPU is noisier than a GPU: neighbours take its memory bandwidth.
CPU_RULE = StopRule(least_samples=20, fewest=5, least_s=0.1, most_s=1.0, steady=0.02, unsteady=0.15)


def copies_for(weight_bytes: int, cache_bytes: int) -> int:
    """Distinct copies so that rotating over them always misses the cache."""
    return max(2, CACHE_MULTIPLE * cache_bytes // weight_bytes + 1)


def assert_cold(copies: int, weight_bytes: int, cache_bytes: int) -> None:
    """Raises: NotColdError unless the copies exceed the cache as often as they should."""
    if copies * weight_bytes <= CACHE_MULTIPLE * cache_bytes:
        total = copies * weight_bytes
        raise NotColdError(
            f"{copies} copies of {weight_bytes} bytes are {total}, "
            f"expected more than {CACHE_MULTIPLE} x {cache_bytes} bytes of cache"
        )


def sample_in_turn(
    samplers: Mapping[str, Sampler], rule: StopRule, clock: Callable[[], float] = time.perf_counter
) -> dict[str, tuple[float, ...]]:
    """Seconds per call of every subject, one sample each in turn until all have enough.

    A subject that has enough drops out; `clock` measures what each has spent. One that was always
    disturbed ends with no samples.
    """
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    spent_s = dict.fromkeys(samplers, 0.0)
    running = list(samplers)
    while running:
        for name in running:
            start = clock()
            taken = samplers[name]()
            if taken is not None:
                samples[name].append(taken)
            spent_s[name] += clock() - start
        running = [n for n in running if not rule.is_enough(samples[n], spent_s[n])]
    return {name: tuple(seconds) for name, seconds in samples.items()}


def refusal(
    samples_s: Sequence[float], rule: StopRule, throttled: Sequence[str] = ()
) -> str | None:
    """Why the samples are no result, or None; `throttled` are the reasons that the device gave."""
    if len(samples_s) < max(1, rule.fewest):
        found = f"{len(samples_s)} samples undisturbed by other processes"
        return f"disturbed: {found}, expected at least {max(1, rule.fewest)}"
    if min(samples_s) <= 0:
        return f"not positive: a sample of {min(samples_s):g} s"
    if throttled:
        return f"throttled: {', '.join(throttled)}"
    if noise(samples_s) > rule.unsteady:
        found, limit = noise(samples_s), rule.unsteady
        return f"unsteady: quartiles {found:.1%} of the median apart, expected at most {limit:.0%}"
    return None


def cpu_sampler(call: Callable[[int], object], copies: int) -> Sampler:
    """Calls on the next copies, by the CPU's clock.

    Other processes take our cores meanwhile. On one core the thread's own clock stands still then;
    several threads wait for each other too, so a sample during which one of them stood in a queue
    is None.
    """
    turns, one_core = count(), len(cores_allowed()) == 1
    clock = time.thread_time if one_core else time.perf_counter
    for copy in range(min(copies, 3)):  # compile, and touch what is touched once
        call(copy)
    start = time.perf_counter()
    call(next(turns) % copies)
    calls = max(1, int(LEAST_SAMPLE_S / (time.perf_counter() - start)))

    def sample_s() -> float | None:
        waited = 0.0 if one_core else waited_s()
        start = clock()
        for _ in range(calls):
            call(next(turns) % copies)
        seconds = clock() - start
        if not one_core and waited_s() - waited > DISTURBED * seconds:
            return None
        return seconds / calls

    return sample_s


def cuda_graph_sampler(call: Callable[[int], object], copies: int) -> Sampler:
    """Replays of one graph of whole rounds of call(0) ... call(copies - 1), at least 50 calls.

    No launch waits for the host; two events on the stream give the seconds.
    """
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
    return lambda: event_s(graph.replay) / launches


def cuda_event_sampler(call: Callable[[int], object], copies: int) -> Sampler:
    """A call on the next copy between two events: what cannot be captured in a graph."""
    import torch

    turns = count()
    for copy in range(min(copies, 3)):
        call(copy)
    torch.cuda.synchronize()
    return lambda: event_s(lambda: call(next(turns) % copies))


def event_s(launch: Callable[[], object]) -> float:
    """Seconds between two CUDA events around a launch."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    launch()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3
