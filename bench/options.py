"""The commands of `python -m bench`: their options, and where their functions are."""

from typing import Any

from perfmodel.arguments import OneLineParser


def add_commands(subparsers: Any) -> None:
    """Every command; each adder stands below, in the order of `--help`."""


def add_command(subparsers: Any, name: str, summary: str, *, run: tuple[str, str]) -> OneLineParser:
    """A command; `run` is (module, function of the parsed arguments that returns the exit code)."""
    parser: OneLineParser = subparsers.add_parser(name, help=summary, description=f"{summary}.")
    parser.set_defaults(run=run, parser=parser)
    return parser
