"""Which values become sparse: the paper's two rules, and the global threshold."""

import pytest
import torch

from quantizer.methods.outliers import (
    global_iqr_range,
    largest,
    magnitude_bound,
    sensitive_then_large,
)


def matrices():
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(40, 500, generator=generator)
    heavy = torch.randn(40, 500, generator=generator)
    heavy = heavy / torch.rand(40, 500, generator=generator).sqrt()
    return [gaussian, 0.01 * heavy]


def test_as_many_as_asked_even_among_equals():
    scores = torch.tensor([[1.0, 3.0, 3.0], [3.0, 0.0, 5.0]])
    assert largest(scores, 3).tolist() == [[False, True, True], [False, False, True]]
    assert not largest(scores, 0).any()
    assert largest(scores, 6).all()


def test_sensitive_values_come_first_then_magnitudes_of_the_rest():
    weight = torch.tensor([[9.0, 1.0, -8.0, 2.0, 3.0, 0.5, 0.1, 0.2, 0.3, 0.4]])
    fisher = torch.tensor([[5.0, 7.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    mask = sensitive_then_large(weight, fisher, share=0.4, sensitive_share=0.2)
    assert mask.nonzero()[:, 1].tolist() == [0, 1, 2, 4]


def test_the_share_of_the_paper():
    weight, fisher = matrices()
    mask = sensitive_then_large(weight, fisher.square(), share=0.0045, sensitive_share=0.0005)
    assert int(mask.sum()) == 90
    sensitive = largest(fisher.square(), 10)
    assert bool(mask[sensitive].all())


def test_the_bound_is_quartiles_and_their_range():
    weight = torch.arange(101.0)[None]  # quartiles 25 and 75
    assert magnitude_bound(weight, 1.5) == 150.0
    assert magnitude_bound(-weight, 1.5) == 150.0
    assert magnitude_bound(weight, 0.0) == 75.0


@pytest.mark.parametrize("share", [0.001, 0.0045, 0.05])
def test_one_range_gives_the_share_over_all_matrices(share):
    weights = matrices()
    chosen = global_iqr_range(weights, share)
    counts = [int((w.abs() >= magnitude_bound(w, chosen)).sum()) for w in weights]
    assert sum(counts) == pytest.approx(share * 40_000, abs=2)
    assert counts[1] > 2 * counts[0]  # heavy tails give more


def test_the_range_rule_takes_what_lies_beyond_the_bound():
    _, heavy = matrices()
    bound = magnitude_bound(heavy, 3.0)
    mask = sensitive_then_large(
        heavy, torch.ones_like(heavy), share=0.0045, sensitive_share=0.0, iqr_range=3.0
    )
    assert torch.equal(mask, heavy.abs() >= bound)


def test_no_matrices_are_an_error():
    with pytest.raises(ValueError, match="at least one matrix"):
        global_iqr_range([], 0.01)
