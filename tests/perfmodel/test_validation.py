"""Errors of predictions against measurements, on numbers that a reader can check."""

import pytest

from perfmodel.fit.validation import Bars, Pair, grouped, rank_correlation, summarise


def pair(predicted_s: float, measured_s: float, **changes: object) -> Pair:
    values = {"label": f"{predicted_s}", "device": "toy", "group": "all"} | changes
    return Pair(predicted_s=predicted_s, measured_s=measured_s, **values)


def test_errors_are_signed_and_relative_to_the_measurement():
    assert pair(1.1, 1.0).error == pytest.approx(0.1)
    assert pair(1.0, 2.0).error == pytest.approx(-0.5)


def test_a_summary_of_four_pairs():
    found = summarise([pair(1.1, 1.0), pair(1.8, 2.0), pair(3.0, 3.0), pair(2.0, 4.0)])
    assert found.count == 4
    assert found.bias == pytest.approx((0.1 - 0.1 + 0 - 0.5) / 4)
    assert found.mape == pytest.approx(0.7 / 4)
    assert found.median == pytest.approx(0.1)
    assert found.p90 == pytest.approx(0.5)
    assert (found.worst, found.worst_label) == (pytest.approx(-0.5), "2.0")
    assert found.rank_correlation == pytest.approx(0.8)
    assert found.inside_interval is None


def test_a_measurement_lies_in_the_interval_or_not():
    inside, outside = pair(1, 1.2, interval_s=(0.8, 1.25)), pair(1, 1.3, interval_s=(0.8, 1.25))
    assert (inside.inside, outside.inside) == (True, False)
    assert summarise([inside, outside]).inside_interval == 0.5
    assert pair(1, 1, interval_s=(0.5, None)).inside is None


def test_equal_values_share_a_rank():
    assert rank_correlation([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_pairs_are_grouped_in_order():
    pairs = [pair(1, 1, group="b"), pair(1, 1, group="a"), pair(2, 1, group="b")]
    assert {k: len(v) for k, v in grouped(pairs, lambda p: p.group).items()} == {"b": 2, "a": 1}


def test_bars_name_what_they_miss():
    summary = summarise([pair(1.1, 1.0), pair(1.0, 1.0)])
    assert Bars(mape=0.06, worst=0.2).missed(summary) == []
    assert Bars(worst=0.05).missed(summary) == ["worst absolute error is 10.0 %, the bar is 5 %"]
