"""Measure GPTVQ for docs/methods.md: `python docs/vector_table.py MODEL CALIBRATION TEST`.

MODEL is a checkpoint of LLaMA's shape, such as `docs/small_llama.py` makes; the texts are .txt or
.txt.gz. Prints a line per format and setting: true bits, the sum of tr(dW H dW^T), perplexity, and
by how much a token's loss differs from GPTQ's at the same budget and from the format's without the
change, in thousandths of a nat with their standard errors; CPU seconds per million weights. Needs
`pip install -e '.[quantizer]'`.
"""

import argparse
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from quantizer.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantizer.checkpoints.checkpoint_model import load_model
from quantizer.evaluation.calibration import in_domain, load_calibration, source_of
from quantizer.evaluation.evaluate import (
    EvaluationText,
    Protocol,
    load_evaluation,
    perplexity_of,
    rise,
    window_losses,
)
from quantizer.methods.ablations import GroupedWeight, low_rank_codebooks, unrounded_codebooks
from quantizer.methods.matrix import QuantizedMatrix, Settings, Statistics
from quantizer.methods.registry import needs, quantize_matrix
from quantizer.run.sequence import Calls, capture_calls, input_statistics, run_block_on
from quantizer.sensitivity.choose import format_of_bits, layer_shapes
from quantizer.sensitivity.fisher import fisher_statistics

WINDOW = 256  # tokens
BUDGETS = {
    2.125: ("gptq", "rtn", "gptvq-1d", "gptvq-2d", "gptvq-4d", "gptvq-2d-n256"),
    2.25: ("gptq", "rtn", "squeezellm", "gptvq-1d", "gptvq-2d", "gptvq-4d", "gptvq-2d-n256",
           "gptvq-2d-n64", "gptvq-1d-n64", "gptvq-4d-n256", "gptvq-4d-n64"),
    3.125: ("gptq", "rtn", "gptvq-1d", "gptvq-2d", "gptvq-2d-n256", "spqr"),
    4.125: ("gptq", "rtn", "squeezellm", "gptvq-1d", "gptvq-2d", "gptvq-2d-n256", "spqr"),
}  # fmt: skip
VARIED = {2.25: ("gptvq-1d", "gptvq-2d", "gptvq-4d-n64"), 3.125: ("gptvq-2d",)}
VARIANTS: dict[str, dict[str, Any]] = {
    "no update": {"update_codebook": False},
    "columns as they are": {"act_order": False},
    "metric released": {"vector_metric": "released"},
    "metric joint": {"vector_metric": "joint"},
    "seeds kmeans++": {"seeds": "kmeans++"},
    "seeds mahalanobis": {"seeds": "mahalanobis"},
    "scales by maximum": {"subrow_size": "max"},
}

Rule = Callable[[Tensor, Statistics], QuantizedMatrix | GroupedWeight]


class Row(NamedTuple):
    """One way to quantize every layer."""

    budget: float
    label: str
    rule: Rule
    needs: frozenset[str]
    base: str = ""  # label of the row that it changes in one thing


class Outcome(NamedTuple):
    """What became of the layers, and the loss of every window."""

    bits: float
    error: float  # sum of tr(dW H dW^T), H as it was measured
    cpu_s: float
    losses: Tensor  # (windows,) float64, per token


def rows(checkpoint: Checkpoint) -> list[Row]:
    """The formats of every budget; then one setting changed at a time."""
    shapes = layer_shapes(checkpoint)

    def settings(method: str, budget: float) -> Settings:
        return Settings(format=format_of_bits(method, budget, shapes))

    out = []
    for budget, methods in BUDGETS.items():
        for method in methods:
            plain, scaled = method.partition("-n")[:2]
            base = settings(plain, budget).format if scaled else ""
            out.append(row(budget, settings(method, budget))._replace(base=base))
    for budget, methods in VARIED.items():
        for method in methods:
            out += variants(budget, settings(method, budget))
    return out


def row(budget: float, settings: Settings, label: str = "", rule: Rule | None = None) -> Row:
    def plain(weight: Tensor, statistics: Statistics) -> QuantizedMatrix:
        return quantize_matrix(weight, statistics, settings)

    name = f"{settings.format}, {label}" if label else settings.format
    return Row(budget, name, rule or plain, needs(settings))


def variants(budget: float, base: Settings) -> list[Row]:
    """Every other setting that means something for the format, and what no kernel reads."""
    changed = {label: replace(base, **changes) for label, changes in VARIANTS.items()}
    out = [
        row(budget, one, label)
        for label, one in changed.items()
        if (one.table_seeds != base.table_seeds) == label.startswith("seeds")
        and (one.subrow_size == base.subrow_size or base.subrow)
    ]

    def unrounded(weight: Tensor, statistics: Statistics) -> GroupedWeight:
        return unrounded_codebooks(weight, statistics, base)

    def low_rank(weight: Tensor, statistics: Statistics) -> GroupedWeight:
        return low_rank_codebooks(weight, statistics, base, rank=base.table_entries // 2)

    out.append(row(budget, base, "FP16 entries", unrounded))
    if base.dim == 1:
        out.append(row(budget, base, f"SVD of rank {base.table_entries // 2}", low_rank))
    return [one._replace(base=base.format) for one in out]


def measure(
    folder: Path, row: Row, calibration: Tensor, text: EvaluationText, fisher: dict[str, Tensor]
) -> Outcome:
    """Quantize block after block, each fed by the quantized ones, and score the windows."""
    model = load_model(folder)
    calls = capture_calls(model, model.model.layers[0], calibration)
    stored = weights = 0
    error = cpu_s = 0.0
    for number, layer in enumerate(model.model.layers):
        names = [name for name, part in layer.named_modules() if isinstance(part, nn.Linear)]
        statistics = input_statistics(layer, names, calls)
        for name in names:
            weight, own = layer.get_submodule(name).weight, statistics[name]
            known = replace(own, fisher=fisher.get(f"model.layers.{number}.{name}.weight"))
            before, begin = weight.detach().clone(), time.process_time()
            found = row.rule(before, known)
            cpu_s += time.process_time() - begin
            packed = isinstance(found, QuantizedMatrix)
            values = found.dequantize() if packed else found.values
            stored += 8 * found.nbytes if packed else found.bits_per_weight * before.numel()
            weights += before.numel()
            change = values - before
            error += float(((change @ own.hessian) * change).sum(dtype=torch.float64))
            weight.data.copy_(values)
        calls = Calls(hidden=run_block_on(layer, calls), extra=calls.extra)
    return Outcome(stored / weights, error, 1e6 * cpu_s / weights, window_losses(model, text))


def fisher_of(folder: Path, ids: Tensor) -> dict[str, Tensor]:
    """Fisher diagonals of the linear layers of the unquantized model, by parameter name."""
    model = load_model(folder)
    blocks = {f"model.layers.{number}": layer for number, layer in enumerate(model.model.layers)}
    return fisher_statistics(model, ids, blocks=blocks)


def line(one: Row, found: Outcome, losses: dict[str, Tensor], first: Tensor) -> str:
    """A row of the table, with its losses against those of the budget's first row and its base."""
    perplexity = math.exp(float(found.losses.mean()))
    base = losses.get(one.base)
    return (
        f"| {one.label} | {found.bits:.3f} | {found.error:.1f} | {perplexity:.3f} "
        f"| {difference(found.losses, first)} | {difference(found.losses, base)} "
        f"| {found.cpu_s:.1f} |"
    )


def difference(losses: Tensor, others: Tensor | None) -> str:
    """Mean and standard error of the paired differences, in thousandths of a nat per token."""
    if others is None or losses is others:
        return ""
    found = rise(losses, others)
    error = "" if found.error is None else f" +- {1e3 * found.error:.1f}"
    return f"{1e3 * found.mean:+.1f}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path, help="text, of which 64 windows are drawn")
    parser.add_argument("test", type=Path, help="text to score")
    parser.add_argument("--windows", type=int, default=200, help="of the test text")
    parser.add_argument("--only", default="", metavar="PATTERN", help="lines that match it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = open_checkpoint(arguments.model)
    limits = {"longest": WINDOW, "vocabulary": 2**31}
    calibration = load_calibration(
        arguments.calibration, arguments.model, "wikitext2-128x2048", **limits
    )
    ids = calibration.ids[:64]
    protocol = Protocol(window=WINDOW, limit=arguments.windows)
    text = load_evaluation(arguments.test, arguments.model, protocol, **limits)
    reference = window_losses(load_model(arguments.model), text)
    print(f"{text.label}; calibrated on {tuple(ids.shape)} tokens of {calibration.source.file}")
    print(f"in domain: {in_domain(calibration.source, source_of(arguments.test))}")
    print(f"unquantized: {perplexity_of(reference, text).value:.3f}")
    print("| format, settings | true bits | error | perplexity | to GPTQ | to its base | CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    first: dict[float, Tensor] = {}
    losses: dict[str, Tensor] = {}
    for one in rows(checkpoint):
        if not re.search(arguments.only, one.label):
            continue
        fisher = fisher_of(arguments.model, ids) if "fisher" in one.needs else {}
        found = measure(arguments.model, one, ids, text, fisher)
        losses[one.label] = found.losses
        print(line(one, found, losses, first.setdefault(one.budget, found.losses)), flush=True)


if __name__ == "__main__":
    main()
