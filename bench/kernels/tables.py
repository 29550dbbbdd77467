"""The kernels' measurements as a table: what they reach, and what they gain."""

from collections.abc import Sequence
from typing import Any

from bench.kernels.predicted import Compared
from bench.measurement import Measurement
from perfmodel.format_names import parse_format
from perfmodel.hardware import HardwareSpec
from perfmodel.output import Output
from perfmodel.show.tables import Column, Table
from perfmodel.units import GIGA, significant

BASELINES = ("fp16", "fp32")  # the fastest of them is the baseline: a CPU widens FP16 first
PLACE = ("rows", "columns", "batch")


def kernels_output(compared: Sequence[Compared], hardware: HardwareSpec) -> Output:
    """All kernels and peers: bytes, bandwidth, shares of the roofs, ratios to FP16 and GPTQ."""
    rows = kernel_rows(compared, hardware)
    document = {"schema": "memwall.kernels/1", "device": hardware.name, "results": rows}
    return Output(
        document=lambda: document, rows=lambda: rows, tables=lambda: [_table(rows, hardware)]
    )


def kernel_rows(compared: Sequence[Compared], hardware: HardwareSpec) -> list[dict[str, Any]]:
    """One row per measurement; a refused one has no time and no ratio."""
    baseline = fastest(compared, BASELINES)
    rows = []
    for c in sorted(compared, key=_order):
        m, place = c.measurement, place_of(c.measurement)
        usable = not m.refused
        gptq = _gptq(compared, m)
        rows.append(
            {
                **{name: m.params[name] for name in PLACE},
                "weights": m.facts.get("format", m.name) if m.suite == "peers" else m.name,
                "kernel": m.name if m.suite == "peers" else m.facts["kernel"],
                "time_s": m.median_s if usable else None,
                "noise": m.noise,
                "bytes": m.bytes_moved,
                "bytes_per_s": m.bytes_per_s if usable else None,
                "datasheet_share": _share(m, hardware.dram_bytes_per_s) if usable else None,
                "roof_share": m.facts.get("roof_share") if usable else None,
                "over_fp16": baseline[place] / m.median_s if usable and place in baseline else None,
                "over_gptq": gptq / m.median_s if usable and gptq else None,
                "bound": c.bound,
                "error": m.facts.get("error"),
                "refused": m.refused,
            }
        )
    return rows


def place_of(measurement: Measurement) -> tuple[int, ...]:
    return tuple(int(measurement.params[name]) for name in PLACE)


def fastest(compared: Sequence[Compared], names: Sequence[str]) -> dict[tuple[int, ...], float]:
    """Rows, columns, batch -> seconds of the fastest kernel of these formats."""
    out: dict[tuple[int, ...], float] = {}
    for c in compared:
        m, place = c.measurement, place_of(c.measurement)
        if m.suite == "kernels" and m.name in names and not m.refused:
            out[place] = min(m.median_s, out.get(place, m.median_s))
    return out


def _gptq(compared: Sequence[Compared], measurement: Measurement) -> float | None:
    """Seconds of ungrouped GPTQ with as many bits, on the same shape."""
    name = str(measurement.facts.get("format", measurement.name))
    bits = parse_format(name).code_bits
    return fastest(compared, (f"gptq-w{bits}",)).get(place_of(measurement))


def _order(c: Compared) -> tuple[Any, ...]:
    m = c.measurement
    rows, columns, batch = place_of(m)
    return batch, columns, rows, m.suite, m.median_s


def _share(m: Measurement, bytes_per_s: float) -> float:
    return m.bytes_per_s / bytes_per_s


def _table(rows: list[dict[str, Any]], hardware: HardwareSpec) -> Table:
    columns = [
        Column(key="shape", heading="shape", right=False),
        Column(key="batch", heading="batch"),
        Column(key="weights", heading="weights", right=False),
        Column(key="kernel", heading="kernel", right=False),
        Column(key="time_s", heading="us", show=lambda v: significant(v * 1e6, 4)),
        Column(key="noise", heading="IQR", show=lambda v: f"{100 * v:.1f} %"),
        Column(key="bytes", heading="MB", show=lambda v: significant(v / 1e6, 3)),
        Column(key="bytes_per_s", heading="GB/s", show=lambda v: significant(v / GIGA, 3)),
        Column(key="datasheet_share", heading="of datasheet", show=_percent),
        Column(key="roof_share", heading="of measured", show=_percent),
        Column(key="over_fp16", heading="x FP16", show=_ratio),
        Column(key="over_gptq", heading="x GPTQ", show=_ratio),
        Column(key="bound", heading="bound", right=False),
        Column(key="error", heading="error", show=lambda v: f"{v:.0e}"),
        Column(key="refused", heading="refused", right=False),
    ]
    if hardware.measured and hardware.measured.read_bytes_per_s == hardware.dram_bytes_per_s:
        columns = [c for c in columns if c.key != "datasheet_share"]  # it has none
    if not any(row["refused"] for row in rows):
        columns = columns[:-1]
    shown = [{**row, "shape": f"{row['rows']}x{row['columns']}"} for row in rows]
    foot = [
        "x FP16: against the fastest unquantized kernel here; x GPTQ: against ungrouped GPTQ of as "
        "many bits; error: relative L2, against FP64",
    ]
    return Table(head=[_head(hardware)], columns=columns, rows=shown, foot=foot)


def _head(hardware: HardwareSpec) -> str:
    probe = hardware.measured
    read = f", {significant(probe.read_bytes_per_s / GIGA)} GB/s measured" if probe else ""
    return (
        f"{hardware.name}: {significant(hardware.dram_bytes_per_s / GIGA)} GB/s{read}; cold weights"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _ratio(value: float) -> str:
    return f"{value:.2f}"
