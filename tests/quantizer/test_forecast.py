"""Forecast and allocation on numbers that can be checked by hand."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel.errors import UsageError
from quantizer.sensitivity.forecast import (
    allocate,
    allocations,
    beyond_quadratic,
    forecast_perplexity,
)


def test_perplexity_is_the_exponential_of_the_loss():
    assert forecast_perplexity(5.0, 0.0) == 5.0
    assert forecast_perplexity(5.0, 1.0) == pytest.approx(13.591409)
    assert not beyond_quadratic(0.35)
    assert beyond_quadratic(0.36)


CHOICES = {
    "a": {"w3": (30, 1.0), "w4": (40, 0.2)},  # 0.08 a byte
    "b": {"w3": (30, 0.5), "w4": (40, 0.1)},  # 0.04 a byte
    "c": {"w3": (300, 6.0), "w4": (400, 1.0)},  # 0.05 a byte
}


@pytest.mark.parametrize(
    ("budget", "raised"),
    [(360, ""), (369, ""), (370, "a"), (380, "ab"), (470, "ac"), (480, "abc"), (9999, "abc")],
)
def test_bytes_go_where_they_save_most(budget, raised):
    taken = allocate(CHOICES, budget)
    assert {layer for layer, name in taken.items() if name == "w4"} == set(raised)


def test_formats_above_the_hull_are_not_taken():
    choices = {"a": {"w2": (20, 10.0), "bad": (30, 9.9), "worse": (35, 11.0), "w4": (40, 0.0)}}
    assert allocate(choices, 39) == {"a": "w2"}
    assert allocate(choices, 40) == {"a": "w4"}


def test_a_budget_below_the_smallest_formats_is_an_error():
    with pytest.raises(UsageError, match="cheapest formats take 360, the budget is 359"):
        allocate(CHOICES, 359)
    with pytest.raises(UsageError, match="layer a has no format"):
        allocate({"a": {}}, 10)


def test_every_range_of_neighbouring_formats_makes_an_allocation():
    choices = {  # by the forecast w2 costs little, which pays for w4 in b
        "a": {"w2": (20, 0.2), "w3": (30, 0.1), "w4": (40, 0.0)},
        "b": {"w2": (20, 9.0), "w3": (30, 5.0), "w4": (40, 0.0)},
    }
    assert allocations(choices, 60) == [
        {"a": "w2", "b": "w2"},
        {"a": "w3", "b": "w3"},
        {"a": "w2", "b": "w4"},
    ]
    assert allocations(choices, 39) == []


FORMATS = st.dictionaries(
    st.sampled_from(["w2", "w3", "w4", "w8"]),
    st.tuples(st.integers(1, 20), st.integers(0, 50).map(float)),
    min_size=1,
)


@given(layers=st.lists(FORMATS, min_size=1, max_size=4), budget=st.integers(4, 80))
@settings(max_examples=100, deadline=None)
def test_it_keeps_the_budget_and_is_optimal_but_for_one_step(layers, budget):
    choices = {f"layer{i}": formats for i, formats in enumerate(layers)}
    least = sum(min(size for size, _ in formats.values()) for formats in layers)
    if least > budget:
        return
    taken = allocate(choices, budget)
    spent = sum(choices[layer][name][0] for layer, name in taken.items())
    loss = sum(choices[layer][name][1] for layer, name in taken.items())
    best = min(
        sum(loss for _, loss in combination)
        for combination in product(*(formats.values() for formats in layers))
        if sum(size for size, _ in combination) <= budget
    )
    assert spent <= budget
    largest_step = max(
        max(loss for _, loss in formats.values()) - min(loss for _, loss in formats.values())
        for formats in layers
    )
    assert best <= loss <= best + largest_step
