"""What the measuring commands share: the device, its threads, and the folder of results."""

import argparse
import os
from pathlib import Path
from typing import Any

from bench.environment import Environment, Kind, default_kind, this_environment
from bench.folder import ResultsFolder, read_measurements
from bench.measurement import Measurement
from perfmodel.errors import UsageError


class Again:
    """A results folder that takes no measurement for done: a later one of a key wins."""

    def __init__(self, folder: ResultsFolder) -> None:
        self.folder = folder

    def is_done(self, key: str) -> bool:
        return key.startswith("peer:") and self.folder.is_done(key)  # tried once, it stays so

    def __getattr__(self, name: str) -> Any:
        return getattr(self.folder, name)


def open_environment(device: str | None, threads: int | None) -> Environment:
    """The environment of this process on the device asked for, its threads pinned.

    Raises: UsageError without that device, or for too many threads.
    """
    from bench.cores import use_threads

    kind: Kind = device or default_kind()
    if kind == "cuda" and threads is not None:
        raise UsageError(f"--threads {threads} is for a CPU; add --device cpu")
    if kind == "cuda" and os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise UsageError("TRITON_INTERPRET=1 is set: unset it, an interpreted kernel has no time")
    if kind == "cpu":
        use_threads(threads)
    return this_environment(kind)


def open_bench(args: argparse.Namespace) -> Any:
    """The Bench of a measuring command; its environment is in the results.

    Raises: UsageError; SpecError if the folder holds a broken results file.
    """
    environment = open_environment(args.device, args.threads)
    return bench_of(environment, args.out, fresh=args.fresh)


def bench_of(environment: Environment, out: Path, *, fresh: bool = False) -> Any:
    """The Bench of an environment, its results in a folder.

    Raises: SpecError if the folder holds a broken results file.
    """
    from bench.kernels.contest import Bench, rule_of
    from bench.probe.host import hardware_of

    folder = ResultsFolder(out)
    folder.add_environment(environment)
    try:
        hardware = hardware_of(environment, measurements_of(out, environment.device))
    except UsageError:  # nobody has probed it yet
        hardware = None
    measured = hardware.measured if hardware else None
    return Bench(
        environment=environment,
        results=Again(folder) if fresh else folder,
        rule=rule_of(environment.kind),
        read_bytes_per_s=measured.read_bytes_per_s if measured else None,
    )


def measurements_of(folder: Path, device: str) -> list[Measurement]:
    """What a results folder holds about one device; nothing where there are no results yet."""
    if not (folder / "results.jsonl").exists():
        return []
    return [m for m in read_measurements(folder) if m.device == device]
