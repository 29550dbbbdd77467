"""Every launch of every kernel compiles for a real GPU: what the interpreter cannot tell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_launch_compiles_and_none_spills():
    """Split rows, a tail, an odd number of rows; on two cores side by side."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compile_launches", "sm_90", "distinct"]
    workers = [
        subprocess.Popen(
            [*command, share, "35x4224"], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for share in ("0/2", "1/2")
    ]  # fmt: skip
    compiled = 0
    for worker in workers:
        out, errors = worker.communicate()
        assert worker.returncode == 0, errors
        *findings, last = map(json.loads, out.splitlines())
        assert findings == []
        compiled += last["compiled"]
    assert compiled >= 25
