"""Stacks as strict YAML files: built-in ones by name, and anybody's by path."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from perfmodel import names
from perfmodel.records import to_record
from perfmodel.stacks import Interval, SparseCost, Stack
from perfmodel.strict_yaml import Document, parse_yaml, read_text
from perfmodel.units import MICRO

STACKS = Path(__file__).parent / "stacks"

Share = Annotated[float, msgspec.Meta(ge=0.001, le=1)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Microseconds = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
Cycles = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
Multiplier = Annotated[float, msgspec.Meta(ge=1, le=100)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Bytes = Annotated[int, msgspec.Meta(ge=0)]
HalfWidth = Annotated[float, msgspec.Meta(ge=0, le=10)]


class EfficiencyStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Operations of at least so many bytes reach this share of the DRAM bandwidth."""

    at_least_bytes: Bytes
    share: Share


class DecodeGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SM-cycles per weight by words of the format's name; `any` is every other format."""

    overlap: Fraction
    sm_cycles_per_weight: dict[str, Cycles]


class SparseGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Costs of one sparse layout, per matrix."""

    launch_us: Microseconds
    sm_cycles_per_nonzero: Cycles
    cycles_per_column: Cycles


class IntervalGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Relative half-widths that hold 80 % of the measurements."""

    fitted: HalfWidth
    transferred: HalfWidth


class StackFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stack as written, times in microseconds."""

    name: str
    description: str
    basis: str
    source: str
    fitted_on: list[str] = []
    largest_batch: Count = 1
    runs: list[str] = []
    bandwidth_efficiency: Annotated[list[EfficiencyStep], msgspec.Meta(min_length=1)]
    ragged_share: Share = 1.0
    compute_efficiency: Share
    launch_us: Microseconds
    layer_us: Microseconds
    layer_cycles: Cycles = 0.0
    collective_us: Microseconds = 0.0
    kv_traffic_multiplier: Multiplier
    decode: DecodeGroup
    sparse: dict[Literal["any", "rows", "hybrid", "balanced"], SparseGroup] = {}
    interval_80_percent: IntervalGroup | None = None


@lru_cache
def stack_names() -> tuple[str, ...]:
    """Built-in stacks."""
    return tuple(sorted(path.stem for path in STACKS.glob("*.yaml")))


@lru_cache
def load_stack(stack: str) -> Stack:
    """Stack by built-in name, or by path of a YAML file.

    Raises: UnknownNameError; SpecError if the file is wrong.
    """
    if stack.endswith((".yaml", ".yml")) or "/" in stack:
        return read_stack(Path(stack), source=stack)
    found = names.resolve("stack", stack, names.index_by_name(dict.fromkeys(stack_names(), ())))
    return read_stack(STACKS / f"{found}.yaml", source=f"stacks/{found}.yaml")


def read_stack(path: Path, *, source: str) -> Stack:
    """Stack from a file; `source` is what errors call it.

    Raises: SpecError if the file is wrong.
    """
    return to_stack(parse_yaml(read_text(path), source=source))


def to_stack(document: Document) -> Stack:
    """A parsed stack file as a record in SI base units.

    Raises: SpecError.
    """
    file = to_record(document, StackFile)
    _check_steps(document, file)
    steps = sorted(((s.at_least_bytes, s.share) for s in file.bandwidth_efficiency), reverse=True)
    interval = file.interval_80_percent
    return Stack(
        name=file.name,
        description=file.description,
        basis=file.basis,
        source=file.source,
        devices=tuple(file.fitted_on),
        largest_batch=file.largest_batch,
        formats=tuple(file.runs),
        bandwidth_steps=tuple(steps),
        ragged_share=file.ragged_share,
        compute_efficiency=file.compute_efficiency,
        launch_s=file.launch_us * MICRO,
        layer_s=file.layer_us * MICRO,
        layer_cycles=file.layer_cycles,
        collective_s=file.collective_us * MICRO,
        kv_traffic_multiplier=file.kv_traffic_multiplier,
        decode_overlap=file.decode.overlap,
        decode_costs=tuple(file.decode.sm_cycles_per_weight.items()),
        sparse_costs=tuple((layout, _sparse(group)) for layout, group in file.sparse.items()),
        interval=Interval(fitted=interval.fitted, transferred=interval.transferred)
        if interval
        else None,
    )


def _sparse(group: SparseGroup) -> SparseCost:
    return SparseCost(
        launch_s=group.launch_us * MICRO,
        sm_cycles_per_nonzero=group.sm_cycles_per_nonzero,
        cycles_per_column=group.cycles_per_column,
    )


def _check_steps(document: Document, file: StackFile) -> None:
    """Raises: SpecError unless every size is named once, and 0 is one of them."""
    seen: set[int] = set()
    for index, step in enumerate(file.bandwidth_efficiency):
        if step.at_least_bytes in seen:
            place = ("bandwidth_efficiency", index, "at_least_bytes")
            raise document.error(place, f"found {step.at_least_bytes} twice, expected it once")
        seen.add(step.at_least_bytes)
    if 0 not in seen:
        problem = "found no step with at_least_bytes: 0, expected one for the smallest operations"
        raise document.error(("bandwidth_efficiency",), problem)
