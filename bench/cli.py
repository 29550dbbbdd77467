"""`python -m bench`: arguments in, one command, its exit code out."""

import argparse
import ctypes
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from bench.options import add_commands
from perfmodel.arguments import OneLineParser
from perfmodel.errors import PerfmodelError, missing_package, one_line
from perfmodel.output import discard_output

RESUMABLE_EXIT = 75
JOB_VARIABLE = "BENCH_JOB_LIMIT_S"  # set for the jobs of `bench all`: the seconds they have
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_EXAMPLES = """\
examples:
  python -m bench doctor
  python -m bench probe
  python -m bench all --minutes 9 --out out/bench

Exit codes: 0 ok, 1 a check failed, 2 wrong arguments, 3 a wrong input file, 75 stopped, run the
same command to go on.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = build_parser().parse_args(argv)
    if JOB_VARIABLE in os.environ:
        die_with_parent()
    try:
        return run(args)
    except PerfmodelError as error:
        print(one_line(f"bench: error: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("bench: interrupted; what was measured is kept", file=sys.stderr)
        return RESUMABLE_EXIT
    except BrokenPipeError:  # the reader, `head` for example, has what it wanted
        discard_output()
    return 0


def die_with_parent() -> None:
    """End this job when `bench all` is killed: it would disturb whatever is measured next."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def build_parser() -> OneLineParser:
    """The whole command line."""
    parser = OneLineParser(
        prog="bench",
        description="Measure this device and hold every measurement against its prediction.",
        epilog=_EXAMPLES,
    )
    add_commands(parser.add_subparsers(metavar="COMMAND", required=True))
    return parser


def run(args: argparse.Namespace) -> int:
    """The command's function, imported only now: torch takes seconds, not for --help."""
    name, function = args.run
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise missing_package(error, "bench,quantizer") from None
    return int(getattr(module, function)(args))
