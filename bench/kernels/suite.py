"""Which weights are timed: the linear layers of the LLaMA models, most telling first."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from perfmodel.errors import UsageError
from perfmodel.models import load_model

MODELS = ("llama-7b", "llama-13b", "llama-30b", "llama-65b")
# What others publish, and what shows where the rates level off: 28672 x 8192 is LLaMA-2-70B's MLP.
SHAPES = ((8192, 8192), (28672, 8192), (8192, 16384), (81920, 8192))
SHAPE = "shape"  # in the place of a model, where it is of none
# A CPU in minutes: of two models, large and small, wide and tall.
CPU_TENSORS = (
    *(("llama-7b", tensor) for tensor in ("q_proj", "gate_proj", "down_proj")),
    ("llama-13b", "q_proj"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One weight matrix of a model, (rows, columns) = (out features, in features)."""

    model: str
    tensor: str
    rows: int
    columns: int

    @property
    def name(self) -> str:
        return f"{self.model}/{self.tensor}"

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns


def layers(model: str) -> tuple[Layer, ...]:
    """The distinct shapes of a model: as in its checkpoint, and fused as a fast decoder has them.

    q_proj stands for k, v and o as well, gate_proj for up.
    """
    shape = load_model(model)
    hidden, inner, qkv = shape.hidden, shape.intermediate, shape.q_dim + 2 * shape.kv_dim
    found = (
        ("gate_up_proj", 2 * inner, hidden),
        ("q_proj", shape.q_dim, hidden),
        ("down_proj", hidden, inner),
        ("qkv_proj", qkv, hidden),
        ("gate_proj", inner, hidden),
        ("lm_head", shape.vocab, hidden),
    )
    return tuple(Layer(model=model, tensor=t, rows=n, columns=k) for t, n, k in found)


def layer_of(rows: int, columns: int) -> Layer:
    """A matrix of no model."""
    return Layer(model=SHAPE, tensor=f"{rows}x{columns}", rows=rows, columns=columns)


def default_layers(kind: str) -> tuple[Layer, ...]:
    """What a kind of device ("cuda" or "cpu") is timed on without further choice."""
    every = {layer.name: layer for model in MODELS for layer in layers(model)}
    if kind == "cuda":
        return (*every.values(), *(layer_of(*shape) for shape in SHAPES))
    return tuple(every[f"{model}/{tensor}"] for model, tensor in CPU_TENSORS)


def choose_layers(names: Sequence[str]) -> tuple[Layer, ...]:
    """Layers by `MODEL`, all of it, `MODEL/TENSOR`, or `ROWSxCOLUMNS`.

    Raises: UsageError; UnknownNameError for an unknown model.
    """
    chosen: list[Layer] = []
    for name in names:
        shape = re.fullmatch(r"(?:shape/)?([1-9]\d*)x([1-9]\d*)", name)
        if shape:
            chosen.append(layer_of(int(shape[1]), int(shape[2])))
            continue
        model, _, tensor = name.partition("/")
        found = [layer for layer in layers(load_model(model).name) if tensor in ("", layer.tensor)]
        if not found:
            have = ", ".join(layer.tensor for layer in layers(model))
            raise UsageError(f"layer {name!r}: no such tensor; have: {have}")
        chosen += found
    return tuple(dict.fromkeys(chosen))
