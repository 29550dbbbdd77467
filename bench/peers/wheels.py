"""`python -m bench wheels`: the packages of the peers, for a machine that has no network.

pip downloads what wheels.txt pins, for Linux x86-64, or builds the wheel of a source package; then
libraries for other devices and other CUDA versions are left out of a wheel that has many.
"""

import argparse
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from perfmodel.errors import OutputError
from perfmodel.units import MIB

PINNED = Path(__file__).with_name("wheels.txt")
PLATFORMS = ("manylinux_2_28", "manylinux_2_24", "manylinux_2_17", "manylinux2014")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
# Package -> the libraries that are kept, of those whose names begin so.
THINNED = {"bitsandbytes": ("libbitsandbytes_", ("cpu", "cuda130"))}


def cmd_wheels(args: argparse.Namespace) -> int:
    """Download, build and thin the wheels; say how large each is.

    Raises: OutputError if pip fails.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    total = 0
    for pinned in pins():
        wheel = existing(args.out, pinned) or fetch(pinned, args.python, args.out)
        thin(wheel)
        total += wheel.stat().st_size
        print(f"{wheel.stat().st_size / MIB:7.2f} MiB  {wheel.name}")
    print(f"{total / MIB:7.2f} MiB  in {args.out}")
    return 0


def pins() -> list[str]:
    """NAME==VERSION, in order of importance."""
    lines = PINNED.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def existing(folder: Path, pinned: str) -> Path | None:
    """The wheel of that name and version, if it is there."""
    name, version = pinned.split("==")
    return next(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"), None)


def fetch(
    pinned: str,
    python: str,
    folder: Path,
    run: Callable[..., subprocess.CompletedProcess] = subprocess.run,
) -> Path:
    """The wheel as published; one that is published as source alone is built here.

    Raises: OutputError, with pip's own words, if neither can be had.
    """
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    download = ["download", "--only-binary", ":all:", "--python-version", python, *platforms]
    build = ["wheel"]  # pure Python: a compiled one would be for this machine
    said = ""
    for command in (download, build):
        words = [*PIP, *command, "--quiet", "--no-deps", _folder_option(command), str(folder)]
        done = run([*words, pinned], capture_output=True, text=True, check=False)
        wheel = existing(folder, pinned)
        if done.returncode == 0 and wheel:
            return wheel
        said = done.stderr.strip().splitlines()[-1:] or ["no wheel came"]
    raise OutputError(f"{pinned}: {said[0]}")


def _folder_option(command: list[str]) -> str:
    return "--dest" if command[0] == "download" else "--wheel-dir"


def thin(wheel: Path) -> None:
    """Leave out libraries that this wheel has for others; pip does not ask for them."""
    rule = THINNED.get(wheel.name.partition("-")[0])
    if rule is None:
        return
    start, kept = rule
    smaller = wheel.with_suffix(".thin")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            library = Path(item.filename).stem
            if library.startswith(start) and library.removeprefix(start) not in kept:
                continue
            new.writestr(item, old.read(item))
    smaller.replace(wheel)
