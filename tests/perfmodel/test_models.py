"""Model shapes: presets against published parameter counts, and configs by path."""

import json
import re

import pytest

from perfmodel.errors import SpecError, UnknownNameError
from perfmodel.models import load_model, model_names, preset_about

# Parameters as the model cards and checkpoints' indices give them.
PARAMETERS = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "openllama-3b": 3_426_473_600,
    "mistral-7b": 7_241_732_096,
    "vicuna-7b": 6_738_415_616,
    "vicuna-13b": 13_015_864_320,
    "opt-1.3b": 1_315_758_080,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "tinyllama-1.1b": 1_100_048_384,
    "codellama-34b": 33_743_970_304,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    # num_parameters() of transformers 5.24 for the shapes of the presets
    "mpt-7b": 6_649_286_656,
    "mpt-30b": 29_957_200_896,
    "falcon-7b": 6_921_720_704,
}

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize("name", model_names())
def test_presets_have_the_published_number_of_parameters(name):
    assert load_model(name).parameters == PARAMETERS[name]
    assert preset_about(name).source


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("LLaMA 7B", "llama-7b"),
        ("llama_2_7b", "llama-2-7b"),
        ("meta-llama/Llama-2-70b-hf", "llama-2-70b"),
        ("Meta-Llama-3-8B", "llama-3-8b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("tinyllama", "tinyllama-1.1b"),
        ("llama-33b", "llama-30b"),
        ("mosaicml/mpt-7b-chat", "mpt-7b"),
        ("tiiuae/falcon-7b-instruct", "falcon-7b"),
    ],
)
def test_names_are_found_as_people_type_them(typed, meant):
    assert load_model(typed).name == meant


def test_a_typo_lists_near_matches():
    with pytest.raises(UnknownNameError, match=r"no model 'lama-7b'; did you mean llama-7b"):
        load_model("lama-7b")


def test_a_config_by_path_is_named_after_its_folder(tmp_path):
    folder = tmp_path / "stories"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    shape = load_model(str(folder))
    assert shape == load_model(str(folder / "config.json"))
    assert (shape.name, shape.head_dim, shape.kv_dim) == ("stories", 8, 32)


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"head_dim": 32}, lambda m: m.q_dim == 256),
        ({"tie_word_embeddings": True}, lambda m: m.tied_embeddings),
        ({"attention_bias": True}, lambda m: m.qkv_bias and m.o_bias),
        ({"mlp_bias": True}, lambda m: m.mlp_bias and not m.qkv_bias),
        ({"architectures": ["Qwen2ForCausalLM"]}, lambda m: m.qkv_bias and not m.o_bias),
        (
            {"architectures": ["MistralForCausalLM"], "sliding_window": 100},
            lambda m: m.attended(101) == 100,
        ),
        ({"num_key_value_heads": None}, lambda m: m.kv_heads == 8),
        ({"rope_scaling": {"type": "linear"}, "torch_dtype": "float16"}, lambda m: m.rope),
    ],
)
def test_configs_of_a_family_are_honoured(tmp_path, changes, check):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | changes))
    assert check(load_model(str(path)))


def test_an_unsupported_architecture_is_refused_by_name(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architectures": ["MixtralForCausalLM"]}))
    with pytest.raises(SpecError, match="found MixtralForCausalLM, which is not supported"):
        load_model(str(path))


def test_opt_has_two_mlp_matrices_positions_and_biases():
    opt = load_model("opt-6.7b")
    names = [linear.name for linear in opt.linears()]
    assert names == ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    assert opt.position_rows == 2050
    assert all(linear.bias for linear in opt.linears())


def test_mpt_stores_no_positions_and_no_biases():
    mpt = load_model("mpt-7b")
    assert (mpt.positions, mpt.position_rows) == ("alibi", 0)
    assert mpt.norm_elements == mpt.hidden
    assert not any(linear.bias for linear in mpt.linears())
    assert mpt.tied_embeddings


def test_falcon_has_one_norm_a_block_and_one_key_value_head():
    falcon = load_model("falcon-7b")
    assert (falcon.norms_per_block, falcon.norm_elements) == (1, 2 * 4544)
    assert (falcon.heads, falcon.kv_dim, falcon.intermediate) == (71, 64, 4 * 4544)
    names = [linear.name for linear in falcon.linears()]
    assert names == ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


MPT = {
    "architectures": ["MptForCausalLM"],
    "d_model": 64,
    "n_layers": 2,
    "n_heads": 4,
    "max_seq_len": 128,
    "vocab_size": 512,
}
FALCON = {
    "architectures": ["FalconForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
}


def write(tmp_path, config):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def test_mpt_with_biases_has_them_everywhere(tmp_path):
    mpt = load_model(write(tmp_path, MPT | {"no_bias": False}))
    assert all(linear.bias for linear in mpt.linears())
    assert mpt.norm_elements == 2 * 64


def test_falcon_of_the_hubs_own_code_is_the_same_shape(tmp_path):
    ours = load_model(write(tmp_path, FALCON))
    hub = {"architectures": ["RWForCausalLM"], "n_layer": 2, "n_head": 4, "multi_query": True}
    kept = {key: FALCON[key] for key in ("hidden_size", "vocab_size")}
    assert load_model(write(tmp_path, kept | hub)) == ours


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (MPT | {"attn_config": {"alibi": False}}, "attn_config.alibi: found false, expected true"),
        (MPT | {"attn_config": {"qk_ln": True}}, "attn_config.qk_ln: found true, expected false"),
        (
            MPT | {"attn_config": {"attn_type": "grouped_query_attention"}},
            "attn_config.attn_type: found grouped_query_attention, expected multihead_attention",
        ),
        (MPT | {"n_heads": 3}, "n_heads: found 3, expected a divisor of d_model, 64"),
        (FALCON | {"new_decoder_architecture": True}, "found true, expected false (only Falcon-7B"),
        (FALCON | {"multi_query": False}, "multi_query: found false, expected true"),
        (FALCON | {"parallel_attn": False}, "parallel_attn: found false, expected true"),
        (FALCON | {"alibi": True}, "alibi: found true, expected false"),
        (FALCON | {"n_head_kv": 2}, "n_head_kv: found 2, expected none"),
        (FALCON | {"num_hidden_layers": None}, "found no num_hidden_layers"),
    ],
)
def test_forms_that_are_not_modelled_are_refused(tmp_path, config, problem):
    with pytest.raises(SpecError, match=re.escape(problem)):
        load_model(write(tmp_path, config))
