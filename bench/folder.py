"""A folder of results: one line of JSON each, on disk as soon as it is known, never rewritten."""

import fcntl
import os
import threading
from pathlib import Path
from typing import Any

import msgspec

from bench.environment import Environment
from bench.measurement import Measurement
from perfmodel.errors import OutputError, SpecError

LINES = "results.jsonl"


class ResultsFolder:
    """Append-only results; what an interrupted run left is read back and not measured again.

    Raises: OutputError where there can be no such folder; SpecError for a broken results file.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot hold results: {error.strerror}") from None
        self.path = folder
        self._lock = threading.Lock()
        self._drop_torn_line()
        lines = read_lines(folder / LINES) if (folder / LINES).exists() else []
        self._done = {line["key"] for line in lines if "key" in line}
        self._environments = {line["id"] for line in lines if line["kind"] == "environment"}

    def is_done(self, key: str) -> bool:
        """Whether a measurement or job of this key is there."""
        return key in self._done

    def add_environment(self, environment: Environment) -> None:
        if environment.id not in self._environments:
            record = msgspec.to_builtins(environment)
            self.add_line({"kind": "environment", "id": environment.id, "record": record})
            self._environments.add(environment.id)

    def add(self, measurement: Measurement, *, try_again: bool = False) -> None:
        """try_again: samples that were refused are kept, but the next run measures them anew."""
        done = {} if try_again and measurement.refused else {"key": measurement.key}
        record = msgspec.to_builtins(measurement)
        self.add_line({"kind": "measurement", **done, "record": record})

    def add_line(self, line: dict[str, Any]) -> None:
        """Any JSON object with a "kind"; one with a "key" counts as done from now on."""
        with self._lock:
            with (self.path / LINES).open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # other processes may write here too
                file.write(msgspec.json.encode(line) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if "key" in line:
                self._done.add(line["key"])

    def _drop_torn_line(self) -> None:
        """A killed run can leave half a line at the end: it was never a result."""
        path = self.path / LINES
        if not path.exists():
            return
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = file.read()
            if text and not text.endswith(b"\n"):
                os.truncate(path, text.rfind(b"\n") + 1)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a results file.

    Raises: SpecError if it cannot be read or a line is no JSON object with a "kind".
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            texts = file.read().splitlines()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    return [_line(path, number, text) for number, text in enumerate(texts, start=1)]


def read_measurements(path: Path) -> list[Measurement]:
    """Measurements of a results folder or file, in the order taken; a later one of a key wins.

    Raises: SpecError if the file is wrong.
    """
    source = path / LINES if path.is_dir() else path
    found: dict[str, Measurement] = {}
    for number, line in enumerate(read_lines(source), start=1):
        if line["kind"] == "measurement":
            measurement = _record(source, number, line, Measurement)
            found[measurement.key] = measurement
    return list(found.values())


def read_environments(path: Path) -> dict[str, Environment]:
    """Environments of a results folder or file, by id.

    Raises: SpecError if the file is wrong.
    """
    source = path / LINES if path.is_dir() else path
    return {
        line["id"]: _record(source, number, line, Environment)
        for number, line in enumerate(read_lines(source), start=1)
        if line["kind"] == "environment"
    }


def _line(path: Path, number: int, text: bytes) -> dict[str, Any]:
    try:
        line = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise SpecError(f"{path}:{number}: found no JSON ({error})") from None
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        raise SpecError(f'{path}:{number}: expected an object with a "kind"')
    return line


def _record(path: Path, number: int, line: dict[str, Any], record_type: type) -> Any:
    try:
        return msgspec.convert(line.get("record"), record_type)
    except msgspec.ValidationError as error:
        raise SpecError(f"{path}:{number}: {line['kind']}: {error}") from None
