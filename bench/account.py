"""What `bench all` leaves besides kernels and text: checks, rates, tuning, the quantizer, jobs."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from bench.measurement import Measurement
from perfmodel.show.tables import Column, Table

Lines = Sequence[Mapping[str, Any]]


def account(lines: Lines, measurements: Sequence[Measurement]) -> list[Table]:
    """What was found, and what was not done."""
    return [*findings(lines, measurements), *_not_empty(_not_done(lines))]


def findings(lines: Lines, measurements: Sequence[Measurement]) -> list[Table]:
    """Every table that has rows."""
    return _not_empty(
        _checks(lines),
        _rates(lines),
        _launches(measurements),
        _profiled(measurements),
        _tuning(lines),
        _quantizer(lines),
        _sanitizer(lines),
    )


def _not_empty(*tables: Table) -> list[Table]:
    return [table for table in tables if table.rows or table.head]


def failures(lines: Lines) -> list[str]:
    """Kernels that are wrong and jobs that failed, each in one line; stopped jobs are not."""
    wrong = [f"{_where(line)}: {line['why']}" for line in _of(lines, "check") if not line["ok"]]
    done = {line["name"] for line in _of(lines, "job") if not line["exit_code"]}
    failed = [
        f"{line['name']}: exit code {line['exit_code']}"
        for line in _of(lines, "job")
        if line.get("reason") == "failed" and line["name"] not in done
    ]
    errors = [
        f"{line['tool']}: {line['detail']}" for line in _of(lines, "sanitizer") if line["errors"]
    ]
    return [*wrong, *failed, *errors]


def _of(lines: Lines, kind: str) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["kind"] == kind]


def _where(line: Mapping[str, Any]) -> str:
    return f"{line['name']} {line.get('shape') or line.get('layer', '')}"


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    columns = [
        Column(key=heading, heading=heading, right=index > 0 and heading != "why")
        for index, heading in enumerate(headings)
    ]
    named = [dict(zip(headings, row, strict=True)) for row in rows]
    return Table(head=[title] if rows else [], columns=columns, rows=named)


def _checks(lines: Lines) -> Table:
    checks = _of(lines, "check")
    wrong = [(_where(line), line["why"]) for line in checks if not line["ok"]]
    table = _table("", ("kernel", "why"), wrong)
    title = f"correctness against FP64: {len(checks) - len(wrong)} right, {len(wrong)} wrong"
    return Table(head=[title] if checks else [], columns=table.columns, rows=table.rows)


def _rates(lines: Lines) -> Table:
    rows = [
        (line["instruction"], f"{line['lanes_per_clock_per_sm']:.1f}", f"{line['assumed'] or '-'}")
        for line in _of(lines, "rate")
    ]
    title = "lanes per clock and SM, the clock taken from FFMA"
    return _table(title, ("instruction", "measured", "rates.yaml"), rows)


def _launches(measurements: Sequence[Measurement]) -> Table:
    """On a GPU: from the host, in a graph, and in a graph each before the last one's end."""
    rows = [
        (m.params["mode"], f"{m.median_s * 1e6:.2f}")
        for m in measurements
        if (m.suite, m.name) == ("probe", "launch") and m.timing_mode != "cpu-clock"
        if not m.refused
    ]
    return _table("what a launch costs, us", ("mode", "us"), rows)


def _quantizer(lines: Lines) -> Table:
    """Matrices of one name in several blocks together."""
    found: dict[tuple[str, str], list[float]] = {}
    for line in _of(lines, "quantizer"):
        found.setdefault((line["name"], line["what"]), []).append(line["seconds"])
    rows = [(*what, len(taken), f"{median(taken):.3g}") for what, taken in found.items()]
    title = "the quantizer on the shapes of LLaMA-7B, median seconds"
    return _table(title, ("case", "what", "times", "s"), rows)


def _profiled(measurements: Sequence[Measurement]) -> Table:
    """The graph's time of a call beside the profiler's, of the same kernel and shape."""
    graph = {_kernel(m): m for m in measurements if m.suite == "kernels" and not m.refused}
    rows = []
    for m in measurements:
        beside = graph.get(_kernel(m))
        if m.suite == "isolated" and beside and not m.refused:
            shape = f"{m.params['rows']}x{m.params['columns']}"
            ratio = beside.median_s / m.median_s - 1
            times = (f"{beside.median_s * 1e6:.2f}", f"{m.median_s * 1e6:.2f}")
            rows.append((m.name, shape, *times, f"{100 * ratio:+.1f} %"))
    title = "a call in the graph beside torch's profiler, us"
    return _table(title, ("kernel", "shape", "graph", "profiler", "difference"), rows)


def _kernel(m: Measurement) -> tuple[Any, ...]:
    params = {k: v for k, v in m.params.items() if k not in ("model", "tensor")}
    return m.name, *sorted(params.items())


def _tuning(lines: Lines) -> Table:
    rows = []
    for line in _of(lines, "tune"):
        seconds = line["seconds_by_setting"]
        best = min(seconds, key=seconds.__getitem__)
        shipped = seconds[line["shipped"]]
        now = f"{line['shipped']}: {shipped * 1e6:.2f} us"
        rows.append((line["name"], line["shape"], now, f"{best}: {seconds[best] * 1e6:.2f} us"))
    title = "settings of kernels/configs.py"
    return _table(title, ("kernel", "shape", "shipped", "fastest"), rows)


def _sanitizer(lines: Lines) -> Table:
    rows = [(line["tool"], line["errors"], line["detail"]) for line in _of(lines, "sanitizer")]
    return _table("compute-sanitizer", ("tool", "errors", "why"), rows)


def _not_done(lines: Lines) -> Table:
    """Skipped cases once per reason, and jobs that did not end well."""
    done = {line["name"] for line in _of(lines, "job") if not line["exit_code"]}
    rows = dict.fromkeys(
        (line["name"], line["reason"])
        for line in lines
        if line["kind"] in ("skipped", "job", "peer") and line.get("reason")
        if line.get("name") not in done and "name" in line
    )
    return _table("not done", ("name", "why"), list(rows))
