"""Every error that perfmodel raises on purpose; the command line prints it on one line.

PerfmodelError(ValueError)          exit code
├── UsageError                      2   an argument is wrong
│   ├── UnknownNameError            2   no device, model, format or stack of that name
│   ├── UnknownFactError            2   the device file does not know a number that is needed
│   └── UnknownCostError            2   the stack does not know what a weight format costs
├── SpecError                       3   an input file is wrong
├── OutputError                     2   an output file cannot be written
└── CheckFailed                     1   a bar given on the command line is missed
"""

from collections.abc import Sequence

CHECK_EXIT = 1
USAGE_EXIT = 2
BAD_FILE_EXIT = 3
OUR_PACKAGES = ("bench", "kernels", "perfmodel", "quantizer")


class PerfmodelError(ValueError):
    """Base of all errors below; `exit_code` is what the command line ends with."""

    exit_code = USAGE_EXIT


class UsageError(PerfmodelError):
    """An argument is out of range or arguments contradict each other."""


class UnknownNameError(UsageError):
    """Nothing of this kind has this name; the message lists near matches."""

    def __init__(self, kind: str, name: str, known: Sequence[str], near: Sequence[str]) -> None:
        hint = f"did you mean {' or '.join(near)}?" if near else f"have: {', '.join(known)}"
        super().__init__(f"no {kind} {name!r}; {hint}")


class UnknownFactError(UsageError):
    """A number was asked for that the device file leaves open (null); it is never guessed."""

    def __init__(self, device: str, field: str, needed_for: str) -> None:
        super().__init__(
            f"{device}: {field} is unknown (null), needed for {needed_for}; "
            f"give it with --set {field}=VALUE"
        )


class UnknownCostError(UsageError):
    """A forecast was asked for with a weight format that the stack has no cost for."""


class SpecError(PerfmodelError):
    """An input file is unreadable or says something that it must not."""

    exit_code = BAD_FILE_EXIT


class OutputError(PerfmodelError):
    """A result cannot be written where it was asked for."""


class CheckFailed(PerfmodelError):  # noqa: N818  nothing is wrong with the run itself
    """A result misses a bar that the command line gave."""

    exit_code = CHECK_EXIT


def missing_package(error: ImportError, extra: str) -> UsageError:
    """What to install, from the checkout: on the package index our name is another project's.

    Raises: the error itself if the module is ours, which is a bug.
    """
    name = error.name or ""
    if name.partition(".")[0] in OUR_PACKAGES:
        raise error
    found = f"{name} is not installed" if isinstance(error, ModuleNotFoundError) else str(error)
    return UsageError(f"{found}; in the checkout: pip install -e '.[{extra}]'")


def one_line(message: str) -> str:
    """The message with line breaks and other unprintable characters written as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in message
    )
