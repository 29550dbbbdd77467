"""Errors of the quantizer; the command line prints them on one line.

PerfmodelError
├── UsageError                exit 2   an argument is wrong (perfmodel.errors)
├── OutputError               exit 2   something cannot be written (perfmodel.errors)
├── IdentityError             exit 2   the output folder belongs to another job
├── CheckpointError           exit 3   an input file is wrong
├── CheckFailedError          exit 1   damaged shards, or blocks that could not be quantized
└── StoppedError              exit 75  stopped on request; can be resumed
"""

from perfmodel.errors import OutputError, PerfmodelError, SpecError, UsageError

CHECK_FAILED_EXIT = 1
RESUMABLE_EXIT = 75

__all__ = [
    "CheckFailedError",
    "CheckpointError",
    "IdentityError",
    "OutputError",
    "PerfmodelError",
    "StoppedError",
    "UsageError",
]


class CheckpointError(SpecError):
    """A checkpoint, text or statistics file is unreadable or says something that it must not."""


class IdentityError(PerfmodelError):
    """Finished work in the output folder was made from other inputs or settings."""


class CheckFailedError(PerfmodelError):
    """The command ran to its end, and what it found or made is not all right."""

    exit_code = CHECK_FAILED_EXIT


class StoppedError(PerfmodelError):
    """Stopped on request; what is finished stays, and the same command goes on."""

    exit_code = RESUMABLE_EXIT
