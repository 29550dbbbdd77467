"""What `python -m bench probe` measured on a device: the `measured:` group of its file."""

from typing import Annotated

import msgspec

from perfmodel.units import GIGA, MIB, MICRO, TERA

# Measured rates may be far below any datasheet's (FP16 arithmetic that a CPU emulates).
Rate = Annotated[float, msgspec.Meta(gt=0, le=1_000_000)]
Count = Annotated[int, msgspec.Meta(gt=0, le=1_000_000)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]


class SizePoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bandwidth of reading a buffer of one size again and again."""

    mib: Rate
    gb_per_s: Rate


class MeasuredGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As written; field by field in hardware/README.md."""

    date: Text
    source: Text
    threads: Count | None = None
    read_gb_per_s: Rate
    copy_gb_per_s: Rate | None = None
    triad_gb_per_s: Rate | None = None
    read_staircase: tuple[SizePoint, ...] = ()
    fp16_tflops: Rate | None = None
    fp32_tflops: Rate | None = None
    launch_us: Rate | None = None
    graph_launch_us: Rate | None = None
    decode_gweights_per_s: dict[str, Rate] = {}

    def __hash__(self) -> int:  # a mapping has none of its own
        return hash((self.date, self.source))


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The same in SI base units; None where it was not measured."""

    date: str
    source: str
    threads: int | None  # of a CPU
    read_bytes_per_s: float  # of a buffer that no cache holds
    copy_bytes_per_s: float | None  # bytes read and written
    triad_bytes_per_s: float | None  # bytes read and written
    read_steps: tuple[tuple[int, float], ...]  # (buffer bytes, bytes/s), smallest first
    fp16_flop_per_s: float | None  # matrix product of the vendor's library
    fp32_flop_per_s: float | None
    launch_s: float | None  # per empty kernel, started one by one
    graph_launch_s: float | None  # the same inside one CUDA graph
    decode_weights_per_s: dict[str, float]  # weight format -> GEMV on weights in a cache

    def __hash__(self) -> int:  # a mapping has none of its own
        return hash((self.date, self.source))


def to_measured(group: MeasuredGroup) -> Measured:
    """The group as a record in SI base units."""
    steps = sorted((round(step.mib * MIB), step.gb_per_s * GIGA) for step in group.read_staircase)
    return Measured(
        date=group.date,
        source=group.source,
        threads=group.threads,
        read_bytes_per_s=group.read_gb_per_s * GIGA,
        copy_bytes_per_s=_scaled(group.copy_gb_per_s, GIGA),
        triad_bytes_per_s=_scaled(group.triad_gb_per_s, GIGA),
        read_steps=tuple(steps),
        fp16_flop_per_s=_scaled(group.fp16_tflops, TERA),
        fp32_flop_per_s=_scaled(group.fp32_tflops, TERA),
        launch_s=_scaled(group.launch_us, MICRO),
        graph_launch_s=_scaled(group.graph_launch_us, MICRO),
        decode_weights_per_s={
            name: rate * GIGA for name, rate in group.decode_gweights_per_s.items()
        },
    )


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit
