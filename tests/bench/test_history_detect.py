"""The detector: what counts as slower, what lasts, and how often it is wrong."""

import numpy as np
import pytest

from bench.history.detect import (
    Rules,
    Slowdown,
    effect,
    is_repeated,
    lasting_rise,
    levels,
    reference_of,
    scatter_between,
    slowdowns,
    steps,
)
from tests.bench.detector_rates import World, false_alarms, found
from tests.bench.runs import samples

RULES = Rules()
FLAT = [1.0, 1.004, 0.997, 1.002, 0.999, 1.001, 0.996, 1.003, 1.0, 0.998]


def test_a_reference_is_the_median_of_the_medians_of_its_runs():
    reference = reference_of([(1.0, 2.0, 9.0), (3.0,), (4.0, 4.0)], 0.01)
    assert (reference.median_s, len(reference.samples_s)) == (3.0, 6)


@pytest.mark.parametrize(("scatter", "limit"), [(0.0, 1.03), (0.01, 1.03), (0.02, 1.06)])
def test_the_limit_is_three_percent_or_three_scatters(scatter, limit):
    reference = reference_of([samples(2.0)], scatter)
    assert effect(samples(2.1), reference, RULES) == (pytest.approx(1.05), pytest.approx(limit))


def test_the_scatter_between_runs_does_not_see_a_step():
    step = [*FLAT, *(1.2 * m for m in FLAT)]
    assert scatter_between(step) == pytest.approx(scatter_between(FLAT), rel=0.1)
    assert scatter_between(FLAT[:3]) == 0.0


def test_slower_by_more_than_the_limit_and_by_more_than_chance():
    references = {name: reference_of([samples(1.0)], 0.0) for name in "abcd"}
    wild = tuple(np.random.default_rng(0).normal(1.0, 0.5, 5).clip(0.5).tolist())
    now = {"a": samples(1.05), "b": samples(1.02), "c": samples(0.9), "d": wild, "new": (9.0,)}
    assert effect(wild, references["d"], RULES)[0] > 1.03  # large, and chance
    assert set(slowdowns(now, references, RULES)) == {"a"}


def test_the_significance_counts_how_many_benchmarks_there_are():
    """Three samples above three: p is 1 of 20 for one benchmark, never under 1 %."""
    three = {"a": (1.1, 1.2, 1.3)}
    reference = {"a": reference_of([(1.0, 1.01, 1.02)], 0.0)}
    assert slowdowns(three, reference, RULES) == {}
    found_p = slowdowns(three, reference, Rules(p=0.051))["a"].p
    assert found_p == pytest.approx(1 / 20)
    others = {str(i): samples(1.0) for i in range(9)}
    references = reference | {name: reference_of([samples(1.0)], 0.0) for name in others}
    assert slowdowns(three | others, references, Rules(p=0.051)) == {}


def test_nothing_to_compare_is_nothing_slower():
    assert slowdowns({}, {}, RULES) == {}


def test_repeated_means_in_the_median_of_fresh_processes():
    slowdown = Slowdown(reference_s=1.0, ratio=1.05, limit=1.03, p=0.0)
    assert is_repeated(slowdown, [(1.05,), (1.0,), (1.06,)])
    assert not is_repeated(slowdown, [(1.05,), (1.0,), (1.01,)])


def test_a_flat_series_is_one_level():
    assert [(level.start, level.stop) for level in levels(FLAT)] == [(0, 10)]
    assert levels([]) == []
    assert steps(FLAT, RULES) == []


@pytest.mark.parametrize("factor", [1.05, 0.95])
def test_a_step_is_found_where_it_is(factor):
    series = [*FLAT, *(factor * m for m in FLAT[:4])]
    assert steps(series, RULES) == [10]
    rise = lasting_rise(series, RULES)
    if factor < 1:
        assert rise is None
    else:
        assert rise[0].start == 10
        assert rise[1] == pytest.approx(1.05, abs=0.005)


@pytest.mark.parametrize("at", [0, 5, 9])
def test_one_outlying_run_is_no_step(at):
    series = [1.2 if index == at else m for index, m in enumerate(FLAT)]
    assert lasting_rise(series, RULES) is None
    assert steps(series, RULES) == []


def test_a_rise_does_not_heal_with_time():
    series = [*FLAT, *(1.04 * m for m in FLAT * 5)]
    assert lasting_rise(series, RULES)[0].start == 10


def test_it_seldom_cries_wolf_and_soon_sees_a_small_step():
    """tests/bench/detector_rates.py measures the same with 500 benchmarks."""
    world = World(keys=60)
    assert false_alarms(world, 8, seed=1)[1] == 0
    assert found(world, 1.05, 1, seed=2) >= 0.95
    assert found(world, 1.03, 5, seed=3) >= 0.8
