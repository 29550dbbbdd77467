"""Measured generations as tables: beside their prediction, FP16 and GPTQ, and beside the paper."""

import re
from collections.abc import Sequence
from typing import Any

from bench.measurement import Measurement
from perfmodel.fit.measurement import MeasuredRun, load_measurements
from perfmodel.show.tables import Column, Table
from perfmodel.units import GIGA

PAPER = "squeezellm-2023"  # Tables 3 and 6, as perfmodel has them


def row(case: Measurement, among: Sequence[Measurement]) -> dict[str, Any]:
    """One measured generation as raw values; `among` has what it is compared with."""
    new, facts = int(case.params["new"]), case.facts
    predicted_s = facts.get("predicted_s")
    return {
        "model": case.params["model"],
        "layers": case.params["layers"],
        "weights": case.name,
        "stack": case.params["stack"],
        "prompt": case.params["prompt"],
        "new": new,
        "latency_s": case.median_s,
        "per_token_s": case.median_s / new,
        "tokens_per_s": new / case.median_s,
        "predicted_s": predicted_s,
        "calibrated_s": facts.get("calibrated_s"),
        "measured_over_predicted": case.median_s / predicted_s if predicted_s else None,
        "speedup_fp16": speedup(case, "fp16", among),
        "speedup_gptq": speedup(case, _gptq_of(case.name), among),
        "peak_bytes": facts["peak_bytes"],
        "noise": case.noise,
        "refused": case.refused,
    }


def speedup(case: Measurement, name: str | None, among: Sequence[Measurement]) -> float | None:
    """Median time of the other format over this one's, all else equal; None where it is not."""
    for other in among:
        same = (other.params, other.device) == (case.params, case.device)
        if other.name == name and same and not (other.refused or case.refused):
            return other.median_s / case.median_s
    return None


def generate_table(cases: Sequence[Measurement]) -> Table:
    """All cases, in the order taken."""
    rows = [row(case, cases) for case in cases]
    columns = [
        Column(key="model", heading="model", right=False),
        Column(key="layers", heading="layers"),
        Column(key="weights", heading="weights", right=False),
        Column(key="stack", heading="stack", right=False),
        Column(key="new", heading="new"),
        Column(key="latency_s", heading="latency s", show=_three),
        Column(key="per_token_s", heading="ms/token", show=_ms),
        Column(key="tokens_per_s", heading="tokens/s", show=_three),
        Column(key="predicted_s", heading="ideal s", show=_three),
        Column(key="calibrated_s", heading="probed s", show=_three),
        Column(key="measured_over_predicted", heading="of ideal", show=_times),
        Column(key="speedup_fp16", heading="vs fp16", show=_times),
        Column(key="speedup_gptq", heading="vs gptq", show=_times),
        Column(key="peak_bytes", heading="peak GB", show=_giga),
        Column(key="noise", heading="noise", show=_percent),
    ]
    refused = [
        f"{r['weights']}, {r['new']} new, is no result: {r['refused']}"
        for r in rows
        if r["refused"]
    ]
    return Table(head=_head(cases), columns=columns, rows=rows, foot=refused)


def paper_rows(
    cases: Sequence[Measurement], published: Sequence[MeasuredRun]
) -> list[dict[str, Any]]:
    """Ours beside the same model, format and length of the paper; speed-ups within each."""
    rows = []
    for case in cases:
        found = _published(case, published)
        if found is None or case.refused:
            continue
        theirs = _published_as(case, "fp16", published)
        rows.append(
            {
                "model": case.params["model"],
                "weights": case.name,
                "new": case.params["new"],
                "stack": case.params["stack"],
                "latency_s": case.median_s,
                "paper_latency_s": found.time_s,
                "speedup_fp16": speedup(case, "fp16", cases),
                "paper_speedup_fp16": theirs and theirs.time_s / found.time_s,
                "peak_bytes": case.facts["peak_bytes"],
                "paper_peak_bytes": found.memory_bytes,
            }
        )
    return rows


def paper_table(cases: Sequence[Measurement]) -> Table | None:
    """SqueezeLLM's Tables 3 and 6 made again; None where nothing measured stands in them."""
    rows = paper_rows(cases, load_measurements(PAPER))
    if not rows:
        return None
    head = [
        "beside the paper: SqueezeLLM, arXiv 2306.07629v1, Tables 3 and 6, RTX A6000",
        "latency compares devices; speed-up over FP16 compares methods",
    ]
    columns = [
        Column(key="model", heading="model", right=False),
        Column(key="weights", heading="weights", right=False),
        Column(key="stack", heading="stack", right=False),
        Column(key="new", heading="new"),
        Column(key="latency_s", heading="latency s", show=_three),
        Column(key="paper_latency_s", heading="paper s", show=_three),
        Column(key="speedup_fp16", heading="vs fp16", show=_times),
        Column(key="paper_speedup_fp16", heading="paper vs fp16", show=_times),
        Column(key="peak_bytes", heading="peak GB", show=_giga),
        Column(key="paper_peak_bytes", heading="paper GB", show=_giga),
    ]
    return Table(head=head, columns=columns, rows=rows)


def plain_name(format_name: str) -> str:
    """The format without how its bytes are counted or its sparse part is laid out."""
    return re.sub(r"-(hybrid|balanced)\b", "", format_name.partition("@")[0])


def _published(case: Measurement, published: Sequence[MeasuredRun]) -> MeasuredRun | None:
    return _published_as(case, plain_name(case.name), published)


def _published_as(
    case: Measurement, name: str, published: Sequence[MeasuredRun]
) -> MeasuredRun | None:
    asked = case.params
    for run in published:
        work = run.workload
        same = (work.model.name, work.model.layers, work.prompt, work.new) == (
            asked["model"], asked["layers"], asked["prompt"], asked["new"],
        )  # fmt: skip
        if same and plain_name(work.policy.linear.name) == name:
            return run
    return None


def _gptq_of(name: str) -> str | None:
    """GPTQ with as many bits, one scale per row."""
    bits = re.search(r"-w([2348])\b", name)
    return f"gptq-w{bits[1]}" if bits else None


def _head(cases: Sequence[Measurement]) -> list[str]:
    facts = cases[0].facts
    return [
        f"{cases[0].device}: greedy decoding of one sequence, {facts['weights']}",
        f"memory: {facts['peak_counted_by']}; ideal: the roofline of "
        f"{facts['predicted_device'] or 'an unknown device'}",
    ]


def _three(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _ms(value: float) -> str:
    return _three(value * 1e3)


def _times(value: float) -> str:
    return f"{value:.2f}x"


def _giga(value: float) -> str:
    return f"{value / GIGA:.2f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"
