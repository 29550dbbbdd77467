"""Seconds of a job, measured on a sample of it: some rows of real layers, one block on some tokens.

Each rate is taken on two layers of a kind; the lower and the higher one give the range. What other
processes of this machine will do meanwhile is not known.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from quantizer.checkpoints.checkpoint import Checkpoint, hash_tensors, load_tensors
from quantizer.checkpoints.checkpoint_model import block_of, empty_model
from quantizer.evaluation.calibration import Calibration
from quantizer.methods.awq import search_scale
from quantizer.methods.matrix import Settings, Statistics
from quantizer.methods.registry import needs, quantize_matrix
from quantizer.run.sequence import capture_calls, input_statistics, run_block_on
from quantizer.run.work import needed
from quantizer.sensitivity.choose import layer_shape
from quantizer.sensitivity.fisher import fisher_statistics

ROWS = 256  # of a layer, at most
HESSIAN_COLUMNS = 1024  # at most, of methods that factor a Hessian: cost grows with their cube
PASS_WEIGHTS = 2**32  # weights times tokens of the sample of a pass
MIN_TOKENS = 16
clock = time.perf_counter


class Seconds(NamedTuple):
    """From the fastest to the slowest sample."""

    low: float
    high: float

    def __add__(self, other: object) -> "Seconds":
        if not isinstance(other, Seconds):
            return NotImplemented
        return Seconds(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> "Seconds":
        return Seconds(self.low * factor, self.high * factor)


class Rate(NamedTuple):
    """What a call costs, and each of its items (rows of a layer, tokens of a sequence) more."""

    call_s: float
    item_s: float

    def of(self, items: int) -> float:
        return self.call_s + items * self.item_s


def methods_s(checkpoint: Checkpoint, settings: dict[str, Settings], threads: int) -> Seconds:
    """The methods themselves, all layers one after another, with at most so many threads."""
    kinds: dict[tuple[int, str], list[str]] = {}
    for name, one in settings.items():
        kinds.setdefault((layer_shape(checkpoint, name)[1], one.format), []).append(name)
    total = Seconds(0.0, 0.0)
    with limited_threads(threads):
        for names in kinds.values():
            rates = [_layer_rate(checkpoint, n, settings[n]) for n in (names[0], names[-1])]
            for name in names:
                total += _span(rate.of(layer_shape(checkpoint, name)[0]) for rate in rates)
    return total


def passes_s(
    checkpoint: Checkpoint, calibration: Calibration | None, settings: dict[str, Settings]
) -> Seconds:
    """The passes over the model for statistics: one block on some tokens of one sequence."""
    wanted = needed(settings)
    if calibration is None or not wanted:
        return Seconds(0.0, 0.0)
    model = empty_model(checkpoint, torch.float32, blocks=1)
    for parameter in model.parameters():
        parameter.fill_(0.01)
    block = block_of(model, checkpoint, 0)
    weights = sum(parameter.numel() for parameter in block.parameters())
    sequences, tokens = calibration.ids.shape
    sample = min(tokens, max(MIN_TOKENS, PASS_WEIGHTS // weights))
    total = Seconds(0.0, 0.0)
    if "fisher" in wanted:

        def differentiate(count: int) -> None:
            fisher_statistics(model, calibration.ids[:1, :count], blocks={"block": block})

        others = sum(parameter.numel() for parameter in model.parameters()) - weights
        head = others / 2 / 2  # the embedding costs nothing, and the head runs once, not twice
        share = (checkpoint.blocks * weights + head) / (weights + head)
        total += _span(_rate(differentiate, sample).of(tokens) for _ in range(2)).times(share)
    if wanted - {"fisher"}:
        names = [module for module, found in block.named_modules() if isinstance(found, nn.Linear)]

        def observe(count: int) -> None:
            calls = capture_calls(model, block, calibration.ids[:1, :count])
            input_statistics(block, names, calls)
            run_block_on(block, calls)

        once = _span(_rate(observe, sample).of(tokens) for _ in range(2))
        total += once.times(checkpoint.blocks)
    return total.times(sequences)


def files_s(checkpoint: Checkpoint, nbytes: int) -> Seconds:
    """Reading and hashing so many bytes, at the rate of one layer."""
    name = f"{checkpoint.all_linear_names()[0]}.weight"

    def read(_bytes: int) -> None:
        hash_tensors(load_tensors(checkpoint, [name]))

    size = checkpoint.tensors[name].nbytes
    return _span(_best(read, size) * nbytes / size for _ in range(2))


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """At most so many threads for torch and numba, as many as before afterwards."""
    import numba

    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(min(threads, before[0]))
    numba.set_num_threads(min(threads, before[1]))
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


def _layer_rate(checkpoint: Checkpoint, name: str, settings: Settings) -> Rate:
    weight = load_tensors(checkpoint, [f"{name}.weight"])[f"{name}.weight"].float()
    growth = 1.0  # of the columns that the sample leaves out
    if needs(settings) - {"fisher"} and weight.shape[1] > HESSIAN_COLUMNS:
        growth = weight.shape[1] / HESSIAN_COLUMNS
        weight = weight[:, :HESSIAN_COLUMNS].contiguous()
    rate = _rate(lambda rows: _quantize(weight[:rows], settings), min(ROWS, weight.shape[0]))
    return Rate(call_s=rate.call_s * growth**3, item_s=rate.item_s * growth**2)


def _quantize(weight: Tensor, settings: Settings) -> None:
    """The work of a method on one layer, with statistics of no meaning but of the right size."""
    wanted, columns = needs(settings), weight.shape[1]
    statistics = Statistics(
        fisher=weight.square() if "fisher" in wanted else None,
        hessian=torch.eye(columns) if "hessian" in wanted else None,
        mean_abs=weight.abs().mean(dim=0) + 1.0 if "mean_abs" in wanted else None,
    )
    if settings.method == "awq":
        search_scale([(weight, settings)], statistics)
    quantize_matrix(weight, statistics, settings)


def _rate(work: Callable[[int], None], most: int) -> Rate:
    """Cost of a call and of an item, from `most` items and a quarter of them."""
    few = max(1, most // 4)
    many_s, few_s = _best(work, most), _best(work, few)
    if many_s <= few_s or most == few:
        return Rate(call_s=0.0, item_s=many_s / most)
    item_s = (many_s - few_s) / (most - few)
    return Rate(call_s=max(few_s - few * item_s, 0.0), item_s=item_s)


def _best(work: Callable[[int], None], items: int) -> float:
    """The faster of two runs after a first one, which may compile or touch new memory."""
    work(items)
    seconds = []
    for _ in range(2):
        begin = clock()
        work(items)
        seconds.append(clock() - begin)
    return min(seconds)


def _span(seconds: Iterable[float]) -> Seconds:
    found = [*seconds]
    return Seconds(min(found), max(found))
