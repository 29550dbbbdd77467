"""Runs on disk: one file each that is never written again, and the baseline that people promote.

    ROOT/DEVICE/UTC-COMMIT[-dirty]-ID.json.gz
    ROOT/DEVICE/baseline.json

There is no index: a folder of a hundred runs is read in about a second, and what does not exist
cannot disagree with the files.
"""

import gzip
import hashlib
import os
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from bench.environment import Environment
from bench.measurement import Measurement
from perfmodel.errors import OutputError, SpecError, UsageError
from perfmodel.output import as_json, whole_file

SUFFIX = ".json.gz"
BASELINE = "baseline.json"
MAX_BYTES = 256 << 20  # of one run, unpacked
ID_CHARS = 12
SHOWN_CHARS = 8

Record = TypeVar("Record")


class Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one process measured on one device."""

    schema: str = "memwall.run/1"
    id: str  # hash of what follows: the same run added twice is one file
    environment: Environment
    measurements: tuple[Measurement, ...]
    confirms: str | None = None  # id of the run that this one repeats in a fresh process

    @property
    def by_key(self) -> dict[str, Measurement]:
        return {measurement.key: measurement for measurement in self.measurements}

    @property
    def commit(self) -> str:
        """Seven characters of the commit, with a star where files differed from it."""
        commit = self.environment.commit or "none"
        return commit[:7] + ("*" if self.environment.dirty else "")

    @property
    def file_name(self) -> str:
        """When, what and which: sorts by date."""
        when = datetime.fromisoformat(self.environment.date_utc).astimezone(UTC)
        commit = (self.environment.commit or "none")[:12]
        parts = [f"{when:%Y%m%dT%H%M%S}{when.microsecond // 1000:03}Z", commit]
        parts += ["dirty"] if self.environment.dirty else []
        return "-".join([*parts, self.id[:SHOWN_CHARS]]) + SUFFIX


class Baseline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The runs that others are held against; written by `promote` alone, reviewed like code."""

    schema: str = "memwall.baseline/1"
    runs: tuple[str, ...]
    date_utc: str
    accepted: str | None = None  # why runs were promoted although their check failed


def new_run(
    environment: Environment, measurements: Sequence[Measurement], confirms: str | None = None
) -> Run:
    """A run with its id.

    Raises: UsageError if it holds nothing, or a measurement of another device.
    """
    if not measurements:
        raise UsageError("a run without measurements is no run")
    for measurement in measurements:
        if measurement.device != environment.device:
            problem = f"measured on {measurement.device}, the run is of {environment.device}"
            raise UsageError(f"{measurement.key}: {problem}")
    content = msgspec.json.encode((environment, measurements, confirms))
    return Run(
        id=hashlib.sha256(content).hexdigest()[:ID_CHARS],
        environment=environment,
        measurements=tuple(measurements),
        confirms=confirms,
    )


def check_repeats(run: Run, environment: Environment) -> None:
    """Whether a process in this environment repeats a run: same device, same commit.

    Raises: UsageError if it would measure something else.
    """
    for name in ("device", "commit"):
        ours, theirs = getattr(environment, name), getattr(run.environment, name)
        if ours != theirs:
            raise UsageError(f"this does not repeat run {run.id}: {name} {ours}, not {theirs}")


def read_run(path: Path) -> Run:
    """One run.

    Raises: SpecError if the file cannot be read, is cut off, damaged, or not a run.
    """
    try:
        with gzip.open(path, "rb") as stream:
            text = stream.read(MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        problem = f"damaged ({str(error).rstrip('.')})"
        raise SpecError(f"{path}: {problem}; restore it from git or move it away") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(text) > MAX_BYTES:
        raise SpecError(f"{path}: found more than {MAX_BYTES} bytes, expected a run")
    return _decode(path, text, Run)


@dataclass(frozen=True, slots=True)
class History:
    """A folder of runs, one sub-folder per device."""

    root: Path

    def devices(self) -> list[str]:
        """Slugs of the devices that have runs."""
        return sorted({path.parent.name for path in self.root.glob(f"*/*{SUFFIX}")})

    def add(self, run: Run) -> tuple[Path, bool]:
        """(file of the run, whether it is new).

        The file appears whole or not at all, and takes no other's place.
        Raises: OutputError.
        """
        path = self.root / run.environment.device / run.file_name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path, _create(path, gzip.compress(msgspec.json.encode(run), mtime=0))
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from None

    def runs(self, device: str) -> list[Run]:
        """All runs of a device, oldest first.

        Raises: SpecError for a file that is damaged: a history with a gap is not compared.
        """
        return [read_run(path) for path in sorted((self.root / device).glob(f"*{SUFFIX}"))]

    def find(self, name: str) -> Run:
        """The run whose id starts with `name`.

        Raises: UsageError if there is none, or more than one; SpecError.
        """
        paths = list(self.root.glob(f"*/*{SUFFIX}"))
        found = [path for path in paths if _id_of(path).startswith(name[:SHOWN_CHARS])]
        runs = [run for run in map(read_run, found) if run.id.startswith(name)]
        if len(runs) != 1:
            known = ", ".join(_id_of(path) for path in sorted(paths)[-5:]) or "none"
            found_text = f"{len(runs)} runs" if runs else "no run"
            raise UsageError(f"{found_text} {name!r} in {self.root}; the latest are: {known}")
        return runs[0]

    def baseline(self, device: str) -> Baseline | None:
        """What was promoted on a device.

        Raises: SpecError.
        """
        path = self.root / device / BASELINE
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
        return _decode(path, text, Baseline)

    def promoted(self, device: str, runs: Sequence[Run]) -> list[Run]:
        """The baseline's runs, which are among all `runs` of the device; none yet: empty.

        Raises: SpecError if a run that was promoted is no longer there.
        """
        baseline = self.baseline(device)
        by_id = {run.id: run for run in runs}
        for run_id in baseline.runs if baseline else ():
            if run_id not in by_id:
                path = self.root / device / BASELINE
                raise SpecError(f"{path}: names run {run_id}, which is not there; promote another")
        return [by_id[run_id] for run_id in baseline.runs] if baseline else []

    def promote(self, runs: Sequence[Run], accepted: str | None = None) -> Path:
        """Make these runs of one device its baseline.

        Raises: UsageError for runs of several devices; OutputError.
        """
        devices = {run.environment.device for run in runs}
        if len(devices) != 1:
            raise UsageError(f"found runs of {', '.join(sorted(devices))}, expected one device")
        baseline = Baseline(
            runs=tuple(run.id for run in runs),
            date_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            accepted=accepted,
        )
        path = self.root / devices.pop() / BASELINE
        with whole_file(path) as temporary:
            temporary.write_text(as_json(baseline), encoding="utf-8")
        return path


def _id_of(path: Path) -> str:
    return path.name.removesuffix(SUFFIX).rpartition("-")[2]


def _create(path: Path, data: bytes) -> bool:
    """Write a new file; False where it is there already. Two writers cannot both make it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-") as temporary:
        temporary.write(data)
        temporary.flush()
        os.fsync(temporary.fileno())
        os.fchmod(temporary.fileno(), 0o444)
        try:
            os.link(temporary.name, path)
        except FileExistsError:
            return False
    return True


def _decode(path: Path, text: bytes, record_type: type[Record]) -> Record:
    try:
        return msgspec.json.decode(text, type=record_type)
    except msgspec.ValidationError as error:
        raise SpecError(f"{path}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: found no JSON ({error})") from None
