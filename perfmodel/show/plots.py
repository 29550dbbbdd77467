"""Figures: the roofline with one point per operation, and run time by weight bits."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import log10
from typing import TYPE_CHECKING, Any

from perfmodel.errors import UsageError
from perfmodel.prediction import COMPONENTS, OpPrediction, Prediction
from perfmodel.show.labels import Label, label_line, place_labels
from perfmodel.show.views import device_line, workload_line
from perfmodel.units import GIGA, si, significant

if TYPE_CHECKING:  # matplotlib takes a second to import: only where a picture is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#4c566a", "#2f6db3", "#1b998b", "#e08e0b", "#c8553d", "#8e5aa8", "#7a8b2f", "#b5527c")
BOUND_MARKERS = {
    "memory": "o",
    "compute": "s",
    "decode": "^",
    "launch": "x",
    "sparse": "D",
    "link": "P",
}
MARKERS = {"gemm": "o", "attention": "^", "vector": "s", "gather": "D", "collective": "P"}
LONGEST_LEVEL_NAME = 8  # of a bar; longer names are slanted
CLEAR_RATIO = 1.4  # of neighbours on a logarithmic axis whose labels do not touch
SAME_PLACE = 0.04  # points closer than this many decades share one label


def roofline_figure(predictions: Sequence[Prediction]) -> "Figure":
    """Log-log roofline of one device with the operations of each weight format on it.

    Operations without FLOPs or traffic (embedding rows, all-reduces) have no place on it.
    """
    figure = new_figure(10, 6.4)
    axes: Axes = figure.add_subplot()
    first = predictions[0]
    placed = _moved_points(predictions)
    intensities = [x for points in placed.values() for _, x, _ in points]
    hw = first.hardware
    low, high = min(intensities) / 4, max(*intensities, hw.ridge_flop_per_byte) * 20
    _draw_roofs(axes, first, (low, high))
    labels = []
    for (name, points), colour in zip(placed.items(), _colours(len(placed)), strict=True):
        for item, x, y in points:
            axes.plot(x, y, MARKERS[item.op.kind], color=colour, markersize=7, alpha=0.85, zorder=3)
        labels += _labels(name, points, colour)
    _draw_arrows(axes, list(placed.values()))
    bottom = min(y for points in placed.values() for _, _, y in points) / 6
    top = (hw.fp16_sparse_flop_per_s or hw.matmul_flop_per_s) * 4
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top))
    axes.set_xlabel("arithmetic intensity, FLOP per byte of DRAM traffic")
    axes.set_ylabel("attainable FLOP/s")
    axes.set_title(f"{device_line(hw)}\n{workload_line(first)}", fontsize=10)
    axes.grid(visible=True, which="major", alpha=0.25)
    _draw_marker_legend(axes, placed.values())
    label_line(
        axes,
        f"DRAM: {hw.dram_bytes_per_s / GIGA:g} GB/s",
        (hw.ridge_flop_per_byte / 8, hw.matmul_flop_per_s / 8),
    )
    place_labels(axes, _shared_labels(labels))
    return figure


def runtime_figure(by_length: dict[int, Sequence[Prediction]]) -> "Figure":
    """Run time by weight bits, normalised to the first format, one panel per sequence length.

    Source: SqueezeLLM, arXiv 2306.07629, Figure 2, in the same three components.
    """
    figure = new_figure(4.6 * len(by_length), 4.6)
    for index, (length, predictions) in enumerate(by_length.items(), start=1):
        axes = figure.add_subplot(1, len(by_length), index)
        _draw_stacked(axes, predictions)
        axes.set_title(f"{length} tokens")
        if index == 1:
            axes.set_ylabel(f"run time, {_name(predictions[0])} = 1")
    first = next(iter(by_length.values()))[0]
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    workload = first.workload
    stack = "" if first.stack.is_ideal else f", stack {first.stack.name}"
    figure.suptitle(
        f"{workload.model.name} on {first.hardware.name}, batch {workload.batch}, "
        f"generation from an empty cache, {workload.accounting} accounting{stack}",
        fontsize=10,
    )
    return figure


def sweep_figure(rows: Sequence[dict[str, Any]]) -> "Figure":
    """Time against the longest numeric axis, one line per combination of the other axes.

    Raises: UsageError if there is no such axis, or too many lines.
    """
    x_key = _longest_axis(rows)
    keys = (*LINE_KEYS, *_device_fields(rows))
    names = [key for key in keys if key != x_key and len({row[key] for row in rows}) > 1]
    lines: dict[str, list[tuple[float, float, str]]] = {}
    for row in rows:
        label = ", ".join(_axis_value(key, row[key]) for key in names) or str(row["weights"])
        point = (row[x_key], 1000 * row["time_s"] / (row["new"] or 1), row["bound"])
        lines.setdefault(label, []).append(point)
    if len(lines) > 16:
        raise UsageError(f"{len(lines)} lines are too many for one figure, expected at most 16")
    figure = new_figure(8.5, 5.2)
    axes = figure.add_subplot()
    for (label, points), colour in zip(lines.items(), _colours(len(lines)), strict=True):
        xs, ys, bounds = zip(*sorted(points), strict=True)
        axes.plot(xs, ys, color=colour, label=label)
        for x, y, bound in zip(xs, ys, bounds, strict=True):
            axes.plot(x, y, BOUND_MARKERS[bound], color=colour, markersize=5)
    for bound in dict.fromkeys(row["bound"] for row in rows):
        axes.plot([], [], BOUND_MARKERS[bound], color="#555555", label=f"bound by {bound}")
    axes.set(xscale="log" if min(row[x_key] for row in rows) > 0 else "symlog", yscale="log")
    axes.set_xlabel(X_KEYS.get(x_key, x_key))
    _label_decades(axes)
    values = sorted({row[x_key] for row in rows})
    if all(larger >= CLEAR_RATIO * smaller for smaller, larger in pairwise(values)):
        axes.set_xticks(values)
        axes.set_xticks([], minor=True)
    axes.set_ylabel("prefill, ms" if rows[0]["phase"] == "prefill" else "ms per token")
    axes.grid(visible=True, which="both", alpha=0.2)
    fixed = [key for key in keys if key not in names and key != x_key]
    shown = (_axis_value(key, rows[0][key]) for key in fixed if rows[0][key] is not None)
    axes.set_title(", ".join(shown), fontsize=10)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure


def _label_decades(axes: "Axes") -> None:
    """Plain numbers at 1, 2 and 5 of every decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


LINE_KEYS = (
    "device",
    "model",
    "weights",
    "phase",
    "batch",
    "context",
    "prompt",
    "tensor_parallel",
    "accounting",
    "stack",
)
SWEEP_KEYS = (
    *LINE_KEYS,
    *("new", "time_s", "tokens_per_s", "bound", "flops", "bytes"),
    *("bits_per_weight", "memory_bytes", "fits"),
)
X_KEYS = {
    "context": "tokens in the cache",
    "prompt": "tokens of prompt",
    "batch": "batch",
    "tensor_parallel": "tensor-parallel devices",
}


def _longest_axis(rows: Sequence[dict[str, Any]]) -> str:
    """The numeric axis with the most values.

    Raises: UsageError if none has two.
    """
    keys = (*X_KEYS, *_device_fields(rows))
    counts = {key: len({row[key] for row in rows}) for key in keys}
    best = max(counts, key=lambda key: counts[key])
    if counts[best] < 2:
        raise UsageError(
            "plot sweep needs two values of --context, --prompt, --batch, --tp or --device-axis"
        )
    return best


def _device_fields(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Columns that --device-axis added; fields of a device file have no other columns' names."""
    return [key for key in rows[0] if key not in SWEEP_KEYS]


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _name(prediction: Prediction) -> str:
    return prediction.workload.policy.linear.name


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _points(prediction: Prediction) -> "list[_Point]":
    """Operations that have a place: intensity and attained FLOP/s."""
    return [
        (item, item.op.intensity_flop_per_byte, item.op.flops / item.time.time_s)
        for item in prediction.ops
        if item.op.flops and item.op.bytes
    ]


def _moved_points(predictions: Sequence[Prediction]) -> "dict[str, list[_Point]]":
    """All points of the first format; of the others those that are not where they were."""
    first = _points(predictions[0])
    start = {item.op.name: x for item, x, _ in first}
    moved = {
        _name(p): [q for q in _points(p) if abs(log10(q[1] / start[q[0].op.name])) > SAME_PLACE]
        for p in predictions[1:]
    }
    return {_name(predictions[0]): first} | moved


def _draw_roofs(axes: "Axes", prediction: Prediction, span: tuple[float, float]) -> None:
    """DRAM, dense FP16 and FP32 roofs solid; the 2:4 sparse one dotted and named as unused."""
    hw = prediction.hardware
    low, high = span
    ridge, peak = hw.ridge_flop_per_byte, hw.matmul_flop_per_s
    slope = hw.dram_bytes_per_s
    axes.plot([low, ridge, high], [low * slope, peak, peak], color="black", linewidth=1.8, zorder=2)
    axes.axvspan(low, ridge, color="#2f6db3", alpha=0.05, zorder=0)
    axes.axvspan(ridge, high, color="#e08e0b", alpha=0.06, zorder=0)
    axes.axvline(ridge, color="black", linewidth=0.8, linestyle=":", zorder=1)
    notes = [(peak, f"FP16 matrix units, dense: {si(peak, 'FLOP/s', 4)}")]
    if hw.fp32_flop_per_s and hw.fp32_flop_per_s < peak:
        fp32 = hw.fp32_flop_per_s
        axes.plot([fp32 / slope, high], [fp32, fp32], color="grey", linewidth=1.0, zorder=1)
        notes.append((fp32, f"FP32 vector units: {si(fp32, 'FLOP/s')}"))
    if hw.fp16_sparse_flop_per_s:
        sparse = hw.fp16_sparse_flop_per_s
        line = [sparse / slope, high]
        axes.plot(line, [sparse, sparse], color="grey", linewidth=1.0, linestyle=":", zorder=1)
        notes.append((sparse, f"2:4 sparse, not for these weights: {si(sparse, 'FLOP/s', 4)}"))
    for level, text in notes:
        axes.annotate(
            text, (high, level), (-4, 3), textcoords="offset points", ha="right", fontsize=7.5
        )
    text = f"ridge {significant(ridge)} FLOP/B"
    axes.annotate(
        text, (ridge, 0.02), (4, 0), xycoords=("data", "axes fraction"),
        textcoords="offset points", fontsize=7.5,
    )  # fmt: skip


_Point = tuple[OpPrediction, float, float]


def _draw_marker_legend(axes: "Axes", formats: "Iterable[Sequence[_Point]]") -> None:
    kinds = {item.op.kind for points in formats for item, _, _ in points}
    for kind in sorted(kinds):
        axes.plot([], [], MARKERS[kind], color="#555555", markersize=6, label=kind)
    axes.legend(loc="upper left", frameon=False, fontsize=8)


def _draw_arrows(axes: "Axes", formats: Sequence[Sequence[_Point]]) -> None:
    """From each operation in the first format to itself in the last, where it moved."""
    start = {item.op.name: (x, y) for item, x, y in formats[0]}
    style = {"arrowstyle": "-|>", "color": "#555555", "alpha": 0.5, "linewidth": 0.8}
    for item, x, y in formats[-1] if len(formats) > 1 else ():
        axes.annotate("", (x, y), start[item.op.name], arrowprops=style, zorder=2)


def _labels(name: str, points: Sequence[_Point], colour: str) -> list[Label]:
    return [
        Label(x=x, y=y, names=(item.op.name,), group=name, colour=colour) for item, x, y in points
    ]


def _shared_labels(labels: Sequence[Label]) -> list[Label]:
    """One label for operations of one format that stand at one place."""
    by_place: list[Label] = []
    for label in labels:
        for index, other in enumerate(by_place):
            near = abs(log10(label.x / other.x)) + abs(log10(label.y / other.y)) < SAME_PLACE
            if near and label.group == other.group:
                by_place[index] = other.joined(label)
                break
        else:
            by_place.append(label)
    return by_place


def _draw_stacked(axes: "Axes", predictions: Sequence[Prediction]) -> None:
    whole_s = predictions[0].time_s
    parts = {
        "fully connected": (*COMPONENTS["linear layers"], "lm_head"),
        "attention matmuls": ("qk_matmul", "pv_matmul"),
    }
    positions = range(len(predictions))
    bottoms = [0.0] * len(predictions)
    for (label, ops), colour in zip(parts.items(), ("#2f6db3", "#e08e0b"), strict=True):
        heights = [p.share_of(ops) * p.time_s / whole_s for p in predictions]
        axes.bar(positions, heights, bottom=bottoms, label=label, color=colour, width=0.65)
        bottoms = [b + h for b, h in zip(bottoms, heights, strict=True)]
    totals = [p.time_s / whole_s for p in predictions]
    rest = [total - bottom for total, bottom in zip(totals, bottoms, strict=True)]
    axes.bar(positions, rest, bottom=bottoms, label="other", color="#9aa5b1", width=0.65)
    for position, total in zip(positions, totals, strict=True):
        axes.annotate(
            f"{total:.3f}", (position, total), (0, 3), textcoords="offset points",
            ha="center", fontsize=8.5,
        )  # fmt: skip
    names = [_name(p) for p in predictions]
    axes.set_xticks(positions, names)
    if max(map(len, names)) > LONGEST_LEVEL_NAME:
        axes.tick_params(axis="x", rotation=20)
    axes.set_xlabel("weights")
    axes.set_ylim(0, 1.08 * max(totals))
    axes.spines[["top", "right"]].set_visible(False)


def _axis_value(key: str, value: Any) -> str:

    words = {"batch": "batch", "context": "context", "prompt": "prompt", "tensor_parallel": "tp"}
    if "." in key or key not in SWEEP_KEYS:
        return f"{key}={value:g}" if isinstance(value, float | int) else f"{key}={value}"
    return f"{words[key]} {value}" if key in words else str(value)
