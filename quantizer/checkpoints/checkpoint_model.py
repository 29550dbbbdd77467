"""Checkpoints as transformers models: dense ones, quantized ones, and one block at a time."""

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kernels.layouts.tensors import from_tensors
from quantizer.checkpoints.checkpoint import (
    CONFIG,
    OUTSIDE,
    Checkpoint,
    load_tensors,
    open_checkpoint,
    read_tensors,
)
from quantizer.checkpoints.safe_files import read_header, shard_path
from quantizer.errors import CheckpointError, UsageError
from quantizer.methods.matrix import QuantizedMatrix
from quantizer.run.work import LayerRecord, layer_records

LinearKind = Literal["dense", "packed", "kernels"]
_NOT_CONFIG = ("quantization_config", "auto_map", "torch_dtype", "dtype", "transformers_version")


class PackedLinear(nn.Module):
    """A linear layer that keeps its packed weight and dequantizes it in every call.

    For the CPU: the packed tensors are no buffers.
    """

    def __init__(self, matrix: QuantizedMatrix, bias: Tensor | None) -> None:
        super().__init__()
        self.matrix = matrix
        self.out_features, self.in_features = matrix.shape
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.matrix.dequantize().to(x.dtype), bias)


def load_model(
    folder: Path, *, linear: LinearKind = "dense", dtype: torch.dtype | None = None
) -> Any:
    """A transformers causal language model, ready for inference and `generate`.

    linear, for quantized checkpoints: `dense` dequantizes now, `packed` in every call, `kernels`
    builds kernels.linear.QuantizedLinear (float16; a GPU, or Triton's interpreter).
    dtype: float32 by default; float16 with `kernels`.

    Raises: CheckpointError, UsageError.
    """
    checkpoint = open_checkpoint(folder)
    if linear == "kernels":
        _check_kernels_run()
    if linear == "kernels" and dtype not in (None, torch.float16):
        raise UsageError(f"linear layers of `kernels` work in float16, found {dtype}")
    dtype = dtype or (torch.float16 if linear == "kernels" else torch.float32)
    model = empty_model(checkpoint, dtype)
    if not checkpoint.quantized:
        fill(
            model, {n: t.to(dtype) for n, t in load_tensors(checkpoint, checkpoint.tensors).items()}
        )
        return model
    state: dict[str, Tensor] = {}
    for tensors, records in quantized_blocks(checkpoint):
        for name in records:
            parts = {p.removeprefix(f"{name}."): p for p in tensors if p.startswith(f"{name}.")}
            layer = {part: tensors.pop(full) for part, full in parts.items()}
            if linear == "dense":
                state[f"{name}.weight"] = dense_layer(name, layer, records[name]).to(dtype)
                state |= {f"{name}.bias": layer["bias"].to(dtype)} if "bias" in layer else {}
            else:
                _replace(model, name, _packed_layer(name, layer, records[name], linear))
        state |= {name: tensor.to(dtype) for name, tensor in tensors.items()}
    fill(model, state)
    return model


def empty_model(checkpoint: Checkpoint, dtype: torch.dtype, *, blocks: int | None = None) -> Any:
    """The model with arbitrary weights, or one of fewer blocks; no code from the folder runs.

    Raises: CheckpointError if transformers refuses the configuration.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM  # seconds, only where needed
    from transformers.initialization import no_init_weights

    fields = {key: value for key, value in checkpoint.config.items() if key not in _NOT_CONFIG}
    if blocks is not None:
        fields |= {"num_hidden_layers": blocks}
        fields.pop("layer_types", None)
    try:
        config = CONFIG_MAPPING[fields.pop("model_type")](**fields)
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{checkpoint.folder / CONFIG}: {reason[0]}") from None
    return model.train(False).requires_grad_(False)


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put the tensors in the place of the model's; tied ones may be absent.

    Raises: CheckpointError naming a tensor that is missing, unknown or of another shape.
    """
    own = model.state_dict()
    for name, tensor in state.items():
        if name not in own:
            raise CheckpointError(f"tensor {name} does not belong to a {type(model).__name__}")
        if own[name].shape != tensor.shape:
            shapes = f"{list(tensor.shape)}, expected {list(own[name].shape)}"
            raise CheckpointError(f"tensor {name} has shape {shapes} as config.json says")
    model.load_state_dict(dict(state), strict=False, assign=True)
    model.tie_weights()
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    quantized = {name for name, module in model.named_modules() if not hasattr(module, "weight")}
    missing = [
        n for n in own if n not in state and n not in tied and n.rpartition(".")[0] not in quantized
    ]
    if missing:
        raise CheckpointError(f"tensor {missing[0]} is missing")


def quantized_blocks(
    checkpoint: Checkpoint,
) -> Iterator[tuple[dict[str, Tensor], dict[str, LayerRecord]]]:
    """Shard by shard: its tensors, and the layers that it describes.

    Raises: CheckpointError.
    """
    for shard in sorted({info.shard for info in checkpoint.tensors.values()}):
        path = shard_path(checkpoint.folder, shard)
        records = layer_records(read_header(path)[1], path)
        yield read_tensors(path), records


def dense_layer(name: str, parts: Mapping[str, Tensor], record: LayerRecord) -> Tensor:
    """The (N, K) float32 weight of a layer in a shard.

    Raises: CheckpointError.
    """
    return layer_matrix(name, parts, record).dequantize()


def layer_matrix(name: str, parts: Mapping[str, Tensor], record: LayerRecord) -> QuantizedMatrix:
    """The packed layer that a shard describes, on the device of its tensors.

    Raises: CheckpointError.
    """
    try:
        weight, sparse = from_tensors(parts, record.meta)
    except ValueError as error:  # LayoutError of the kernels
        raise CheckpointError(f"layer {name}: {error}") from None
    if weight.shape != record.shape:
        raise CheckpointError(f"layer {name}: is {weight.shape}, described as {record.shape}")
    return QuantizedMatrix(weight=weight, sparse=sparse)


def _packed_layer(
    name: str, parts: Mapping[str, Tensor], record: LayerRecord, linear: LinearKind
) -> nn.Module:
    matrix, bias = layer_matrix(name, parts, record), parts.get("bias")
    if linear == "packed":
        return PackedLinear(matrix, bias)
    from kernels.linear import QuantizedLinear  # needs Triton

    half = None if bias is None else bias.to(torch.float16)
    return QuantizedLinear(matrix.weight, matrix.sparse, half)


def _check_kernels_run() -> None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if find_spec("triton") is None or not (torch.cuda.is_available() or interpreted):
        raise UsageError(
            "linear layers of `kernels` need Triton and a GPU (or TRITON_INTERPRET=1); `dense` "
            "and `packed` need neither"
        )


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    owner = model.get_submodule(parent)
    found = getattr(owner, attribute)
    if (found.out_features, found.in_features) != (module.out_features, module.in_features):
        raise CheckpointError(f"layer {name} has another shape than config.json says")
    setattr(owner, attribute, module)


def block_of(model: Any, checkpoint: Checkpoint, block: int) -> nn.Module:
    """A decoder block of a model."""
    return model.get_submodule(f"{checkpoint.family.blocks}.{block}")


def decoder_blocks(model: Any, checkpoint: Checkpoint) -> dict[str, nn.Module]:
    """All decoder blocks by their names in the model, in their order."""
    return {
        f"{checkpoint.family.blocks}.{index}": block_of(model, checkpoint, index)
        for index in range(checkpoint.blocks)
    }


def skeleton(checkpoint: Checkpoint) -> Any:
    """Embeddings, norms, head and one block in float32: enough to run blocks one after another."""
    model = empty_model(checkpoint, torch.float32, blocks=1)
    outside = load_tensors(checkpoint, checkpoint.names_of(OUTSIDE))
    fill(model, {n: t.float() for n, t in outside.items()} | _one_block(checkpoint, 0))
    return model


def _one_block(checkpoint: Checkpoint, block: int) -> dict[str, Tensor]:
    tensors = load_tensors(checkpoint, checkpoint.names_of(block))
    prefix, first = checkpoint.block_prefix(block), checkpoint.block_prefix(0)
    return {first + name.removeprefix(prefix): t.float() for name, t in tensors.items()}
