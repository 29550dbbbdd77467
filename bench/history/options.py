"""The options of `history` and `promote`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from perfmodel.arguments import OneLineParser, output_options

HISTORY = Path("bench/runs")
AddCommand = Callable[..., OneLineParser]  # bench.options.add_command


def add_history(subparsers: Any, add_command: AddCommand) -> None:
    """`history` with its verbs, and `promote`."""
    summary = "runs that were kept, and whether a benchmark became slower"
    parser = subparsers.add_parser("history", help=summary, description=f"{summary}.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    commands = "bench.history.commands"
    listing = add_command(verbs, "list", "all runs", run=(commands, "cmd_list"))
    output_options(listing)
    adding = add_command(verbs, "add", "keep results as a run", run=(commands, "cmd_add"))
    adding.add_argument(
        "paths", nargs="+", type=Path, metavar="RESULTS",
        help="a results folder, or JSON of pytest bench --benchmark-json",
    )  # fmt: skip
    adding.add_argument("--confirms", metavar="RUN", help="it repeats RUN in a fresh process")
    summary = "hold a run against its past; exit code 1 if it is worse"
    checking = add_command(verbs, "check", summary, run=(commands, "cmd_check"))
    checking.add_argument("name", nargs="?", metavar="RUN", help="(the latest)")
    checking.add_argument(
        "--confirm", action="store_true", help="measure suspects again in three fresh processes"
    )
    checking.add_argument(
        "--allow-missing", action="store_true", help="for a run of some benchmarks only"
    )
    output_options(checking)
    plotting = add_command(verbs, "plot", "latency over commits", run=(commands, "cmd_plot"))
    plotting.add_argument("--match", default="", metavar="TEXT", help="benchmarks that hold TEXT")
    plotting.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    for verb in (listing, checking, plotting):
        verb.add_argument("--device", metavar="NAME", help="as its folder is called")
    for verb in (listing, adding, checking, plotting):
        history_option(verb)
    _add_promote(subparsers, add_command)


def _add_promote(subparsers: Any, add_command: AddCommand) -> None:
    summary = "make runs the baseline of their device"
    parser = add_command(
        subparsers, "promote", summary, run=("bench.history.commands", "cmd_promote")
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="one or more, of one device")
    parser.add_argument("--accept", metavar="REASON", help="although the check of a run fails")
    history_option(parser)


def history_option(parser: OneLineParser) -> None:
    """Where the runs are."""
    parser.add_argument(
        "--history", type=Path, default=HISTORY, metavar="DIR", help=f"folder of runs ({HISTORY})"
    )
