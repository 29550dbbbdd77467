"""The layers of the house: who may import whom, and how large a file may be."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hardware", "perfmodel", "kernels", "quantizer", "bench")
ALLOWED = {
    "hardware": set(),
    "perfmodel": {"hardware", "perfmodel"},
    "kernels": {"kernels"},
    "quantizer": {
        *("quantizer", "perfmodel.formats", "perfmodel.format_names", "perfmodel.errors"),
        *("perfmodel.arguments", "perfmodel.output"),
        # a prediction, for formats that are chosen by time
        *("perfmodel.prediction", "perfmodel.workload", "perfmodel.models"),
        *("perfmodel.hardware", "perfmodel.stacks", "perfmodel.measured_stack"),
        *("kernels.layouts", "kernels.linear"),
    },
    "bench": set(PACKAGES),
}
FOREIGN = {  # third-party modules that a package must never import
    "hardware": {"yaml", "msgspec", "numpy", "torch", "triton"},
    "perfmodel": {"torch", "triton"},
    "kernels": {"pandas", "matplotlib"},
    "quantizer": {"triton"},
    "bench": set(),
}
LAZY = {"numpy", "pandas", "matplotlib", "rich", "pyarrow"}  # in perfmodel: inside functions only
MAX_LINES = 400


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else ast.walk(tree)
    return {name for node in nodes for name in imported(node)}


def within(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(f"{a}.") or a.startswith(f"{name}.") for a in allowed)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below_them(package):
    for path in sources(package):
        for name in imports(path):
            if name.split(".")[0] in PACKAGES:
                assert within(name, ALLOWED[package]), f"{path} imports {name}"
            assert name.split(".")[0] not in FOREIGN[package], f"{path} imports {name}"


def test_perfmodel_imports_heavy_modules_only_inside_functions():
    for path in sources("perfmodel"):
        heavy = {name.split(".")[0] for name in imports(path, top_level=True)} & LAZY
        assert not heavy, f"{path} imports {heavy} at its top"


def test_importing_perfmodel_loads_nothing_heavy():
    code = "import sys, perfmodel; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert LAZY.isdisjoint(run.stdout.split())
    assert {"torch", "triton"}.isdisjoint(run.stdout.split())


def test_hardware_is_data():
    assert [path.name for path in sources("hardware")] == ["__init__.py"]
    body = ast.parse((ROOT / "hardware/__init__.py").read_text()).body
    assert [type(node) for node in body] == [ast.Expr]


@pytest.mark.parametrize("package", [*PACKAGES, "tests", "docs"])
def test_files_stay_under_400_lines(package):
    lengths = {path.name: len(path.read_text().splitlines()) for path in sources(package)}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_powers_of_ten_live_in_units():
    power = re.compile(r"\b1e(6|9|12|15)\b|\b2 ?\*\* ?(10|20|30)\b|\b1024 ?\*\* ?[123]\b")
    for path in sources("perfmodel"):
        assert path.name == "units.py" or not power.search(path.read_text()), path


def test_nothing_unsafe_is_read():
    banned = ("yaml.load(", "import pickle", "from pickle", "trust_remote_code=True", "eval(")
    for package in PACKAGES:
        for path in sources(package):
            text = path.read_text(encoding="utf-8")
            assert not [word for word in banned if word in text], path
