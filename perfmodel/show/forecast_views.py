"""Fits and validations as rows and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from perfmodel.fit.fitting import Fit
from perfmodel.fit.validation import Pair, grouped, summarise
from perfmodel.show.tables import Column, Table
from perfmodel.stacks import Stack
from perfmodel.units import duration, significant

KNOWN, DOUBTFUL = 0.8, 0.3  # share of the prior's variance that the rows removed


def estimate_rows(found: Fit) -> list[dict[str, Any]]:
    """One row per parameter: value, its uncertainty, and who decided it, data or prior."""
    return [
        {
            "parameter": estimate.parameter.name,
            "value": estimate.value,
            "unit": estimate.parameter.unit,
            "relative_deviation": estimate.deviation,
            "prior_median": estimate.parameter.median,
            "prior_relative_deviation": estimate.parameter.spread,
            "determined": estimate.determined,
        }
        for estimate in found.estimates
    ]


def calibration_table(
    stack: Stack,
    rows: Sequence[dict[str, Any]],
    fitted: Sequence[Pair],
    held_out: Mapping[Any, Sequence[Pair]],
) -> Table:
    """Parameters of a fit, and below them how far it is off on rows seen and not seen."""
    foot = [f"fitted rows: {_summary(fitted)}"]
    for by, pairs in held_out.items():
        said = _summary(pairs) if pairs else f"not possible, the rows have one {by}"
        foot.append(f"every {by} held out in turn: {said}")
    if stack.interval:
        here, away = stack.interval.fitted, stack.interval.transferred
        foot.append(
            f"80 % interval: ±{_percent(here)} on these devices, ±{_percent(away)} on others"
        )
    weak = [row["parameter"] for row in rows if row["determined"] < DOUBTFUL]
    if weak:
        foot.append(f"not determined by these rows, the prior speaks: {', '.join(weak)}")
    return Table(
        head=[f"stack {stack.name}, {stack.basis}: {stack.description}", ""],
        columns=[
            Column(key="parameter", heading="parameter", right=False),
            Column(key="value", heading="value", show=significant),
            Column(key="unit", heading="unit", right=False),
            Column(key="relative_deviation", heading="±", show=_percent),
            Column(key="prior_median", heading="prior", show=significant),
            Column(key="prior_relative_deviation", heading="±", show=_percent),
            Column(key="determined", heading="determined by", show=_determined, right=False),
        ],
        rows=rows,
        foot=foot,
    )


def pair_rows(
    pairs: Sequence[Pair], roofline: Sequence[Pair], single: Sequence[Pair]
) -> list[dict[str, Any]]:
    """One row per measurement with its signed errors; sequences go side by side."""
    return [
        {
            "group": pair.group,
            "measurement": pair.label,
            "measured_s": pair.measured_s,
            "predicted_s": pair.predicted_s,
            "interval_s": list(pair.interval_s) if pair.interval_s else None,
            "inside": pair.inside,
            "held_out": pair.held_out,
            "error": pair.error,
            "roofline_error": plain.error,
            "single_efficiency_error": scaled.error,
        }
        for pair, plain, scaled in zip(pairs, roofline, single, strict=True)
    ]


def group_rows(
    pairs: Sequence[Pair], roofline: Sequence[Pair], single: Sequence[Pair]
) -> list[dict[str, Any]]:
    """One row per group and one for all."""
    together = list(zip(pairs, roofline, single, strict=True))
    groups = grouped(pairs, lambda pair: pair.group)
    rows = []
    for name in [*groups, None] if len(groups) > 1 else [None]:
        chosen = [three for three in together if name is None or three[0].group == name]
        rows.append(_group_row(name or "all", chosen))
    return rows


def validation_tables(
    by_row: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]], what: str
) -> list[Table]:
    """Every row, then every group; errors are predicted over measured, minus one."""
    each = Table(
        head=[f"{what}; errors are predicted / measured - 1", ""],
        columns=[
            Column(key="measurement", heading="measurement", right=False),
            Column(key="measured_s", heading="measured", show=duration),
            Column(key="predicted_s", heading="predicted", show=duration),
            Column(key="error", heading="error", show=_signed),
            Column(key="inside", heading="in 80 %", show=lambda v: "yes" if v else "no"),
            Column(key="roofline_error", heading="roofline", show=_signed),
            Column(key="single_efficiency_error", heading="one efficiency", show=_signed),
        ],
        rows=by_row,
    )
    return [each, Table(columns=_group_columns(), rows=groups)]


def _group_columns() -> list[Column]:
    return [
        Column(key="group", heading="absolute error", right=False),
        Column(key="count", heading="rows"),
        Column(key="mape", heading="mean", show=_percent),
        Column(key="median", heading="median", show=_percent),
        Column(key="p90", heading="90th", show=_percent),
        Column(key="worst", heading="worst", show=_signed),
        Column(key="bias", heading="bias", show=_signed),
        Column(key="rank_correlation", heading="rank corr.", show=lambda v: f"{v:.3f}"),
        Column(key="inside_interval", heading="in 80 %", show=_percent),
        Column(key="roofline_mape", heading="roofline mean", show=_percent),
        Column(key="single_efficiency_mape", heading="one efficiency mean", show=_percent),
    ]


def _group_row(name: str, chosen: Sequence[tuple[Pair, Pair, Pair]]) -> dict[str, Any]:
    summary = summarise([pair for pair, _, _ in chosen])
    return {
        "group": name,
        "count": summary.count,
        "mape": summary.mape,
        "median": summary.median,
        "p90": summary.p90,
        "worst": summary.worst,
        "worst_measurement": summary.worst_label,
        "bias": summary.bias,
        "rank_correlation": summary.rank_correlation,
        "inside_interval": summary.inside_interval,
        "roofline_mape": summarise([plain for _, plain, _ in chosen]).mape,
        "single_efficiency_mape": summarise([scaled for _, _, scaled in chosen]).mape,
    }


def _summary(pairs: Sequence[Pair]) -> str:
    found = summarise(pairs)
    inside = "" if found.inside_interval is None else f", {_percent(found.inside_interval)} inside"
    return (
        f"mean absolute error {_percent(found.mape)}, median {_percent(found.median)}, "
        f"90th percentile {_percent(found.p90)}, worst {_signed(found.worst)} "
        f"({found.worst_label}){inside}"
    )


def _determined(share: float) -> str:
    if share >= KNOWN:
        return "data"
    return "data and prior" if share >= DOUBTFUL else "prior"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f} %"
