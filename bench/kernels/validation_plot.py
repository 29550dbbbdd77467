"""Predicted over measured time, every kernel twice: by the bare roofline, and by the probe."""

from typing import TYPE_CHECKING

from bench.kernels.validate import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def validation_figure(verdict: Verdict, device: str) -> "Figure":
    """Log-log; on the diagonal a prediction is right, below it too short; a band of 15 %."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 6.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    groups = list(dict.fromkeys(pair.group for pair in verdict.ideal))
    times = [pair.measured_s * 1e6 for pair in verdict.ideal]
    ends = (min(times) / 3, max(times) * 1.5)
    axes.plot(ends, ends, color="0.3", linewidth=1)
    axes.fill_between(ends, [e * 0.85 for e in ends], [e * 1.15 for e in ends], color="0.9")
    for index, group in enumerate(groups):
        colour = colormaps["tab20"](index % 20)
        for pairs, filled in ((verdict.ideal, False), (verdict.probed, True)):
            mine = [p for p in pairs if p.group == group]
            axes.plot(
                [p.measured_s * 1e6 for p in mine], [p.predicted_s * 1e6 for p in mine], "o",
                color=colour, markersize=6, fillstyle="full" if filled else "none",
                label=group if filled else None,
            )  # fmt: skip
    for c in verdict.above_roof:
        axes.plot(c.measurement.median_s * 1e6, c.ideal_s * 1e6, "x", color="red", markersize=11)
    axes.set(
        xscale="log", yscale="log", xlabel="measured, us", ylabel="predicted, us", xlim=ends,
        title=f"{device}\nfilled: calibrated by the probe; hollow: bare roofline; band: 15 %",
    )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.grid(visible=True, alpha=0.2)
    axes.legend(fontsize=7, ncols=2, loc="upper left")
    return figure
