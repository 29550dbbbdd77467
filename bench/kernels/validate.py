"""Predicted against measured: the bare roofline, the probe's, and one fitted on half of the shapes.

The fit is one factor per weight format, the median of measured over predicted on every second
shape; it is judged on the others, which it has not seen.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec
from msgspec.structs import replace

from bench.kernels.predicted import Compared, usable
from bench.measurement import Measurement
from perfmodel.fit.validation import Pair, Summary, grouped, summarise
from perfmodel.output import Output
from perfmodel.show.tables import Column, Table
from perfmodel.units import significant

HELD_OUT = "and fitted, on held-out shapes"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """All pairs of one device, by who predicted, and the points that cannot be."""

    ideal: tuple[Pair, ...]
    probed: tuple[Pair, ...]  # formats that the probe decoded
    fitted: tuple[Pair, ...]  # on shapes that the fit has not seen
    end_to_end: tuple[Pair, ...]
    above_roof: tuple[Compared, ...]

    @property
    def summaries(self) -> dict[str, Summary]:
        """Who predicted -> how far off."""
        named = {
            "ideal roofline": self.ideal,
            "calibrated by the probe": self.probed,
            HELD_OUT: self.fitted,
            "end to end": self.end_to_end,
        }
        return {name: summarise(pairs) for name, pairs in named.items() if pairs}


def judge(compared: Sequence[Compared], others: Sequence[Measurement] = ()) -> Verdict:
    """The verdict on kernels, and on generations that carry their own prediction."""
    good = usable(compared)
    ours = [c for c in good if c.measurement.suite == "kernels"]
    probed = [c for c in ours if c.calibrated_s is not None]
    return Verdict(
        ideal=tuple(c.ideal_pair for c in ours),
        probed=tuple(c.pair for c in probed),
        fitted=tuple(held_out(probed)),
        end_to_end=tuple(_generation(m) for m in others if _has_prediction(m)),
        above_roof=tuple(c for c in good if c.is_above_roof),
    )


def held_out(compared: Sequence[Compared]) -> list[Pair]:
    """Fit on every second shape, smallest first; predict the others."""
    shapes = sorted({_shape(c) for c in compared}, key=lambda shape: (shape[0] * shape[1], shape))
    seen = set(shapes[::2])
    ratios: dict[str, list[float]] = {}
    for c in compared:
        if _shape(c) in seen:
            ratios.setdefault(_kernel(c), []).append(c.measurement.median_s / c.best_s)
    factors = {kernel: median(found) for kernel, found in ratios.items()}
    return [
        replace(c.pair, predicted_s=c.best_s * factors[_kernel(c)], held_out=True)
        for c in compared
        if _shape(c) not in seen and _kernel(c) in factors
    ]


def _shape(c: Compared) -> tuple[int, int]:
    return int(c.measurement.params["rows"]), int(c.measurement.params["columns"])


def _kernel(c: Compared) -> str:
    """What is fitted as one: the label without its shape."""
    return c.label.partition("/")[2]


def calibrated_generations(measurements: Sequence[Measurement]) -> list[Pair]:
    """Generations beside what the probe predicted, which has seen none of them."""
    return [
        replace(_generation(m), predicted_s=float(m.facts["calibrated_s"]))
        for m in measurements
        if _has_prediction(m) and m.facts.get("calibrated_s")
    ]


def _has_prediction(m: Measurement) -> bool:
    return m.suite == "generate" and not m.refused and bool(m.facts.get("predicted_s"))


def _generation(m: Measurement) -> Pair:
    words = (m.params.get("model"), f"{m.params.get('new')} new", m.params.get("stack"))
    return Pair(
        label="/".join(str(word) for word in (m.name, *words)),
        device=m.device,
        group=m.name,
        predicted_s=float(m.facts["predicted_s"]),
        measured_s=m.median_s,
    )


def verdict_output(verdict: Verdict, compared: Sequence[Compared], device: str) -> Output:
    """The summaries, and every kernel with its predictions."""
    rows = case_rows(verdict, compared)
    summaries = [
        {"prediction": name, **msgspec.structs.asdict(summary)}
        for name, summary in verdict.summaries.items()
    ]
    document = {
        "schema": "memwall.validation/1", "device": device, "summaries": summaries,
        "results": rows, "above_roof": [c.label for c in verdict.above_roof],
    }  # fmt: skip
    return Output(
        document=lambda: document,
        rows=lambda: rows,
        tables=lambda: [
            _cases_table(rows, device),
            _formats_table(verdict),
            _table(summaries, verdict),
        ],
    )


def case_rows(verdict: Verdict, compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """One row per kernel that was measured."""
    fitted = {pair.label: pair for pair in verdict.fitted}
    rows = []
    for c in usable(compared):
        if c.measurement.suite != "kernels":
            continue
        pair = fitted.get(c.label)
        rows.append(
            {
                "case": c.label,
                "measured_s": c.measurement.median_s,
                "noise": c.measurement.noise,
                "ideal_s": c.ideal_s,
                "ideal_error": c.ideal_pair.error,
                "calibrated_s": c.calibrated_s,
                "calibrated_error": c.pair.error if c.calibrated_s else None,
                "bound": c.bound,
                "held_out_s": pair.predicted_s if pair else None,
                "held_out_error": pair.error if pair else None,
                "above_roof": c.is_above_roof,
            }
        )
    return rows


def _cases_table(rows: list[dict[str, Any]], device: str) -> Table:
    columns = [
        Column(key="case", heading="case", right=False),
        Column(key="measured_s", heading="measured us", show=_us),
        Column(key="noise", heading="IQR", show=lambda v: f"{100 * v:.1f} %"),
        Column(key="ideal_s", heading="ideal us", show=_us),
        Column(key="ideal_error", heading="error", show=_signed),
        Column(key="calibrated_s", heading="probe us", show=_us),
        Column(key="calibrated_error", heading="error", show=_signed),
        Column(key="bound", heading="bound", right=False),
        Column(key="held_out_s", heading="held-out us", show=_us),
        Column(key="held_out_error", heading="error", show=_signed),
    ]
    head = [f"{device}: predicted against measured; error is predicted over measured - 1"]
    return Table(head=head, columns=columns, rows=rows)


def _formats_table(verdict: Verdict) -> Table:
    """The probe's predictions by weight format."""
    rows = [
        {"weights": name, **msgspec.structs.asdict(summarise(pairs))}
        for name, pairs in grouped(verdict.probed, lambda pair: pair.group).items()
    ]
    columns = [
        Column(key="weights", heading="calibrated by the probe", right=False),
        Column(key="count", heading="cases"),
        *_ERRORS,
    ]
    return Table(columns=columns, rows=rows)


def _table(summaries: list[dict[str, Any]], verdict: Verdict) -> Table:
    columns = [
        Column(key="prediction", heading="prediction", right=False),
        Column(key="count", heading="cases"),
        *_ERRORS,
        Column(key="rank_correlation", heading="rank corr.", show=lambda v: f"{v:.3f}"),
    ]
    found = [
        f"ABOVE ITS ROOF: {c.label}, {_us(c.measurement.median_s)} us measured, at least "
        f"{_us(c.roof_s)} us expected"
        for c in verdict.above_roof
    ]
    return Table(columns=columns, rows=summaries, foot=found or ["no point is above its roof"])


def _us(seconds: float) -> str:
    return significant(seconds * 1e6, 4)


def _signed(value: float) -> str:
    return f"{100 * value:+.1f} %"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


_ERRORS = (
    Column(key="median", heading="median", show=_percent),
    Column(key="mape", heading="mean", show=_percent),
    Column(key="bias", heading="bias", show=_signed),
    Column(key="worst", heading="worst", show=_signed),
    Column(key="worst_label", heading="worst case", right=False),
)
