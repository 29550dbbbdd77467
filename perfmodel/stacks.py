"""The software that runs a model: what it adds to the bare roofline."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated

import msgspec

from perfmodel import names
from perfmodel.records import to_record
from perfmodel.strict_yaml import Document, parse_yaml, read_text
from perfmodel.units import MICRO

STACKS = Path(__file__).parent / "stacks"

Share = Annotated[float, msgspec.Meta(ge=0.001, le=1)]
Microseconds = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
Multiplier = Annotated[float, msgspec.Meta(ge=1, le=100)]
Bytes = Annotated[int, msgspec.Meta(ge=0)]


class EfficiencyStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Operations of at least so many bytes reach this share of the DRAM bandwidth."""

    at_least_bytes: Bytes
    share: Share


class StackFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stack as written, times in microseconds."""

    name: str
    description: str
    basis: str  # "datasheet", or "fitted on ...", or "measured on ..."
    source: str
    bandwidth_efficiency: Annotated[list[EfficiencyStep], msgspec.Meta(min_length=1)]
    compute_efficiency: Share
    launch_us: Microseconds
    layer_us: Microseconds
    kv_traffic_multiplier: Multiplier


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """Efficiencies and fixed costs; `ideal` is all ones and zeros."""

    name: str
    description: str
    basis: str
    source: str
    bandwidth_steps: tuple[tuple[int, float], ...]  # (at least so many bytes, share), descending
    compute_efficiency: float
    launch_s: float  # per operation
    layer_s: float  # per block and pass: what no operation accounts for
    kv_traffic_multiplier: float  # a cache that is copied when it grows is read and written more

    @property
    def is_ideal(self) -> bool:
        """Whether a prediction is the roofline itself, a lower bound on any measured time."""
        costs = (self.launch_s, self.layer_s)
        ones = (self.compute_efficiency, self.kv_traffic_multiplier)
        return self.bandwidth_steps == ((0, 1.0),) and not any(costs) and ones == (1.0, 1.0)

    def bandwidth_efficiency(self, op_bytes: float) -> float:
        """Share of the DRAM bandwidth that one operation of so many bytes reaches."""
        for at_least_bytes, share in self.bandwidth_steps:
            if op_bytes >= at_least_bytes:
                return share
        return self.bandwidth_steps[-1][1]


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
    return Stack(
        name=file.name,
        description=file.description,
        basis=file.basis,
        source=file.source,
        bandwidth_steps=tuple(steps),
        compute_efficiency=file.compute_efficiency,
        launch_s=file.launch_us * MICRO,
        layer_s=file.layer_us * MICRO,
        kv_traffic_multiplier=file.kv_traffic_multiplier,
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
