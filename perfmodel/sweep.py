"""Cartesian products of predictions: one flat row per configuration."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from perfmodel.errors import UsageError
from perfmodel.footprint import growing_bytes, weights_bytes
from perfmodel.formats import BitPolicy
from perfmodel.hardware import HardwareSpec
from perfmodel.models import ModelShape
from perfmodel.ops import Op
from perfmodel.output import whole_file
from perfmodel.prediction import cache_ops, constant_ops, linear_bits_per_weight
from perfmodel.roofline import OpTime, layers_time, op_time
from perfmodel.stacks import Stack
from perfmodel.workload import Accounting, Phase, Workload, first_pass

Machine = tuple[HardwareSpec, Stack]


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """The axes of a sweep; every combination is one configuration."""

    machines: Sequence[Machine]
    models: Sequence[ModelShape]
    policies: Sequence[BitPolicy]
    phase: Phase
    accountings: Sequence[Accounting]
    batches: Sequence[int]
    lengths: Sequence[int]  # context of a decode, prompt of a prefill or generation
    new: int  # tokens to generate
    tensor_parallel: Sequence[int]
    kv_bits: int

    @property
    def size(self) -> int:
        """Number of configurations."""
        size = len(self.machines) * len(self.models) * len(self.policies)
        size *= len(self.accountings) * len(self.batches) * len(self.lengths)
        return size * len(self.tensor_parallel)


class _Part(NamedTuple):
    """A group of operations on one device."""

    time: OpTime
    flops: int
    bytes: int


def sweep(grid: Grid) -> Iterator[dict[str, Any]]:
    """One row per configuration, units in the keys.

    What a change of device, length or format leaves alone is computed once, so that a row costs
    microseconds; every time comes from the same `op_time` as any other prediction.
    Raises: UsageError for a combination that is impossible.
    """
    for shape in _shapes(grid):
        of_length = [_with_length(shape, length) for length in grid.lengths]
        attention = [_attention_parts(workload, grid.machines) for workload in of_length]
        for policy in grid.policies:
            workloads = [replace(workload, policy=policy) for workload in of_length]
            yield from _rows(workloads, attention, grid.machines)


def _shapes(grid: Grid) -> list[Workload]:
    """Everything but length, format and machine; all of it checked before the first row."""
    axes = product(grid.models, grid.tensor_parallel, grid.accountings, grid.batches)
    shapes = [
        Workload(
            model=model,
            policy=grid.policies[0],
            phase=grid.phase,
            batch=batch,
            prompt=1,
            new=grid.new,
            tensor_parallel=tensor_parallel,
            accounting=accounting,
            kv_bits=grid.kv_bits,
        )
        for model, tensor_parallel, accounting, batch in axes
    ]
    for length in grid.lengths:
        _with_length(shapes[0], length)
    if max(grid.tensor_parallel) > 1:
        for hw, _ in grid.machines:
            _ = hw.send_bytes_per_s
    return shapes


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One Parquet file, columns as the keys of the rows.

    Raises: UsageError if pandas or pyarrow is missing; OutputError.
    """
    try:
        import pandas
        import pyarrow  # noqa: F401  pandas would fall back to another engine
    except ImportError as error:
        raise UsageError(
            f"Parquet needs {error.name}: pip install 'memwall[parquet]', or write .csv"
        ) from None
    with whole_file(path) as temporary:
        pandas.DataFrame(rows).to_parquet(temporary, index=False)


def _rows(
    workloads: Sequence[Workload], attention: Sequence[list[_Part]], machines: Sequence[Machine]
) -> Iterator[dict[str, Any]]:
    """Rows of one model, batch and format: all lengths on all machines."""
    first = workloads[0]
    weights = weights_bytes(first_pass(first), first.policy)
    bits_per_weight = linear_bits_per_weight(first)
    constant = _constant_parts(first, machines)
    for workload, attention_parts in zip(workloads, attention, strict=True):
        if workload.phase == "prefill":  # elsewhere only attention depends on the length
            constant = _constant_parts(workload, machines)
        memory_bytes = weights + growing_bytes(workload)
        for machine, a, b in zip(machines, constant, attention_parts, strict=True):
            yield _row(machine, workload, a, b) | {
                "bits_per_weight": bits_per_weight,
                "memory_bytes": memory_bytes,
                "fits": memory_bytes <= machine[0].dram_bytes,
            }


def _row(machine: Machine, workload: Workload, a: _Part, b: _Part) -> dict[str, Any]:
    hw, stack = machine
    time = a.time + b.time + layers_time(workload.model.layers, hw, stack) * workload.steps
    time_s = time.time_s
    decode, prefill = workload.phase == "decode", workload.phase == "prefill"
    tokens = workload.batch * (workload.prompt if prefill else workload.steps)
    return {
        "device": hw.key,
        "model": workload.model.name,
        "weights": workload.policy.linear.name,
        "phase": workload.phase,
        "batch": workload.batch,
        "context": workload.context if decode else None,
        "prompt": None if decode else workload.prompt,
        "new": None if decode or prefill else workload.new,
        "tensor_parallel": workload.tensor_parallel,
        "accounting": workload.accounting,
        "stack": stack.name,
        "time_s": time_s,
        "tokens_per_s": tokens / time_s,
        "bound": time.bound,
        "flops": a.flops + b.flops,
        "bytes": a.bytes + b.bytes,
    }


def _with_length(shape: Workload, length: int) -> Workload:
    if shape.phase == "decode":
        return replace(shape, context=length)
    return replace(shape, prompt=length)


def _constant_parts(workload: Workload, machines: Sequence[Machine]) -> list[_Part]:
    ops = [op * workload.steps for op in constant_ops(first_pass(workload), workload.policy)]
    return [_part(ops, *machine) for machine in machines]


def _attention_parts(workload: Workload, machines: Sequence[Machine]) -> list[_Part]:
    first = first_pass(workload)
    passes = (replace(first, cached=first.cached + i) for i in range(workload.steps))
    ops = [op for step in passes for op in cache_ops(step)]
    return [_part(ops, *machine) for machine in machines]


def _part(ops: Iterable[Op], hw: HardwareSpec, stack: Stack) -> _Part:
    time, flops, moved_bytes = OpTime(), 0, 0
    for op in ops:
        time += op_time(op, hw, stack)
        flops += op.flops
        moved_bytes += op.bytes
    return _Part(time, flops, moved_bytes)
