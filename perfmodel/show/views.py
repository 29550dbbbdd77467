"""Predictions and catalogues as tables that a person reads."""

from collections.abc import Sequence
from typing import Any

from perfmodel.hardware import HardwareSpec, sources
from perfmodel.prediction import COMPONENTS, Prediction
from perfmodel.show.report import op_rows, summary_row
from perfmodel.show.tables import Column, Table
from perfmodel.units import GIGA, MEGA, MILLI, duration, si, significant
from perfmodel.workload import Phase


def predict_table(
    predictions: Sequence[Prediction], baseline: Prediction, *, ops_follow: bool
) -> Table:
    """The table of `predict`: one row per weight format; its last line says what to try next."""
    rows = [summary_row(prediction, baseline) for prediction in predictions]
    first = predictions[0]
    return Table(
        head=_head(first),
        columns=_predict_columns(first),
        rows=rows,
        foot=[*_foot(predictions), _next_step(first, ops_follow=ops_follow)],
    )


def ops_table(prediction: Prediction) -> Table:
    """Every operation of one prediction."""
    rows = op_rows(prediction)
    for row in rows:
        row["label"] = " + ".join([row["name"], *row["merged"]])
    total = duration(prediction.time_s)
    return Table(
        head=[f"{prediction.workload.policy.linear.name}: {total} in all"],
        columns=[
            Column(key="label", heading="op", right=False),
            Column(key="kind", heading="kind", right=False),
            Column(key="count", heading="count"),
            Column(key="flops", heading="GFLOP", show=lambda v: significant(v / GIGA)),
            Column(key="bytes", heading="MB", show=lambda v: significant(v / MEGA, 4)),
            Column(key="intensity_flop_per_byte", heading="FLOP/B", show=significant),
            Column(key="time_s", heading="time", show=duration),
            Column(key="share", heading="share", show=_percent),
            Column(key="bound", heading="bound", right=False),
            Column(key="compute_bound_batch", heading="compute-bound from batch"),
        ],
        rows=rows,
    )


def sweep_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of a sweep, for Markdown."""
    columns = [
        Column(key="device", heading="device", right=False),
        Column(key="model", heading="model", right=False),
        Column(key="weights", heading="weights", right=False),
        Column(key="bits_per_weight", heading="bits", show=lambda v: f"{v:.2f}"),
        *(Column(key=k, heading=k) for k in ("batch", "context", "prompt", "new")),
        Column(key="tensor_parallel", heading="tp"),
        Column(key="time_s", heading="time", show=duration),
        Column(key="tokens_per_s", heading="tokens/s", show=_rate),
        Column(key="bound", heading="bound", right=False),
        Column(key="memory_bytes", heading="memory", show=lambda v: f"{v / GIGA:.1f} GB"),
        Column(key="fits", heading="fits", show=lambda v: "yes" if v else "OOM"),
    ]
    return Table(columns=columns, rows=rows)


def device_line(hw: HardwareSpec) -> str:
    """One line: name, bandwidth, peak, ridge."""
    bandwidth = f"{hw.dram_bytes_per_s / GIGA:g} GB/s"
    if hw.fp16_matmul_flop_per_s is None:
        return f"{hw.name}: {bandwidth}, FP16 peak unknown"
    peak = si(hw.matmul_flop_per_s, "FLOP/s", 4)
    return f"{hw.name}: {bandwidth}, {peak} FP16 (dense), ridge {hw.ridge_flop_per_byte:.0f} FLOP/B"


def workload_line(prediction: Prediction) -> str:
    """One line: model, phase, batch, lengths, and what is not the default."""
    workload = prediction.workload
    lengths = {
        "decode": f"{workload.context} tokens cached",
        "prefill": f"{workload.prompt} tokens of prompt",
        "generate": f"{workload.new} new tokens after {workload.prompt}",
    }[workload.phase]
    parts = [f"{workload.model.name} {workload.phase}", f"batch {workload.batch}", lengths]
    if workload.tensor_parallel > 1:
        parts.append(f"{workload.tensor_parallel} devices (numbers are per device)")
    if workload.accounting != "fused":
        parts.append(f"{workload.accounting} accounting")
    if workload.kv_bits != 16:
        parts.append(f"{workload.kv_bits}-bit KV cache")
    return ", ".join(parts)


def _head(prediction: Prediction) -> list[str]:
    hw, stack = prediction.hardware, prediction.stack
    sharded = prediction.workload.tensor_parallel > 1
    used = ("memory", "compute", "interconnect") if sharded else ("memory", "compute")
    doubtful = [name for name in used if not sources(hw.file)[name]["verified"]]
    state = "verified" if not doubtful else f"not verified: {', '.join(doubtful)}"
    if hw.overrides:
        state = f"{state}; what if {', '.join(hw.overrides)}"
    basis = (
        "ideal roofline from the datasheet: nothing measured runs faster than this"
        if stack.is_ideal
        else f"stack {stack.name}, {prediction.basis}"
    )
    return [
        device_line(hw),
        workload_line(prediction),
        f"{basis} (device numbers {state})",
        "",
    ]


def _predict_columns(prediction: Prediction) -> list[Column]:
    phase, interval = prediction.workload.phase, prediction.stack.interval
    capacity = f"{prediction.memory.capacity_bytes / GIGA:g}"
    times = {
        "decode": [Column(key="time_s", heading="ms/token", show=_ms)],
        "prefill": [Column(key="time_s", heading="prefill ms", show=_ms)],
        "generate": [
            Column(key="prefill_time_s", heading="prefill ms", show=_ms),
            Column(key="time_s", heading="generate s", show=lambda v: significant(v, 4)),
            Column(key="time_per_token_s", heading="ms/token", show=_ms),
        ],
    }[phase]
    return [
        Column(key="weights", heading="weights", right=False),
        Column(key="bits_per_weight", heading="bits", show=lambda v: f"{v:.2f}"),
        *times,
        *([_interval_column(phase)] if interval else []),
        Column(key="tokens_per_s", heading="tokens/s", show=_rate),
        Column(key="speedup", heading="speed-up", show=lambda v: f"{v:.2f}x"),
        Column(key="bytes", heading="GB moved", show=lambda v: f"{v / GIGA:.2f}"),
        Column(key="intensity_flop_per_byte", heading="FLOP/B", show=significant),
        Column(key="bound", heading="bound", right=False),
        Column(key="memory_bytes", heading="memory", show=lambda v: f"{v / GIGA:.1f} GB"),
        Column(key="fits", heading=f"fits {capacity} GB", show=lambda v: "yes" if v else "OOM"),
    ]


def _interval_column(phase: Phase) -> Column:
    """Beside the time that it belongs to: of all new tokens in seconds, else in milliseconds."""
    if phase == "generate":
        return Column(key="interval_s", heading="80 %, s", show=lambda v: _interval(v, unit=1))
    return Column(key="interval_s", heading="80 %", show=_interval)


def _foot(predictions: Sequence[Prediction]) -> list[str]:
    first = predictions[0]
    foot = [_where_time_goes(first)]
    if predictions[-1] is not first:
        foot.append(_where_time_goes(predictions[-1]))
    foot.append(_room(first))
    if predictions[-1] is not first:
        foot.append(_room(predictions[-1]))
    workload, model = first.workload, first.workload.model
    if workload.cached_tokens_at_end > model.max_positions:
        foot.append(f"note: {model.name} has {model.max_positions} positions, fewer than asked for")
    return foot


def _next_step(prediction: Prediction, *, ops_follow: bool) -> str:
    name, device = prediction.workload.model.name, prediction.hardware.key
    model_option = "" if name == "llama-7b" else f" --model {name}"
    ops = "" if ops_follow else "--ops for every operation, "
    return f"next: {ops}plot roofline --gpu {device}{model_option} -o roofline.png"


def _where_time_goes(prediction: Prediction) -> str:
    shares = {name: prediction.share_of(ops) for name, ops in COMPONENTS.items()}
    shares["rest"] = max(0.0, 1 - sum(shares.values()))
    text = ", ".join(f"{name} {_percent(share)}" for name, share in shares.items())
    return f"where the time goes ({prediction.workload.policy.linear.name}): {text}"


def _room(prediction: Prediction) -> str:
    name, workload = prediction.workload.policy.linear.name, prediction.workload
    if not prediction.largest_batch:
        return f"room ({name}): none at this length, one sequence does not fit"
    return (
        f"room ({name}): up to {prediction.largest_context:,} tokens at batch {workload.batch}, "
        f"or batch {prediction.largest_batch:,} at this length"
    )


def _ms(value: float) -> str:
    return f"{value / MILLI:.2f}" if value >= MILLI else significant(value / MILLI)


def _interval(interval: Sequence[float | None], unit: float = MILLI) -> str:
    low, high = (s and significant(s / unit) for s in interval)
    return f"{low} to {high}" if high else f"from {low}"


def _rate(value: float) -> str:
    return significant(value) if value < 1000 else f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
