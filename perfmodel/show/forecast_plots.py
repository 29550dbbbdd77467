"""Figures of forecasts: predicted against measured, and perplexity against time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perfmodel.errors import UsageError
from perfmodel.fit.validation import Pair, grouped, summarise
from perfmodel.prediction import Prediction
from perfmodel.recommend import Limits, Option
from perfmodel.show.labels import Label, place_labels
from perfmodel.show.plots import COLOURS, new_figure
from perfmodel.show.views import device_line, workload_line
from perfmodel.units import MILLI

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "os^DvPX<>*"
SLOWEST_DRAWN = 6  # times the fastest
SMALLEST, LARGEST = 30, 420  # marker areas for the memory of a format


def validation_figure(pairs: Sequence[Pair], roofline: Sequence[Pair], what: str) -> "Figure":
    """Log-log, predicted over measured; grey rings are the same rows by the plain roofline."""
    figure = new_figure(8.6, 5.6)
    axes: Axes = figure.add_subplot()
    times = [ms for p in (*pairs, *roofline) for ms in _ms_per_token(p)]
    low, high = min(times) / 1.4, max(times) * 1.4
    band = ([low / 1.1, high / 1.1], [low * 1.1, high * 1.1])
    axes.fill_between([low, high], *band, alpha=0.15, label="±10 %")
    axes.plot([low, high], [low, high], color="black", linewidth=1)
    rings = [_ms_per_token(p) for p in roofline]
    axes.plot(
        *zip(*rings, strict=True),
        "o", color="#9aa5b1", markerfacecolor="none", markersize=5, label="plain roofline",
    )  # fmt: skip
    for index, (name, members) in enumerate(grouped(pairs, lambda p: p.group).items()):
        _draw_group(axes, name, members, index)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.set_xlabel("measured, ms per token")
    axes.set_ylabel("predicted, ms per token; bars hold 80 % of measurements")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    found = summarise(pairs)
    axes.set_title(
        f"{len(pairs)} measurements, {what}\nmean absolute error {100 * found.mape:.1f} %, worst "
        f"{100 * found.worst:+.1f} %; the plain roofline {100 * summarise(roofline).mape:.1f} %",
        fontsize=10,
    )
    axes.grid(visible=True, which="major", alpha=0.25)
    figure.legend(loc="outside right center", frameon=False, fontsize=8.5)
    return figure


def pareto_figure(
    found: Sequence[Option], limits: Limits, first: Prediction, quality: str
) -> "Figure":
    """Perplexity against ms per token; the area of a point is its memory, crosses are refused.

    Raises: UsageError if no format has both a forecast and a perplexity.
    """
    known = [o for o in found if o.prediction is not None and o.perplexity is not None]
    if not known:
        raise UsageError("no format has both a forecast and a perplexity; give --quality FILE")
    slowest = SLOWEST_DRAWN * min(_ms(o) for o in known)
    shown = [o for o in known if _ms(o) <= slowest]
    figure = new_figure(9.2, 6.2)
    axes: Axes = figure.add_subplot()
    for option in shown:
        _draw_option(axes, option, shown)
    axes.plot(*zip(*_front(shown), strict=True), color=COLOURS[1], linewidth=1, alpha=0.6, zorder=1)
    if limits.time_per_token_s is not None:
        axes.axvline(limits.time_per_token_s / MILLI, color=COLOURS[4], linestyle="--", linewidth=1)
    if limits.perplexity is not None:
        axes.axhline(limits.perplexity, color=COLOURS[4], linestyle="--", linewidth=1)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.tick_params(which="both", labelsize=8)
    left_out = len(known) - len(shown)
    note = f"; over {slowest:.0f} ms, not drawn: {left_out}" if left_out else ""
    axes.set_xlabel(f"ms per token; bars hold 80 % of measurements{note}")
    axes.set_ylabel(quality or "perplexity")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.set_title(f"{device_line(first.hardware)}\n{workload_line(first)}", fontsize=10)
    _draw_key(axes)
    place_labels(axes, [_label(option) for option in shown])
    return figure


def _front(shown: Sequence[Option]) -> list[tuple[float, float]]:
    """Accepted points that no other beats in both time and perplexity, fastest first."""
    front: list[tuple[float, float]] = []
    for ms, perplexity in sorted((_ms(o), o.perplexity or 0.0) for o in shown if o.accepted):
        if not front or perplexity < front[-1][1]:
            front.append((ms, perplexity))
    return front or [(_ms(shown[0]), shown[0].perplexity or 0.0)]


def _label(option: Option) -> Label:
    x, y = _ms(option), option.perplexity or 0.0
    colour = "black" if _unbeaten(option) else "#77808a"
    return Label(x=x, y=y, names=(option.weight_format.name,), group="", colour=colour)


def _unbeaten(option: Option) -> bool:
    return option.accepted and option.beaten_by is None


def _draw_group(axes: "Axes", name: str, members: Sequence[Pair], index: int) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    for pair in members:
        low_s, high_s = pair.interval_s or (0.0, None)
        if high_s is not None:
            scale = pair.steps * MILLI
            ends = (low_s / scale, high_s / scale)
            axes.vlines(_ms_per_token(pair)[0], *ends, color=colour, alpha=0.4, linewidth=2)
    xs, ys = zip(*(_ms_per_token(pair) for pair in members), strict=True)
    label = f"{name} ({100 * summarise(members).mape:.1f} %)"
    axes.plot(xs, ys, marker, color=colour, markersize=6, label=label, linestyle="none", zorder=3)


def _ms_per_token(pair: Pair) -> tuple[float, float]:
    """(measured, predicted)."""
    scale = pair.steps * MILLI
    return pair.measured_s / scale, pair.predicted_s / scale


def _draw_option(axes: "Axes", option: Option, shown: Sequence[Option]) -> None:
    x, y = _ms(option), option.perplexity or 0.0
    colour = COLOURS[1] if _unbeaten(option) else "#9aa5b1"
    marker = "o" if option.accepted else "x"
    axes.scatter(
        [x], [y], s=_area(option, shown), marker=marker, color=colour, alpha=0.75, zorder=3
    )
    prediction = option.prediction
    if prediction and prediction.interval_s[1] is not None:
        axes.plot([s / MILLI for s in prediction.interval_s if s], [y, y], color=colour, alpha=0.35)


def _draw_key(axes: "Axes") -> None:
    axes.scatter([], [], s=90, color=COLOURS[1], label="within the limits, unbeaten")
    axes.scatter([], [], s=90, color="#9aa5b1", label="another is better in every way")
    axes.scatter([], [], s=60, color="#9aa5b1", marker="x", label="refused; area: memory")
    axes.legend(frameon=False, fontsize=8)


def _area(option: Option, shown: Sequence[Option]) -> float:
    share = option.memory.total_bytes / max(other.memory.total_bytes for other in shown)
    return SMALLEST + (LARGEST - SMALLEST) * share


def _ms(option: Option) -> float:
    return option.prediction.time_per_token_s / MILLI if option.prediction else 0.0
