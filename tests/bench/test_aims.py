"""The aims beside a results folder: met, missed, and missing."""

import pytest

from bench.aims import AIMS, Facts, aim_rows, aims_table
from bench.cli import main
from bench.folder import ResultsFolder
from bench.kernels.predicted import compare
from bench.kernels.suite import choose_layers
from bench.measurement import Measurement
from bench.plan import MORE_LAYERS, PEER_LAYERS
from perfmodel.hardware import load_hardware
from perfmodel.show.tables import as_text

H200 = load_hardware("h200")


def kernel(name, shape, seconds, **params):
    rows, columns = shape
    return Measurement(
        suite="kernels", name=name, device="h200", timing_mode="cuda-graph", l2_policy="cold",
        params={"model": "m", "tensor": "t", "rows": rows, "columns": columns, "batch": 1} | params,
        samples_s=(seconds,) * 5, bytes_moved=rows * columns // 2, flops=2 * rows * columns,
        facts={"weight_bytes": rows * columns // 2 - 2 * (rows + columns), "kernel": "toy"},
        environment="0",
    )  # fmt: skip


def text(name, seconds):
    return Measurement(
        suite="generate", name=name, device="h200", timing_mode="cuda-graph", l2_policy="cold",
        params={"model": "llama-7b", "layers": 32, "prompt": 0, "new": 128, "batch": 1,
                "stack": "memwall"},
        samples_s=(seconds,) * 3, bytes_moved=1, flops=1, environment="0",
        facts={"predicted_s": seconds / 2, "calibrated_s": seconds * 1.02},
    )  # fmt: skip


def rows_of(measurements=(), lines=()):
    facts = Facts(
        hardware=H200,
        compared=compare([m for m in measurements if m.suite == "kernels"], H200),
        generations=[m for m in measurements if m.suite == "generate"],
        lines=lines,
    )
    return {row["aim"]: row for row in aim_rows(facts)}


def test_with_nothing_measured_everything_is_missing():
    rows = list(rows_of().values())
    assert len(rows) == len(AIMS)
    assert {(row["met"], row["by"]) for row in rows} == {(None, "not measured")}
    assert f"0 met, 0 missed, {len(AIMS)} not measured" in as_text([aims_table(rows)])


def test_the_fastest_table_of_so_many_bits_counts():
    shape = (8192, 8192)  # 33.55 MB at half a byte each
    slow, fast = kernel("squeezellm-w4", shape, 20e-6), kernel("squeezellm-w4-u7", shape, 11e-6)
    others = [kernel("squeezellm-w3", shape, 1e-6), kernel("gptq-w4", shape, 1e-6)]
    row = rows_of([slow, fast, *others])["4-bit tables, 8192 x 8192: time"]
    assert (row["measured"], row["met"]) == (pytest.approx(11), True)
    assert row["by"] == "8192x8192/squeezellm-w4-u7"
    assert rows_of([slow])["4-bit tables, 8192 x 8192: time"]["met"] is False


def test_a_share_is_of_the_datasheets_bandwidth():
    shape = (22016, 4096)
    seconds = 22016 * 4096 / 2 / 4.8e12 / 0.7
    name = "4-bit tables, 22016 x 4096: share of the bandwidth"
    assert rows_of([kernel("squeezellm-w4", shape, seconds)])[name]["measured"] == pytest.approx(70)


def test_a_ratio_is_the_worst_of_the_shapes():
    found = [
        kernel("gptq-w4", (4096, 4096), 1.0), kernel("gptq-w4", (8192, 8192), 1.0),
        kernel("gptq-w4-g128-act", (4096, 4096), 1.05, act_order="fold"),
        kernel("gptq-w4-g128-act", (8192, 8192), 1.2, act_order="fold"),
        kernel("gptq-w4-g128-act", (8192, 8192), 9.0, act_order="gather"),
    ]  # fmt: skip
    row = rows_of(found)["folded act-order, groups of 128: time over gptq-w4"]
    assert (row["measured"], row["met"]) == (pytest.approx(1.2), False)


def test_generations_and_their_prediction():
    rows = rows_of([text("fp16", 4.4), text("squeezellm-w3", 1.0), text("squeezellm-w4", 1.6)])
    assert rows["3-bit tables, generation: speed-up over the best FP16"]["met"] is True
    four = rows["4-bit tables, generation: speed-up over the best FP16"]
    assert (four["measured"], four["met"]) == (pytest.approx(2.75), False)
    error = rows["prediction of generations from the probe: median error"]
    assert (error["measured"], error["met"]) == (pytest.approx(2), True)


def test_matrices_are_scaled_to_the_model():
    """LLaMA-7B's blocks: 32 (4 x 4096^2 + 3 x 4096 x 11008) = 6.476e9 weights."""
    line = {"kind": "quantizer", "name": "kmeans-w3", "seconds": 0.25, "weights": 4096 * 4096}
    row = rows_of(lines=[line, line])["exact k-means of LLaMA-7B, 8 entries"]
    assert row["measured"] == pytest.approx(0.25 * 6.476e9 / 4096**2, rel=1e-3)
    assert row["by"] == "2 of 224 matrices, scaled to all"


def test_the_plan_measures_every_shape_that_an_aim_names():
    planned = {layer.shape for layer in choose_layers([*PEER_LAYERS, *MORE_LAYERS])}
    named = {(22016, 4096), (11008, 4096), (4096, 4096), (28672, 8192), (8192, 8192)}
    assert named <= planned


def test_the_command_says_what_is_missing(tmp_path, capsys):
    ResultsFolder(tmp_path).add_line({"kind": "command", "command": "x"})
    assert main(["aims", str(tmp_path)]) == 1
    assert f"0 met, 0 missed, {len(AIMS)} not measured" in capsys.readouterr().out
    assert main(["aims", str(tmp_path / "nothing")]) == 2
