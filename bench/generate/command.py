"""The command `generate`: arguments into options, one run, its tables."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.cli import JOB_VARIABLE
from bench.environment import default_kind
from bench.folder import ResultsFolder, read_measurements
from bench.generate.measure import SUITE, run
from bench.generate.source import GenerateOptions, sources
from bench.generate.view import generate_table, paper_rows, paper_table, row
from bench.measurement import Measurement
from bench.session import Again, open_environment
from perfmodel.errors import UsageError
from perfmodel.fit.measurement import load_measurements
from perfmodel.output import Output, write_output

SPARE_S = 5.0  # of a job of `bench all`, for the table


def cmd_generate(args: argparse.Namespace) -> int:
    """Exit codes: 0 ok, 1 when a checkpoint's text is not that of its dequantized model."""
    if args.check is not None:
        return _check(args)
    options = options_of(args)
    environment, folder = open_environment(args.device, args.threads), ResultsFolder(args.out)
    results = Again(folder) if args.fresh else folder
    limit_s = min(60 * args.minutes, float(os.environ.get(JOB_VARIABLE, "inf")) - SPARE_S)
    deadline_s = time.monotonic() + limit_s
    skipped = run(options, environment, results, deadline_s, say=_say)
    wanted = {source.format_name for source in sources(options)}
    cases = [case for case in read_measurements(args.out) if _is_asked(case, options, wanted)]
    if cases:
        write_output(_output(cases), args.rendering, args.output)
    for line in skipped:
        _say(f"skipped: {line}")
    return 0


def options_of(args: argparse.Namespace) -> GenerateOptions:
    """The arguments as `run` takes them."""
    return GenerateOptions(
        model=args.model,
        weights=args.weights and tuple(args.weights),
        new=tuple(args.new),
        prompt=args.prompt,
        stacks=tuple(args.stack),
        layers=args.layers,
        runs=args.runs,
        hardware=args.hardware,
    )


def _check(args: argparse.Namespace) -> int:
    from bench.generate.text_check import check_text  # transformers: seconds

    folder = Path(args.model)
    if not folder.is_dir():
        raise UsageError(f"--check: {args.model} is no checkpoint folder")
    found = check_text(folder, kind=args.device or default_kind(), new=args.check)
    print(f"{folder.resolve().name}: {found.sentence}")
    return 0 if found.ok else 1


def _is_asked(case: Measurement, options: GenerateOptions, formats: set[str]) -> bool:
    """Whether a stored case is one of this command line, and not of an earlier one."""
    asked = case.params
    return (
        case.suite == SUITE
        and case.name in formats
        and asked["new"] in options.new
        and asked["prompt"] == options.prompt
        and asked["stack"] in options.stacks
        and _is_model(case, options)
    )


def _is_model(case: Measurement, options: GenerateOptions) -> bool:
    shape = next(iter(sources(options))).shape
    return (case.params["model"], case.params["layers"]) == (shape.name, shape.layers)


def _output(cases: list[Measurement]) -> Output:
    def document() -> dict[str, Any]:
        return {
            "schema": "bench.generate.measure/1",
            "results": [row(case, cases) for case in cases],
            "paper": paper_rows(cases, load_measurements("squeezellm-2023")),
        }

    def tables() -> list[Any]:
        beside = paper_table(cases)
        return [generate_table(cases), *([beside] if beside else [])]

    return Output(document=document, rows=lambda: [row(c, cases) for c in cases], tables=tables)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
