"""The argument parser of our command lines: what is wrong, in one line."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from perfmodel.errors import USAGE_EXIT, one_line

MAX_DIGITS = 18


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, with near matches for a mistyped word."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs |= {
            "allow_abbrev": False,
            "formatter_class": argparse.RawDescriptionHelpFormatter,
        }
        super().__init__(**kwargs)

    def error(self, message: str) -> NoReturn:
        line = one_line(f"{self.prog}: error: {message}{self._hint(message)}")
        self.exit(USAGE_EXIT, f"{line}\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Unknown options are reported by the sub-command that got them, which knows its own."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parsed.parser.error(f"unknown argument: {unknown[0]}")
        return parsed

    def _hint(self, message: str) -> str:
        import difflib  # only needed for an error message

        if message.startswith("unknown argument: "):
            known = [option for action in self._actions for option in action.option_strings]
            typed = message.removeprefix("unknown argument: ").partition("=")[0]
        elif "invalid choice: " in message:
            typed, _, choices = message.partition("invalid choice: ")[2].partition(" (choose from ")
            typed, known = typed.strip("'"), choices.replace("'", "").rstrip(")").split(", ")
        elif "arguments are required: " in message:
            return f"; see {self.prog} --help"
        else:
            return ""
        near = difflib.get_close_matches(typed, known, n=2, cutoff=0.5)
        return f"; did you mean {' or '.join(near)}?" if near else ""


def add_command(
    subparsers: Any, name: str, function: Any, summary: str, epilog: str = ""
) -> OneLineParser:
    """A sub-command that calls `function`."""
    parser: OneLineParser = subparsers.add_parser(
        name, help=summary, description=summary + ".", epilog=epilog
    )
    parser.set_defaults(function=function, parser=parser)
    return parser


def output_options(parser: OneLineParser) -> None:
    """How and where a result is written."""
    rendering_options(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write there (.json, .csv, .md by suffix)"
    )


def rendering_options(parser: OneLineParser) -> None:
    """How a result is written."""
    rendering = parser.add_mutually_exclusive_group()
    for name in ("json", "csv", "markdown"):
        rendering.add_argument(f"--{name}", dest="rendering", action="store_const", const=name)


def size(text: str) -> int:
    """A whole number from 0 on."""
    return _whole_number(text, least=0)


def count(text: str) -> int:
    """A whole number from 1 on."""
    return _whole_number(text, least=1)


def _whole_number(text: str, *, least: int) -> int:
    """An integer written in digits; its upper bound is checked where its meaning is known."""
    digits = text.isascii() and text.isdigit()
    if digits and len(text) > MAX_DIGITS:
        problem = f"found {len(text)} digits, expected at most {MAX_DIGITS}"
        raise argparse.ArgumentTypeError(problem)
    if not digits or int(text) < least:
        found = text if digits else repr(text)
        raise argparse.ArgumentTypeError(f"found {found}, expected a whole number from {least} on")
    return int(text)


def sizes(text: str) -> list[int]:
    """Whole numbers from 0 on, separated by commas."""
    return [size(part.strip()) for part in text.split(",")]


def counts(text: str) -> list[int]:
    """Whole numbers from 1 on, separated by commas."""
    return [count(part.strip()) for part in text.split(",")]
