"""Subjects: names, bytes as perfmodel counts them, right results from the numba twins."""

from dataclasses import replace

import pytest
import torch

from bench.kernels.check import check
from bench.kernels.heads import head
from bench.kernels.prepare import prepare
from bench.kernels.subjects import (
    CPU_SUBJECTS,
    GPU_BATCHED,
    GPU_SUBJECTS,
    default_subjects,
    subject,
)
from bench.kernels.suite import SHAPES, choose_layers, default_layers, layers
from perfmodel.errors import UsageError
from perfmodel.format_names import parse_format

NAMES = tuple(dict.fromkeys((*GPU_SUBJECTS, *GPU_BATCHED, *CPU_SUBJECTS)))
SHAPE = (96, 384)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_read_back(name):
    found = subject(name)
    assert subject(found.name) == found
    assert parse_format(found.weights)


@pytest.mark.parametrize("name", [n for n in NAMES if ":csr" not in n and ":int16" not in n])
def test_a_subject_stores_the_bytes_that_its_format_counts(name):
    prepared = prepare(subject(name), SHAPE, "cuda", device="cpu")
    assert prepared.weight_bytes == parse_format(prepared.subject.weights).weight_bytes(*SHAPE)


def test_a_fixed_point_table_adds_one_scale_per_row():
    prepared = prepare(subject("squeezellm-w3:int16:int"), SHAPE, "cuda", device="cpu")
    assert prepared.weight_bytes == parse_format("squeezellm-w3").weight_bytes(*SHAPE) + 4 * 96


@pytest.mark.parametrize("name", ["fp32:library", "fp16:library", "fp16", "gptq-w6"])
def test_the_twins_are_right(name):
    found = check(prepare(subject(name), SHAPE, "cpu"))
    assert found.ok, found


@pytest.mark.parametrize("name", ["squeezellm-w3-s0.45-hybrid", "gptq-w4-g128", "squeezellm-w8"])
def test_the_head_of_a_weight_is_its_first_rows(name):
    prepared = prepare(subject(name), SHAPE, "cpu")
    x = torch.randn(384).half()
    part = replace(prepared, weights=head(prepared.weights, 40), shape=(40, 384))
    assert torch.allclose(part.reference(x), prepared.reference(x)[:40], rtol=1e-12)


def test_a_wrong_row_among_the_first_is_found():
    prepared = prepare(subject("fp32:library"), SHAPE, "cpu")

    def wrong(x, weights, _out, _counters):
        y = weights[0] @ x
        y[39] += 1
        return y

    assert check(replace(prepared, run=wrong), rows=40).why == "error"
    assert check(replace(prepared, run=wrong), rows=39).ok


def test_bytes_moved_are_weights_activations_and_results():
    prepared = prepare(subject("fp16"), SHAPE, "cpu")
    assert prepared.bytes_moved == 2 * 96 * 384 + 2 * 384 + 4 * 96
    assert prepared.flops == 2 * 96 * 384


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("fp16:fast", "unknown option 'fast'; have: int, int16, csr, library, fold, gather"),
        ("gptq-w4-g128:gather", "gather needs a format that ends in -act"),
        ("squeezellm-w3:csr", "csr needs a sparse format"),
        ("squeezelm-w3", "did you mean squeezellm-w3"),
        ("fp32", "only the library runs it, as fp32:library"),
    ],
)
def test_a_wrong_name_says_what_is_wrong(name, problem):
    with pytest.raises(UsageError, match=problem):
        subject(name)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("squeezellm-w4-u7:int", "the CPU twins have the exact path alone"),
        ("fp16:batch4", "this kernel takes one token"),
        ("w3", "no kernel"),
    ],
)
def test_what_a_cpu_cannot_run_says_why(name, problem):
    with pytest.raises(UsageError, match=problem):
        prepare(subject(name), SHAPE, "cpu")


def test_layers_are_those_of_the_models():
    shapes = {layer.tensor: layer.shape for layer in layers("llama-7b")}
    assert shapes["qkv_proj"] == (12288, 4096)
    assert shapes["gate_up_proj"] == (22016, 4096)
    assert shapes["down_proj"] == (4096, 11008)
    assert shapes["lm_head"] == (32000, 4096)
    assert len(default_layers("cuda")) == 4 * 6 + len(SHAPES)
    assert {layer.shape for layer in default_layers("cuda")} >= set(SHAPES)
    assert len({layer.shape for layer in default_layers("cpu")}) == 4


def test_layers_are_chosen_by_name():
    assert [layer.name for layer in choose_layers(["llama-7b/q_proj"])] == ["llama-7b/q_proj"]
    assert len(choose_layers(["llama-13b"])) == 6
    with pytest.raises(UsageError, match="no such tensor; have: gate_up_proj, q_proj"):
        choose_layers(["llama-7b/w1"])


def test_a_gpu_times_several_tokens_and_a_cpu_one():
    assert any(subject(name).batch > 1 for name in default_subjects("cuda"))
    assert all(subject(name).batch == 1 for name in default_subjects("cpu"))
