"""Groups with a codebook each: one group is the ordinary method, smaller groups err less."""

import pytest
import torch

from quantizer.ablations import grouped_codebook
from quantizer.matrix import Settings, SettingsError, Statistics
from quantizer.methods import quantize_matrix


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
