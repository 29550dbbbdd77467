"""The timing engine: cold rotations, taking turns, the stop rule, the verdict."""

import os
import subprocess
import sys
import time
from itertools import count

import pytest

from bench import timing
from bench.cores import cores_allowed, waited_s
from bench.measurement import Measurement, noise
from bench.timing import (
    NotColdError,
    StopRule,
    assert_cold,
    copies_for,
    cpu_sampler,
    refusal,
    sample_in_turn,
)

STEADY = tuple(1e-3 + 1e-7 * i for i in range(30))


@pytest.mark.parametrize("weight_bytes", [1, 1000, 50_000_000, 200_000_000])
def test_copies_exceed_twice_the_cache(weight_bytes):
    copies = copies_for(weight_bytes, 50_000_000)
    assert copies >= 2
    assert_cold(copies, weight_bytes, 50_000_000)


def test_a_warm_rotation_is_refused():
    with pytest.raises(NotColdError, match="2 copies of 1000 bytes are 2000, expected more than"):
        assert_cold(2, 1000, 1_000_000)


def test_the_sampler_takes_the_copies_in_turn(monkeypatch):
    monkeypatch.setattr(timing, "waited_s", lambda: 0.0)
    seen = []
    sample = cpu_sampler(lambda copy: seen.append(copy) or time.sleep(0.001), 3)
    del seen[:]  # the warm-up took copy 0 as well
    for _ in range(7):
        assert sample() > 0
    assert seen == [1, 2, 0, 1, 2, 0, 1]


def test_subjects_are_sampled_in_turn_until_each_has_enough():
    order = []
    ticks = count()
    rule = StopRule(least_samples=3, least_s=0, most_s=100, steady=0.01)
    wild = iter([1.0, 2.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])

    def sampler(name, values):
        def sample():
            order.append(name)
            return next(values)

        return sample

    samplers = {"calm": sampler("calm", iter([1.0] * 99)), "wild": sampler("wild", wild)}
    samples = sample_in_turn(samplers, rule, clock=lambda: next(ticks))
    assert order[:6] == ["calm", "wild"] * 3
    assert samples["calm"] == (1.0, 1.0, 1.0)
    assert noise(samples["wild"]) <= 0.01
    assert noise(samples["wild"][:-1]) > 0.01  # it stopped as soon as it could


def test_a_subject_that_never_calms_down_stops_by_time():
    ticks, values = count(), count(1)
    rule = StopRule(least_samples=3, least_s=0, most_s=20)
    samples = sample_in_turn({"wild": lambda: float(next(values))}, rule, clock=lambda: next(ticks))
    assert len(samples["wild"]) == 20


def test_samples_that_were_disturbed_do_not_count():
    ticks, values = count(), iter([None, 1.0, None, 1.0, 1.0])
    rule = StopRule(least_samples=3, least_s=0, most_s=100)
    samples = sample_in_turn({"a": lambda: next(values)}, rule, clock=lambda: next(ticks))
    assert samples == {"a": (1.0, 1.0, 1.0)}


def test_a_call_that_waited_for_a_core_is_no_sample(monkeypatch):
    waited = iter([0.0, 0.0, 5.0, 9.0])  # before and after each call
    monkeypatch.setattr(timing, "waited_s", lambda: next(waited))
    monkeypatch.setattr(timing, "cores_allowed", lambda: [0, 1])
    sample = cpu_sampler(lambda _: time.sleep(0.001), 1)
    assert sample() > 0
    assert sample() is None


def test_on_one_core_only_our_own_time_counts(monkeypatch):
    monkeypatch.setattr(timing, "cores_allowed", lambda: [0])
    sample = cpu_sampler(lambda _: time.sleep(0.05), 1)
    assert 0 < sample() < 0.01


def test_waiting_is_counted_while_two_threads_share_a_core():
    """Burns a core with another process beside us, on the same core."""
    core, *_ = cores_allowed()
    burn = f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"
    allowed = os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-c", burn]) as neighbour:
        try:
            os.sched_setaffinity(0, [core])
            before, end = waited_s(), time.monotonic() + 0.3
            while time.monotonic() < end:
                pass
            assert waited_s() - before > 0.02
        finally:
            os.sched_setaffinity(0, allowed)
            neighbour.kill()


def test_good_samples_are_not_refused():
    assert refusal(STEADY, StopRule()) is None


@pytest.mark.parametrize(
    ("samples", "throttled", "reason"),
    [
        ((), (), "disturbed: 0 samples undisturbed by other processes, expected at least 1"),
        ((1.0, 1.0, -1e-9), (), "not positive: a sample of -1e-09 s"),
        (STEADY, ("hw_slowdown",), "throttled: hw_slowdown"),
        ((1.0, 1.0, 2.0, 2.0), (), "unsteady: quartiles 66.7% of the median apart, expected"),
    ],
)
def test_bad_samples_are_refused_with_the_reason(samples, throttled, reason):
    assert refusal(samples, StopRule(), throttled).startswith(reason)


def measurement(**changes):
    facts = {
        "suite": "kernels",
        "name": "squeezellm-w3",
        "params": {"rows": 4096, "columns": 4096, "batch": 1},
        "device": "h200",
        "timing_mode": "cuda-graph",
        "l2_policy": "cold",
        "samples_s": (1e-6, 2e-6, 3e-6),
        "bytes_moved": 8000,
        "flops": 32000,
        "environment": "0" * 12,
    }
    return Measurement(**facts | changes)


def test_statistics_are_derived_from_the_samples():
    found = measurement()
    assert found.median_s == 2e-6
    assert found.quartiles_s == pytest.approx((1.5e-6, 2.5e-6))
    assert found.noise == pytest.approx(0.5)
    assert found.bytes_per_s == pytest.approx(4e9)
    assert found.flop_per_s == pytest.approx(16e9)


@pytest.mark.parametrize(
    "change",
    [
        {"device": "a6000"},
        {"timing_mode": "profiler"},
        {"l2_policy": "warm"},
        {"clock_policy": "locked"},
        {"params": {"rows": 4096, "columns": 4096, "batch": 2}},
    ],
)
def test_measurements_under_other_conditions_have_other_keys(change):
    assert measurement(**change).key != measurement().key


def test_samples_and_facts_do_not_change_the_key():
    assert measurement(samples_s=(1.0,), facts={"copies": 3}).key == measurement().key
