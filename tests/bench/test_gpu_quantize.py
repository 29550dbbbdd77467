"""The quantizer's stage on a toy model and the CPU: what it runs, and that it goes on."""

import pytest
from msgspec.structs import replace

from bench.account import account
from bench.environment import this_environment
from bench.folder import LINES, ResultsFolder, read_lines
from bench.gpu import quantize
from perfmodel.errors import UsageError
from perfmodel.models import load_model

TOY = replace(
    load_model("llama-7b"), layers=2, hidden=256, intermediate=512, heads=4, kv_heads=4,
    head_dim=64, vocab=64,
)  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "load_model", lambda _name: TOY)
    monkeypatch.setattr(quantize, "FISHER_TOKENS", (8, 16))
    monkeypatch.setattr(quantize, "TOKENS", 512)
    environment = this_environment("cpu")

    def go(*arguments):
        quantize.quantize(environment, ResultsFolder(tmp_path), *arguments)
        return read_lines(tmp_path / LINES)

    return go


def test_matrices_are_clustered_once(run):
    names = [linear.name for linear in TOY.linears()]
    lines = run("kmeans-w3")
    assert [(line["block"], line["what"]) for line in lines] == [(0, name) for name in names]
    assert lines[4]["weights"] == 512 * 256
    more = run("kmeans-w3", "9")  # the model has two blocks
    assert more[:7] == lines
    assert [(line["block"], line["what"]) for line in more[7:]] == [(1, name) for name in names]
    (table,) = account(more, [])
    assert [row["times"] for row in table.rows] == [2] * 7


@pytest.mark.parametrize("case", ["gptq-w4-g128", "gptvq-2d-w2"])
def test_a_matrix_of_each_shape_is_quantized(run, case):
    lines = run(case)
    assert [line["what"] for line in lines] == ["q_proj", "gate_proj", "down_proj"]
    assert all(line["seconds"] > 0 for line in lines)
    assert run(case) == lines


def test_the_fisher_pass_is_timed_per_sequence(run):
    lines = run("fisher")
    assert [line["what"] for line in lines] == ["8 tokens, 4 blocks", "16 tokens, 4 blocks"]
    assert run("fisher") == lines


def test_an_unknown_case_is_refused(run):
    with pytest.raises(UsageError, match="case 'awq-w4'"):
        run("awq-w4")
