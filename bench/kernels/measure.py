"""Every weight format on every shape: checked, then timed side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from bench.kernels.check import check
from bench.kernels.contest import Bench, Contestant, in_batches
from bench.kernels.prepare import prepare, rotation
from bench.kernels.subjects import Subject
from bench.kernels.suite import Layer
from bench.measurement import Measurement, Scalar
from bench.peers.contest import contestants
from bench.peers.table import Peer
from perfmodel.errors import UsageError

SUITE = "kernels"
TOGETHER = 6  # subjects whose copies are in memory and that are timed in turn
CPU_CHECKED_ROWS = 1024  # its twins treat every row alike; a GPU splits rows, and checks all


class WrongResultError(Exception):
    """A kernel computed something else than its reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One subject on one layer."""

    layer: Layer
    subject: Subject

    @property
    def params(self) -> dict[str, int | float | str]:
        layer = self.layer
        place = {"model": layer.model, "tensor": layer.tensor}
        shape = {"rows": layer.rows, "columns": layer.columns, "batch": self.subject.batch}
        return {**place, **shape, **self.subject.options}

    @property
    def name(self) -> str:
        return f"{self.layer.name}/{self.subject.name}"


def measure_layer(
    bench: Bench, layer: Layer, subjects: Sequence[Subject], *, peers: Sequence[Peer] = ()
) -> None:
    """Every subject on one layer, and peers in turn with the first of them.

    What is done already is left out.
    """
    cases = [Case(layer=layer, subject=subject) for subject in subjects]
    waiting = [case for case in cases if not bench.results.is_done(_key(bench, case))]
    others = contestants(bench, layer, peers)
    for batch in in_batches(waiting, TOGETHER):
        ready = [found for case in batch for found in _ready(bench, case)]
        bench.time([*ready, *others])
        others = []
    if others:
        bench.time(others)


def _key(bench: Bench, case: Case) -> str:
    return bench.key(SUITE, case.subject.weights, case.params)


def measure_case(bench: Bench, case: Case) -> Measurement:
    """One case alone.

    Raises: WrongResultError; UsageError where nothing here runs it; RuntimeError where other
    processes disturbed every sample.
    """
    taken = bench.time([contestant(bench, case)])
    if not taken:
        raise RuntimeError(f"{case.name}: every sample was disturbed by other processes")
    return taken[0]


def _ready(bench: Bench, case: Case) -> Iterator[Contestant]:
    """The case as a contestant, or a line that says why not."""
    about = {"name": case.subject.name, "layer": case.layer.name}
    try:
        yield contestant(bench, case)
    except UsageError as error:
        bench.results.add_line({"kind": "skipped", **about, "reason": str(error)})
    except torch.OutOfMemoryError as error:
        reason = f"out of memory: {str(error).partition('.')[0]}"
        bench.results.add_line({"kind": "skipped", **about, "reason": reason})
    except Exception as error:  # a kernel that does not compile or run is wrong, and not the last
        words = f"{type(error).__name__}: {error}".partition("\n")[0]
        why = str(error) if isinstance(error, WrongResultError) else words
        bench.results.add_line({"kind": "check", **about, "ok": False, "why": why})


def contestant(bench: Bench, case: Case) -> Contestant:
    """Weights on the device, found right against FP64, in enough copies to be cold.

    Raises: WrongResultError; UsageError where nothing here runs the case.
    """
    prepared = prepare(case.subject, case.layer.shape, bench.environment.kind)
    found = check(prepared, rows=None if bench.is_cuda else CPU_CHECKED_ROWS)
    if not found.ok:
        raise WrongResultError(f"{found.why}: {found.error:.1e}, at most {found.limit:.0e}")
    copies = bench.cold_copies(prepared.weight_bytes)
    facts: dict[str, Scalar] = {
        "kernel": prepared.kernel, "error": found.error, "error_limit": found.limit,
        "copies": copies, "weight_bytes": prepared.weight_bytes,
    }  # fmt: skip
    return Contestant(
        suite=SUITE, name=case.subject.weights, params=case.params, facts=facts, copies=copies,
        call=rotation(prepared, copies), bytes_moved=prepared.bytes_moved, flops=prepared.flops,
    )  # fmt: skip
