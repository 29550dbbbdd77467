"""Our package `kernels` shares its name with a Hugging Face package that transformers looks for."""

import subprocess
import sys
import tomllib
from pathlib import Path

import perfmodel

ROOT = Path(__file__).parents[1]


def test_importing_kernels_loads_neither_torch_nor_triton():
    code = "import sys, kernels; print(kernels.__version__, {'torch', 'triton'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "0.0.0 set()"


def test_our_version_stays_below_the_one_transformers_looks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert perfmodel.__version__ == project["version"]
    major, minor, _ = (int(part) for part in project["version"].split("."))
    assert (major, minor) < (0, 9)
