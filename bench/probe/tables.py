"""The probe's results for people."""

from typing import Any

from perfmodel.hardware import HardwareSpec
from perfmodel.output import Output
from perfmodel.show.tables import Column, Table
from perfmodel.units import GIGA, MIB, si, significant


def probe_output(hardware: HardwareSpec) -> Output:
    """Roofs and decode rates of a probed device."""
    rows = [*_roofs(hardware), *_decode_rates(hardware)]
    document = {"schema": "memwall.probe/1", "device": hardware.name, "results": rows}
    columns = [
        Column(key="what", heading="what", right=False),
        Column(key="shown", heading="measured"),
        Column(key="share", heading="of datasheet", show=lambda v: f"{100 * v:.0f} %"),
    ]
    if all(row["share"] is None for row in rows):
        columns = columns[:-1]
    decode = [
        Column(key="what", heading="decoding, weights in a cache", right=False),
        Column(key="shown", heading="weights/s"),
        Column(key="memory_bound_share", heading="of what reading allows", show=_percent),
    ]
    measured = hardware.measured
    head = [f"{hardware.name}, {measured.date}" if measured else hardware.name]
    if measured and measured.threads:
        head = [f"{head[0]}, {measured.threads} threads"]
    foot = [
        "below 100 % the decoding binds and fewer bits do not help; above it the memory does",
        "python -m perfmodel predict --gpu host --stack measured",
    ]
    roofs = [row for row in rows if row["kind"] == "roof"]
    rates = [row for row in rows if row["kind"] == "decode"]
    return Output(
        document=lambda: document,
        rows=lambda: rows,
        tables=lambda: [
            Table(head=head, columns=columns, rows=roofs),
            Table(columns=decode, rows=rates, foot=foot),
        ],
    )


def _roofs(hardware: HardwareSpec) -> list[dict[str, Any]]:
    m = hardware.measured
    if m is None:
        return []
    datasheet = (
        hardware.dram_bytes_per_s if hardware.dram_bytes_per_s != m.read_bytes_per_s else None
    )
    found = [("read from DRAM", m.read_bytes_per_s, "B/s", datasheet)]
    found += [("copy", m.copy_bytes_per_s, "B/s", datasheet)]
    found += [("triad", m.triad_bytes_per_s, "B/s", datasheet)]
    found += [
        (f"read, {size / MIB:g} MiB again and again", rate, "B/s", None)
        for size, rate in m.read_steps
    ]
    peaks = (
        (hardware.fp16_matmul_flop_per_s, hardware.fp32_flop_per_s) if datasheet else (None, None)
    )
    found += [("matrix product FP16", m.fp16_flop_per_s, "FLOP/s", peaks[0])]
    found += [("matrix product FP32", m.fp32_flop_per_s, "FLOP/s", peaks[1])]
    rows = [
        _row("roof", what, rate, si(rate, unit), share=rate / roof if roof else None)
        for what, rate, unit, roof in found
        if rate
    ]
    for what, seconds in (("a call", m.launch_s), ("a launch in a graph", m.graph_launch_s)):
        if seconds:
            rows.append(_row("roof", what, seconds, f"{significant(seconds * 1e6)} us"))
    return rows


def _decode_rates(hardware: HardwareSpec) -> list[dict[str, Any]]:
    """Beside each rate, its share of the weights/s that reading from DRAM would allow."""
    from perfmodel.errors import UsageError
    from perfmodel.format_names import parse_format

    rows = []
    for name, rate in (hardware.measured.decode_weights_per_s if hardware.measured else {}).items():
        words = [
            w for w in name.split("-") if w not in ("int", "int16", "gather", "fold", "library")
        ]
        try:
            bits = parse_format("-".join(words)).bits_per_weight(4096, 4096)
        except UsageError:
            bits = None
        allowed = hardware.measured.read_bytes_per_s * 8 / bits if bits else None
        share = rate / allowed if allowed else None
        shown = f"{significant(rate / GIGA)} G"
        rows.append(_row("decode", name, rate, shown, memory_bound_share=share))
    return rows


def _row(kind: str, what: str, value: float, shown: str, **shares: float | None) -> dict[str, Any]:
    return {
        "kind": kind, "what": what, "value": value, "shown": shown,
        "share": shares.get("share"), "memory_bound_share": shares.get("memory_bound_share"),
    }  # fmt: skip


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
