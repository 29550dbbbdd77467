"""The software that runs a model: what it adds to the bare roofline.

Every cost is kept in the unit in which it transfers from one device to another: a share of the
bandwidth, seconds of the host that launches, clock cycles of one SM, or SM-cycles (SM count x
clock) for work that all SMs share.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from perfmodel.arrays import where
from perfmodel.errors import UnknownCostError
from perfmodel.formats import Sparse, WeightFormat

ANY = "any"
PLAIN = ("fp16", "bf16")  # nothing to decode, unless the stack says otherwise


class SparseCost(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel of one sparse layout costs per matrix, beside the bytes it reads."""

    launch_s: float = 0.0
    sm_cycles_per_nonzero: float = 0.0
    # A thread per row waits for the longest row, which holds a fixed share of the K columns.
    cycles_per_column: float = 0.0


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """Relative half-widths that hold 80 % of the measurements."""

    fitted: float  # on the devices that the stack was fitted on
    transferred: float  # on any other


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """Efficiencies and costs; `ideal` is all ones and zeros."""

    name: str
    description: str
    basis: str  # "datasheet", or "fitted on ...", or "measured on ..."
    source: str
    devices: tuple[str, ...]  # what it was fitted or measured on
    largest_batch: int  # among the measurements
    formats: tuple[str, ...]  # what it runs: among the measurements, or its source says so
    bandwidth_steps: tuple[tuple[int, float], ...]  # (at least so many bytes, share), descending
    ragged_share: float  # of that share, for matrices with a side that is no multiple of 128
    compute_efficiency: float
    launch_s: float  # per operation
    layer_s: float  # per block and pass: what no operation accounts for
    layer_cycles: float  # the same, where the clock of the device sets it
    collective_s: float  # per message between devices
    kv_traffic_multiplier: float  # a cache that is copied when it grows is read and written more
    decode_overlap: float  # share of the shorter one of DRAM and decode that the longer one hides
    decode_costs: tuple[tuple[str, float], ...]  # (words of a format name, SM-cycles per weight)
    sparse_costs: tuple[tuple[str, SparseCost], ...]  # by layout
    interval: Interval | None

    @property
    def is_ideal(self) -> bool:
        """Whether a prediction is the roofline itself, a lower bound on any measured time."""
        costs = (self.launch_s, self.layer_s, self.layer_cycles, self.collective_s)
        decode = (cost for _, cost in self.decode_costs)
        sparse = (cost for _, cost in self.sparse_costs if cost != SparseCost())
        ones = (self.ragged_share, self.compute_efficiency, self.kv_traffic_multiplier)
        free = not any((*costs, *decode, *sparse))
        return free and self.bandwidth_steps == ((0, 1.0),) and ones == (1.0, 1.0, 1.0)

    def bandwidth_efficiency(self, op_bytes: Any) -> Any:
        """Share of the DRAM bandwidth that one operation of so many bytes reaches."""
        share: Any = self.bandwidth_steps[-1][1]
        for at_least_bytes, step in reversed(self.bandwidth_steps):
            share = where(op_bytes >= at_least_bytes, step, share)
        return share

    def decode_sm_cycles(self, weight_format: WeightFormat) -> float:
        """SM-cycles to unpack and look up one weight: of the entry with most words in the name.

        Raises: UnknownCostError if the stack has no entry for the format.
        """
        words = _words(weight_format.name.partition("@")[0])
        if not (weight_format.scales and weight_format.scales.group):
            words.discard("act")  # without groups the order costs nothing
        fitting = [entry for entry in self.decode_costs if _words(entry[0]) <= words]
        if fitting:
            return max(fitting, key=lambda entry: len(_words(entry[0])))[1]
        if weight_format.name in PLAIN:
            return 0.0
        known = _listed(key for key, _ in self.decode_costs)
        raise UnknownCostError(f"stack {self.name} does not know {weight_format.name}; {known}")

    def sparse_cost(self, weight_format: WeightFormat, sparse: Sparse) -> SparseCost:
        """Costs of the layout that a format's sparse part has.

        Raises: UnknownCostError if the stack has no entry for it.
        """
        costs = dict(self.sparse_costs)
        found = costs.get(sparse.layout) or costs.get(ANY)
        if found is None:
            raise UnknownCostError(
                f"stack {self.name} does not know the sparse part of {weight_format.name} "
                f"({sparse.layout}); {_listed(costs)}"
            )
        return found

    def knows(self, weight_format: WeightFormat) -> bool:
        """Whether the stack has all costs of a format."""
        try:
            self.decode_sm_cycles(weight_format)
            if weight_format.sparse:
                self.sparse_cost(weight_format, weight_format.sparse)
        except UnknownCostError:
            return False
        return True

    def runs(self, weight_format: WeightFormat) -> bool:
        """Whether it has all costs of a format and, if measured, runs such a kernel."""
        ran = {_kernel(name) for name in self.formats}
        return self.knows(weight_format) and (not ran or _kernel(weight_format.name) in ran)


def _words(name: str) -> set[str]:
    return set() if name == ANY else set(name.split("-"))


def _kernel(name: str) -> tuple[str, ...]:
    """Words of a name that choose a kernel: method, bits, group; ideal formats w4.5, w3 are one."""
    words = name.partition("@")[0].split("-")
    if words[0][:1] == "w" and words[0][1:2].isdigit():
        return ("ideal",)
    return (*words[:2], *(word for word in words[2:] if word[:1] == "g"))


def _listed(keys: Iterable[str]) -> str:
    names = ", ".join(keys)
    return f"it knows {names}" if names else "it knows none"
