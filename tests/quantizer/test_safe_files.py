"""Files from outside: hostile names, headers and shapes are refused before they are used."""

import contextlib
import json
import os
from pathlib import Path

import pytest

from quantizer.checkpoints.checkpoint import open_checkpoint
from quantizer.checkpoints.safe_files import read_header, shard_path
from quantizer.errors import CheckpointError
from tests.quantizer.models import write_model


def write_shard(path: Path, header: object, data: bytes = b"\0" * 16) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(shape=(2, 2), dtype="F32", offsets=(0, 16)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", ".x.safetensors",
     "x.bin", "x.safetensors\n", "x\0.safetensors", "", 7, None, ["x.safetensors"]],
)  # fmt: skip
def test_shard_names_stay_in_their_folder(tmp_path, name):
    with pytest.raises(CheckpointError, match="expected a plain name"):
        shard_path(tmp_path, name)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret.safetensors").touch()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "x.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match="is a link out of its folder"):
        shard_path(folder, "x.safetensors")
    (folder / "y.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="is missing, or no file"):
        shard_path(folder, "y.safetensors")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"../../x": entry()}, "tensor name '../../x', expected dotted words"),
        ({"a..b": entry()}, "expected dotted words"),
        ({"a/b": entry()}, "expected dotted words"),
        ({"a" * 300: entry()}, "expected dotted words"),
        ({"a": entry(shape=(0, 2**60), offsets=(0, 0))}, "which is absurd"),
        ({"a": entry(shape=(-2, -2))}, "which is absurd"),
        ({"a": entry(shape=(1,) * 9)}, "which is absurd"),
        ({"a": entry(offsets=(0, 99))}, "the file is truncated"),
        ({"a": entry(offsets=(16, 0))}, "the file is truncated"),
        ({"a": entry(shape=(3, 2))}, "has 16 bytes"),
        ({"a": entry(dtype="F8_E4M3")}, "not supported"),
        ({"a": {"dtype": "F32"}}, "header is not that of safetensors"),
        ({"a": [1]}, "header is not that of safetensors"),
        ([], "header is not that of safetensors"),
        (b"{" * 100_000, "header is not that of safetensors"),
        (b"\xff\xfe", "header is not that of safetensors"),
    ],
)
def test_hostile_headers_are_refused(tmp_path, header, message):
    with pytest.raises(CheckpointError, match=message):
        read_header(write_shard(tmp_path / "x.safetensors", header))


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 8, (10**9).to_bytes(8, "little")])
def test_a_header_longer_than_its_file_is_never_allocated(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated, or no safetensors file"):
        read_header(path)


def test_random_damage_gives_our_error_or_a_header(llama, tmp_path):
    content = (llama / "model.safetensors").read_bytes()
    path = tmp_path / "x.safetensors"
    for seed in range(200):
        position = int.from_bytes(os.urandom(4), "little") % 4000
        damaged = bytearray(content)
        damaged[position] ^= 1 << seed % 8
        path.write_bytes(damaged[: None if seed % 2 else position])
        with contextlib.suppress(CheckpointError):
            read_header(path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"lm_head.weight": "../model.safetensors"}, "expected a plain name"),
        ({"lm_head.weight": "none.safetensors"}, "is missing, or no file"),
        ({"../lm_head": "model-00000-of-00002.safetensors"}, "expected dotted words"),
        ({"new.weight": "model-00000-of-00002.safetensors"}, "is not in"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_hostile_indices_are_refused(tmp_path, weight_map, message):
    folder = write_model(tmp_path, shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert', expected one of"),
        ({"model_type": ["llama"]}, "expected one of"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected 1..1024"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"vocab_size": "64"}, "vocab_size is '64'"),
        ({"num_hidden_layers": 4}, "has no tensor model.layers.3.self_attn.q_proj.weight"),
    ],
)
def test_impossible_configurations_are_refused(tmp_path, changes, message):
    folder = write_model(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "7", "[" * 10_000])
def test_a_config_that_is_no_object_is_refused(tmp_path, content):
    folder = write_model(tmp_path)
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config.json: (is no JSON|found)"):
        open_checkpoint(folder)
