"""The decode ceiling: how fast an SM can turn packed codes into products, from instruction counts.

Upper bound on speed. Not in it: latency, occupancy, bank conflicts, register-bank conflicts,
the prologue and the final reduction. Predicated instructions count as issued.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kernels.sass import DecodeLoop, Instruction

RATES_FILE = Path(__file__).with_name("rates.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A unit of an SM: how many lanes it serves per clock, and for which instruction classes."""

    lanes: int
    classes: frozenset[str] | None  # None: every instruction, as at the issue ports


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Rates of one compute capability."""

    name: str
    limits: Mapping[str, Limit]
    source: str
    measured_on: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a decode ceiling is held against, in SI base units."""

    name: str
    architecture: int
    sm_count: int
    clock_hz: float
    dram_bytes_per_s: float
    source: str

    def weights_per_sm_cycle(self, weight_bits: float) -> float:
        """Decode rate at which the weights alone keep DRAM busy."""
        bytes_per_sm_cycle = self.dram_bytes_per_s / (self.sm_count * self.clock_hz)
        return bytes_per_sm_cycle / (weight_bits / 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Everything in rates.yaml."""

    class_of: Mapping[str, str]  # opcode without modifiers -> class
    architectures: Mapping[int, Architecture]
    devices: Mapping[str, Device]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """Result of `decode_ceiling`; loads are in lanes x slots per weight."""

    weights_per_sm_cycle: float
    bound: str  # the limit that binds
    per_weight: Mapping[str, float]  # limit -> slots taken per weight
    unknown: tuple[str, ...]  # opcodes in no class


@cache
def load_rates(path: Path = RATES_FILE) -> Rates:
    """Read and check the rates file. Raises: OSError, KeyError, ValueError."""
    import yaml

    raw = yaml.safe_load(path.read_text())
    class_of: dict[str, str] = {}
    for kind, opcodes in raw["classes"].items():
        for opcode in opcodes:
            if opcode in class_of:
                raise ValueError(f"{path}: {opcode} is in {class_of[opcode]} and in {kind}")
            class_of[opcode] = kind
    return Rates(
        class_of=class_of,
        architectures={
            int(number): _architecture(entry, path, set(raw["classes"]))
            for number, entry in raw["architectures"].items()
        },
        devices={name: _device(name, entry) for name, entry in raw["devices"].items()},
    )


def _architecture(entry: Mapping, path: Path, known: set[str]) -> Architecture:
    limits = {}
    for name, limit in entry["limits"].items():
        classes = None if limit["classes"] == "all" else frozenset(limit["classes"])
        if classes is not None and not classes <= known:
            raise ValueError(f"{path}: limit {name} names unknown classes {classes - known}")
        limits[name] = Limit(lanes=limit["lanes"], classes=classes)
    return Architecture(
        name=entry["name"],
        limits=limits,
        source=entry["source"],
        measured_on=entry["measured_on"],
    )


def _device(name: str, entry: Mapping) -> Device:
    return Device(
        name=name,
        architecture=entry["architecture"],
        sm_count=entry["sm_count"],
        clock_hz=entry["clock_mhz"] * 1e6,
        dram_bytes_per_s=entry["dram_gb_per_s"] * 1e9,
        source=entry["source"],
    )


def decode_ceiling(loop: DecodeLoop, architecture: Architecture, rates: Rates) -> Ceiling:
    """Weights per clock that one SM can decode, and the unit that stops it from doing more."""
    per_weight = {
        name: _slots(loop.body, limit, rates.class_of) / loop.weights_per_lane
        for name, limit in architecture.limits.items()
    }
    rate = {
        name: architecture.limits[name].lanes / slots for name, slots in per_weight.items() if slots
    }
    bound = min(rate, key=rate.__getitem__)
    unknown = sorted({i.base for i in loop.body} - set(rates.class_of))
    return Ceiling(
        weights_per_sm_cycle=rate[bound],
        bound=bound,
        per_weight=per_weight,
        unknown=tuple(unknown),
    )


def _slots(body: Iterable[Instruction], limit: Limit, class_of: Mapping[str, str]) -> int:
    """Lane slots that one lane's share of the body takes; wide memory accesses take several."""
    total = 0
    for instruction in body:
        kind = class_of.get(instruction.base)
        if limit.classes is None:
            total += 1
        elif kind in limit.classes:
            total += instruction.words if kind == "memory" else 1
    return total


def dram_share(ceiling: Ceiling, device: Device, weight_bits: float) -> float:
    """Decode ceiling over the rate that saturates DRAM; above 1 the kernel is memory-bound."""
    return ceiling.weights_per_sm_cycle / device.weights_per_sm_cycle(weight_bits)
