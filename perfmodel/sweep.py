"""Cartesian products of predictions, millions at once: the formulas of `predict` over arrays."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from perfmodel.errors import UsageError, missing_package
from perfmodel.footprint import growing_bytes, weights_bytes
from perfmodel.formats import BitPolicy
from perfmodel.hardware import HardwareSpec
from perfmodel.ops import Op
from perfmodel.output import whole_file
from perfmodel.prediction import (
    cache_ops,
    constant_ops,
    in_order,
    linear_bits_per_weight,
    times_of_cache_ops,
    times_of_constant_ops,
)
from perfmodel.roofline import BOUNDS, OpTime, layers_time
from perfmodel.shape import ModelShape
from perfmodel.stacks import Stack
from perfmodel.workload import Accounting, Phase, Workload, first_pass

Machine = tuple[HardwareSpec, Stack]
Columns = dict[str, Any]  # name -> list of one value per row

BLOCK_ROWS = 250_000  # at once in memory
LARGEST_INTEGER = 2**62  # of the 64-bit integers that arrays hold
_SPEC_ARRAYS = (
    "dram_bytes",
    "dram_bytes_per_s",
    "fp16_matmul_flop_per_s",
    "fp32_flop_per_s",
    "link_bytes_per_s",
    "sm_count",
    "boost_clock_hz",
    "host_clock_hz",
)


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """The axes of a sweep; every combination is one configuration."""

    machines: Sequence[Machine]
    what_if: Mapping[str, Sequence[Any]] = {}  # field of the device file -> value per machine
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


class _Group(msgspec.Struct, frozen=True, kw_only=True):
    """Machines of one stack as one, its numbers arrays of shape (machines,)."""

    hardware: HardwareSpec
    stack: Stack
    places: list[int]  # in the grid


def sweep(grid: Grid) -> Iterator[dict[str, Any]]:
    """One row per configuration, units in the keys.

    Raises: UsageError for a combination that is impossible.
    """
    return as_rows(blocks(grid))


def as_rows(columns: Iterable[Columns]) -> Iterator[dict[str, Any]]:
    """Blocks of columns as one row after the other."""
    for block in columns:
        for values in zip(*block.values(), strict=True):
            yield dict(zip(block, values, strict=True))


def blocks(grid: Grid) -> Iterator[Columns]:
    """The rows as columns, some ten thousands at a time; all is checked before the first.

    Raises: UsageError for a combination that is impossible.
    """
    shapes = _shapes(grid)
    groups = _groups(grid.machines)
    per_batch = len(grid.policies) * len(grid.lengths) * len(grid.machines)
    at_once = max(1, BLOCK_ROWS // per_batch)
    for shape in shapes:
        for start in range(0, len(grid.batches), at_once):
            yield _block(grid, shape, grid.batches[start : start + at_once], groups)


def write_parquet(path: Path, columns: Iterator[Columns]) -> None:
    """One Parquet file.

    Raises: UsageError if pandas or pyarrow is missing; OutputError.
    """
    try:
        import pandas
        import pyarrow  # noqa: F401  pandas would fall back to another engine
    except ImportError as error:
        raise missing_package(error, "parquet") from None
    with whole_file(path) as temporary:
        frames = [pandas.DataFrame(block) for block in columns]
        pandas.concat(frames).to_parquet(temporary, index=False)


def _shapes(grid: Grid) -> list[Workload]:
    """Model, devices in parallel and accounting; everything checked at its extremes.

    Raises: UsageError.
    """
    axes = product(grid.models, grid.tensor_parallel, grid.accountings)
    shapes = [
        Workload(
            model=model,
            policy=grid.policies[0],
            phase=grid.phase,
            batch=min(grid.batches),
            prompt=1,
            new=grid.new,
            tensor_parallel=tensor_parallel,
            accounting=accounting,
            kv_bits=grid.kv_bits,
        )
        for model, tensor_parallel, accounting in axes
    ]
    for shape in shapes:
        _with_length(shape, min(grid.lengths))
        _refuse_overflow(replace(_with_length(shape, max(grid.lengths)), batch=max(grid.batches)))
    if max(grid.tensor_parallel) > 1:
        for hw, _ in grid.machines:
            _ = hw.send_bytes_per_s
    return shapes


def _refuse_overflow(largest: Workload) -> None:
    """Raises: UsageError if a number of the largest configuration exceeds 64 bits."""
    last = replace(first_pass(largest), cached=largest.cached_tokens_at_end)
    ops: list[Op] = [*constant_ops(last, largest.policy), *cache_ops(last)]
    if sum(largest.steps * max(op.flops, 8 * op.bytes) for op in ops) > LARGEST_INTEGER:
        raise UsageError("the largest configuration takes more than 2^62 FLOPs, too many to sweep")


def _groups(machines: Sequence[Machine]) -> list[_Group]:
    """Machines with the same stack and the same unknown numbers, together."""
    places: dict[Any, list[int]] = {}
    for place, (hw, stack) in enumerate(machines):
        unknown = tuple(getattr(hw, name) is None for name in _SPEC_ARRAYS)
        places.setdefault((stack, unknown), []).append(place)
    return [
        _Group(hardware=_together([machines[i][0] for i in found]), stack=stack, places=found)
        for (stack, _), found in places.items()
    ]


def _together(specs: Sequence[HardwareSpec]) -> HardwareSpec:
    """One record with arrays for numbers; errors name the first device."""
    import numpy

    arrays: dict[str, Any] = {}
    for name in _SPEC_ARRAYS:
        values = [getattr(spec, name) for spec in specs]
        arrays[name] = None if values[0] is None else numpy.array(values)
    return replace(specs[0], **arrays)


def _block(
    grid: Grid, shape: Workload, batches: Sequence[int], groups: Sequence[_Group]
) -> Columns:
    """Columns in the order batch, format, length, machine."""
    import numpy

    lengths = numpy.array(grid.lengths)[:, None]  # (L, 1)
    batch = numpy.array(batches)[:, None, None]  # (B, 1, 1)
    many = replace(_with_length(shape, lengths), batch=batch)
    size = (len(batches), len(grid.policies), len(grid.lengths), len(grid.machines))
    first = first_pass(many)
    found: dict[str, Any] = {name: numpy.empty(size, dtype) for name, dtype in _COMPUTED.items()}
    for group in groups:
        attention = times_of_cache_ops(first, many.steps, group.hardware, group.stack)
        for index, policy in enumerate(grid.policies):
            computed = _computed(replace(many, policy=policy), group, attention)
            for name, values in computed.items():
                found[name][:, index, :, group.places] = numpy.moveaxis(
                    numpy.broadcast_to(values, (size[0], size[2], len(group.places))), -1, 0
                )
    return _given(grid, shape, batches, size) | {
        name: _named_bounds(values) if name == "bound" else values.ravel().tolist()
        for name, values in found.items()
    }


_COMPUTED = {
    "time_s": float,
    "tokens_per_s": float,
    "bound": int,
    "flops": int,
    "bytes": int,
    "bits_per_weight": float,
    "memory_bytes": int,
    "fits": bool,
}


def _computed(workload: Workload, group: _Group, attention: Sequence[Any]) -> dict[str, Any]:
    """What depends on everything, as arrays that broadcast to (batch, length, machine)."""
    hw, stack = group.hardware, group.stack
    timed = in_order((*times_of_constant_ops(workload, hw, stack), *attention))
    layers = layers_time(workload.model.layers, hw, stack) * workload.steps
    time_s = sum(time.time_s for _, time in timed) + layers.time_s
    tokens = workload.prompt if workload.phase == "prefill" else workload.steps
    memory = weights_bytes(first_pass(workload), workload.policy) + growing_bytes(workload)
    return {
        "time_s": time_s,
        "tokens_per_s": workload.batch * tokens / time_s,
        "bound": _bounds(sum((time for _, time in timed), layers)),
        "flops": sum(op.flops for op, _ in timed),
        "bytes": sum(op.bytes for op, _ in timed),
        "bits_per_weight": linear_bits_per_weight(workload),
        "memory_bytes": memory,
        "fits": memory <= hw.dram_bytes,
    }


def _bounds(time: OpTime) -> Any:
    """Places in `BOUNDS` of what takes longest."""
    import numpy

    return numpy.argmax(numpy.stack(numpy.broadcast_arrays(*time.of_bounds)), axis=0)


def _named_bounds(places: Any) -> list[str]:
    import numpy

    return numpy.array(BOUNDS, dtype=object)[places].ravel().tolist()  # type: ignore[no-any-return]


def _given(grid: Grid, shape: Workload, batches: Sequence[int], size: tuple[int, ...]) -> Columns:
    """The columns that say which configuration a row is."""
    import numpy

    def axis(number: int, values: Sequence[Any]) -> list[Any]:
        along = [1, 1, 1, 1]
        along[number] = len(values)
        column = numpy.array(values, dtype=object).reshape(along)
        return numpy.broadcast_to(column, size).ravel().tolist()

    decode, generate = shape.phase == "decode", shape.phase == "generate"
    return {
        "device": axis(3, [hw.key for hw, _ in grid.machines]),
        **{field: axis(3, values) for field, values in grid.what_if.items()},
        "model": axis(0, [shape.model.name] * len(batches)),
        "weights": axis(1, [policy.linear.name for policy in grid.policies]),
        "phase": axis(0, [shape.phase] * len(batches)),
        "batch": axis(0, batches),
        "context": axis(2, grid.lengths if decode else [None] * len(grid.lengths)),
        "prompt": axis(2, [None] * len(grid.lengths) if decode else grid.lengths),
        "new": axis(0, [shape.new if generate else None] * len(batches)),
        "tensor_parallel": axis(0, [shape.tensor_parallel] * len(batches)),
        "accounting": axis(0, [shape.accounting] * len(batches)),
        "stack": axis(3, [stack.name for _, stack in grid.machines]),
    }


def _with_length(shape: Workload, length: Any) -> Workload:
    if shape.phase == "decode":
        return replace(shape, context=length)
    return replace(shape, prompt=length)
