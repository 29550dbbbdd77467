"""The quantizer on a GPU, on the shapes of LLaMA-7B: seconds per matrix, per block, per sequence.

The numbers are random: exact k-means, GPTQ and GPTVQ do the same work on any, but for how soon
GPTVQ's codebooks settle. A case that is in the results is not run again, so that the blocks of a
whole model can be clustered over several runs.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench.environment import Environment
from bench.kernels.contest import Results
from perfmodel.errors import UsageError
from perfmodel.models import load_model
from quantizer.clustering.kmeans import cluster_rows
from quantizer.methods.gptq import quantize_gptq
from quantizer.methods.gptvq import quantize_gptvq
from quantizer.methods.hessian import accumulate_inputs
from quantizer.methods.matrix import Settings
from quantizer.sensitivity.fisher import fisher_statistics

MODEL = "llama-7b"
TOKENS = 2048  # of the inputs behind a Hessian
FISHER_BLOCKS = 4
FISHER_TOKENS = (512, 2048)  # the papers' sequences
LAYERWISE = ("q_proj", "gate_proj", "down_proj")  # one of each shape
METHODS = {"gptq": quantize_gptq, "gptvq": quantize_gptvq}


def quantize(environment: Environment, results: Results, case: str, blocks: str = "1") -> None:
    """A case: `kmeans-w3` for so many blocks of the model, a format of GPTQ or GPTVQ, `fisher`.

    Raises: UsageError for another.
    """
    method = case.partition("-")[0]
    if method == "kmeans":
        found = _kmeans(environment, results, case, int(blocks))
    elif method in METHODS:
        found = _layerwise(environment, results, case)
    elif case == "fisher":
        found = _fisher(environment, results)
    else:
        raise UsageError(f"case {case!r}, expected kmeans-w3, a gptq or gptvq format, or fisher")
    for line in found:
        results.add_line({"kind": "quantizer", **line})


def _kmeans(
    environment: Environment, results: Results, case: str, blocks: int
) -> Iterator[dict[str, object]]:
    """One line per matrix: seconds of its exact codebooks."""
    shape, entries = load_model(MODEL), 2 ** int(case.rpartition("w")[2])
    _cluster(environment.kind, (64, shape.hidden), entries, seed=0)  # load what is loaded once
    for block in range(min(blocks, shape.layers)):
        for name, rows, columns, _ in shape.linears():
            key = f"quantizer:{case}/{block}/{name}"
            if not results.is_done(key):
                seconds = _cluster(environment.kind, (rows, columns), entries, seed=block)
                yield _line(key, case, name, seconds, block=block, weights=rows * columns)


def _cluster(device: str, shape: tuple[int, int], entries: int, *, seed: int) -> float:
    values = _normal(shape, device, seed)
    weights = _normal(shape, device, seed + 1000).square()  # one degree of freedom, as a gradient
    return _seconds(lambda: cluster_rows(values, weights, entries), device)


def _layerwise(
    environment: Environment, results: Results, case: str
) -> Iterator[dict[str, object]]:
    """One line per shape: seconds of one matrix, its Hessian given."""
    shape, settings = load_model(MODEL), Settings(format=case)
    run, device = METHODS[settings.method], environment.kind
    for name, rows, columns, _ in shape.linears():
        key = f"quantizer:{case}/{name}"
        if name in LAYERWISE and not results.is_done(key):
            inputs = _normal((TOKENS, columns), device, 1)
            given = (
                _normal((rows, columns), device, 0),
                accumulate_inputs(None, inputs).statistics(),
                settings,
            )
            yield _line(key, case, name, _seconds(partial(run, *given), device))


def _fisher(environment: Environment, results: Results) -> Iterator[dict[str, object]]:
    """One line per length: seconds of one sequence through a few blocks, forward and backward."""
    from transformers import AutoModelForCausalLM  # seconds

    device = environment.kind
    waiting = [n for n in FISHER_TOKENS if not results.is_done(f"quantizer:fisher/{n}")]
    if not waiting:
        return
    torch.manual_seed(0)
    config = _config(FISHER_BLOCKS)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    blocks = {f"model.layers.{i}": block for i, block in enumerate(model.model.layers)}

    def one_pass(tokens: int) -> object:
        ids = torch.randint(config.vocab_size, (2, tokens), device=device)
        return fisher_statistics(model, ids, blocks=blocks)

    one_pass(16)
    for tokens in waiting:
        seconds = _seconds(partial(one_pass, tokens), device) / 2
        yield _line(
            f"quantizer:fisher/{tokens}", "fisher",
            f"{tokens} tokens, {FISHER_BLOCKS} blocks", seconds,
        )  # fmt: skip


def _config(blocks: int):
    from transformers import LlamaConfig

    shape = load_model(MODEL)
    return LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=blocks, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, max_position_embeddings=max(FISHER_TOKENS),
    )  # fmt: skip


def _line(key: str, case: str, what: str, seconds: float, **more: object) -> dict[str, object]:
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {
        "key": key, "name": case, "what": what, "seconds": seconds, "peak_bytes": peak, **more,
    }  # fmt: skip


def _normal(shape: tuple[int, ...], device: str, seed: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device)


def _seconds(run: Callable[[], object], device: str) -> float:
    """On the host's clock, until the device is done."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
