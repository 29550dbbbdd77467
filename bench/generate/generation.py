"""One generation, timed: every step and the whole, on a GPU or a CPU, by either stack."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch

from bench.cores import cores_allowed, waited_s
from bench.generate.decoder import Decoder

WARM_STEPS = 3  # enough to compile the rest, and to touch every weight


class Runner(Protocol):
    """What is timed: a decoder of either stack."""

    device: torch.device
    weight_bytes: int
    fused: bool  # q, k, v one launch and gate, up another
    own_gemv: bool  # FP16 layers by our kernel

    def reserve(self, capacity: int) -> None: ...

    @property
    def cache_bytes(self) -> int: ...

    def start(self, tokens: Sequence[int]) -> None: ...

    def step(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Seconds of one generation, and of the prompt before it."""

    prompt_s: float  # on the host's clock
    run_s: float  # on the host's clock (a thread's, on one core), first step to last token
    step_s: tuple[float, ...]  # on the device's clock: their sum is below run_s
    waited: float  # share of the run in which our CPU threads stood in a queue for a core


def timed_run(runner: Runner, prompt: Sequence[int], new: int) -> Generation:
    """`new` steps after the prompt; the last of its tokens goes into the first step."""
    with torch.inference_mode():
        begin = time.perf_counter()
        runner.start(prompt)
        if runner.device.type == "cuda":
            torch.cuda.synchronize()
            return _on_gpu(runner, new, prompt_s=time.perf_counter() - begin)
        return _on_cpu(runner, new, prompt_s=time.perf_counter() - begin)


def warm_up(runner: Runner, prompt: Sequence[int], new: int) -> float:
    """Compile, capture and touch what is touched once; seconds per step from then on."""
    timed_run(runner, prompt, 1)
    if runner.device.type == "cuda":
        _forget_compiling(runner)
    return min(timed_run(runner, prompt, min(new, WARM_STEPS)).step_s)


def _forget_compiling(runner: Runner) -> None:
    """From here on the allocator's peak is that of running: compiling takes memory of its own.

    Graphs are captured once more, since what they need is allocated when they are captured.
    """
    if isinstance(runner, Decoder):
        runner.prepare()
        runner.reserve(runner.capacity)
    torch.cuda.reset_peak_memory_stats()
    if isinstance(runner, Decoder):
        runner.prepare()


def peak_bytes(runner: Runner, before: int) -> tuple[int, str]:
    """Most memory in use since `warm_up`, and what counts it.

    before: what was allocated on the GPU before the model was.
    """
    if runner.device.type == "cuda":
        return torch.cuda.max_memory_allocated() - before, "torch.cuda allocator"
    return runner.weight_bytes + runner.cache_bytes, "bytes of weights and cache"


def _on_cpu(runner: Runner, new: int, *, prompt_s: float) -> Generation:
    """On one core the thread's own clock stands still while another process has it."""
    one_core = len(cores_allowed()) == 1
    clock = time.thread_time if one_core else time.perf_counter
    waited, marks = waited_s(), [clock()]
    for _ in range(new):
        runner.step()
        marks.append(clock())
    run_s = marks[-1] - marks[0]
    steps = (end - start for start, end in pairwise(marks))
    share = 0.0 if one_core else (waited_s() - waited) / run_s
    return Generation(prompt_s=prompt_s, run_s=run_s, step_s=tuple(steps), waited=share)


def _on_gpu(runner: Runner, new: int, *, prompt_s: float) -> Generation:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(new + 1)]
    start = time.perf_counter()
    marks[0].record()
    for mark in marks[1:]:
        runner.step()
        mark.record()
    torch.cuda.synchronize()
    run_s = time.perf_counter() - start
    steps = (a.elapsed_time(b) * 1e-3 for a, b in pairwise(marks))
    return Generation(prompt_s=prompt_s, run_s=run_s, step_s=tuple(steps), waited=0.0)
