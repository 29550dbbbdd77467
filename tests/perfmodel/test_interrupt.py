"""Ctrl-C, closed pipes and poor terminals: one line or none, and never half a file."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import pytest

from perfmodel import output, sweep
from perfmodel.cli import main
from perfmodel.commands import inputs
from perfmodel.output import whole_file

ROOT = Path(__file__).parents[2]
PERFMODEL = [sys.executable, "-m", "perfmodel"]
LENGTHS = ",".join(str(length) for length in range(1, 400))
LONG_SWEEP = ["sweep", "--gpu", "all", "--model", "all", "--context", LENGTHS]  # 2.5 million rows
PREDICT = ["predict", "--gpu", "a6000"]
SWEEP = ["sweep", "--gpu", "a6000"]
WAIT_S = 30.0


def interrupt(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


def one_row_then_interrupt(_: sweep.Grid) -> Iterator[dict[str, Any]]:
    yield {"device": ["a6000"], "time_s": [1.0]}
    raise KeyboardInterrupt


def test_an_encoding_without_rules_gets_question_marks():
    plain = os.environ | {"PYTHONIOENCODING": "ascii"}
    run = subprocess.run(
        [*PERFMODEL, *PREDICT], cwd=ROOT, env=plain, capture_output=True, check=True
    )
    assert b" fp16 " in run.stdout
    assert b"?????" in run.stdout


def test_ctrl_c_ends_with_130(monkeypatch):
    monkeypatch.setattr(inputs, "predict", interrupt)
    assert main(PREDICT) == 130


def test_ctrl_c_says_one_line(monkeypatch, capsys):
    monkeypatch.setattr(inputs, "predict", interrupt)
    main(PREDICT)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("perfmodel: interrupted")


def test_ctrl_c_while_rendering_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr(output, "render", interrupt)
    assert main([*PREDICT, "-o", str(tmp_path / "x.json")]) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["csv", "json", "md", "parquet"])
def test_ctrl_c_in_a_sweep_leaves_no_file(suffix, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "blocks", one_row_then_interrupt)
    assert main([*SWEEP, "-o", str(tmp_path / f"x.{suffix}")]) == 130
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_the_older_file(monkeypatch, tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("older\n")
    monkeypatch.setattr(sweep, "blocks", one_row_then_interrupt)
    main([*SWEEP, "-o", str(file)])
    assert file.read_text() == "older\n"
    assert list(tmp_path.iterdir()) == [file]


def test_ctrl_c_after_rows_on_the_screen_does_not_deny_them(monkeypatch, capsys):
    monkeypatch.setattr(sweep, "blocks", one_row_then_interrupt)
    main(SWEEP)
    out, err = capsys.readouterr()
    assert out == "device,time_s\na6000,1.0\n"
    assert "nothing was written" not in err


def write_half(file: Path, stop: type[BaseException]) -> NoReturn:
    with whole_file(file) as temporary:
        temporary.write_text("half")
        raise stop


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, MemoryError])
def test_a_file_that_is_stopped_half_way_is_removed(stop, tmp_path):
    with pytest.raises(stop):
        write_half(tmp_path / "x.csv", stop)
    assert list(tmp_path.iterdir()) == []


# Real processes


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """A parent that ignores SIGINT, such as a shell's `&`, would pass that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(*argv: str, stdout: int | IO[str] = subprocess.DEVNULL) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*PERFMODEL, *argv], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True
    )


def stop(process: "subprocess.Popen[str]", sent: signal.Signals | None = None) -> tuple[int, str]:
    """Exit code and standard error."""
    try:
        if sent is not None:
            process.send_signal(sent)
        err = process.communicate(timeout=WAIT_S)[1]
    finally:
        process.kill()
    return process.returncode, err


def await_file_in(folder: Path) -> None:
    until_s = time.monotonic() + WAIT_S
    while not any(path.stat().st_size for path in folder.iterdir()):
        assert time.monotonic() < until_s
        time.sleep(0.02)


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_ctrl_c_in_a_real_sweep_leaves_no_file(tmp_path):
    process = start(*LONG_SWEEP, "-o", str(tmp_path / "x.csv"))
    await_file_in(tmp_path)
    code, err = stop(process, signal.SIGINT)
    assert (code, err.count("\n")) == (130, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv", [LONG_SWEEP, ["--help"], ["devices"]], ids=["sweep", "help", "devices"]
)
def test_a_reader_that_leaves_is_no_error(argv):
    process = start(*argv, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.wait(WAIT_S), process.stderr.read()) == (0, "")
    process.stderr.close()


def test_head_takes_one_line_and_all_is_quiet():
    command = f"set -o pipefail; {sys.executable} -m perfmodel {' '.join(LONG_SWEEP)} | head -1"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("device,model,weights,")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "argv", [PREDICT, [*PREDICT, "--json"], SWEEP], ids=["text", "json", "csv"]
)
def test_a_full_disk_behind_standard_output_is_one_line(argv):
    with Path("/dev/full").open("w") as full:
        code, err = stop(start(*argv, stdout=full))
    assert (code, err.count("\n")) == (2, 1)
    assert "No space left on device" in err
