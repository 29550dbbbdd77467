"""Linear layers of a decoder: packed weights on a GPU or by the CPU twins, and dense ones."""

from collections.abc import Callable, Sequence
from functools import cache
from statistics import median

import torch
from torch import Tensor, nn

from bench.generate.model_weights import LinearWeight
from bench.timing import StopRule, copies_for, cuda_graph_sampler, sample_in_turn
from kernels.layouts import CsrWeight
from kernels.layouts.concat import concat_rows
from kernels.layouts.weights import Weight
from perfmodel.errors import UsageError


class DenseLinear(nn.Module):
    """y = x W^T + bias by the vendor's library, or for one token on a GPU by our own FP16 GEMV."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, own_gemv: bool = False) -> None:
        super().__init__()
        self.weight, self.bias, self.counters = weight, bias, None
        if own_gemv:
            from kernels.launch import new_counters  # needs Triton

            self.counters = new_counters(weight.shape[0], weight.device)

    def forward(self, x: Tensor) -> Tensor:
        if self.counters is None or x.numel() != self.weight.shape[1]:
            return nn.functional.linear(x, self.weight, self.bias)
        from kernels.fp16_gemv import fp16_gemv

        y = fp16_gemv(x.reshape(-1), self.weight, counters=self.counters)
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], -1)


class TwinLinear(nn.Module):
    """y = x (W + S)^T + bias on the CPU, token by token, W packed or FP16, FP32 sums."""

    def __init__(
        self,
        weight: Tensor | Weight,
        sparse: CsrWeight | None,
        bias: Tensor | None,
    ) -> None:
        super().__init__()
        self.weight, self.sparse, self.bias = weight, sparse, bias
        self.gemv = _twin(weight)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1]).to(torch.float16)
        y = torch.stack([self._one(token) for token in tokens]).to(x.dtype)
        y = y if self.bias is None else y + self.bias.to(x.dtype)
        return y.reshape(*x.shape[:-1], -1)

    def _one(self, token: Tensor) -> Tensor:
        from kernels.cpu import csr_gemv

        y = self.gemv(token, self.weight)
        return y if self.sparse is None else csr_gemv(token, self.sparse, out=y)


def _twin(weight: Tensor | Weight) -> Callable[..., Tensor]:
    """Raises: UsageError for a layout that has no twin."""
    from kernels.cpu import twin_of  # numba: a second

    found = twin_of(weight)
    if found is None:
        raise UsageError(f"no numba twin reads a {type(weight).__name__}")
    return found


def linear_module(layer: LinearWeight, dtype: torch.dtype, *, own_gemv: bool = False) -> nn.Module:
    """The layer for activations of `dtype`: FP16 on a GPU, any on the CPU."""
    weight, bias = layer.weight, layer.bias
    if isinstance(weight, Tensor) and weight.dtype == dtype:
        return DenseLinear(weight, bias, own_gemv=own_gemv)
    if weight.device.type == "cpu":
        return TwinLinear(weight, layer.sparse, bias)
    from kernels.linear import QuantizedLinear  # needs Triton

    return QuantizedLinear(weight, layer.sparse, bias)


class Projection:
    """Several linear layers of the same input: one launch where their formats allow it."""

    def __init__(
        self, layers: Sequence[LinearWeight], dtype: torch.dtype, *, own_gemv: bool = False
    ) -> None:
        self.widths = [layer.weight.shape[0] for layer in layers]
        joined = stacked(layers)
        parts = layers if joined is None else [joined]
        self.fused = joined is not None
        self.linears = [linear_module(part, dtype, own_gemv=own_gemv) for part in parts]

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        if self.fused:
            return self.linears[0](x).split(self.widths, dim=-1)
        return [linear(x) for linear in self.linears]


def stacked(layers: Sequence[LinearWeight]) -> LinearWeight | None:
    """One layer of all rows, or None where that cannot be one launch."""
    weights = [layer.weight for layer in layers]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if len({type(weight) for weight in weights}) > 1 or len(biases) not in (0, len(layers)):
        return None
    bias = torch.cat(biases) if biases else None
    if isinstance(weights[0], Tensor):
        return LinearWeight(weight=torch.cat(weights), bias=bias)
    joined = concat_rows(weights, [layer.sparse for layer in layers])
    return joined and LinearWeight(weight=joined[0], sparse=joined[1], bias=bias)


@cache
def own_gemv_wins(rows: int, columns: int) -> bool:
    """Whether our FP16 GEMV beats the vendor's on this GPU, both cold and in turn.

    The faster one is the baseline: a speed-up over a slow FP16 would mean nothing.
    """
    from kernels.fp16_gemv import fp16_gemv  # needs Triton
    from kernels.launch import new_counters

    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    copies = copies_for(2 * rows * columns, l2_bytes)
    weights = torch.randn((copies, rows, columns), dtype=torch.float16, device="cuda")
    x = torch.randn((1, columns), dtype=torch.float16, device="cuda")
    counters = new_counters(rows, weights.device)
    calls = {
        "own": lambda copy: fp16_gemv(x[0], weights[copy], counters=counters),
        "vendor": lambda copy: nn.functional.linear(x, weights[copy]),
    }
    samplers = {name: cuda_graph_sampler(call, copies) for name, call in calls.items()}
    taken = sample_in_turn(samplers, StopRule(most_s=1.0))
    return median(taken["own"]) < median(taken["vendor"])
