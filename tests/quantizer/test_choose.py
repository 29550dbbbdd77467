"""Settings from what a command line says: names, one outlier threshold, equal true bits."""

import pytest

from quantizer.checkpoints.checkpoint import open_checkpoint
from quantizer.errors import UsageError
from quantizer.methods.matrix import Settings
from quantizer.sensitivity.choose import (
    format_name,
    format_of_bits,
    outlier_share,
    true_bits,
    uniform_settings,
)

LLAMA_7B = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"method": "rtn", "bits": 4}, "rtn-w4"),
        ({"method": "gptq", "bits": 3, "group": 128}, "gptq-w3-g128"),
        ({"method": "awq", "bits": 4}, "awq-w4-g128"),
        ({"method": "squeezellm", "bits": 3, "sparsity": 0.45}, "squeezellm-w3-s0.45"),
        ({"method": "squeezellm", "bits": 3, "sparsity": 0.0}, "squeezellm-w3"),
    ],
)
def test_options_make_a_name_that_perfmodel_knows(arguments, name):
    assert format_name(**arguments) == name


@pytest.mark.parametrize(
    ("method", "name"),
    [("rtn", "rtn-w3-g128"), ("gptq", "gptq-w3-g128"), ("awq", "awq-w3-g128")],
)
def test_grids_spend_a_budget_on_smaller_groups(method, name):
    assert format_of_bits(method, 3.25, LLAMA_7B) == name
    assert format_of_bits(method, 6.25, LLAMA_7B) == name.replace("w3", "w6")
    assert format_of_bits(method, 6.001, LLAMA_7B) == name.replace("w3-g128", "w5-g64")


@pytest.mark.parametrize("method", ["gptvq-2d", "gptvq-2d-n64", "gptvq-2d-n256", "gptvq-4d-n256"])
def test_vector_codebooks_spend_a_budget_on_tables(method):
    """2 index bits, 4 / n for blockwise scales, and tables for the rest."""
    name = format_of_bits(method, 2.25, LLAMA_7B)
    base, _, subrow = method.partition("-n")
    assert name.startswith(f"{base}-w2-g")
    assert name.partition("-n")[2] == subrow
    assert 2.2 < true_bits(name, LLAMA_7B) <= 2.25


def test_codebooks_spend_a_budget_on_sparse_values():
    name = format_of_bits("squeezellm", 3.25, LLAMA_7B)
    assert name.startswith("squeezellm-w3-s0.6")
    assert 3.249 < true_bits(name, LLAMA_7B) <= 3.25
    assert format_of_bits("squeezellm", 5.5, LLAMA_7B).startswith("squeezellm-w5-s1.")


def test_a_budget_that_no_format_meets_is_refused():
    with pytest.raises(UsageError, match=r"awq takes 2.031 bits per weight at least"):
        format_of_bits("awq", 2.0, LLAMA_7B)


@pytest.mark.parametrize(
    ("format_name_", "selection", "share"),
    [
        ("squeezellm-w3-s0.45", "paper", 0.004),
        ("squeezellm-w3-s0.05", "paper", 0.0),
        ("squeezellm-w3-s0.45", "outliers", 0.0045),
        ("squeezellm-w3-s0.45", "sensitive", 0.0),
        ("squeezellm-w3-s0.45", "gain", 0.0),
        ("kmeans-w3-s0.45", "paper", 0.0045),
        ("rtn-w3", "paper", 0.0),
    ],
)
def test_what_magnitude_decides(format_name_, selection, share):
    settings = Settings(format=format_name_, selection=selection)
    assert outlier_share(settings) == pytest.approx(share)


def test_one_outlier_threshold_serves_the_whole_model(llama):
    checkpoint = open_checkpoint(llama)
    options = Settings(format="squeezellm-w3-s0.45")
    ranges = {s.iqr_range for s in uniform_settings(checkpoint, options, "global").values()}
    assert len(ranges) == 1
    assert 0.5 < ranges.pop() < 5  # quartile ranges; of a normal law 0.4 % lie beyond 1.6
    percentile = uniform_settings(checkpoint, options, "percentile").values()
    assert {settings.iqr_range for settings in percentile} == {None}
