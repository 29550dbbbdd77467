"""Made-up measurements and runs for the tests of the history."""

import msgspec

from bench.environment import Environment
from bench.history.store import Run, new_run
from bench.measurement import Measurement

DEVICE = "toy"


def environment(index: int = 0, **changes: object) -> Environment:
    """Of the index-th run, a minute after the one before."""
    made_up = Environment(
        kind="cuda",
        device=DEVICE,
        device_name="Toy GPU",
        cache_bytes=1 << 20,
        cores=1,
        threads=1,
        driver={"driver_version": "580"},
        packages={"torch": "2.13.0"},
        python="3.11",
        system="made up",
        commit=f"{index:02x}{'0' * 38}",
        dirty=False,
        date_utc=f"2026-01-01T{index // 60:02}:{index % 60:02}:00+00:00",
    )
    return msgspec.structs.replace(made_up, **changes)


def measurement(name: str, samples_s: tuple[float, ...], **changes: object) -> Measurement:
    made_up = Measurement(
        suite="toys",
        name=name,
        params={},
        device=DEVICE,
        timing_mode="cuda-graph",
        l2_policy="cold",
        samples_s=samples_s,
        bytes_moved=1000,
        flops=2000,
        environment="0" * 12,
    )
    return msgspec.structs.replace(made_up, **changes)


def samples(middle_s: float, count: int = 31) -> tuple[float, ...]:
    """Around `middle_s`, half a percent to each side, in a fixed order."""
    spread = [(7 * i % count) / (count - 1) - 0.5 for i in range(count)]
    return tuple(middle_s * (1 + 0.01 * s) for s in spread)


def run(index: int, confirms: str | None = None, /, **medians_s: float) -> Run:
    """The index-th run, with one benchmark per name."""
    found = [measurement(name, samples(middle_s)) for name, middle_s in medians_s.items()]
    return new_run(environment(index), found, confirms)


def key(name: str) -> str:
    return measurement(name, (1.0,)).key
