"""The argument parser of our command lines: what is wrong, in one line."""

import argparse
from typing import Any, NoReturn

from perfmodel.errors import USAGE_EXIT, one_line


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
        else:
            return ""
        near = difflib.get_close_matches(typed, known, n=2, cutoff=0.5)
        return f"; did you mean {' or '.join(near)}?" if near else ""
