"""Broken device, stack and model files through the real command line: one line, no traceback."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from perfmodel.cli import main

DEVICE = """\
name: Toy 1000
aliases: [toy]
vendor: NVIDIA
sm_count: 84
tdp_w: 300
source: "made up"
verified: true
memory:
  capacity_gb: 48
  bandwidth_gb_per_s: 768
  l2_mib: 6
compute:
  fp32_tflops: 38.7
  fp16_tensor_tflops: 154.8
  fp16_tensor_sparse_tflops: 309.7
interconnect:
  name: NVLink
  gb_per_s: 112.5
"""
STACK = """\
name: toy
description: A made-up stack
basis: datasheet
source: made up
bandwidth_efficiency:
  - {at_least_bytes: 0, share: 0.5}
  - {at_least_bytes: 1048576, share: 0.9}
compute_efficiency: 0.8
launch_us: 2.5
layer_us: 10.0
kv_traffic_multiplier: 1.0
decode: {overlap: 1.0, sm_cycles_per_weight: {any: 0.0}}
"""
MODEL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
OPT = {
    "architectures": ["OPTForCausalLM"],
    "hidden_size": 2048,
    "ffn_dim": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
}
MEMORY_GROUP = DEVICE[DEVICE.index("memory:") : DEVICE.index("compute:")]


class Broken(NamedTuple):
    """A file, the line:col that the message must name, and words that it must hold."""

    content: str | bytes
    place: str
    words: str


def swap(old: str, new: str, text: str = DEVICE) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


def bandwidth(value: str, words: str) -> Broken:
    return Broken(swap("768", value), "10:23", f"memory.bandwidth_gb_per_s: found {words}")


def verified(value: str, words: str) -> Broken:
    return Broken(swap("verified: true", f"verified: {value}"), "7:11", f"verified: found {words}")


def vendor(value: str, words: str) -> Broken:
    return Broken(swap("NVIDIA", value), "3:9", f"vendor: found {words}")


def memory(value: str, words: str) -> Broken:
    return Broken(swap(MEMORY_GROUP, f"memory: {value}\n"), "8:9", f"memory: found {words}")


KEYS = {
    "unknown-key": Broken(
        swap("vendor", "vender"), "3:1", "vender: found an unknown key; did you mean vendor?"
    ),
    "unknown-key-in-group": Broken(
        swap("bandwidth_gb", "bandwith_gb"),
        "10:3",
        "memory.bandwith_gb_per_s: found an unknown key; did you mean bandwidth_gb_per_s?",
    ),
    "unknown-key-like-no-other": Broken(
        DEVICE + "zzz: 1\n", "19:1", "zzz: found an unknown key; expected one of: "
    ),
    "no-name": Broken(swap("name: Toy 1000\n", ""), "1:1", "found no key name, expected it"),
    "no-memory": Broken(swap(MEMORY_GROUP, ""), "1:1", "found no key memory, expected it"),
    "no-capacity": Broken(
        swap("  capacity_gb: 48\n", ""), "9:3", "memory: found no key capacity_gb, expected it"
    ),
    "duplicate-key": Broken(
        DEVICE + "name: again\n", "19:1", "name: found this key twice, expected it once"
    ),
    "duplicate-key-in-group": Broken(
        swap("  l2_mib: 6", "  l2_mib: 6\n  capacity_gb: 80"),
        "12:3",
        "memory.capacity_gb: found this key twice, expected it once",
    ),
    "number-as-key": Broken(DEVICE + "1: 2\n", "19:1", "found key '1', expected a name"),
    "list-as-key": Broken(DEVICE + "[a]: 2\n", "19:1", "found a key that is not text"),
    "merge-key": Broken(
        swap("memory:\n", "memory:\n  <<: {a: 1}\n"), "9:3", "found a merge key <<"
    ),
}
TYPES = {
    "text-for-number": bandwidth("fast", '"fast", expected'),
    "quoted-number": bandwidth('"768"', '"768", expected'),
    "list-for-number": bandwidth("[768]", "a list, expected"),
    "mapping-for-number": bandwidth("{gb: 768}", "a mapping, expected"),
    "null-for-number": bandwidth("null", "nothing (null), expected"),
    "nothing-for-number": Broken(
        swap("bandwidth_gb_per_s: 768", "bandwidth_gb_per_s:"), "10:22", "found nothing (null)"
    ),
    "number-for-text": Broken(swap("Toy 1000", "1000"), "1:7", "name: found 1000, expected"),
    "empty-text": Broken(swap("Toy 1000", '""'), "1:7", 'name: found "", expected'),
    "list-for-mapping": memory("[48, 768]", "a list, expected"),
    "number-for-mapping": memory("48", "48, expected"),
    "fraction-for-count": Broken(swap("84", "84.5"), "4:11", "sm_count: found 84.5, expected"),
    "true-for-count": Broken(swap("84", "true"), "4:11", "sm_count: found true, expected"),
    "quoted-truth": verified('"yes"', '"yes", expected'),
    "number-for-truth": verified("1", "1, expected"),
    "number-as-alias": Broken(
        swap("[toy]", "[toy, 3090]"), "2:16", "aliases[1]: found 3090, expected"
    ),
    "text-for-aliases": Broken(swap("[toy]", "toy"), "2:10", 'aliases: found "toy", expected'),
}
BOUNDS = {
    "negative": bandwidth("-768", "-768, expected"),
    "zero": bandwidth("0", "0, expected"),
    "bytes-not-gigabytes": bandwidth("768000000000", "768000000000, expected"),
    "sparse-below-dense": Broken(
        swap("309.7", "100.0"),
        "15:30",
        "compute.fp16_tensor_sparse_tflops: found 100, expected at least the dense peak, 154.8",
    ),
    "name-too-long": Broken(swap("Toy 1000", "x" * 3000), "1:7", 'name: found "xxx'),
}
AMBIGUOUS = {
    "infinite": bandwidth(".inf", ".inf, which YAML readers take differently; expected a finite"),
    "minus-infinite": bandwidth("-.INF", "-.INF, which"),
    "not-a-number": bandwidth(".nan", ".nan, which YAML readers take differently; expected a fin"),
    "exponent-alone": bandwidth("1e3", "1e3, which YAML readers take differently; expected"),
    "overflow": bandwidth("1.0e999", "1.0e999, "),
    "signed-overflow": bandwidth("1.0e+999", "1.0e+999, expected a finite number"),
    "octal": bandwidth("010", "010, which YAML readers take differently; expected a decimal"),
    "hexadecimal": bandwidth("0x10", "0x10, which YAML readers take differently; expected a dec"),
    "sexagesimal": bandwidth("4:20", "4:20, which YAML readers take differently; expected a dec"),
    "underscore": bandwidth("1_000", "1_000, which YAML readers take differently; expected a num"),
    "no-integer-part": bandwidth(".5", ".5, which YAML readers take differently; expected a num"),
    "41-digits": bandwidth("7" * 41, "a number of 41 digits, expected at most 40"),
    "5000-digits": bandwidth("7" * 5000, "a number of 5000 digits, expected at most 40"),
    "no": verified("no", "no, which YAML readers take differently; expected true, false"),
    "yes": verified("yes", "yes, which YAML readers take differently; expected true, false"),
    "on": verified("on", "on, which YAML readers take differently; expected true, false"),
    "capital-true": verified("True", "True, which YAML readers take differently; expected true"),
    "date": vendor("2020-12-01", "2020-12-01, which YAML readers take differently; expected quo"),
}
YAML_MACHINERY = {
    "alias": vendor("*other", "alias *other, expected the value itself"),
    "anchor": vendor("&other NVIDIA", "anchor &other, expected a plain value"),
    "python-tag": vendor('!!python/object/apply:os.system ["id"]', "tag tag:yaml.org,2002:python"),
    "integer-tag": bandwidth("!!int 768", "tag tag:yaml.org,2002:int, expected an untagged value"),
    "two-documents": Broken(
        DEVICE + "---\n" + DEVICE, "19:1", "found a second document, expected one"
    ),
    "empty-file": Broken("", "1:1", "found an empty file, expected `key: value` lines"),
    "comment-only": Broken("# later\n", "2:1", "found an empty file, expected `key: value` lines"),
    "list-at-top": Broken("- name: a\n", "1:1", "found a list, expected `key: value` lines"),
    "text-at-top": Broken("hello\n", "1:1", "found text, expected `key: value` lines"),
    "30000-brackets": Broken("name: " + "[" * 30000, "1:19", "name: found more than 12 levels"),
    "30000-braces": Broken("name: " + "{" * 30000, "1:8", "name: found a key that is not text"),
}
SYNTAX = {
    "tab-as-indent": Broken(swap("  l2_mib", "\tl2_mib"), "11:1", "found a tab, expected"),
    "open-bracket": Broken(swap("[toy]", "[toy"), "3:7", "expected ',' or ']', but got ':'"),
    "open-quote": Broken(swap('"made up"', '"made up'), "6:9", "end of stream"),
    "no-colon": Broken(swap("vendor: NV", "vendor NV"), "3:1", "could not find expected ':'"),
    "more-indent": Broken(swap("  l2_mib", "   l2_mib"), "11:10", "mapping values are not allowed"),
    "at-sign": Broken(swap("NVIDIA", "@NVIDIA"), "3:9", "found character '@'"),
    "no-such-character": Broken(swap("NVIDIA", r'"\U00110000"'), "3:12", "found"),
}
BYTES = {
    "above-64-KiB": Broken(DEVICE + "#" * 65536, "1:1", "found more than 65536 bytes"),
    "latin-1": Broken(
        swap("NVIDIA", "Société").encode("latin-1"), "3:13", "found byte 0xe9, expected UTF-8 text"
    ),
    "utf-16": Broken(DEVICE.encode("utf-16"), "1:1", "found byte 0xff, expected UTF-8 text"),
    "nul": Broken(swap("NVIDIA", "NVI\0DIA"), "3:12", "found character 0x0, expected text"),
    "bell": Broken(swap("NVIDIA", "NVI\aDIA"), "3:12", "found character 0x7, expected text"),
    "binary": Broken(b"\x7fELF\x02\x01\x01" + bytes(99), "1:1", "found character 0x7f"),
}
# Whatever a file says, its message stays one line and moves no cursor.
ESCAPES = {
    "line-break-in-key": Broken(DEVICE + r'"a\nb": 1', "19:1", "found"),
    "escape-code-in-key": Broken(DEVICE + r'"\e[31m": 1', "19:1", "found"),
    "line-break-in-value": Broken(swap("768", r'"7\n68"'), "10:23", "found"),
    "line-break-in-tag": Broken(swap("768", "!<a%0ab> 768"), "10:23", "found tag"),
    "escape-code-in-name": Broken(swap("Toy 1000", r'"\e[31mToy"'), "1:7", "found"),
    "half-a-character-in-name": Broken(swap("Toy 1000", r'"Toy \ud800"'), "1:7", "found"),
}
DEVICES = KEYS | TYPES | BOUNDS | AMBIGUOUS | YAML_MACHINERY | SYNTAX | BYTES | ESCAPES


def write(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def message(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What follows `perfmodel: error: ` on the one printable line of a refused file."""
    code = main(argv)
    out, err = capsys.readouterr()
    assert (code, out) == (3, "")
    assert err.startswith("perfmodel: error: ")
    assert err.removesuffix("\n").isprintable()
    return err.removeprefix("perfmodel: error: ").removesuffix("\n")


@pytest.mark.parametrize("command", [("check",), ("predict", "--gpu")], ids=" ".join)
@pytest.mark.parametrize("broken", DEVICES.values(), ids=DEVICES)
def test_a_broken_device_file_is_refused_with_its_place(broken, command, tmp_path, capsys):
    file = write(tmp_path / "toy.yaml", broken.content)
    said = message(capsys, *command, str(file))
    assert said.startswith(f"{file}:{broken.place}: ")
    assert broken.words in said


@pytest.mark.parametrize("command", [("check",), ("predict", "--gpu")], ids=" ".join)
def test_a_missing_device_file_is_named(command, tmp_path, capsys):
    file = tmp_path / "toy.yaml"
    said = message(capsys, *command, str(file))
    assert said == f"{file}: cannot be read: No such file or directory"


@pytest.mark.parametrize("command", [("check",), ("predict", "--gpu")], ids=" ".join)
def test_a_folder_is_no_device_file(command, tmp_path, capsys):
    said = message(capsys, *command, str(tmp_path))
    assert said == f"{tmp_path}: cannot be read: Is a directory"


def test_the_first_broken_file_of_several_is_named(tmp_path, capsys):
    good, bad = write(tmp_path / "a.yaml", DEVICE), write(tmp_path / "b.yaml", "name: b\n")
    assert message(capsys, "check", str(good), str(bad)).startswith(f"{bad}:1:1: ")


def in_stack(old: str, new: str, place: str, words: str) -> Broken:
    return Broken(swap(old, new, STACK), place, words)


def at_step(old: str, new: str, place: str, words: str) -> Broken:
    return in_stack(old, new, place, f"bandwidth_efficiency{words}")


STACKS = {
    "share-above-1": at_step("0.5}", "1.5}", "6:32", "[0].share: found 1.5, expected"),
    "share-zero": at_step("0.5}", "0}", "6:32", "[0].share: found 0, expected"),
    "negative-bytes": at_step("bytes: 0", "bytes: -1", "6:22", "[0].at_least_bytes: found -1"),
    "no-step-for-0-bytes": at_step(
        "bytes: 0", "bytes: 9", "6:3", ": found no step with at_least_bytes: 0, expected one"
    ),
    "two-steps-for-0-bytes": at_step("1048576", "0", "7:22", "[1].at_least_bytes: found"),
    "unknown-key-in-step": at_step(
        "share: 0.5", "shares: 0.5", "6:25", "[0].shares: found an unknown key; did you mean share?"
    ),
    "no-share-in-step": at_step(", share: 0.5", "", "6:5", "[0]: found no key share, expected it"),
    "number-as-step": at_step("{at_least_bytes: 0, share: 0.5}", "0.5", "6:5", "[0]: found 0.5"),
    "negative-us": in_stack("2.5", "-2.5", "9:12", "launch_us: found -2.5, expected"),
    "unknown-key": in_stack("layer_us", "layer_ms", "10:1", "layer_ms: found an unknown key; did"),
    "share-of-compute": in_stack("0.8", "8", "8:21", "compute_efficiency: found 8, expected"),
    "multiplier-below-1": in_stack("r: 1.0", "r: 0.5", "11:24", "kv_traffic_multiplier: found 0.5"),
}
STACK_COMMANDS = [("check", "--kind", "stack"), ("predict", "--gpu", "a6000", "--stack")]


@pytest.mark.parametrize("command", STACK_COMMANDS, ids=["check", "predict"])
@pytest.mark.parametrize("broken", STACKS.values(), ids=STACKS)
def test_a_broken_stack_file_is_refused_with_its_place(broken, command, tmp_path, capsys):
    file = write(tmp_path / "toy.yaml", broken.content)
    said = message(capsys, *command, str(file))
    assert said.startswith(f"{file}:{broken.place}: ")
    assert broken.words in said


def config(**changes: Any) -> str:
    return json.dumps(MODEL | changes)


def without(key: str) -> str:
    return json.dumps({k: v for k, v in MODEL.items() if k != key})


NOT_SUPPORTED = "which is not supported; expected one of LlamaForCausalLM"
MODELS = {
    "invalid-json": ('{"hidden_size": }', "found no valid JSON"),
    "cut-off-json": (config()[:60], "found no valid JSON"),
    "empty-file": ("", "found no valid JSON"),
    "nan": (swap("4096", "NaN", config()), "found no valid JSON"),
    "list-at-top": ("[1]", "found a list, expected"),
    "too-deep": ('{"a":' * 30000, "nested too deeply"),
    "not-utf-8": (b'{"a": "\xe9"}', ":1:8: found byte 0xe9, expected UTF-8 text"),
    "above-1-MiB": (config() + " " * 2**20, "found more than 1048576 bytes"),
    "mixtral": (
        config(architectures=["MixtralForCausalLM"]),
        f"found MixtralForCausalLM, {NOT_SUPPORTED}",
    ),
    "gpt-neox": (
        config(architectures=["GPTNeoXForCausalLM"]),
        f"found GPTNeoXForCausalLM, {NOT_SUPPORTED}",
    ),
    "no-architecture": (without("architectures"), "architectures: found none"),
    "two-architectures": (config(architectures=["A", "B"]), "architectures: found ['A', 'B'], exp"),
    "list-as-architecture": (config(architectures=[[1]]), "architectures: found [1], "),
    "line-break-in-architecture": (config(architectures=["A\nB"]), "architectures: found A"),
    "no-vocabulary": (without("vocab_size"), "found no key vocab_size, expected it"),
    "no-mlp-width": (without("intermediate_size"), "found no key intermediate_size, expected it"),
    "text-for-count": (config(vocab_size="32000"), 'vocab_size: found "32000", expected'),
    "fraction-for-count": (config(hidden_size=4096.5), "hidden_size: found 4096.5, expected"),
    "negative": (config(num_hidden_layers=-32), "num_hidden_layers: found -32, expected"),
    "zero": (config(num_attention_heads=0), "num_attention_heads: found 0, expected"),
    "huge": (config(vocab_size=10**30), "vocab_size: found 1000000"),
    "overflow": (swap("4096", "1e999", config()), "out of range"),
    "heads-that-do-not-divide": (
        config(num_attention_heads=31, num_key_value_heads=31),
        "num_attention_heads: found 31, expected a divisor of hidden_size, 4096",
    ),
    "kv-heads-that-do-not-divide": (
        config(num_key_value_heads=5),
        "num_key_value_heads: found 5, expected a divisor of num_attention_heads, 32",
    ),
    "opt-with-projection": (
        json.dumps(OPT | {"word_embed_proj_dim": 512}),
        "word_embed_proj_dim: found 512, expected hidden_size, 2048",
    ),
    "qwen2-with-sliding-window": (
        config(architectures=["Qwen2ForCausalLM"], use_sliding_window=True),
        "use_sliding_window: found true, expected false",
    ),
}
MODEL_COMMANDS = [("check",), ("predict", "--gpu", "a6000", "--model")]


@pytest.mark.parametrize("command", MODEL_COMMANDS, ids=["check", "predict"])
@pytest.mark.parametrize(("content", "words"), MODELS.values(), ids=MODELS)
def test_a_broken_model_file_is_refused_with_its_field(content, words, command, tmp_path, capsys):
    file = write(tmp_path / "config.json", content)
    said = message(capsys, *command, str(file))
    assert said.startswith(f"{file}:")
    assert words in said


@pytest.mark.parametrize("command", MODEL_COMMANDS, ids=["check", "predict"])
def test_a_missing_model_file_is_named(command, tmp_path, capsys):
    file = tmp_path / "config.json"
    said = message(capsys, *command, str(file))
    assert said == f"{file}: cannot be read: No such file or directory"


def test_a_file_to_check_is_never_taken_for_a_preset(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message(capsys, "check", "--kind", "model", "llama-7b").startswith("llama-7b: cannot")
