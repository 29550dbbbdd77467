"""What a decoder has to know of a LLaMA beside its shape: norms, rotary positions, first token."""

import math
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from perfmodel.errors import SpecError
from perfmodel.models import read_model
from perfmodel.shape import ModelShape

ROPE_TYPES = ("default", "linear", "llama3")


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary positions; the factors are those of `rope_scaling` in config.json."""

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: float = 8192

    def frequencies(self, head_dim: int) -> Tensor:
        """(head_dim / 2,) radians per position, float32.

        Source: Su et al., RoFormer, arXiv 2104.09864; `linear`: Chen et al., arXiv 2306.15595;
        `llama3`: Llama 3.1's published reference code, which divides long wavelengths by
        `factor`, leaves short ones, and blends in between.
        """
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        plain = 1.0 / self.theta**exponents
        if self.kind == "default":
            return plain
        if self.kind == "linear":
            return plain / self.factor
        turns = self.original_positions * plain / (2 * math.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return plain * (kept + (1 - kept) / self.factor)

    def as_config(self) -> dict[str, Any]:
        """As transformers takes it."""
        plain = {"rope_type": self.kind, "rope_theta": self.theta}
        if self.kind == "default":
            return plain
        if self.kind == "linear":
            return plain | {"factor": self.factor}
        return plain | {
            "factor": self.factor,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_max_position_embeddings": int(self.original_positions),
        }


class LlamaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One model as the decoder runs it."""

    shape: ModelShape
    norm_epsilon: float = 1e-6
    rope: Rope = Rope()
    first_token: int = 1


def read_config(folder: Path, config: dict[str, Any]) -> LlamaConfig:
    """From a checkpoint's config.json, already parsed.

    Raises: SpecError for a model that this decoder would compute wrongly.
    """
    shape, source = read_model(folder), folder / "config.json"
    if not shape.rope or not shape.gated_mlp:
        raise SpecError(
            f"{source}: found {config['architectures'][0]}, expected a LLaMA-like model"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise SpecError(f"{source}: hidden_act: found {config['hidden_act']!r}, expected 'silu'")
    first = config.get("bos_token_id")
    return LlamaConfig(
        shape=shape,
        norm_epsilon=_number(source, config, "rms_norm_eps", 1e-6),
        rope=_rope(source, config),
        first_token=first if type(first) is int and 0 <= first < shape.vocab else 0,
    )


def _rope(source: Path, config: dict[str, Any]) -> Rope:
    """transformers 5 writes rope_parameters, older versions rope_theta and rope_scaling."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise SpecError(f"{source}: rope_scaling: found {scaling!r}, expected an object")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_TYPES:
        have = ", ".join(ROPE_TYPES)
        raise SpecError(
            f"{source}: rope_type: found {kind!r}, which is not supported; have: {have}"
        )
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        raise SpecError(f"{source}: partial_rotary_factor: expected 1, all of a head is rotated")
    given = {"rope_theta": config.get("rope_theta"), **scaling}
    given = {name: value for name, value in given.items() if value is not None}
    plain = Rope()

    def number(name: str, default: float) -> float:
        return _number(source, given, name, default)

    return Rope(
        theta=number("rope_theta", plain.theta),
        kind=kind,
        factor=number("factor", plain.factor),
        low_freq_factor=number("low_freq_factor", plain.low_freq_factor),
        high_freq_factor=number("high_freq_factor", plain.high_freq_factor),
        original_positions=number("original_max_position_embeddings", plain.original_positions),
    )


def _number(source: Path, fields: dict[str, Any], name: str, default: float) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise SpecError(f"{source}: {name}: found {value!r}, expected a number above 0")
    return float(value)
