"""What is to be reached on an H200, and `python -m bench aims`: what a results folder says of it.

The aims are of this project, set before anything ran on a GPU; a share is of the datasheet's 4.8
TB/s, with cold weights. What nobody measured is said to be missing, not met.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.folder import LINES, read_lines
from bench.generate.measure import SUITE as GENERATE
from bench.generate.view import speedup
from bench.kernels.predicted import Compared, devices_in, usable
from bench.kernels.validate import calibrated_generations, held_out
from bench.measurement import Measurement
from perfmodel.errors import UsageError
from perfmodel.fit.validation import Pair, summarise
from perfmodel.format_names import parse_format
from perfmodel.hardware import HardwareSpec
from perfmodel.models import load_model
from perfmodel.output import Output, write_output
from perfmodel.show.tables import Column, Table

OK, MISSED = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a results folder holds about one GPU."""

    hardware: HardwareSpec
    compared: Sequence[Compared]  # usable kernels and peers
    generations: Sequence[Measurement]
    lines: Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A measured number, and what it was measured on."""

    value: float
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """A number to reach; `find` looks for it, and gives None where nobody measured it."""

    what: str
    limit: float
    unit: str  # of the limit: "%", "us", "x" or "s"
    least: bool  # the number is to be at least the limit; else at most
    find: Callable[[Facts], Found | None]

    def is_met(self, found: Found) -> bool:
        return found.value >= self.limit if self.least else found.value <= self.limit


def _share(bits: int, rows: int, columns: int, percent: float) -> Aim:
    def find(facts: Facts) -> Found | None:
        best = _fastest_lut(facts, bits, rows, columns)
        if best is None:
            return None
        share = best.measurement.bytes_per_s / facts.hardware.dram_bytes_per_s
        return Found(value=100 * share, by=best.label)

    what = f"{bits}-bit tables, {rows} x {columns}: share of the bandwidth"
    return Aim(what=what, limit=percent, unit="%", least=True, find=find)


def _time(bits: int, rows: int, columns: int, us: float) -> Aim:
    def find(facts: Facts) -> Found | None:
        best = _fastest_lut(facts, bits, rows, columns)
        return best and Found(value=1e6 * best.measurement.median_s, by=best.label)

    what = f"{bits}-bit tables, {rows} x {columns}: time"
    return Aim(what=what, limit=us, unit="us", least=False, find=find)


def _fastest_lut(facts: Facts, bits: int, rows: int, columns: int) -> Compared | None:
    """Of all kernels with one table per row and so many bits, dense, for one token."""
    found = [
        c for c in facts.compared
        if (c.measurement.params["rows"], c.measurement.params["columns"]) == (rows, columns)
        and _is_dense_lut(c.measurement, bits)
    ]  # fmt: skip
    return min(found, key=lambda c: c.measurement.median_s, default=None)


def _is_dense_lut(m: Measurement, bits: int) -> bool:
    name = m.name.partition("-")[0]
    ours = m.suite == "kernels" and name == "squeezellm" and m.params["batch"] == 1
    return ours and parse_format(m.name).code_bits == bits and parse_format(m.name).sparse is None


def _ratio(what: str, name: str, beside: str, most: float) -> Aim:
    """The worst over the shapes on which both were measured; names as `label_of` gives them."""

    def find(facts: Facts) -> Found | None:
        times = {c.label: c.measurement.median_s for c in facts.compared}
        ratios = [
            Found(value=times[label] / times[other], by=label)
            for label in times
            if label.partition("/")[2] == name
            and (other := f"{label.partition('/')[0]}/{beside}") in times
        ]
        return max(ratios, key=lambda found: found.value, default=None)

    return Aim(what=f"{what}: time over {beside}", limit=most, unit="x", least=False, find=find)


def _speedup(bits: int, least: float) -> Aim:
    """The least over the models and lengths that were generated."""

    def find(facts: Facts) -> Found | None:
        ratios = [
            Found(value=ratio, by=f"{m.params['model']}, {m.params['new']} tokens")
            for m in facts.generations
            if m.name == f"squeezellm-w{bits}" and m.params["stack"] == "memwall"
            if (ratio := speedup(m, "fp16", facts.generations))
        ]
        return min(ratios, key=lambda found: found.value, default=None)

    what = f"{bits}-bit tables, generation: speed-up over the best FP16"
    return Aim(what=what, limit=least, unit="x", least=True, find=find)


def _kernel_error(share: str, most: float) -> Aim:
    def find(facts: Facts) -> Found | None:
        ours = [c for c in facts.compared if c.measurement.suite == "kernels" and c.calibrated_s]
        return _error(held_out(ours), share)

    what = f"prediction of kernels on held-out shapes: {share} error"
    return Aim(what=what, limit=most, unit="%", least=False, find=find)


def _generation_error(most: float) -> Aim:
    def find(facts: Facts) -> Found | None:
        return _error(calibrated_generations(facts.generations), "median")

    what = "prediction of generations from the probe: median error"
    return Aim(what=what, limit=most, unit="%", least=False, find=find)


def _error(pairs: Sequence[Pair], share: str) -> Found | None:
    if not pairs:
        return None
    summary = summarise(pairs)
    value = summary.median if share == "median" else summary.p90
    return Found(value=100 * value, by=f"{summary.count} cases, worst {summary.worst_label}")


def _clustering(bits: int, most_s: float) -> Aim:
    def find(facts: Facts) -> Found | None:
        found = [line for line in facts.lines if line["kind"] == "quantizer"]
        found = [line for line in found if line["name"] == f"kmeans-w{bits}"]
        if not found:
            return None
        model = load_model("llama-7b")
        every = [linear.out_features * linear.in_features for linear in model.linears()]
        done = sum(line["weights"] for line in found)
        seconds = sum(line["seconds"] for line in found)
        by = f"{len(found)} of {model.layers * len(every)} matrices, scaled to all"
        return Found(value=seconds / done * model.layers * sum(every), by=by)

    what = f"exact k-means of LLaMA-7B, {2**bits} entries"
    return Aim(what=what, limit=most_s, unit="s", least=False, find=find)


_SPARSE = "dense and 0.45 % sparse"
AIMS = (
    *(_share(bits, 22016, 4096, 70) for bits in (3, 4)),
    *(_share(bits, 11008, 4096, 60) for bits in (3, 4)),
    *(_share(bits, 4096, 4096, 40) for bits in (3, 4)),
    *(_share(bits, 28672, 8192, 80) for bits in (3, 4)),
    _time(4, 8192, 8192, 12),
    _ratio(_SPARSE, "squeezellm-w3-s0.45-hybrid", "squeezellm-w3", 1.08),
    _ratio(_SPARSE, "squeezellm-w4-s0.45-hybrid", "squeezellm-w4", 1.08),
    _ratio("folded act-order, groups of 128", "gptq-w4-g128-act-fold", "gptq-w4", 1.10),
    _speedup(3, 4.0),
    _speedup(4, 3.2),
    _kernel_error("median", 5),
    _kernel_error("90th percentile", 10),
    _generation_error(5),
    _clustering(3, 60),
    _clustering(4, 60),
)


def cmd_aims(args: argparse.Namespace) -> int:
    """Print the aims beside what was measured; 1 unless every one is met.

    Raises: UsageError for a folder without results; SpecError for a damaged one.
    """
    rows = aim_rows(facts_of(args.folder))
    write_output(aims_output(rows), args.rendering, args.output)
    return OK if all(row["met"] for row in rows) else MISSED


def facts_of(folder: Path) -> Facts | None:
    """What the folder says of its GPU; None where it has no results of one.

    Raises: UsageError where there is no results folder; SpecError for a damaged one.
    """
    if not (folder / LINES).exists():
        raise UsageError(f"{folder}: no {LINES}; expected the --out folder of a bench command")
    for device in devices_in(folder):
        if device.environment.kind == "cuda":
            return Facts(
                hardware=device.hardware,
                compared=usable(device.compared),
                generations=[m for m in device.measurements if m.suite == GENERATE],
                lines=read_lines(folder / LINES),
            )
    return None


def aim_rows(facts: Facts | None, aims: Iterable[Aim] = AIMS) -> list[dict[str, Any]]:
    """One row per aim; `met` is None where nothing was measured."""
    rows = []
    for aim in aims:
        found = aim.find(facts) if facts else None
        rows.append(
            {
                "aim": aim.what,
                "limit": f"{'at least' if aim.least else 'at most'} {aim.limit:g} {aim.unit}",
                "measured": found and found.value,
                "unit": aim.unit,
                "met": found and aim.is_met(found),
                "by": found.by if found else "not measured",
            }
        )
    return rows


def aims_output(rows: list[dict[str, Any]]) -> Output:
    document = {"schema": "memwall.aims/1", "results": rows}
    return Output(document=lambda: document, rows=lambda: rows, tables=lambda: [aims_table(rows)])


def aims_table(rows: list[dict[str, Any]]) -> Table:
    """The rows for people, and how many are met, missed and missing."""
    columns = [
        Column(key="aim", heading="aim", right=False),
        Column(key="limit", heading="to reach"),
        Column(key="shown", heading="measured"),
        Column(key="verdict", heading="met", right=False),
        Column(key="by", heading="by", right=False),
    ]
    shown = [
        {
            **row,
            "shown": "-" if row["measured"] is None else f"{row['measured']:.3g} {row['unit']}",
            "verdict": {True: "yes", False: "NO", None: "missing"}[row["met"]],
        }
        for row in rows
    ]
    verdicts = [row["met"] for row in rows]
    foot = (
        f"{verdicts.count(True)} met, {verdicts.count(False)} missed, "
        f"{verdicts.count(None)} not measured"
    )
    return Table(
        head=["what is to be reached on an H200"], columns=columns, rows=shown, foot=[foot]
    )
