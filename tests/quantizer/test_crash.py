"""SIGKILL at random moments, and several writers at once: the final bytes are always the same."""

import subprocess
import sys
from pathlib import Path

from quantizer.run import ledger

ROOT = Path(__file__).parents[2]
KILLS = 10  # of each of two methods: one without, one with a pass over the model


def test_killed_at_random_moments_the_final_bytes_are_those_of_a_whole_run(llama, ids, tmp_path):
    script = str(Path(__file__).with_name("kill_many.py"))
    command = [sys.executable, script, str(llama), str(ids), str(tmp_path), str(KILLS)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:2] == [f"rtn-w4 killed {KILLS}", f"gptq-w4 killed {KILLS}"]
    assert ledger.verify(tmp_path / "gptq-w4")[1] == []
