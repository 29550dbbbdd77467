"""A subject with weights of one shape on one device: its launcher and its FP64 reference."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.environment import Kind
from bench.kernels.random_weights import random_weight
from bench.kernels.subjects import Subject
from kernels.launch import new_counters
from kernels.layouts import (
    BilevelWeight,
    CsrWeight,
    LutWeight,
    UniformWeight,
    VectorWeight,
    to_fixed_point,
)
from kernels.layouts.codebook import REGISTER_BITS
from kernels.layouts.sparse import dequantize_csr
from perfmodel.errors import UsageError

Weights = tuple[Any, ...]  # records with `nbytes_by_item`, or tensors
Run = Callable[[Tensor, Weights, Tensor, Tensor], Tensor]  # x, weights, out, counters -> result


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A subject, ready to run on the device of its weights."""

    subject: Subject
    shape: tuple[int, int]
    weights: Weights
    run: Run
    kernel: str  # what runs, for people
    result_bytes: int = 2  # per element of the result

    @property
    def weight_bytes(self) -> int:
        return sum(nbytes(weight) for weight in self.weights)

    @property
    def bytes_moved(self) -> int:
        """Weights, activations and results: what one call must read and write."""
        rows, columns = self.shape
        x_bytes = 4 if self.weights_dtype == torch.float32 else 2
        return self.weight_bytes + self.subject.batch * (
            x_bytes * columns + self.result_bytes * rows
        )

    @property
    def flops(self) -> int:
        """Two per weight that is multiplied; a sparse part adds its nonzeros."""
        rows, columns = self.shape
        dense = 0 if self.subject.part == "csr" else rows * columns
        sparse = sum(_multiplied(w) for w in self.weights if isinstance(w, CsrWeight))
        return 2 * self.subject.batch * (dense + sparse)

    @property
    def weights_dtype(self) -> torch.dtype:
        first = self.weights[0]
        return first.dtype if isinstance(first, Tensor) else torch.float16

    @property
    def device(self) -> torch.device:
        return self.weights[0].device

    def vector(self, length: int) -> tuple[int, ...]:
        """Shape of activations or results: (length,), or (M, length) for a batch."""
        return (length,) if self.subject.batch == 1 else (self.subject.batch, length)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Random activations, an output, and the counters of a split launch."""
        rows, columns = self.shape
        x = torch.randn(self.vector(columns), device=self.device).to(self.weights_dtype)
        dtype = torch.float32 if self.result_bytes == 4 else torch.float16
        out = torch.empty(self.vector(rows), dtype=dtype, device=self.device)
        return x, out, new_counters(rows, self.device)

    def reference(self, x: Tensor) -> Tensor:
        """The product in FP64, plain PyTorch, in the shape of the result."""
        from kernels.dispatch import matmul_ref

        tokens = x.reshape(-1, x.shape[-1])
        if isinstance(self.weights[0], Tensor):
            y = tokens.double() @ self.weights[0].double().T
        elif isinstance(self.weights[0], CsrWeight):
            y = tokens.double() @ dequantize_csr(self.weights[0]).double().T
        else:
            y = matmul_ref(tokens, *self.weights)
        return y.reshape(self.vector(self.shape[0]))


def nbytes(weight: Any) -> int:
    items = getattr(weight, "nbytes_by_item", None)
    return sum(items().values()) if items else weight.nbytes


def _multiplied(sparse: CsrWeight) -> int:
    return sparse.nnz + (0 if sparse.dense_rows is None else sparse.dense_rows.values.numel())


def clone(value: Any) -> Any:
    """The same weight in memory of its own: tensors copied, records rebuilt around the copies."""
    if is_dataclass(value):
        changes = {field.name: clone(getattr(value, field.name)) for field in fields(value)}
        return replace(value, **changes)
    return value.clone() if hasattr(value, "clone") else value


def prepare(
    subject: Subject,
    shape: tuple[int, int],
    kind: Kind,
    *,
    device: str | None = None,
    seed: int = 0,
) -> Prepared:
    """Random weights of a subject, and what runs them on a kind of device.

    device: where the weights lie, by default on the GPU or the CPU that `kind` names; Triton's
    interpreter runs the kernels of a GPU on the CPU.

    Raises: UsageError where nothing runs it: no kernel reads the format, or not on this device.
    """
    weights = _weights(subject, shape, torch.Generator(device or kind).manual_seed(seed))
    run, kernel, result_bytes = (_cuda if kind == "cuda" else _cpu)(subject, weights)
    return Prepared(
        subject=subject, shape=shape, weights=weights, run=run, kernel=kernel,
        result_bytes=result_bytes,
    )  # fmt: skip


def _weights(subject: Subject, shape: tuple[int, int], generator: torch.Generator) -> Weights:
    if subject.weights == "fp32":
        weight = torch.randn(shape, generator=generator, device=generator.device)
        return (weight.mul_(shape[1] ** -0.5),)
    act_order = subject.act_order or "fold"
    weight, *sparse = random_weight(subject.weights, shape, generator, act_order=act_order)
    if subject.part == "csr":
        return tuple(sparse)
    if subject.table == "int16":
        weight = to_fixed_point(weight)
    return (weight, *sparse)


def _cuda(subject: Subject, weights: Weights) -> tuple[Run, str, int]:
    """Triton launchers, or cuBLAS through torch."""
    from kernels import bilevel_gemv, fp16_gemv, lut_csr_fused, lut_gemv, uniform_gemv, vector_gemv
    from kernels.dispatch import choose, matmul

    first, path = weights[0], subject.path
    if subject.library:
        return _library(subject), "torch (cuBLAS)", first.element_size()
    if isinstance(first, CsrWeight):
        return _cuda_csr(first), "csr_spmv", 2
    if isinstance(first, Tensor):
        _one_token(subject)
        return (
            lambda x, w, out, counters: fp16_gemv.fp16_gemv(x, *w, out=out, counters=counters),
            "fp16_gemv",
            2,
        )
    if subject.batch > 1 or _has_two_launches(weights):  # the dispatcher allocates its result

        def run_matmul(x: Tensor, w: Weights, _out: Tensor, counters: Tensor) -> Tensor:
            tokens = x.view(-1, x.shape[-1])
            return matmul(tokens, *w, path=path, counters=counters).squeeze(0)

        return (
            run_matmul,
            f"matmul ({choose(first, subject.batch)})",
            2,
        )
    if isinstance(first, UniformWeight):
        split = first.group_size >= first.codes.columns

        def run_uniform(x: Tensor, w: Weights, out: Tensor, counters: Tensor) -> Tensor:
            options = {"counters": counters} if split else {}
            return uniform_gemv.uniform_gemv(x, *w, path=path, out=out, **options)

        return run_uniform, "uniform_gemv", 2
    grouped = {
        VectorWeight: vector_gemv.vector_gemv,
        BilevelWeight: bilevel_gemv.bilevel_gemv,
    }.get(type(first))
    if grouped is not None:
        if path != "exact":
            raise UsageError(f"subject {subject.name!r}: this kernel has the exact path alone")
        return (
            lambda x, w, out, counters: grouped(x, *w, out=out, counters=counters),
            grouped.__name__,
            2,
        )
    function = lut_gemv.lut_gemv if len(weights) == 1 else lut_csr_fused.lut_csr_gemv
    return (
        lambda x, w, out, counters: function(x, *w, path=path, out=out, counters=counters),
        f"{function.__name__} {path}",
        2,
    )


def _has_two_launches(weights: Weights) -> bool:
    """A table in memory and its sparse part: no kernel fuses them."""
    first = weights[0]
    wide = isinstance(first, LutWeight) and first.codes.bits not in REGISTER_BITS
    return wide and len(weights) == 2


def _cuda_csr(weight: CsrWeight) -> Run:
    from kernels.csr_spmv import counters_needed, csr_spmv

    own = torch.zeros(counters_needed(weight), dtype=torch.int32, device=weight.device)
    return lambda x, w, out, _counters: csr_spmv(x, *w, out=out, counters=own)


def _cpu(subject: Subject, weights: Weights) -> tuple[Run, str, int]:
    """numba twins, or torch; results are FP32."""
    first = weights[0]
    if subject.library:
        return _library(subject), "torch", first.element_size()
    if subject.path != "exact" or subject.table:
        raise UsageError(f"subject {subject.name!r}: the CPU twins have the exact path alone")
    _one_token(subject)
    from kernels import cpu

    if isinstance(first, CsrWeight):
        return lambda x, w, _out, _counters: cpu.csr_gemv(x, *w), "numba csr_gemv", 4
    function = cpu.twin_of(first)
    if function is None:
        raise UsageError(f"subject {subject.name!r}: no numba twin reads a {type(first).__name__}")
    if len(weights) == 1:
        return lambda x, w, _out, _counters: function(x, *w), f"numba {function.__name__}", 4

    def run_both(x: Tensor, w: Weights, _out: Tensor, _counters: Tensor) -> Tensor:
        return cpu.csr_gemv(x, w[1], out=function(x, w[0]))

    return run_both, f"numba {function.__name__} + csr_gemv", 4


def _one_token(subject: Subject) -> None:
    if subject.batch > 1:
        raise UsageError(f"subject {subject.name!r}: this kernel takes one token")


def _library(subject: Subject) -> Run:
    if subject.batch == 1:
        return lambda x, w, out, _counters: torch.mv(*w, x, out=out)
    return lambda x, w, out, _counters: torch.mm(x, w[0].T, out=out)


def rotation(prepared: Prepared, copies: int) -> Callable[[int], object]:
    """A call of a subject on one of so many copies of its weights."""
    first = prepared.weights
    weights = [first] + [tuple(clone(w) for w in first) for _ in range(copies - 1)]
    x, out, counters = prepared.inputs()
    return lambda copy: prepared.run(x, weights[copy], out, counters)
