"""`history` and `promote` as they are typed."""

import json
import subprocess

import pytest
from msgspec.structs import replace

from bench.cli import main
from bench.folder import LINES, ResultsFolder
from bench.history.store import History, new_run
from tests.bench.runs import DEVICE, environment, key, measurement, run, samples


@pytest.fixture
def history(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return History(tmp_path / "runs")


@pytest.fixture
def command(history, capsys):
    """Runs one command line; returns (exit code, standard output, standard error)."""

    def execute(line):
        code = main([*line.split(), "--history", str(history.root)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return execute


def results(folder, index, commit=None, **medians_s):
    """A results folder as `bench kernels` leaves it; each index is another commit."""
    found = ResultsFolder(folder)
    where = environment(index, commit=commit or environment(index).commit)
    found.add_environment(where)
    for name, middle_s in medians_s.items():
        found.add(measurement(name, samples(middle_s), environment=where.id))
    return folder


def test_a_slow_down_is_caught_and_not_adopted_and_a_deleted_benchmark_too(command, tmp_path):
    """The life of a history, from the first run to an accepted change."""
    code, out, _ = command(f"history add {results(tmp_path / 'first', 0, a=1.0, b=2.0)}")
    first = out.split()[1].rstrip(",")
    assert code == 0
    assert command("history check")[0] == 1  # no baseline
    assert command(f"promote {first}")[0] == 0
    assert command("history check") == (0, *command("history check")[1:])
    slow = command(f"history add {results(tmp_path / 'slow', 1, a=1.05, b=2.0)}")[1].split()[1]
    for minute in (2, 3, 4):
        again = results(tmp_path / f"again{minute}", minute, environment(1).commit, a=1.05)
        assert command(f"history add {again} --confirms {slow.rstrip(',')}")[0] == 0
    code, out, _ = command("history check")
    assert code == 1
    assert "regression   toys/a[]    +5.0% over the baseline" in out
    command(f"history add {results(tmp_path / 'next', 5, a=1.05, b=2.0)}")
    code, out, _ = command("history check")
    assert (code, "+5.0% over the baseline" in out) == (1, True)
    last = command(f"history add {results(tmp_path / 'less', 6, a=1.0)}")[1].split()[1].rstrip(",")
    code, out, _ = command("history check")
    assert (code, "vanished   toys/b[]" in out) == (1, True)
    assert command("history check --allow-missing")[0] == 0
    code, _, err = command(f"promote {last}")
    assert (code, "vanished: toys/b[]" in err) == (2, True)
    assert "the check fails" in err
    assert command(f"promote {last} --accept gone")[0] == 0
    assert command("history check")[0] == 0


def test_another_commit_repeats_nothing(command, history, tmp_path):
    slow = run(1, a=1.05)
    history.add(slow)
    code, _, err = command(f"history add {results(tmp_path / 'x', 2, a=1.0)} --confirms {slow.id}")
    assert (code, f"this does not repeat run {slow.id}: commit 02000000" in err) == (2, True)
    assert history.runs(DEVICE) == [slow]


def test_adding_twice_changes_nothing(command, history, tmp_path):
    folder = results(tmp_path / "results", 0, a=1.0)
    command(f"history add {folder}")
    code, out, _ = command(f"history add {folder}")
    assert (code, "known already, 1 measurements" in out) == (0, True)
    assert len(history.runs(DEVICE)) == 1


def test_a_folder_of_two_commits_is_two_runs(command, history, tmp_path):
    results(tmp_path / "results", 0, a=1.0)
    command(f"history add {results(tmp_path / 'results', 1, b=1.0)}")
    assert [list(kept.by_key) for kept in history.runs(DEVICE)] == [[key("a")], [key("b")]]


def test_suspects_are_measured_again_in_fresh_processes(command, history, monkeypatch):
    def test_of(kept):
        found = [replace(m, facts={"test": f"bench/x.py::{m.name}"}) for m in kept.measurements]
        return new_run(kept.environment, found, kept.confirms)

    base, slow = test_of(run(0, a=1.0, b=2.0)), test_of(run(1, a=1.05, b=2.0))
    history.add(base)
    history.promote([base])
    history.add(slow)
    started = []

    def process(line, **_):
        started.append(line)
        history.add(run(1 + len(started), slow.id, a=1.05))
        return subprocess.CompletedProcess(line, 0)

    monkeypatch.setattr("bench.history.commands.subprocess.run", process)
    code, out, _ = command("history check")
    assert (code, len(started)) == (1, 0)
    assert "0 of 3 fresh processes measured" in out
    assert f"next: history check {slow.id} --confirm" in out
    code, out, _ = command("history check --confirm")
    assert (code, "so is the median of 3 fresh processes" in out) == (1, True)
    assert len(started) == 3
    assert started[0][1:5] == ["-m", "pytest", "-q", "bench/x.py::a"]
    assert started[0][5:9] == ["--history", str(history.root), "--confirms", slow.id]
    assert started[0][9:] == ["--device", "cuda"]


def test_what_no_test_measured_has_to_be_repeated_by_hand(command, history):
    base, slow = run(0, a=1.0), run(1, a=1.05)
    for kept in (base, slow):
        history.add(kept)
    history.promote([base])
    code, _, err = command("history check --confirm")
    assert (code, f"history add RESULTS --confirms {slow.id}" in err) == (2, True)


def test_the_verdict_as_json(command, history):
    base = run(0, a=1.0)
    history.add(base)
    history.add(new_run(environment(1, packages={"torch": "2.14"}), base.measurements))
    history.promote([base])
    code, out, _ = command("history check --json")
    verdict = json.loads(out)
    assert (code, verdict["ok"], verdict["findings"]) == (0, True, [])
    assert verdict["baseline"] == [base.id]
    assert "since then: torch 2.13.0 -> 2.14" in command("history check")[1]


def test_all_runs_are_listed_with_their_role(command, history):
    base, other = run(0, a=1.0), run(1, a=1.0)
    for kept in (base, other, run(2, base.id, a=1.0)):
        history.add(kept)
    history.promote([base])
    out = command("history list --json")[1]
    assert [row["role"] for row in json.loads(out)] == ["baseline", "", f"repeats {base.id}"]
    assert command("history list --device nowhere")[0] == 2


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_written(command, history, tmp_path, suffix):
    for index in range(12):
        history.add(run(index, a=1.0 if index < 6 else 1.1, b=2.0))
    path = tmp_path / f"history.{suffix}"
    assert command(f"history plot -o {path}") == (0, f"wrote {path}\n", "")
    assert path.stat().st_size > 10_000


def test_the_plot_marks_a_step():
    from bench.history.plot import SLOWER, history_figure

    runs = [run(index, a=1.0 if index < 6 else 1.1, b=2.0) for index in range(12)]
    first, second = history_figure(runs, [runs[0].id]).axes
    marks = [line for line in first.lines if line.get_marker() == "^"]
    assert [(list(m.get_xdata()), m.get_color()) for m in marks] == [([6], SLOWER)]
    assert not [line for line in second.lines if line.get_marker() == "^"]


@pytest.mark.parametrize(
    ("line", "code", "problem"),
    [
        ("history list", 2, "no runs in"),
        ("history check", 2, "no runs in"),
        ("history check abc", 2, "no run 'abc' in"),
        ("promote abc", 2, "no run 'abc' in"),
        ("history add nothing.json", 3, "nothing.json: cannot be read: No such file"),
        ("history add empty", 3, "cannot be read"),
        ("history add no.json", 3, "no.json: expected JSON of `pytest bench --benchmark-json`"),
        ("history add bad.json", 3, "bad.json: "),
        ("history plot -o x.png", 2, "no runs in"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(command, tmp_path, line, code, problem):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.json").write_text('{"benchmarks": []}')
    (tmp_path / "bad.json").write_text("{")
    found, out, err = command(line)
    assert (found, out) == (code, "")
    assert problem in err
    assert err.count("\n") == 1


def test_plots_of_too_much_or_nothing_or_no_picture_are_refused(command, history, tmp_path):
    names = {f"n{i}": 1.0 for i in range(13)}
    history.add(run(0, **names))
    assert "13 benchmarks hold ''" in command("history plot -o x.png")[2]
    assert "no benchmark that holds 'zz'" in command("history plot -o x.png --match zz")[2]
    assert "expected a name ending in" in command("history plot -o x.doc --match n1")[2]
    assert list(tmp_path.glob("x.*")) == []


def test_runs_of_several_devices_have_to_be_told_apart(command, history):
    history.add(run(0, a=1.0))
    other = measurement("a", (1.0,), device="other")
    history.add(new_run(environment(0, device="other"), [other]))
    code, _, err = command("history check")
    assert (code, "runs of several devices; --device other or toy" in err) == (2, True)


def test_results_that_name_an_unknown_environment_are_refused(command, tmp_path):
    folder = results(tmp_path / "results", 0, a=1.0)
    lines = (folder / LINES).read_text().splitlines(keepends=True)
    (folder / LINES).write_text(lines[1])
    code, _, err = command(f"history add {folder}")
    assert (code, "no environment" in err) == (3, True)
