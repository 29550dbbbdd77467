"""Which models `generate` runs: checkpoints, or random weights of a true format."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import msgspec
import torch
from msgspec.structs import replace

from bench.environment import Kind
from bench.generate.decoder import Decoder
from bench.generate.generation import Runner
from bench.generate.hf_eager import HfEager
from bench.generate.linears import own_gemv_wins
from bench.generate.model_weights import (
    ModelWeights,
    load_model_weights,
    random_model,
    stored_format,
)
from bench.kernels.random_weights import runnable_format
from perfmodel.errors import UsageError
from perfmodel.format_names import parse_format
from perfmodel.formats import BitPolicy, WeightFormat
from perfmodel.models import ModelShape, load_model
from perfmodel.workload import Workload

# The paper's comparison at 4 and at 3 bits (SqueezeLLM, Tables 3 and 6).
WEIGHTS = (
    *("fp16", "gptq-w4", "gptq-w4-g128", "squeezellm-w4"),
    *("gptq-w3", "gptq-w3-g128-act"),
    *("squeezellm-w3", "squeezellm-w3-s0.05", "squeezellm-w3-s0.45"),
)
STACKS = ("memwall", "hf-eager")


class GenerateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `model`: a preset, a config.json, or a checkpoint folder."""

    model: str = "llama-7b"
    weights: tuple[str, ...] | None = None  # None: those of the checkpoint, or WEIGHTS at random
    new: tuple[int, ...] = (128, 1024)
    prompt: int = 0  # random tokens in the cache before the first step
    stacks: tuple[str, ...] = ("memwall",)
    layers: int | None = None  # fewer blocks than the model has; None: all
    runs: int = 3
    hardware: str | None = None  # device to predict for; None: this one, where it is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One model in one format, not yet in memory."""

    shape: ModelShape
    format_name: str
    origin: str
    load: Callable[[str, str], ModelWeights]  # (device, form of act-order)


def sources(options: GenerateOptions) -> Iterator[Source]:
    """In the order asked for.

    Raises: UsageError, SpecError.
    """
    for stack in options.stacks:
        if stack not in STACKS:
            raise UsageError(f"no stack {stack!r} to run; have: {', '.join(STACKS)}")
    folder, whole = Path(options.model), load_model(options.model)
    longest = options.prompt + max(options.new)
    if longest > whole.max_positions:
        most = f"{whole.name} was made for {whole.max_positions}"
        raise UsageError(f"{longest} tokens: {most}; give --new and --prompt")
    if options.weights is None and folder.is_dir():
        yield _checkpoint(folder, whole, options)
        return
    shape = replace(whole, layers=_layers(whole, options.layers))
    for name in options.weights or WEIGHTS:
        runnable_format(name)  # before anything is loaded
        yield Source(
            shape=shape,
            format_name=name,
            origin="random weights",
            load=lambda device, order, name=name: random_model(
                shape, name, device=device, act_order=order
            ),
        )


def build(source: Source, stack: str, *, kind: Kind, capacity: int) -> Runner:
    """The model in memory, ready to run.

    hf-eager keeps act-order as the papers ran it: the scale of every weight is gathered.
    """
    weights = source.load(kind, "gather" if stack == "hf-eager" else "fold")
    if stack == "memwall":
        own_gemv = kind == "cuda" and own_gemv_wins(source.shape.intermediate, source.shape.hidden)
        return Decoder(weights, capacity=capacity, own_gemv=own_gemv)
    return HfEager(weights)


def workload(source: Source, *, prompt: int, new: int, weight_bytes: int | None = None) -> Workload:
    """The generation as perfmodel counts it.

    weight_bytes: of the whole model as loaded; for formats that have no name of their own.
    """
    try:
        linear = parse_format(source.format_name)
    except UsageError:
        linear = _as_loaded(source, weight_bytes)
    fp16 = parse_format("fp16")
    policy = BitPolicy(linear=linear, lm_head=fp16, embedding=fp16)
    return Workload(model=source.shape, policy=policy, phase="generate", prompt=prompt, new=new)


def _as_loaded(source: Source, weight_bytes: int | None) -> WeightFormat:
    """Layers of several formats as one, with the bits that they have on average."""
    linears = source.shape.layers * sum(n * k for _, n, k, _ in source.shape.linears())
    others = 2 * (source.shape.parameters - linears)
    bits = 16 if weight_bytes is None else Fraction(8 * (weight_bytes - others), linears)
    return WeightFormat(name=source.format_name, code_bits=Fraction(bits))


def _checkpoint(folder: Path, shape: ModelShape, options: GenerateOptions) -> Source:
    if options.layers is not None:
        raise UsageError("--layers: a checkpoint is run whole; give --weights for random ones")
    return Source(
        shape=shape,
        format_name=stored_format(folder),
        origin=f"checkpoint {folder.resolve().name}",
        load=lambda device, _: load_model_weights(folder, device=device, dtype=torch.float16),
    )


def _layers(shape: ModelShape, asked: int | None) -> int:
    if asked is not None and not 1 <= asked <= shape.layers:
        raise UsageError(f"--layers {asked}: {shape.name} has {shape.layers}")
    return asked or shape.layers
