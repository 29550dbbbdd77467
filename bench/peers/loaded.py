"""What a peer's loader gives, and the weights that several of them share."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.kernels.check import HALF_LIMIT
from bench.kernels.random_weights import random_weight
from kernels.layouts import unpack_codes
from perfmodel.errors import PerfmodelError

GROUP = 128
BF16_LIMIT = 1e-2  # a kernel that takes bfloat16 activations


class PeerError(PerfmodelError):
    """A peer is not here, does not run here, or is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A peer's weights of one shape, and the same weights dequantized."""

    weights: tuple[Tensor, ...]
    run: Callable[[Tensor, tuple[Tensor, ...]], Tensor]  # x (1, K), weights -> (1, N)
    values: Tensor = field(repr=False)  # (N, K) that the weights stand for
    dtype: torch.dtype = torch.float16  # of the activations

    @property
    def weight_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights)

    @property
    def limit(self) -> float:
        """The most relative error that its products may have."""
        return HALF_LIMIT if self.dtype == torch.float16 else BF16_LIMIT


Load = Callable[[tuple[int, int], str], Loaded]  # shape (N, K), device


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped:
    """A 4-bit weight, one scale and zero for each GROUP columns: w = (code - zero) scale."""

    codes: Tensor  # (N, K) uint8
    scale: Tensor  # (N, groups) float16
    zero: Tensor  # (N, groups) float16
    values: Tensor  # (N, K) float32


def grouped_int4(shape: tuple[int, int], device: str, *, symmetric: bool = False) -> Grouped:
    """The random weight that every grouped 4-bit peer runs; symmetric: all zeros are 8."""
    generator = torch.Generator(device).manual_seed(0)
    (weight,) = random_weight(f"gptq-w4-g{GROUP}", shape, generator)
    scale, zero = weight.scale_zero.unbind(2)
    if symmetric:
        zero = torch.full_like(zero, 8)
    codes = unpack_codes(weight.codes)
    grouped = codes.reshape(shape[0], -1, GROUP).float()
    values = scale.float()[..., None] * (grouped - zero.float()[..., None])
    return Grouped(codes=codes, scale=scale, zero=zero, values=values.reshape(shape))


def bit_stream(codes: Tensor, bits: int) -> Tensor:
    """(K * bits / 32, N) int32: the codes of each row of (N, K), lowest bit first, end to end."""
    places = torch.arange(bits, device=codes.device)
    stream = (codes.to(torch.uint8)[..., None] >> places & 1).flatten(1)  # (N, K * bits)
    words = stream.unflatten(1, (-1, 32)).long() << torch.arange(32, device=codes.device)
    return words.sum(2).to(torch.int32).T.contiguous()
