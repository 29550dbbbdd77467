"""Groups with a codebook each, and codebooks of low rank: both ends are the ordinary methods."""

import pytest
import torch

from quantizer.methods.ablations import (
    grouped_codebook,
    low_rank_codebooks,
    unrounded_codebooks,
)
from quantizer.methods.matrix import Settings, SettingsError, Statistics
from quantizer.methods.registry import quantize_matrix


def problem():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 1024, generator=generator)
    return weight, torch.rand(8, 1024, generator=generator) ** 3


def test_one_group_per_row_is_squeezellm():
    weight, fisher = problem()
    grouped = grouped_codebook(weight, fisher, bits=3, group=1024)
    matrix = quantize_matrix(weight, Statistics(fisher=fisher), Settings(format="squeezellm-w3"))
    assert torch.equal(grouped.values, matrix.dequantize())
    assert grouped.bits_per_weight == 3.125  # 8 FP16 entries per 1024 weights
    assert grouped.error == matrix.notes["weighted_error"]


def test_smaller_groups_err_less_and_cost_more():
    weight, fisher = problem()
    groups = [grouped_codebook(weight, fisher, bits=3, group=g) for g in (1024, 512, 256)]
    assert [g.bits_per_weight for g in groups] == [3.125, 3.25, 3.5]
    errors = [g.error for g in groups]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("group", [0, 100])
def test_a_group_must_divide_the_row(group):
    weight, fisher = problem()
    with pytest.raises(SettingsError, match="a divisor of 1024 columns"):
        grouped_codebook(weight, fisher, bits=3, group=group)


def test_int8_entries_cost_next_to_nothing():
    weight, _ = problem()
    x = torch.randn(2048, 256, generator=torch.Generator().manual_seed(1))
    statistics, chosen = Statistics(hessian=x.T @ x), Settings(format="gptvq-2d-w2-n64")
    free = unrounded_codebooks(weight[:, :256], statistics, chosen)
    matrix = quantize_matrix(weight[:, :256], statistics, chosen)
    assert free.error < matrix.notes["hessian_error"] < 1.01 * free.error
    assert free.bits_per_weight == 2 + 16 * 16 * 2 / 2048 + 4 / 64  # a table, and no scale for it


def test_codebooks_of_full_rank_are_those_of_gptvq():
    weight, _ = problem()
    x = torch.randn(2048, 256, generator=torch.Generator().manual_seed(1))
    statistics = Statistics(hessian=x.T @ x)
    chosen = Settings(format="gptvq-1d-w2")
    whole, half = (
        low_rank_codebooks(weight[:, :256], statistics, chosen, rank=rank) for rank in (4, 2)
    )
    matrix = quantize_matrix(weight[:, :256], statistics, chosen)
    assert whole.error == pytest.approx(matrix.notes["hessian_error"], rel=0.01)  # int8 apart
    assert half.error > whole.error
    assert half.bits_per_weight == 2 + 8 * 2 * (8 + 4) / 2048
    with pytest.raises(SettingsError, match="expected a 1-D format and a rank of 1"):
        low_rank_codebooks(weight, statistics, chosen, rank=5)
