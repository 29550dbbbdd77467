"""Tiny random checkpoints, made in the test run with torch and json alone."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, WIDE, VOCABULARY, HEADS, BLOCKS, CONTEXT = 32, 48, 64, 4, 3, 32


def config_of(kind: str = "llama", **changes) -> dict:
    config = {
        "model_type": kind,
        "hidden_size": HIDDEN,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": kind == "opt",
    }
    config |= {"ffn_dim": WIDE, "word_embed_proj_dim": HIDDEN} if kind == "opt" else {}
    config |= {} if kind == "opt" else {"intermediate_size": WIDE}
    return config | changes


def shapes_of(kind: str, blocks: int, kv_heads: int = 2) -> dict[str, tuple[int, ...]]:
    """Names and shapes as Hugging Face writes them."""
    h, w, kv = HIDDEN, WIDE, HIDDEN * kv_heads // HEADS
    if kind == "opt":
        attention = {f"self_attn.{n}_proj": (h, h) for n in ("q", "k", "v", "out")}
        linears = attention | {"fc1": (w, h), "fc2": (h, w)}
        norms = ["self_attn_layer_norm", "final_layer_norm"]
        top, biased = "model.decoder", set(linears)
        outside = {
            "model.decoder.embed_tokens.weight": (VOCABULARY, h),
            "model.decoder.embed_positions.weight": (CONTEXT + 2, h),
            "model.decoder.final_layer_norm.weight": (h,),
            "model.decoder.final_layer_norm.bias": (h,),
        }
    else:
        linears = {
            "self_attn.q_proj": (h, h),
            "self_attn.k_proj": (kv, h),
            "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, h),
            "mlp.gate_proj": (w, h),
            "mlp.up_proj": (w, h),
            "mlp.down_proj": (h, w),
        }
        norms = ["input_layernorm", "post_attention_layernorm"]
        top = "model"
        biased = {f"self_attn.{n}_proj" for n in "qkv"} if kind == "qwen2" else set()
        outside = {
            "model.embed_tokens.weight": (VOCABULARY, h),
            "model.norm.weight": (h,),
            "lm_head.weight": (VOCABULARY, h),
        }
    shapes = dict(outside)
    for block in range(blocks):
        prefix = f"{top}.layers.{block}"
        shapes |= {f"{prefix}.{name}.weight": shape for name, shape in linears.items()}
        shapes |= {f"{prefix}.{name}.bias": linears[name][:1] for name in biased}
        shapes |= {f"{prefix}.{norm}.weight": (h,) for norm in norms}
        shapes |= {f"{prefix}.{norm}.bias": (h,) for norm in norms if kind == "opt"}
    return shapes


def write_model(folder: Path, kind: str = "llama", *, shards: int = 1, **changes) -> Path:
    """A random checkpoint in float16; several shards have an index."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(kind, **changes)
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    shapes = shapes_of(kind, config["num_hidden_layers"], config["num_key_value_heads"])
    for name, shape in shapes.items():
        values = 0.1 * torch.randn(shape, generator=generator)
        norm = "norm" in name and name.endswith("weight")
        tensors[name] = (values + 1 if norm else values).to(torch.float16)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = [f"model-{index:05d}-of-{shards:05d}.safetensors" for index in range(shards)]
    weight_map = {name: names[index % shards] for index, name in enumerate(tensors)}
    for shard in names:
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == shard}
        save_file(part, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_ids(path: Path, windows: int = 6, tokens: int = 16, seed: int = 0) -> Path:
    """Random token windows as .npy."""
    import numpy as np

    ids = np.random.default_rng(seed).integers(3, VOCABULARY, (windows, tokens))
    np.save(path, ids.astype(np.uint16))
    return path
