"""The weights of a LLaMA as a decoder takes them: from a checkpoint, or random in a true format."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.generate.llama_config import LlamaConfig, read_config
from bench.kernels.random_weights import random_weight
from kernels.layouts import CsrWeight
from kernels.layouts.weights import Weight
from perfmodel.errors import SpecError, UsageError
from perfmodel.shape import ModelShape
from quantizer.checkpoints.checkpoint import OUTSIDE, Checkpoint, load_tensors, open_checkpoint
from quantizer.checkpoints.checkpoint_model import layer_matrix, quantized_blocks
from quantizer.checkpoints.safe_files import read_header, shard_path
from quantizer.run.work import layer_records

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearWeight:
    """Weight (N, K) of a linear layer: a plain tensor, or packed with its sparse part."""

    weight: Tensor | Weight
    sparse: CsrWeight | None = None
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWeights:
    """One decoder block."""

    attention_norm: Tensor
    mlp_norm: Tensor
    linears: Mapping[str, LinearWeight]  # by name: q_proj ... down_proj


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWeights:
    """A whole model on one device; its blocks are read once.

    A decoder that has stacked a block's weights needs the separate ones no more: they go before
    the next block comes, so that a model takes its own memory and not twice as much.
    """

    config: LlamaConfig
    format_name: str  # of the linear layers of the blocks, as perfmodel names it
    origin: str  # what the numbers are: a checkpoint, or random
    embedding: Tensor  # (V, H)
    blocks: Iterator[BlockWeights]
    norm: Tensor
    head: LinearWeight

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def outer_bytes(self) -> int:
        """Of embedding, last norm and head; a tied head counted once."""
        head = 0 if self.head.weight is self.embedding else nbytes_of(self.head)
        return self.embedding.nbytes + self.norm.nbytes + head


def nbytes_of(value: Any) -> int:
    """Bytes of every tensor in a record, however deep."""
    if isinstance(value, Tensor):
        return value.nbytes
    if is_dataclass(value):
        return sum(nbytes_of(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, Mapping):
        return sum(nbytes_of(part) for part in value.values())
    return 0


def random_model(
    shape: ModelShape, format_name: str, *, device: str, act_order: str = "fold", seed: int = 0
) -> ModelWeights:
    """Random weights of a true format in the linear layers of the blocks; the rest is FP16.

    Raises: UsageError for a format that no kernel runs, or a model that is no LLaMA.
    """
    if not shape.rope or not shape.gated_mlp:
        raise UsageError(f"{shape.name} is no LLaMA-like model; the decoder runs no other")
    generator = torch.Generator(device).manual_seed(seed)

    def linear(name: str, rows: int, columns: int, bias: bool) -> LinearWeight:
        weight, *sparse = random_weight(name, (rows, columns), generator, act_order=act_order)
        zeros = torch.zeros(rows, dtype=torch.float16, device=device) if bias else None
        return LinearWeight(weight=weight, sparse=sparse[0] if sparse else None, bias=zeros)

    def norm() -> Tensor:
        return torch.ones(shape.hidden, dtype=torch.float16, device=device)

    blocks = (
        BlockWeights(
            attention_norm=norm(),
            mlp_norm=norm(),
            linears={name: linear(format_name, n, k, bias) for name, n, k, bias in shape.linears()},
        )
        for _ in range(shape.layers)
    )
    embedding = random_weight("fp16", (shape.vocab, shape.hidden), generator)[0]
    head = linear("fp16", shape.vocab, shape.hidden, bias=False)
    return ModelWeights(
        config=LlamaConfig(shape=shape),
        format_name=format_name,
        origin="random weights",
        embedding=embedding,
        blocks=blocks,
        norm=norm(),
        head=LinearWeight(weight=embedding) if shape.tied_embeddings else head,
    )


def stored_format(folder: Path) -> str:
    """Format of a checkpoint's linear layers, from its headers; `mixed` where they differ.

    Raises: SpecError.
    """
    checkpoint = open_checkpoint(folder)
    if not checkpoint.quantized:
        return "fp16"
    shards = sorted({info.shard for info in checkpoint.tensors.values()})
    paths = [shard_path(folder, shard) for shard in shards]
    records = [layer_records(read_header(path)[1], path) for path in paths]
    return _one_format({record.format for shard in records for record in shard.values()})


def load_model_weights(folder: Path, *, device: str, dtype: torch.dtype) -> ModelWeights:
    """A checkpoint folder, dense or made by `quantizer`; dense tensors become `dtype`.

    Raises: SpecError if it is no LLaMA-like model, or a tensor is missing, of another shape or
    too large for FP16.
    """
    checkpoint = open_checkpoint(folder)
    config = read_config(folder, checkpoint.config)
    read = _read_quantized if checkpoint.quantized else _read_dense
    contents = read(checkpoint, torch.device(device), dtype)
    shape, hidden = config.shape, (config.shape.hidden,)
    table = (shape.vocab, shape.hidden)
    embedding = contents.tensor("model.embed_tokens.weight", table)
    return ModelWeights(
        config=config,
        format_name=contents.format_name,
        origin=f"checkpoint {folder.resolve().name}",
        embedding=embedding,
        blocks=(
            BlockWeights(
                attention_norm=contents.tensor(f"{prefix}input_layernorm.weight", hidden),
                mlp_norm=contents.tensor(f"{prefix}post_attention_layernorm.weight", hidden),
                linears=contents.linears(prefix, shape),
            )
            for prefix in map(checkpoint.block_prefix, range(checkpoint.blocks))
        ),
        norm=contents.tensor("model.norm.weight", hidden),
        head=LinearWeight(
            weight=embedding if shape.tied_embeddings else contents.tensor("lm_head.weight", table)
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    """What a folder holds, by the names that Hugging Face gives."""

    folder: Path
    format_name: str
    layers: dict[str, LinearWeight]
    tensors: dict[str, Tensor]

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        found = self.tensors.get(name)
        if found is None or tuple(found.shape) != shape:
            was = "nothing" if found is None else list(found.shape)
            raise SpecError(f"{self.folder}: {name}: found {was}, expected {list(shape)}")
        return found

    def linears(self, prefix: str, shape: ModelShape) -> dict[str, LinearWeight]:
        """The linear layers of the block whose tensor names start so; taken out, not copied."""
        out = {}
        for name, rows, columns, bias in shape.linears():
            full = f"{prefix}{'self_attn' if name in ATTENTION else 'mlp'}.{name}"
            layer = self.layers.pop(full, None)
            if layer is None or tuple(layer.weight.shape) != (rows, columns):
                found = "nothing" if layer is None else list(layer.weight.shape)
                raise SpecError(f"{self.folder}: {full}: found {found}, expected {[rows, columns]}")
            if bias != (layer.bias is not None):
                found, due = ("no bias", "one") if bias else ("a bias", "none")
                raise SpecError(f"{self.folder}: {full}: found {found}, expected {due}")
            out[name] = layer
        return out


def _read_dense(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> _Contents:
    layers: dict[str, LinearWeight] = {}
    tensors: dict[str, Tensor] = {}
    for block in (OUTSIDE, *range(checkpoint.blocks)):
        names = checkpoint.names_of(block)
        loaded = load_tensors(checkpoint, names)
        tensors |= {name: _plain(name, loaded[name], device, dtype) for name in names}
    for name in checkpoint.all_linear_names():
        bias = tensors.pop(f"{name}.bias", None)
        layers[name] = LinearWeight(weight=tensors.pop(f"{name}.weight"), bias=bias)
    name = "fp16" if dtype == torch.float16 else str(dtype).removeprefix("torch.")
    return _Contents(folder=checkpoint.folder, format_name=name, layers=layers, tensors=tensors)


def _read_quantized(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> _Contents:
    layers: dict[str, LinearWeight] = {}
    rest: dict[str, Tensor] = {}
    formats = set()
    for tensors, records in quantized_blocks(checkpoint):
        for name, record in records.items():
            start = f"{name}."
            parts = {
                full.removeprefix(start): tensors.pop(full).to(device)
                for full in list(tensors)
                if full.startswith(start)
            }
            matrix, bias = layer_matrix(name, parts, record), parts.get("bias")
            bias = None if bias is None else _plain(f"{name}.bias", bias, device, dtype)
            layers[name] = LinearWeight(weight=matrix.weight, sparse=matrix.sparse, bias=bias)
            formats.add(record.format)
        rest |= {name: _plain(name, tensor, device, dtype) for name, tensor in tensors.items()}
    name = _one_format(formats)
    return _Contents(folder=checkpoint.folder, format_name=name, layers=layers, tensors=rest)


def _one_format(names: set[str]) -> str:
    return next(iter(names)) if len(names) == 1 else "mixed"


def _plain(name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    out = tensor.to(device, dtype)
    if dtype == torch.float16 and tensor.dtype != dtype and not bool(out.isfinite().all()):
        raise SpecError(f"{name}: has values beyond the range of FP16, in which the decoder runs")
    return out
