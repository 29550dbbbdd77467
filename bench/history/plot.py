"""Latency over commits, one panel per benchmark."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from matplotlib.figure import Figure

from bench.history.detect import Rules, steps
from bench.history.store import Run
from bench.history.views import changes, label
from bench.measurement import Measurement
from perfmodel.errors import UsageError
from perfmodel.units import MICRO, MILLI

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS = 12
MOST_TICKS = 16  # commits named below a panel
SLOWER, FASTER, LINE, ROOF, QUIET = "#c8553d", "#1b998b", "#2f6db3", "#e08e0b", "#7b8794"
UNITS = ((1.0, "s"), (MILLI, "ms"), (MICRO, "us"))


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One benchmark in one run."""

    x: int  # place of the run among all runs
    measurement: Measurement


def history_figure(runs: Sequence[Run], promoted: Sequence[str], match: str = "") -> Figure:
    """Median and quartiles over the runs of a device, share of the roof, steps, changed versions.

    Refused samples are left out. `match` picks the benchmarks whose key holds it.
    Raises: UsageError if none or too many match.
    """
    series = _series(runs, match)
    if not series:
        raise UsageError(f"no benchmark that holds {match!r}")
    if len(series) > MAX_PANELS:
        problem = f"{len(series)} benchmarks hold {match!r}, expected at most {MAX_PANELS}"
        raise UsageError(f"{problem}; --match narrows them, for example {next(iter(series))}")
    figure = Figure(figsize=(9, 0.7 + 2.7 * len(series)), dpi=120, layout="constrained")
    panels = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (key, points) in zip(panels, series.items(), strict=True):
        _draw_series(axes, points)
        _draw_refused(axes, runs, key)
        _draw_events(axes, runs, promoted)
        axes.set_title(label(key), fontsize=10, loc="left")
    _name_commits(panels[-1], runs)
    _add_legend(figure, series)
    figure.suptitle(runs[-1].environment.device_name, fontsize=11)
    return figure


def _series(runs: Sequence[Run], match: str) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for x, run in enumerate(runs):
        for m in run.measurements:
            if match in m.key and m.refused is None:
                found.setdefault(m.key, []).append(Point(x=x, measurement=m))
    return found


def _draw_series(axes: "Axes", points: Sequence[Point]) -> None:
    medians = [point.measurement.median_s for point in points]
    unit, name = next((u, n) for u, n in UNITS if min(medians) >= u or n == "us")
    x = [point.x for point in points]
    quartiles = [point.measurement.quartiles_s for point in points]
    low, high = ([q[end] / unit for q in quartiles] for end in (0, 1))
    axes.fill_between(x, low, high, color=LINE, alpha=0.18, linewidth=0)
    axes.plot(x, [m / unit for m in medians], "o-", color=LINE, markersize=3.5, linewidth=1.4)
    for index in steps(medians, Rules()):
        slower = medians[index] > medians[index - 1]
        axes.plot(
            x[index], medians[index] / unit, "^" if slower else "v",
            color=SLOWER if slower else FASTER, markersize=10, zorder=4,
        )  # fmt: skip
    room = 0.25 * (max(high) - min(low)) or 0.1 * max(high)
    axes.set_ylim(min(low) - room, max(high) + room)
    axes.set_ylabel(name)
    axes.grid(visible=True, axis="y", alpha=0.25)
    axes.spines["top"].set_visible(False)
    _draw_roof_share(axes, points)


def _draw_refused(axes: "Axes", runs: Sequence[Run], key: str) -> None:
    """A cross at the bottom for every run whose samples are no result."""
    at = [x for x, run in enumerate(runs) if (m := run.by_key.get(key)) and m.refused is not None]
    for x in at:
        axes.plot(x, 0.04, "x", color=QUIET, markersize=5, transform=axes.get_xaxis_transform())


def _draw_roof_share(axes: "Axes", points: Sequence[Point]) -> None:
    """On the right: how much of the memory roof was reached, where the measurement says so."""
    shares = [(p.x, p.measurement.facts.get("roof_share")) for p in points]
    known = [(x, 100 * share) for x, share in shares if isinstance(share, float)]
    if known:
        right = axes.twinx()
        right.plot(*zip(*known, strict=True), color=ROOF, linewidth=1.2, linestyle=":")
        right.set_ylim(0, max(105, *(share for _, share in known)))
        right.set_ylabel("% of roof", color=ROOF)
        right.spines["top"].set_visible(False)


def _draw_events(axes: "Axes", runs: Sequence[Run], promoted: Sequence[str]) -> None:
    """Vertical lines: versions that changed between two runs, and the promoted runs."""
    top = axes.get_xaxis_transform()
    for x, run in enumerate(runs):
        if run.id in promoted:
            axes.axvline(x, color=FASTER, linewidth=1, alpha=0.6)
        differences = changes(runs[x - 1].environment, run.environment) if x else []
        if differences:
            axes.axvline(x - 0.5, color=QUIET, linewidth=0.9, linestyle="--")
            more = f" +{len(differences) - 1}" if len(differences) > 1 else ""
            axes.text(
                x - 0.45, 0.97, differences[0] + more, transform=top, fontsize=7, color=QUIET,
                va="top",
            )  # fmt: skip


def _name_commits(axes: "Axes", runs: Sequence[Run]) -> None:
    every = -(-len(runs) // MOST_TICKS)
    ticks = range(0, len(runs), every)
    axes.set_xticks(ticks, [runs[x].commit for x in ticks], rotation=45, ha="right", fontsize=8)
    axes.set_xlim(-0.6, len(runs) - 0.4)
    dirty = any(run.environment.dirty for run in runs)
    axes.set_xlabel("commit" + (" (* with uncommitted changes)" if dirty else ""))


def _add_legend(figure: Figure, series: dict[str, list[Point]]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color=LINE, marker="o", markersize=3.5, label="median"),
        Patch(color=LINE, alpha=0.18, label="quartiles"),
        Line2D([], [], color=SLOWER, marker="^", linestyle="", label="step: slower"),
        Line2D([], [], color=FASTER, marker="v", linestyle="", label="step: faster"),
        Line2D([], [], color=QUIET, marker="x", markersize=5, linestyle="", label="refused"),
        Line2D([], [], color=FASTER, alpha=0.6, label="baseline"),
        Line2D([], [], color=QUIET, linestyle="--", label="versions changed"),
    ]
    if any("roof_share" in p.measurement.facts for points in series.values() for p in points):
        handles.append(Line2D([], [], color=ROOF, linestyle=":", label="% of roof"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8
    )
