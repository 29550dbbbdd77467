"""Figures: drawn, complete, and no label on another."""

import itertools

import pytest
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

from perfmodel import sweep
from perfmodel.cli import build_parser, main
from perfmodel.commands.inputs import grid_of
from perfmodel.hardware import load_hardware
from perfmodel.models import load_model
from perfmodel.prediction import Prediction
from perfmodel.show import plots
from perfmodel.workload import Workload
from tests.perfmodel.toys import ideal, policy

CASES = {
    "decode": {},
    "batch": {"batch": 16},
    "prefill": {"phase": "prefill", "prompt": 512},
    "eager": {"phase": "prefill", "prompt": 512, "accounting": "eager"},
}


def predictions(device: str, **workload) -> list[Prediction]:
    model = load_model("llama-3-8b")
    return [
        ideal(Workload(model=model, policy=policy(name), **workload), load_hardware(device))
        for name in ("fp16", "w8", "squeezellm-w3-s0.45")
    ]


def boxes(figure: Figure):
    """Pixels of every visible text inside the axes."""
    axes = figure.axes[0]
    renderer = figure.canvas.get_renderer()
    for text in axes.texts:
        if text.get_text():
            text.get_window_extent(renderer)
            yield text.get_text(), Text.get_window_extent(text, renderer)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("device", ["a6000", "m2-ultra"])
def test_labels_of_the_roofline_do_not_overlap(device, case):
    figure = plots.roofline_figure(predictions(device, **CASES[case]))
    placed = list(boxes(figure))
    for (one, a), (other, b) in itertools.combinations(placed, 2):
        assert not a.overlaps(b), f"{one!r} lies on {other!r}"
    inside = figure.axes[0].bbox
    for text, box in placed:
        assert inside.x0 <= box.x0 <= box.x1 <= inside.x1 + 1, text


def test_every_operation_is_labelled_on_the_roofline():
    shown = predictions("a6000")
    text = " ".join(label for label, _ in boxes(plots.roofline_figure(shown)))
    for item in shown[0].ops:
        assert item.op.name in text or not item.op.flops


def test_dense_and_sparse_roofs_are_told_apart():
    text = " ".join(label for label, _ in boxes(plots.roofline_figure(predictions("a6000"))))
    assert "dense: 154.8 TFLOP/s" in text
    assert "2:4 sparse, not for these weights: 309.7 TFLOP/s" in text
    assert "ridge 202 FLOP/B" in text


def test_bars_of_the_runtime_figure_are_normalised_run_times():
    workloads = {
        length: [
            ideal(
                Workload(
                    model=load_model("llama-7b"),
                    policy=policy(name),
                    phase="generate",
                    new=length,
                    accounting="paper",
                ),
                load_hardware("a5000"),
            )
            for name in ("fp16", "w4")
        ]
        for length in (16, 64)
    }
    figure = plots.runtime_figure(workloads)
    assert [axes.get_title() for axes in figure.axes] == ["16 tokens", "64 tokens"]
    for axes, shown in zip(figure.axes, workloads.values(), strict=True):
        heights = [0.0, 0.0]
        for bars in axes.containers:
            heights = [h + bar.get_height() for h, bar in zip(heights, bars, strict=True)]
        expected = [1, shown[1].time_s / shown[0].time_s]
        assert heights == pytest.approx(expected)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figures_are_written_as_their_suffix_says(tmp_path, suffix, capsys):
    path = tmp_path / f"roofline.{suffix}"
    assert main(["plot", "roofline", "--gpu", "a6000", "-o", str(path)]) == 0
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(start)
    assert capsys.readouterr().out == f"wrote {path}\n"


@pytest.mark.parametrize(
    "line",
    [
        "runtime --gpu a5000 --lengths 8,16",
        "sweep --gpu a6000 --bits 16,3 --batch 1,2,4",
        "sweep --gpu a6000,a5000 --phase prefill --bits 16 --prompt 16,64",
        "sweep --gpu all --bits 16 --tp 1",
    ],
)
def test_other_figures_are_written(tmp_path, line, capsys):
    path = tmp_path / "figure.png"
    code = main(["plot", *line.split(), "-o", str(path)])
    captured = capsys.readouterr()
    if "all" in line:
        assert (code, path.exists()) == (2, False)
        assert "two values of" in captured.err
    else:
        assert (code, path.exists()) == (0, True)


def test_a_sweep_has_plain_numbers_at_its_own_values():
    rows = list(sweep.sweep(grid("sweep --gpu a6000 --bits 16,3 --batch 1,2,4,8,16,32,64,128,256")))
    figure = plots.sweep_figure(rows)
    figure.canvas.draw()
    axes = figure.axes[0]
    assert shown(axes.xaxis) == ["1", "2", "4", "8", "16", "32", "64", "128", "256"]
    low, high = axes.get_ylim()
    inside = [n for n in (1, 2, 5, 10, 20, 50, 100) if low <= n <= high]
    assert [float(text) for text in shown(axes.yaxis) if low <= float(text) <= high] == inside
    assert len(inside) >= 3


def shown(axis: Axis) -> list[str]:
    labels = (*axis.get_majorticklabels(), *axis.get_minorticklabels())
    return [label.get_text() for label in labels if label.get_text()]


def grid(command: str) -> sweep.Grid:
    return grid_of(build_parser().parse_args(command.split()))
