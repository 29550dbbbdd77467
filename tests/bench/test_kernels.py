"""Timing kernels and peers: checked first, in turn, kept once; what cannot run says why."""

import pytest

from bench.environment import this_environment
from bench.folder import LINES, ResultsFolder, read_lines, read_measurements
from bench.kernels import contest
from bench.kernels import measure as kernels
from bench.kernels.contest import Bench
from bench.kernels.measure import Case, measure_case, measure_layer
from bench.kernels.predicted import compare
from bench.kernels.subjects import subject
from bench.kernels.suite import Layer
from bench.kernels.tables import kernels_output
from bench.peers import contest as peers
from bench.peers.table import PEERS
from bench.probe.host import hardware_of
from bench.timing import StopRule
from perfmodel.output import render
from tests.bench.test_probe import CPU, PROBE, kernel

LAYER = Layer(model="toy", tensor="q_proj", rows=64, columns=256)
QUICK = StopRule(least_samples=2, least_s=0.0, most_s=0.01, unsteady=1e9)
TORCH_INT4 = next(peer for peer in PEERS if peer.name == "torch-int4")


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.timing.waited_s", lambda: 0.0)
    environment = this_environment("cpu")
    results = ResultsFolder(tmp_path)
    results.add_environment(environment)
    return Bench(environment=environment, results=results, rule=QUICK, read_bytes_per_s=20e9)


def test_kernels_and_peers_are_kept_once(bench, tmp_path, monkeypatch):
    asked = [subject("fp32:library"), subject("fp16:library")]
    measure_layer(bench, LAYER, asked, peers=(TORCH_INT4,))
    found = {m.suite + "/" + m.name: m for m in read_measurements(tmp_path)}
    assert set(found) == {"kernels/fp32", "kernels/fp16", "peers/torch-int4"}
    fp32 = found["kernels/fp32"]
    assert fp32.facts["copies"] * 4 * 64 * 256 > 2 * bench.environment.cache_bytes
    assert fp32.facts["error"] < fp32.facts["error_limit"]
    assert fp32.facts["roof_share"] == pytest.approx(fp32.bytes_moved / 20e9 / fp32.median_s)
    monkeypatch.setattr(kernels, "contestant", lambda *_: pytest.fail("measured twice"))
    monkeypatch.setattr(peers, "_contestant", lambda *_: pytest.fail("measured twice"))
    measure_layer(bench, LAYER, asked, peers=(TORCH_INT4,))


def test_a_wrong_kernel_is_not_timed(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.kernels.check.FLOAT_LIMIT", 0.0)
    measure_layer(bench, LAYER, [subject("fp32:library")])
    assert read_measurements(tmp_path) == []
    line = read_lines(tmp_path / LINES)[-1]
    assert (line["kind"], line["ok"], line["layer"]) == ("check", False, "toy/q_proj")
    assert line["why"].startswith("error: ")


def test_what_does_not_run_here_leaves_the_reason(bench, tmp_path):
    humming = next(peer for peer in PEERS if peer.name == "humming-int4")
    measure_layer(bench, LAYER, [subject("squeezellm-w4-u7:int")], peers=(humming,))
    reasons = [line.get("reason") for line in read_lines(tmp_path / LINES)]
    assert "humming: does not run on a CPU here" not in reasons  # the name has its own field
    assert "does not run on a CPU here" in reasons
    assert any("the CPU twins have the exact path alone" in (r or "") for r in reasons)


def test_refused_samples_are_taken_again_and_then_kept_as_refused(bench, tmp_path, monkeypatch):
    rounds = []

    def disturbed(samplers, _rule):
        rounds.append(len(samplers))
        return dict.fromkeys(samplers, (1.0, 9.0))

    monkeypatch.setattr(contest, "sample_in_turn", disturbed)
    monkeypatch.setattr(contest, "refusal", lambda *_: "unsteady")
    found = measure_case(bench, Case(layer=LAYER, subject=subject("fp32:library")))
    assert rounds == [1, 1]
    assert found.refused == "unsteady"
    assert not ResultsFolder(tmp_path).is_done(found.key)  # the next run tries again


def test_ratios_are_against_the_fastest_unquantized_kernel_and_gptq_of_as_many_bits():
    times = {"fp16": 4e-3, "fp32": 2e-3, "gptq-w3": 1e-3, "squeezellm-w3": 0.5e-3}
    measured = [kernel(1000, 1000, seconds, name=name) for name, seconds in times.items()]
    hardware = hardware_of(CPU, PROBE)
    output = kernels_output(compare(measured, hardware), hardware)
    rows = {row["weights"]: row for row in output.rows()}
    assert rows["squeezellm-w3"]["over_fp16"] == pytest.approx(4)
    assert rows["squeezellm-w3"]["over_gptq"] == pytest.approx(2)
    assert rows["fp16"]["over_fp16"] == pytest.approx(0.5)
    assert rows["fp16"]["over_gptq"] is None
    assert "squeezellm-w3" in render(output, "markdown")
