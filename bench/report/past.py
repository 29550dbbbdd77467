"""The history section: how each benchmark's time went over the runs that were kept."""

from collections.abc import Sequence
from pathlib import Path

from bench.history.store import History, Run
from bench.report.sections import Section
from perfmodel.show.tables import Column, Table
from perfmodel.units import duration

BARS = "▁▂▃▄▅▆▇█"


def history_section(root: Path, device: str) -> Section | None:
    """One line per benchmark of the newest run; None where nothing was kept for the device.

    Raises: SpecError for a damaged file.
    """
    runs = History(root).runs(device)
    if not runs:
        return None
    columns = [
        Column(key="benchmark", heading="benchmark", right=False),
        Column(key="sparkline", heading="median over runs", right=False),
        Column(key="median_s", heading="newest", show=duration),
        Column(key="change", heading="over the run before", show=lambda v: f"{v:+.1%}"),
    ]
    return Section(
        key="history",
        title="History",
        prose=(f"{len(runs)} runs, oldest on the left; a high bar is a slow run.",),
        tables=(Table(columns=columns, rows=_rows(runs)),),
    )


def sparkline(values: Sequence[float]) -> str:
    """One bar per value, the lowest for the smallest."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in values)


def _rows(runs: Sequence[Run]) -> list[dict[str, object]]:
    medians: dict[str, list[float]] = {}
    for run in runs:
        for measurement in run.measurements:
            if not measurement.refused:
                medians.setdefault(measurement.key, []).append(measurement.median_s)
    newest = {m.key for m in runs[-1].measurements}
    return [
        {
            "benchmark": key.partition("@")[0],
            "sparkline": sparkline(values),
            "median_s": values[-1],
            "change": values[-1] / values[-2] - 1 if len(values) > 1 else None,
        }
        for key, values in medians.items()
        if key in newest
    ]
