"""The timing engine: cold rotations, taking turns, the stop rule, the verdict."""

from itertools import count

import pytest

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


def test_the_sampler_takes_the_copies_in_turn():
    seen = []
    sample = cpu_sampler(seen.append, 3)
    del seen[:]  # the warm-up
    for _ in range(7):
        assert sample() > 0
    assert seen == [0, 1, 2, 0, 1, 2, 0]


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


def test_good_samples_are_not_refused():
    assert refusal(STEADY, StopRule()) is None


@pytest.mark.parametrize(
    ("samples", "throttled", "reason"),
    [
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
