"""What rounding may cost, per kernel family: the only tolerances of the kernel tests.

FP16 sums: a chain of 16 products rounds 16 times, each time by at most half a unit of the partial
sum, evenly distributed: standard deviation 2**-11 * |partial| / sqrt(3). Partial sums of i products
of size p are about sqrt(i) * p, so a chain has p * 2**-11 * sqrt((1 + ... + 16) / 3), and K / 16
chains together 1.7 * 2**-11 * |products|. Six standard deviations are 0.5 % of a typical output,
less than one wrong weight makes at any K tested here.
"""

import math

import torch
from torch import Tensor

CHAIN = 16
HALF_UNIT = 2.0**-11  # relative rounding error of FP16
SIGMAS = 6


def fp32_sums(products: Tensor) -> Tensor:
    """Rigorous: every FP32 addition and product of a row rounds once. products (N, K) -> (N,)."""
    return (products.shape[-1] + 16) * 2.0**-24 * products.abs().sum(-1) + 1e-30


def fp16_chains(products: Tensor) -> Tensor:
    """products (N, K) -> (N,): see the module docstring; FP32 adds the chains."""
    chain = math.sqrt(sum(range(1, CHAIN + 1)) / 3 / CHAIN)
    return SIGMAS * chain * HALF_UNIT * products.norm(dim=-1) + fp32_sums(products)


def int_planes(weight: Tensor, x: Tensor, block_scale: float) -> Tensor:
    """Activations are off by at most half a step of the largest tile. weight (N, K) -> (N,).

    `weight` holds the values that the integers stand for, zero points not subtracted.
    """
    step = block_scale / math.sqrt(12)
    return SIGMAS * step * weight.norm(dim=-1) + fp32_sums(weight * x)


def fixed_point_table(weight: Tensor, x: Tensor) -> Tensor:
    """Table entries are off by at most 1 / 65534 of the row's largest. weight (N, K) -> (N,)."""
    step = weight.abs().amax(-1) / 32767 / math.sqrt(12)
    return SIGMAS * step * x.norm()


def fp16_output(y: Tensor) -> Tensor:
    """An output stored in FP16 rounds once."""
    return HALF_UNIT * y.abs() + 2.0**-25


def assert_within(found: Tensor, expected: Tensor, tolerance: Tensor) -> None:
    """Element-wise |found - expected| <= tolerance, with the worst element in the message."""
    excess = (found.double() - expected.double()).abs() - tolerance
    assert not torch.isnan(found).any(), "an output was never written, or is not a number"
    worst = int(excess.flatten().argmax())
    assert float(excess.max()) <= 0, (
        f"element {worst}: {found.flatten()[worst]} against {expected.flatten()[worst]}, "
        f"tolerance {tolerance.expand_as(excess).flatten()[worst]}"
    )
