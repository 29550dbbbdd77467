"""Explanations, stacks side by side and recommendations, as rows and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from perfmodel.explain import Explanation
from perfmodel.prediction import Prediction
from perfmodel.recommend import Limits, Option, bargain
from perfmodel.show.tables import Column, Table
from perfmodel.show.views import device_line, workload_line
from perfmodel.stacks import PLAIN
from perfmodel.units import GIGA, MILLI, duration, significant


def explain_json(explanation: Explanation) -> dict[str, Any]:
    """The explanation of one result, as plain data."""
    return {
        "parts_s": explanation.parts,
        "roofs_s": dict(explanation.roofs),
        "no_faster_than_fp16_from_batch": explanation.helps_below_batch,
    }


def explain_table(prediction: Prediction, explanation: Explanation) -> Table:
    """Where the time of one prediction goes."""
    whole_s = prediction.time_s
    rows = [
        {"part": name, "time_s": seconds, "share": seconds / whole_s}
        for name, seconds in explanation.parts.items()
        if seconds > 0
    ]
    name = prediction.workload.policy.linear.name
    return Table(
        head=[f"{name} on stack {prediction.stack.name}: {duration(whole_s)}{_range(prediction)}"],
        columns=[
            Column(key="part", heading="part", right=False),
            Column(key="time_s", heading="time", show=duration),
            Column(key="share", heading="share", show=_percent),
        ],
        rows=rows,
        foot=[_roofs(explanation), _batch(explanation, prediction)],
    )


def stack_rows(by_stack: Mapping[str, Sequence[Prediction | None]]) -> list[dict[str, Any]]:
    """One row per stack and format that it knows."""
    return [
        {
            "stack": name,
            "weights": prediction.workload.policy.linear.name,
            "time_s": prediction.time_s,
            "interval_s": list(prediction.interval_s),
            "bound": prediction.bound,
            "basis": prediction.basis,
        }
        for name, predictions in by_stack.items()
        for prediction in predictions
        if prediction is not None
    ]


def stacks_table(
    by_stack: Mapping[str, Sequence[Prediction | None]], weights: Sequence[str]
) -> Table:
    """One row per stack, one column per format: time with its 80 % interval, and the bound."""
    rows: list[dict[str, Any]] = []
    for name, predictions in by_stack.items():
        known = [p for p in predictions if p is not None]
        cells = dict(zip(weights, predictions, strict=True))
        rows.append({"stack": name, "basis": known[0].basis if known else None} | cells)
    first = next(p for found in by_stack.values() for p in found if p is not None)
    return Table(
        head=[device_line(first.hardware), workload_line(first), ""],
        columns=[
            Column(key="stack", heading="stack", right=False),
            *(Column(key=w, heading=f"{w}, ms", show=_cell) for w in weights),
            Column(key="basis", heading="basis", right=False),
        ],
        rows=rows,
        foot=["in brackets 80 % of measurements; -: the software has not run the format"],
    )


def option_rows(found: Sequence[Option]) -> list[dict[str, Any]]:
    """One flat row per format, best first."""
    return [_option_row(place, option) for place, option in enumerate(found, start=1)]


def recommend_table(
    found: Sequence[Option], limits: Limits, first: Prediction, quality: str
) -> Table:
    """The ranking with the reason for every refusal, and one sentence that says what to take."""
    return Table(
        head=[
            device_line(first.hardware),
            f"{workload_line(first)}; {_limits(limits)}",
            quality or "no perplexity is known for this model: ranked by time; give --quality FILE",
            "",
        ],
        columns=[
            Column(key="rank", heading="#"),
            Column(key="weights", heading="weights", right=False),
            Column(key="bits_per_weight", heading="bits", show=lambda v: f"{v:.2f}"),
            Column(key="perplexity", heading="perplexity", show=lambda v: f"{v:.2f}"),
            Column(key="memory_bytes", heading="memory", show=lambda v: f"{v / GIGA:.1f} GB"),
            Column(key="time_per_token_s", heading="ms/token", show=_ms),
            Column(key="interval_s", heading="80 %", show=_interval),
            Column(key="stack", heading="on", right=False),
            Column(key="verdict", heading="verdict", right=False),
        ],
        rows=option_rows(found),
        foot=[_advice(found)],
    )


def _option_row(place: int, option: Option) -> dict[str, Any]:
    prediction = option.prediction
    steps = prediction.workload.steps if prediction else 1
    interval = [s and s / steps for s in prediction.interval_s] if prediction else None
    return {
        "rank": place if option.accepted else None,
        "weights": option.weight_format.name,
        "bits_per_weight": option.bits_per_weight,
        "perplexity": option.perplexity,
        "memory_bytes": option.memory.total_bytes,
        "time_per_token_s": prediction.time_per_token_s if prediction else None,
        "interval_s": interval,
        "stack": prediction.stack.name if prediction else None,
        "basis": prediction.basis if prediction else None,
        "accepted": option.accepted,
        "verdict": _verdict(option),
    }


def _verdict(option: Option) -> str:
    if option.refusals:
        return "no: " + "; ".join(option.refusals)
    said = [option.doubt] if option.doubt else []
    if option.beaten_by:
        said.append(f"{option.beaten_by} is better in every way")
    return "; ".join(["yes", *said])


def _advice(found: Sequence[Option]) -> str:
    accepted = [option for option in found if option.accepted]
    if not accepted:
        return "nothing is within the limits; the verdicts say what each format misses"
    best = accepted[0]
    text = f"take {best.weight_format.name}"
    if best.prediction is not None:
        text += f" on {best.prediction.stack.name} ({best.prediction.basis})"
    if best.perplexity is None:
        return f"{text}, if its quality suffices: no perplexity is known"
    sure = next((o for o in accepted if not o.doubt and o.perplexity is not None), None)
    if best.doubt and sure is not None:
        text += f"; to be sure of the time, {sure.weight_format.name}"
    return f"{text}{_bargain(accepted)}"


def _bargain(accepted: Sequence[Option]) -> str:
    best, other = accepted[0], bargain(accepted)
    if other is None or not (best.prediction and other.prediction and best.perplexity):
        return ""
    faster = best.prediction.time_s / other.prediction.time_s
    more = _percent((other.perplexity or 0.0) / best.perplexity - 1)
    return f"; {other.weight_format.name} is {faster:.1f}x faster at {more} more perplexity"


def _limits(limits: Limits) -> str:
    said = []
    if limits.memory_bytes is not None:
        said.append(f"at most {limits.memory_bytes / GIGA:g} GB")
    if limits.time_per_token_s is not None:
        said.append(f"at most {limits.time_per_token_s / MILLI:g} ms per token")
    if limits.perplexity is not None:
        said.append(f"perplexity at most {limits.perplexity:g}")
    return ", ".join(said) or "no limits but the device's memory"


def _roofs(explanation: Explanation) -> str:
    (bound, first_s), *others = explanation.roofs
    if not others:
        return f"bound by {bound} alone"
    nexts = ", ".join(f"{name} {duration(s)} ({first_s / s:.1f}x less)" for name, s in others[:3])
    return f"alone: {bound} {duration(first_s)}, which binds; then {nexts}"


def _batch(explanation: Explanation, prediction: Prediction) -> str:
    once = ", if a weight is decoded once for all sequences"
    if prediction.workload.policy.linear.name in PLAIN:
        return "FP16 is what the other formats are held against"
    batch, name = explanation.helps_below_batch, prediction.workload.policy.linear.name
    if batch is None:
        return f"{name} stays faster than FP16 at any batch"
    if batch == 1:
        return f"{name} is no faster than FP16 on this stack"
    return f"{name} is less than 5 % faster than FP16 from batch {batch:,} on{once}"


def _range(prediction: Prediction) -> str:
    low_s, high_s = prediction.interval_s
    if high_s is None:
        return f", never below {duration(low_s)}"
    return f", 80 % of measurements in {duration(low_s)} to {duration(high_s)} ({prediction.basis})"


def _cell(prediction: Prediction) -> str:
    scale = prediction.workload.steps * MILLI
    low_s, high_s = prediction.interval_s
    time = significant(prediction.time_s / scale)
    high = "" if high_s is None else significant(high_s / scale)
    return f"{time} [{significant(low_s / scale)}, {high}] {prediction.bound}"


def _interval(interval: Sequence[float | None]) -> str:
    low, high = (s and significant(s / MILLI) for s in interval)
    return f"{low} to {high}" if high else f"from {low}"


def _ms(value: float) -> str:
    return significant(value / MILLI)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
