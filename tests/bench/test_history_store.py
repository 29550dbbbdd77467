"""Runs on disk: whole or not at all, never overwritten, damage named and nothing else touched."""

import gzip
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.history.store import History, new_run, read_run
from perfmodel.errors import OutputError, SpecError, UsageError
from tests.bench.runs import DEVICE, environment, measurement, run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "runs")


def test_a_run_comes_back_as_it_was(history):
    kept = run(0, a=1.0 / 3.0, b=2.0)
    path, is_new = history.add(kept)
    assert is_new
    assert path.name == f"20260101T000000000Z-000000000000-{kept.id[:8]}.json.gz"
    assert history.runs(DEVICE) == [kept]
    assert read_run(path).measurements[0].samples_s == kept.measurements[0].samples_s


def test_a_dirty_run_says_so_in_its_name(history):
    dirty = new_run(environment(dirty=True, commit=None), run(0, a=1.0).measurements)
    assert "-none-dirty-" in history.add(dirty)[0].name
    assert dirty.commit == "none*"


def test_runs_are_ordered_by_date_and_devices_kept_apart(history):
    for index in (5, 1, 3):
        history.add(run(index, a=1.0))
    other = measurement("a", (1.0,), device="other")
    history.add(new_run(environment(0, device="other"), [other]))
    assert [r.commit for r in history.runs(DEVICE)] == ["0100000", "0300000", "0500000"]
    assert history.devices() == ["other", DEVICE]


def test_the_same_run_is_kept_once_and_never_rewritten(history):
    path, _ = history.add(run(0, a=1.0))
    before = path.stat()
    assert history.add(run(0, a=1.0)) == (path, False)
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not path.stat().st_mode & 0o222
    assert len(history.runs(DEVICE)) == 1


def test_a_run_of_two_devices_or_of_nothing_is_refused():
    with pytest.raises(UsageError, match="no run"):
        new_run(environment(), [])
    with pytest.raises(UsageError, match="measured on other, the run is of toy"):
        new_run(environment(), [measurement("a", (1.0,), device="other")])


def test_many_writers_at_once_lose_nothing(history):
    """Twelve runs by two writers each: one file per run, one of the two made it."""
    runs = [run(index, a=1.0) for index in range(12)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(history.add, runs + runs))
    assert sorted(is_new for _, is_new in made) == [False] * 12 + [True] * 12
    assert history.runs(DEVICE) == runs
    assert len(list((history.root / DEVICE).iterdir())) == 12  # no temporary file is left


def test_a_killed_writer_leaves_no_run(history):
    code = f"""if True:
        import os
        from bench.history import store
        from tests.bench.runs import run
        store.os.link = lambda *_: os.kill(os.getpid(), 9)
        store.History(store.Path({str(history.root)!r})).add(run(0, a=1.0))
    """
    command = [sys.executable, "-c", code]
    python_path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=python_path, check=False)
    assert done.returncode == -9
    assert history.runs(DEVICE) == []
    assert history.add(run(0, a=1.0))[1]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99])
def test_a_file_that_was_cut_off_is_named_and_nothing_is_lost(history, share):
    paths = [history.add(run(index, a=1.0))[0] for index in range(3)]
    whole = paths[1].read_bytes()
    paths[1].unlink()
    paths[1].write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(SpecError, match=f"^{paths[1]}: ") as caught:
        history.runs(DEVICE)
    assert "\n" not in str(caught.value)
    assert [path.exists() for path in paths] == [True] * 3
    paths[1].write_bytes(whole)
    assert len(history.runs(DEVICE)) == 3


@pytest.mark.parametrize("at", [0, 2, 30, -3])
def test_a_flipped_bit_is_noticed(history, at):
    path, _ = history.add(run(0, a=1.0))
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(SpecError, match="damaged"):
        read_run(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"not json", "found no JSON"),
        (b"\xff\xfe", "found no JSON"),
        (b"{}", "Object missing required field"),
        (b'{"id": "1", "later": 1}', "unknown field `later`"),
    ],
    ids=["text", "bytes", "empty", "field"],
)
def test_what_is_no_run_is_refused(tmp_path, text, problem):
    path = tmp_path / "run.json.gz"
    path.write_bytes(gzip.compress(text, 1))
    with pytest.raises(SpecError, match=problem):
        read_run(path)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.history.store.MAX_BYTES", 1000)
    path = tmp_path / "run.json.gz"
    path.write_bytes(gzip.compress(b" " * 1001))
    with pytest.raises(SpecError, match="found more than 1000 bytes, expected a run"):
        read_run(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written: Not a directory"):
        History(tmp_path / "runs").add(run(0, a=1.0))


def test_runs_are_found_by_the_start_of_their_id(history):
    runs = [run(index, a=1.0) for index in range(3)]
    for kept in runs:
        history.add(kept)
    assert history.find(runs[1].id) == runs[1]
    assert history.find(runs[1].id[:6]) == runs[1]
    with pytest.raises(UsageError, match="no run 'ffff"):
        history.find("ffffffff")
    with pytest.raises(UsageError, match="3 runs ''"):
        history.find("")


def test_the_baseline_is_what_was_promoted_last(history):
    runs = [run(index, a=1.0) for index in range(2)]
    assert history.baseline(DEVICE) is None
    for kept in runs:
        history.add(kept)
    history.promote(runs[:1])
    history.promote(runs, "a slower, exact kernel")
    baseline = history.baseline(DEVICE)
    assert baseline.runs == (runs[0].id, runs[1].id)
    assert baseline.accepted == "a slower, exact kernel"


def test_a_baseline_whose_run_is_gone_is_no_missing_baseline(history):
    kept = run(0, a=1.0)
    path, _ = history.add(kept)
    history.promote([kept])
    assert history.promoted(DEVICE, [kept]) == [kept]
    path.unlink()
    with pytest.raises(SpecError, match=f"names run {kept.id}, which is not there"):
        history.promoted(DEVICE, history.runs(DEVICE))


def test_runs_of_two_devices_are_no_baseline(history):
    other = measurement("a", (1.0,), device="other")
    with pytest.raises(UsageError, match="found runs of other, toy, expected one device"):
        history.promote([run(0, a=1.0), new_run(environment(0, device="other"), [other])])


def test_a_wrong_baseline_file_is_named(history):
    history.add(run(0, a=1.0))
    (history.root / DEVICE / "baseline.json").write_text('{"runs": "all"}')
    with pytest.raises(SpecError, match=r"baseline.json: Expected `array`"):
        history.baseline(DEVICE)
