"""Timing contestants side by side: cold copies, samples in turn, one measurement each."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from bench.environment import Environment, throttle_reasons
from bench.measurement import Measurement, Scalar
from bench.timing import (
    CPU_RULE,
    CUDA_RULE,
    Sampler,
    StopRule,
    assert_cold,
    copies_for,
    cpu_sampler,
    cuda_graph_sampler,
    refusal,
    sample_in_turn,
)

TIMING_MODES = {"cuda": "cuda-graph", "cpu": "cpu-clock"}


class Results(Protocol):
    """Where results go: a folder, or the standard output of a worker."""

    def is_done(self, key: str) -> bool: ...
    def add_environment(self, environment: Environment) -> None: ...
    def add(self, measurement: Measurement, *, try_again: bool = False) -> None: ...
    def add_line(self, line: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One thing to time; `call(copy)` runs it on one of `copies` copies of its weights."""

    suite: str
    name: str
    params: dict[str, int | float | str]
    call: Callable[[int], object]
    copies: int = 1
    l2_policy: str = "cold"
    bytes_moved: int
    flops: int = 0
    sampler: Sampler | None = None  # instead of the device's usual one
    timing_mode: str | None = None  # of that sampler
    facts: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One device, how it is timed and where the results go."""

    environment: Environment
    results: Results
    rule: StopRule
    read_bytes_per_s: float | None = None  # the roof that `roof_share` refers to

    @property
    def is_cuda(self) -> bool:
        return self.environment.kind == "cuda"

    def cold_copies(self, weight_bytes: int) -> int:
        """Copies of a weight so that every call reads DRAM; asserted."""
        copies = copies_for(weight_bytes, self.environment.cache_bytes)
        assert_cold(copies, weight_bytes, self.environment.cache_bytes)
        return copies

    def key(self, suite: str, name: str, params: dict[str, int | float | str], **modes: str) -> str:
        """Key of a measurement before it is taken."""
        return self._measurement(suite, name, params, **modes).key

    def sampler(self, contestant: Contestant) -> Sampler:
        if contestant.sampler:
            return contestant.sampler
        make = cuda_graph_sampler if self.is_cuda else cpu_sampler
        return make(contestant.call, contestant.copies)

    def time(self, contestants: Sequence[Contestant]) -> list[Measurement]:
        """Time them in turn; every measurement is in the results when this returns.

        Those that are refused get a second chance together. One that was never undisturbed leaves
        a line of kind "skipped" instead of a measurement.
        """
        taken: list[Measurement] = []
        refused = []
        for contestant, found in zip(contestants, self._round(contestants), strict=True):
            if found is None or found.refused:
                refused.append(contestant)
            else:
                taken.append(found)
                self.results.add(found)
        for contestant, found in zip(refused, self._round(refused), strict=True):
            if found is None:
                about = {"name": contestant.name, **contestant.params}
                reason = "disturbed: other processes had our cores"
                self.results.add_line({"kind": "skipped", **about, "reason": reason})
            else:
                taken.append(found)
                self.results.add(found, try_again=True)
        return taken

    def keep(
        self,
        suite: str,
        name: str,
        params: dict[str, int | float | str],
        samples_s: tuple[float, ...],
        **rest: Any,
    ) -> None:
        """Samples that were taken otherwise, under the same verdict."""
        refused = refusal(samples_s, self.rule, throttle_reasons() if self.is_cuda else [])
        if samples_s:
            found = self._measurement(
                suite, name, params, samples_s=samples_s, refused=refused, **rest
            )
            self.results.add(found)

    def _round(self, contestants: Sequence[Contestant]) -> list[Measurement | None]:
        """One measurement each; None where every sample was disturbed."""
        if not contestants:
            return []
        samplers = {str(i): self.sampler(c) for i, c in enumerate(contestants)}
        samples = sample_in_turn(samplers, self.rule)
        throttled = throttle_reasons() if self.is_cuda else []
        return [
            self._finished(contestant, samples[str(index)], throttled)
            for index, contestant in enumerate(contestants)
        ]

    def _finished(
        self, contestant: Contestant, samples_s: tuple[float, ...], throttled: list[str]
    ) -> Measurement | None:
        c, refused = contestant, refusal(samples_s, self.rule, throttled)
        if not samples_s:
            return None
        facts = dict(c.facts)
        if self.read_bytes_per_s:
            facts["roof_share"] = c.bytes_moved / self.read_bytes_per_s / median(samples_s)
        return self._measurement(
            c.suite, c.name, c.params, timing_mode=c.timing_mode, l2_policy=c.l2_policy,
            samples_s=samples_s, bytes_moved=c.bytes_moved, flops=c.flops, refused=refused,
            facts=facts,
        )  # fmt: skip

    def _measurement(
        self, suite: str, name: str, params: dict[str, int | float | str], **rest: Any
    ) -> Measurement:
        defaults = {"l2_policy": "cold", "samples_s": (), "bytes_moved": 0, "flops": 0}
        mode = rest.pop("timing_mode", None) or TIMING_MODES[self.environment.kind]
        return Measurement(
            suite=suite,
            name=name,
            params=params,
            device=self.environment.device,
            timing_mode=mode,
            environment=self.environment.id,
            **{**defaults, **rest},
        )


def rule_of(kind: str) -> StopRule:
    """How long to sample on a kind of device."""
    return CUDA_RULE if kind == "cuda" else CPU_RULE


def in_batches(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    """So that an early end leaves whole results, and not all copies are in memory together."""
    return (items[start : start + size] for start in range(0, len(items), size))
