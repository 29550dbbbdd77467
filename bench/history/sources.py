"""Runs from what others wrote: a results folder of `bench`, or pytest-benchmark's JSON."""

from pathlib import Path
from typing import Any

import msgspec

from bench.environment import Environment
from bench.folder import read_environments, read_measurements
from bench.history.store import Run, new_run
from bench.measurement import Measurement
from bench.replay import measurement_of
from perfmodel.errors import SpecError


def runs_of(path: Path, confirms: str | None = None) -> list[Run]:
    """One run per environment of a results folder or file, or the run of a pytest-benchmark JSON.

    Raises: SpecError.
    """
    if path.is_dir() or path.suffix == ".jsonl":
        return _runs_of_folder(path, confirms)
    return [_run_of_json(path, confirms)]


def _runs_of_folder(path: Path, confirms: str | None) -> list[Run]:
    environments = read_environments(path)
    grouped: dict[str, list[Measurement]] = {}
    for measurement in read_measurements(path):
        if measurement.environment not in environments:
            problem = f"no environment {measurement.environment!r}, which {measurement.key} names"
            raise SpecError(f"{path}: {problem}")
        grouped.setdefault(measurement.environment, []).append(measurement)
    if not grouped:
        raise SpecError(f"{path}: holds no measurement")
    return [new_run(environments[name], found, confirms) for name, found in grouped.items()]


def _run_of_json(path: Path, confirms: str | None) -> Run:
    """Benchmarks without a measurement in their extra_info are host-side ones: not kept."""
    try:
        document = msgspec.json.decode(path.read_bytes())
        environment = msgspec.convert(document["environment"], Environment)
        found = [_measurement(b) for b in document["benchmarks"] if _is_measured(b)]
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise SpecError(f"{path}: expected JSON of `pytest bench --benchmark-json`") from None
    if not found:
        raise SpecError(f"{path}: holds no measurement of ours")
    return new_run(environment, found, confirms)


def _is_measured(benchmark: dict[str, Any]) -> bool:
    return "measurement" in benchmark["extra_info"]


def _measurement(benchmark: dict[str, Any]) -> Measurement:
    facts = dict(benchmark["extra_info"]["measurement"])
    facts["facts"] = {**facts["facts"], "test": benchmark["fullname"]}
    return measurement_of(facts, benchmark["stats"]["data"])
