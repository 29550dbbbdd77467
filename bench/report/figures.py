"""Figures of the report: measured points on the roofline, and speed-ups."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.kernels.predicted import Compared
from bench.report.sections import Drawing
from perfmodel.hardware import HardwareSpec
from perfmodel.show.plots import COLOURS
from perfmodel.units import GIGA, duration, si, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def roofline_drawing(compared: Sequence[Compared], hw: HardwareSpec) -> Drawing:
    """Attained FLOP/s over intensity: measured filled, predicted hollow, under the device's roofs.

    A measured point above the datasheet's roof is drawn red: an error, not a win.
    """
    figure = _figure(10, 5.6)
    axes: Axes = figure.add_subplot()
    tooltips = {}
    intensities = [_intensity(c) for c in compared]
    low, high = min(intensities) / 3, max(intensities) * 6
    _draw_roofs(axes, hw, (low, high))
    for name, colour in _colours(compared).items():
        for number, item in enumerate(c for c in compared if c.measurement.name == name):
            x, flops = _intensity(item), item.measurement.flops
            gid = f"roof-{name}-{number}"
            shown = COLOURS[4] if item.is_above_roof else colour
            axes.plot(x, flops / item.best_s, "o", mfc="none", color=colour, markersize=6)
            axes.plot(x, item.measurement.flop_per_s, "o", color=shown, markersize=6, gid=gid,
                      label=name if number == 0 else None)  # fmt: skip
            tooltips[gid] = _words(item)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_xlabel("arithmetic intensity, FLOP per byte of DRAM traffic")
    axes.set_ylabel("FLOP/s")
    axes.grid(visible=True, which="major", alpha=0.25)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return Drawing(
        figure=figure,
        caption="Roofline. Filled: measured. Hollow: predicted. Thin roofs: datasheet; thick: "
        "measured by the probe. Point at a mark for its numbers.",
        tooltips=tooltips,
    )


def speedup_drawing(rows: Sequence[dict[str, Any]], key: str, baseline: str) -> Drawing:
    """Bars: median over the shapes of `rows[key]` per kernel; lines from slowest to fastest."""
    kernels: dict[str, list[float]] = {}
    for row in rows:
        kernels.setdefault(f"{row['weights']}  {row['kernel']}", []).append(row[key])
    figure = _figure(10, 0.9 + 0.3 * len(kernels))
    axes: Axes = figure.add_subplot()
    for place, values in enumerate(reversed(kernels.values())):
        middle = median(values)
        axes.barh(place, middle, color=COLOURS[1], height=0.62)
        axes.plot([min(values), max(values)], [place, place], color="black", linewidth=1.2)
        axes.annotate(f"{middle:.2f}x", (max(values), place), (5, 0), va="center",
                      textcoords="offset points", fontsize=8)  # fmt: skip
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(kernels)), list(reversed(kernels)), fontsize=8)
    axes.set_xlabel(f"times faster than {baseline}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1, y=0.02)
    caption = f"Speed-up over {baseline}: median over the shapes, line from slowest to fastest."
    return Drawing(figure=figure, caption=caption)


def _draw_roofs(axes: "Axes", hw: HardwareSpec, span: tuple[float, float]) -> None:
    """The datasheet's roof thin, the probe's thick; a device without a datasheet has only that."""
    low, high = span
    for name, bandwidth, peak, width in _roofs(hw):
        ridge = min(high, peak / bandwidth) if peak else high
        xs = [low, ridge, high]
        axes.plot(xs, [min(x, ridge) * bandwidth for x in xs], color="black", linewidth=width,
                  zorder=1)  # fmt: skip
        axes.annotate(f"{name}: {si(bandwidth, 'B/s')}", (low, low * bandwidth), (16, -4),
                      textcoords="offset points", va="top", fontsize=7.5)  # fmt: skip


def _roofs(hw: HardwareSpec) -> list[tuple[str, float, float | None, float]]:
    """(name, bytes/s, FLOP/s, line width)"""
    probe, roofs = hw.measured, []
    if probe is None or probe.read_bytes_per_s != hw.dram_bytes_per_s:
        roofs.append(("datasheet", hw.dram_bytes_per_s, hw.fp16_matmul_flop_per_s, 1.0))
    if probe:
        peaks = filter(None, (probe.fp16_flop_per_s, probe.fp32_flop_per_s))
        roofs.append(("measured", probe.read_bytes_per_s, max(peaks, default=None), 2.0))
    return roofs


def _intensity(item: Compared) -> float:
    return item.measurement.flops / item.measurement.bytes_moved


def _words(item: Compared) -> str:
    """What the tooltip of one point says."""
    m = item.measurement
    return (
        f"{item.label}: measured {duration(m.median_s, 3)}, predicted {duration(item.best_s, 3)} "
        f"({item.bound}), {significant(m.bytes_per_s / GIGA)} GB/s"
    )


def _colours(compared: Sequence[Compared]) -> dict[str, str]:
    names = dict.fromkeys(c.measurement.name for c in compared)
    return {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(names)}


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
