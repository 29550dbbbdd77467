"""Samples of our engine through pytest-benchmark, bit for bit, by its public interface alone.

pytest-benchmark times what it calls. The engine has measured already, so what it calls is a step
that sets a clock to the next sample, and the clock is the timer: 0.0 before the step, the sample
after it. A difference from 0.0 is exact, so table, JSON and comparison hold the samples themselves.
"""

from collections.abc import Mapping
from itertools import chain, repeat
from typing import Any

import msgspec

from bench.environment import Environment
from bench.measurement import Measurement

IDENTITY = ("device", "timing_mode", "l2_policy", "clock_policy")  # equal, or not comparable
MACHINE = ("device", "kind", "device_name", "driver", "cores", "threads")  # of our environment
HOST_NAME = "node"  # in pytest-benchmark's machine_info: not published
MOMENTARY = ("hz_actual", "hz_actual_friendly")  # the clock just then is no trait of a machine


class RefusedError(ValueError):
    """Samples that are no result, or not comparable with what they are compared with."""


class ReplayClock:
    """A timer that reads 0.0 before each step and what the step set after it."""

    __name__ = "replay"  # pytest-benchmark prints the name of a timer

    def __init__(self) -> None:
        self._next_s = 0.0

    def set(self, sample_s: float) -> None:
        self._next_s = sample_s

    def __call__(self) -> float:
        now_s, self._next_s = self._next_s, 0.0
        return now_s


def replay(benchmark: Any, clock: ReplayClock, measurement: Measurement) -> None:
    """Give a measurement's samples to a benchmark fixture whose timer is `clock`.

    With --benchmark-disable the fixture calls the step once, with --benchmark-cprofile once more.
    """
    last = measurement.samples_s[-1]
    samples = chain(measurement.samples_s, repeat(last))
    benchmark.extra_info["measurement"] = facts_of(measurement)
    benchmark.pedantic(
        lambda: clock.set(next(samples)), rounds=len(measurement.samples_s), iterations=1
    )


def refuse(benchmark: Any, why: str) -> None:
    """End a benchmark without a result: neither the table nor the JSON shows it.

    Raises: RefusedError, always.
    """

    def step() -> None:
        raise RefusedError(why)

    benchmark.pedantic(step)


def facts_of(measurement: Measurement) -> dict[str, Any]:
    """Everything but the samples, which pytest-benchmark stores itself."""
    facts: dict[str, Any] = msgspec.to_builtins(measurement)
    del facts["samples_s"]
    return facts


def measurement_of(facts: Mapping[str, Any], samples_s: list[float]) -> Measurement:
    """What `facts_of` took apart, put together.

    Raises: msgspec.ValidationError.
    """
    return msgspec.convert({**facts, "samples_s": samples_s}, Measurement)


def describe_machine(machine_info: dict[str, Any], environment: Environment) -> None:
    """Put our device into pytest-benchmark's machine_info; take out the host's name."""
    machine_info.pop(HOST_NAME, None)
    for name in MOMENTARY:
        machine_info.get("cpu", {}).pop(name, None)
    machine_info["memwall"] = {name: getattr(environment, name) for name in MACHINE}


def other_machine(stored: Mapping[str, Any], environment: Environment) -> str | None:
    """Why a stored machine_info cannot be compared with this environment; None if it can."""
    theirs = stored.get("memwall")
    if not isinstance(theirs, dict):
        return "it does not say on which device it was measured"
    if theirs.get("device") != environment.device:
        return f"it was measured on {theirs.get('device')}, this is {environment.device}"
    return None


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Names of what differs between two machine_infos, such as memwall.driver."""
    names = []
    for name in sorted(set(theirs) | set(ours)):
        one, other = theirs.get(name), ours.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            names += [f"{name}.{inner}" for inner in differing(one, other)]
        elif one != other:
            names.append(name)
    return names


def other_conditions(stored: Mapping[str, Any] | None, measurement: Measurement) -> str | None:
    """How a stored benchmark's conditions differ from a measurement's; None if they agree."""
    if stored is None:
        return None
    for name in IDENTITY:
        if stored.get(name) != (ours := getattr(measurement, name)):
            return f"cannot be compared: {name} {stored.get(name)} before, {ours} now"
    return None
