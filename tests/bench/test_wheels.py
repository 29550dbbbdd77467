"""Packages for a machine without a network: fetched or built, thinned, and not fetched twice."""

import re
import zipfile
from subprocess import CompletedProcess

import pytest

from bench.peers import wheels
from perfmodel.errors import OutputError


def test_every_package_is_pinned():
    assert wheels.pins()[0].startswith("msgspec==")  # nothing runs without it
    assert all(re.fullmatch(r"[a-z-]+==[0-9.post]+", pinned) for pinned in wheels.pins())


def pip(tmp_path, *works):
    """pip, of whose subcommands some work; the commands that it was given."""
    given = []

    def run(words, **_options):
        command = next(word for word in words if word in ("download", "wheel"))
        given.append(words)
        if command in works:
            (tmp_path / "a_b-1.0-py3-none-any.whl").write_bytes(b"")
        return CompletedProcess(words, int(command not in works), "", "tried\nERROR: no such thing")

    return run, given


def test_a_source_package_is_built(tmp_path):
    run, given = pip(tmp_path, "wheel")
    assert wheels.fetch("a-b==1.0", "3.12", tmp_path, run).name == "a_b-1.0-py3-none-any.whl"
    assert [word for words in given for word in words if word == "--no-deps"] == ["--no-deps"] * 2
    assert wheels.existing(tmp_path, "a-b==1.0") is not None
    assert wheels.existing(tmp_path, "a-b==1.1") is None


def test_what_pip_says_is_passed_on(tmp_path):
    run, _ = pip(tmp_path)
    with pytest.raises(OutputError, match=r"a-b==1\.0: ERROR: no such thing"):
        wheels.fetch("a-b==1.0", "3.12", tmp_path, run)


def test_libraries_for_other_devices_are_left_out(tmp_path):
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    names = ("cpu", "cuda130", "cuda118", "rocm72")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("bitsandbytes/__init__.py", "pass")
        for name in names:
            archive.writestr(f"bitsandbytes/libbitsandbytes_{name}.so", name)
    wheels.thin(wheel)
    with zipfile.ZipFile(wheel) as archive:
        assert archive.namelist() == [
            "bitsandbytes/__init__.py",
            "bitsandbytes/libbitsandbytes_cpu.so",
            "bitsandbytes/libbitsandbytes_cuda130.so",
        ]
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]
