"""`python -m bench report`: a results folder as a page, as Markdown and as CSV."""

import argparse
import sys
from pathlib import Path

from bench.folder import LINES, read_environments, read_lines, read_measurements
from bench.kernels.predicted import compare
from bench.probe.host import hardware_of
from bench.report.content import report_of
from bench.report.files import as_csv_text, as_json_text, as_markdown_text
from bench.report.page import as_html
from bench.report.past import history_section
from bench.report.sections import Report
from perfmodel.errors import UsageError
from perfmodel.output import text_sink

WRITERS = {
    ".html": as_html, ".md": as_markdown_text, ".csv": as_csv_text, ".json": as_json_text,
}  # fmt: skip


def cmd_report(args: argparse.Namespace) -> int:
    """Write the report beside the results, or to the one file that was asked for."""
    report = read_report(args.folder, history=args.history, device=args.device)
    paths = [args.output] if args.output else [args.folder / f"report{s}" for s in WRITERS]
    for path in paths:
        with text_sink(path) as stream:
            stream.write(_writer(path)(report))
        print(f"written: {path}", file=sys.stderr)
    return 0


def read_report(folder: Path, *, history: Path | None, device: str | None) -> Report:
    """The report of one device's results.

    Raises: UsageError where the folder holds no results, or those of several devices and none
    was named; SpecError for a damaged file.
    """
    if not (folder / LINES).exists():
        raise UsageError(f"{folder}: no {LINES}; expected the --out folder of a bench command")
    environments, every = list(read_environments(folder).values()), read_measurements(folder)
    chosen = _device(folder, [e.device for e in environments], device)
    environments = [e for e in environments if e.device == chosen]
    measurements = [m for m in every if m.device == chosen]
    hardware = hardware_of(environments[-1], measurements)
    return report_of(
        environments,
        compare(measurements, hardware),
        measurements,
        read_lines(folder / LINES),
        hardware,
        history_section(history, chosen) if history else None,
    )


def _device(folder: Path, found: list[str], asked: str | None) -> str:
    devices = list(dict.fromkeys(found))
    if not devices:
        raise UsageError(f"{folder}: holds no results of any device")
    if asked in devices:
        return asked
    if asked is None and len(devices) == 1:
        return devices[0]
    have = ", ".join(devices) or "none"
    problem = f"no device {asked!r}" if asked else "--device is needed"
    raise UsageError(f"{folder}: {problem}; has results of: {have}")


def _writer(path: Path):
    try:
        return WRITERS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(WRITERS)
        raise UsageError(f"{path}: expected a name that ends in one of {known}") from None
