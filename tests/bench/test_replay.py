"""Our samples through pytest-benchmark: the same bits, no host name, nothing compared wrongly."""

import json

import numpy as np
import pytest
import torch  # noqa: F401  or the sessions below would load it, and unload it

from bench.environment import this_environment
from bench.history.sources import runs_of
from bench.history.store import History
from bench.replay import ReplayClock, differing, other_machine
from tests.bench.runs import environment

pytest_plugins = ["pytester"]

BENCHMARK = """
import json, pathlib
import pytest
import torch  # noqa: F401  or the sessions below would load it, and unload it
from bench.measurement import Measurement

@pytest.mark.benchmark(group="toys")
@pytest.mark.parametrize("name", ["a", "b"])
def test_toy(measured, environment, name):
    facts = json.loads(pathlib.Path("toy.json").read_text())
    measured(Measurement(
        suite="toys", name=name, params={"rows": 3}, device=environment.device,
        timing_mode=facts["mode"], l2_policy="cold", samples_s=tuple(facts["samples"][name]),
        bytes_moved=100, flops=3, environment=environment.id, refused=facts["refused"],
    ))
"""
OPTIONS = ("-Werror", "-pno:cacheprovider", "-pno:hypothesispytest")  # the last one is slow to load
SAMPLES = {  # of all sizes, with all bits in use
    name: (np.random.default_rng(seed).random(40) * 10.0 ** np.arange(-20, 20)).tolist()
    for seed, name in enumerate("ab")
}


@pytest.fixture
def bench(pytester, monkeypatch):
    """A function that runs a benchmark file like those of bench/, in this process."""
    monkeypatch.setattr("pytest_benchmark.plugin.get_cpu_info", dict)  # takes a second
    monkeypatch.setattr("bench.cores.use_threads", lambda _threads: 1)  # leave this process alone
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # set by the tests of the kernels
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # would switch benchmarks off
    pytester.makeconftest('pytest_plugins = ["bench.conftest"]')
    pytester.makepyfile(BENCHMARK)

    def run(*options, mode="cpu-clock", refused=None, samples=SAMPLES):
        facts = {"mode": mode, "refused": refused, "samples": samples}
        (pytester.path / "toy.json").write_text(json.dumps(facts))
        return pytester.runpytest_inprocess(*OPTIONS, *options)

    run.path = pytester.path
    return run


def test_the_clock_shows_zero_then_the_sample():
    clock = ReplayClock()
    for sample_s in (1e-7, 0.1 + 0.2, 3.0):
        start = clock()
        clock.set(sample_s)
        assert clock() - start == sample_s


def test_stored_samples_are_ours_bit_for_bit(bench):
    result = bench("--benchmark-json=out.json", "--history=runs")
    result.assert_outcomes(passed=2)
    stored = json.loads((bench.path / "out.json").read_text())
    found = {b["name"]: b for b in stored["benchmarks"]}
    for name, samples in SAMPLES.items():
        assert found[f"test_toy[{name}]"]["stats"]["data"] == samples
        assert found[f"test_toy[{name}]"]["group"] == "toys"
        facts = found[f"test_toy[{name}]"]["extra_info"]["measurement"]
        assert (facts["timing_mode"], facts["l2_policy"], facts["name"]) == (
            "cpu-clock",
            "cold",
            name,
        )
    assert "node" not in stored["machine_info"]
    assert stored["machine_info"]["memwall"]["device"] == stored["environment"]["device"]
    history = History(bench.path / "runs")
    (kept,) = history.runs(stored["environment"]["device"])
    assert {m.name: list(m.samples_s) for m in kept.measurements} == SAMPLES
    assert kept.measurements[0].facts["test"] == found["test_toy[a]"]["fullname"]
    assert runs_of(bench.path / "out.json") == [kept]  # the same run, by the other way
    assert history.add(kept)[1] is False
    bench("--history=runs", f"--confirms={kept.id[:6]}")
    assert [r.confirms for r in history.runs(kept.environment.device)] == [None, kept.id]


def test_disabled_benchmarks_run_and_are_not_kept(bench):
    result = bench("--benchmark-disable", "--history=runs")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["history: nothing added, no benchmark was measured"])
    assert not (bench.path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--history=toy.json"], "--history toy.json: is a file, expected a folder"),
        (["--confirms=abc"], "--confirms needs --history"),
        (["--history=runs", "--confirms=abc"], "no run 'abc' in runs"),
        (["--device=cuda"], "no CUDA device here"),
    ],
)
def test_wrong_options_are_said_before_anything_is_measured(bench, monkeypatch, options, problem):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = bench(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{problem}*"])


def test_a_run_that_cannot_be_kept_fails_the_session(bench):
    (bench.path / "runs").mkdir()
    (bench.path / "runs" / this_environment("cpu").device).write_text("in the way")
    result = bench("--history=runs")
    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["history: runs/*: cannot be written: *"])


def test_refused_samples_fail_and_show_nowhere_but_in_the_history(bench):
    result = bench(
        "--benchmark-json=out.json",
        "--history=runs",
        refused="throttled",
        samples={"a": [], "b": []},
    )
    result.assert_outcomes(failed=2)
    assert json.loads((bench.path / "out.json").read_text())["benchmarks"] == []
    result.stdout.no_fnmatch_line("*Rounds*")
    history = History(bench.path / "runs")
    (kept,) = history.runs(history.devices()[0])
    assert [m.refused for m in kept.measurements] == ["throttled"] * 2


def test_only_equal_conditions_are_compared(bench):
    """Another Python is said; another timing mode or device is refused."""
    bench("--benchmark-autosave").assert_outcomes(passed=2)
    (path,) = bench.path.glob(".benchmarks/*/*.json")
    stored = json.loads(path.read_text())
    stored["machine_info"]["python_version"] = "3.9"
    path.write_text(json.dumps(stored))
    result = bench("--benchmark-compare", "--benchmark-cprofile=tottime")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["compared with a run of another python_version"])
    result = bench("--benchmark-compare", mode="profiler")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*cannot be compared: timing_mode cpu-clock before, profiler now"])
    stored["machine_info"]["memwall"]["device"] = "a6000"
    path.write_text(json.dumps(stored))
    result = bench("--benchmark-compare")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*cannot be compared: it was measured on a6000, this is *"])


def test_a_run_of_an_unknown_device_is_not_compared():
    why = other_machine({"node": "somewhere"}, environment())
    assert why == "it does not say on which device it was measured"
    assert other_machine({"memwall": {"device": "toy"}}, environment()) is None


def test_differences_are_named_down_to_the_field():
    ours = {"memwall": {"driver": {"driver_version": "580"}}, "python": "3.11"}
    theirs = {"memwall": {"driver": {"driver_version": "570"}}, "system": "Linux"}
    assert differing(theirs, ours) == ["memwall.driver.driver_version", "python", "system"]
