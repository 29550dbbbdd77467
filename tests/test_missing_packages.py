"""Without what `make demo` leaves out, the other command lines say in one line what to install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HIDDEN = "import sys; sys.modules['torch'] = None; "


def run_without_torch(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDDEN + code]
    plain = os.environ | {"TRITON_INTERPRET": "0"}
    return subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("from quantizer.cli import main; sys.exit(main(['verify', 'x']))", "quantizer"),
        ("from bench.cli import main; sys.exit(main(['probe']))", "bench,quantizer"),
        ("from kernels.aot import main; sys.exit(main([]))", "kernels"),
    ],
)
def test_one_line_says_what_to_install(code, extra):
    ended = run_without_torch(code)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
    assert "torch" in ended.stderr
    assert f"pip install -e '.[{extra}]'" in ended.stderr


def test_doctor_runs_where_torch_is_missing():
    ended = run_without_torch("from bench.cli import main; sys.exit(main(['doctor']))")
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "nothing can be measured" in ended.stdout


def test_a_missing_module_of_ours_is_a_bug():
    hide = "sys.modules['quantizer.commands'] = None; "
    ended = run_without_torch(hide + "from quantizer.cli import main; main(['verify', 'x'])")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
