"""Reading a Hugging Face checkpoint folder: config.json and safetensors shards, nothing else.

No pickle, no code from the folder; every name and shape is checked before it is used.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quantizer.checkpoints.safe_files import (
    MAX_HEADER_BYTES,
    TensorInfo,
    check_tensor_name,
    read_header,
    read_json,
    shard_path,
)
from quantizer.errors import CheckpointError

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
OUTSIDE = "outside"  # name of the block of everything that is in no decoder block

_GATED = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
_OPT = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    *("fc1", "fc2"),
)


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model type keeps its decoder blocks and which of their layers are linear."""

    blocks: str  # prefix of the tensor names of the blocks
    linears: tuple[str, ...]


FAMILIES = {
    "llama": Family(blocks="model.layers", linears=_GATED),
    "mistral": Family(blocks="model.layers", linears=_GATED),
    "qwen2": Family(blocks="model.layers", linears=_GATED),
    "opt": Family(blocks="model.decoder.layers", linears=_OPT),
}
MAX_BLOCKS = 1024
MAX_WIDTH = 2**20  # hidden, intermediate; the vocabulary may be as large


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A checked checkpoint folder; tensors stay on disk until they are asked for."""

    folder: Path
    config: dict[str, Any]
    family: Family
    blocks: int
    tensors: dict[str, TensorInfo]

    def block_prefix(self, block: int) -> str:
        return f"{self.family.blocks}.{block}."

    def linear_names(self, block: int) -> list[str]:
        """Names of the linear layers of a block, without `.weight`."""
        prefix = self.block_prefix(block)
        return [prefix + name for name in self.family.linears]

    def all_linear_names(self) -> list[str]:
        return [name for block in range(self.blocks) for name in self.linear_names(block)]

    def names_of(self, block: int | str) -> list[str]:
        """Tensors of a block, or of everything outside the blocks."""
        if block == OUTSIDE:
            inside = self.family.blocks + "."
            return sorted(name for name in self.tensors if not name.startswith(inside))
        prefix = self.block_prefix(int(block))
        return sorted(name for name in self.tensors if name.startswith(prefix))

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def quantized(self) -> bool:
        return "quantization_config" in self.config


def open_checkpoint(folder: Path) -> Checkpoint:
    """Check config.json and the headers of all shards.

    Raises: CheckpointError naming the file and what is wrong.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: is no folder; expected config.json and .safetensors files"
        )
    config = read_json(folder / CONFIG)
    family, blocks = _family(folder / CONFIG, config)
    checkpoint = Checkpoint(
        folder=folder, config=config, family=family, blocks=blocks, tensors=_tensors(folder)
    )
    if not checkpoint.quantized:
        _check_linears(checkpoint)
    return checkpoint


def load_tensors(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, Tensor]:
    """These tensors, as they are stored.

    Raises: CheckpointError.
    """
    by_shard: dict[str, list[str]] = {}
    for name in names:
        if name not in checkpoint.tensors:
            raise CheckpointError(f"{checkpoint.folder}: has no tensor {name}")
        by_shard.setdefault(checkpoint.tensors[name].shard, []).append(name)
    tensors = {}
    for shard, wanted in by_shard.items():
        tensors |= read_tensors(shard_path(checkpoint.folder, shard), wanted)
    return tensors


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Tensors of one safetensors file, all or some, after its header has been checked.

    Raises: CheckpointError.
    """
    header, _ = read_header(path)
    try:
        with safe_open(path, framework="pt") as shard:
            return {name: shard.get_tensor(name) for name in (header if names is None else names)}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes, in the order of the names."""
    import torch  # only for a view of the bytes

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _family(path: Path, config: dict[str, Any]) -> tuple[Family, int]:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise CheckpointError(f"{path}: model_type is {kind!r}, expected one of {[*FAMILIES]}")
    limits = {
        "num_hidden_layers": MAX_BLOCKS,
        "hidden_size": MAX_WIDTH,
        "vocab_size": MAX_WIDTH,
        "num_attention_heads": MAX_WIDTH,
        "ffn_dim" if kind == "opt" else "intermediate_size": MAX_WIDTH,
    }
    for field, most in limits.items():
        value = config.get(field)
        if type(value) is not int or not 1 <= value <= most:
            raise CheckpointError(f"{path}: {field} is {value!r}, expected 1..{most}")
    return FAMILIES[kind], config["num_hidden_layers"]


def _tensors(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of all shards: those that the index names, or of the single file."""
    index = folder / INDEX
    if not index.exists():
        return read_header(shard_path(folder, SINGLE))[0]
    weight_map = read_json(index, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: found no weight_map, expected tensor names and shards")
    headers: dict[str, dict[str, TensorInfo]] = {}
    tensors = {}
    for name, shard in weight_map.items():
        check_tensor_name(index, name)
        path = shard_path(folder, shard)
        if shard not in headers:
            headers[shard] = read_header(path)[0]
        if name not in headers[shard]:
            raise CheckpointError(f"{index}: {name} is not in {shard}, where it should be")
        tensors[name] = headers[shard][name]
    return tensors


def _check_linears(checkpoint: Checkpoint) -> None:
    for name in checkpoint.all_linear_names():
        info = checkpoint.tensors.get(f"{name}.weight")
        if info is None:
            raise CheckpointError(f"{checkpoint.folder}: has no tensor {name}.weight")
        if len(info.shape) != 2 or 0 in info.shape or info.dtype not in ("F32", "F16", "BF16"):
            raise CheckpointError(
                f"{checkpoint.folder}: {name}.weight is {info.dtype} of shape {list(info.shape)}, "
                "expected a matrix of F32, F16 or BF16"
            )
