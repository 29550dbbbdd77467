"""Calls of other projects' kernels: what they are given, and that one that fails costs a line."""

import sys
from types import SimpleNamespace

import pytest
import torch

from bench.environment import this_environment
from bench.folder import LINES, ResultsFolder, read_lines
from bench.kernels.check import relative_error
from bench.kernels.contest import Bench
from bench.kernels.suite import Layer
from bench.peers import contest, table
from bench.peers.calls import squeezellm, torch_int4
from bench.peers.loaded import Loaded, bit_stream
from bench.peers.table import PEERS, Peer, problem
from bench.timing import StopRule
from perfmodel.errors import UsageError
from perfmodel.format_names import parse_format

LAYER = Layer(model="toy", tensor="q_proj", rows=64, columns=256)


def error_of(loaded):
    x = torch.randn(1, loaded.values.shape[1]).to(loaded.dtype)
    return relative_error(loaded.run(x, loaded.weights), x.double() @ loaded.values.double().T)


def test_torch_int4_computes_the_same_product_as_our_gptq_weight():
    assert error_of(torch_int4((64, 256), "cpu")) < 1e-3


@pytest.mark.parametrize("bits", [3, 4])
def test_a_bit_stream_holds_the_codes_of_a_row_end_to_end(bits):
    codes = torch.randint(0, 2**bits, (2, 64), dtype=torch.uint8)
    words = bit_stream(codes, bits)
    assert words.shape == (64 * bits // 32, 2)
    stream = sum((int(word) & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words[:, 1]))
    assert [stream >> (bits * k) & (2**bits - 1) for k in range(64)] == codes[1].tolist()


def decoded(words, table_, bits):
    """(N, K) values of a (K * bits / 32, N) bit stream, code by code."""
    columns = 32 * words.shape[0] // bits
    rows = []
    for n in range(words.shape[1]):
        stream = sum((int(word) & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words[:, n]))
        rows.append([table_[n, stream >> (bits * k) & (2**bits - 1)] for k in range(columns)])
    return torch.tensor(rows)


def original(bits):
    """SqueezeLLM's extension, by the layout that its kernels read."""

    def dense(x, words, y, table_):
        y += decoded(words, table_, bits) @ x

    def hybrid(pointers, columns, values, x, full_rows, full_indices, y, rows, words, table_):
        dense(x, words, y, table_)
        row = torch.repeat_interleave(torch.arange(rows), pointers.diff())
        y.index_add_(0, row, values * x[columns])
        y.index_add_(0, full_indices, full_rows.T @ x)

    return {
        f"vecquant{bits}matmul_nuq_perchannel": dense,
        f"vecquant{bits}matmul_spmv_hybrid_nuq_perchannel": hybrid,
    }


@pytest.mark.parametrize("name", ["squeezellm-w4", "squeezellm-w3", "squeezellm-w3-s0.45-hybrid"])
def test_squeezellms_kernels_are_given_what_they_read(name, monkeypatch):
    extension = SimpleNamespace(**original(3), **original(4))
    monkeypatch.setitem(sys.modules, "quant_cuda", extension)
    assert error_of(squeezellm(name, (24, 128), "cpu")) < 1e-3


def test_every_peer_names_a_weight_format_and_its_loader():
    for peer in PEERS:
        assert parse_format(peer.format).bits_per_weight(4096, 4096) > 3
        assert peer.package == "torch" or peer.is_foreign
    assert len({peer.name for peer in PEERS}) == len(PEERS)


def test_a_peer_that_is_not_installed_says_so():
    gemlite = next(peer for peer in PEERS if peer.name == "gemlite-int4")
    assert problem(gemlite, "cpu") == "does not run on a CPU here"
    if not table.importlib.util.find_spec("gemlite"):
        assert problem(gemlite, "cuda") == "gemlite is not installed"


# ---- one that fails ------------------------------------------------------------------------------


def a_peer(load, **changes):
    return Peer(**{"name": "toy", "package": "yaml", "format": "w4.5", "load": load, **changes})


@pytest.fixture
def bench(tmp_path):
    environment = this_environment("cpu")
    return Bench(environment=environment, results=ResultsFolder(tmp_path), rule=StopRule())


def test_whatever_a_peer_raises_becomes_a_line(bench, tmp_path):
    def load(_shape, _device):
        raise AssertionError("no such GPU\nand more")

    assert contest.contestants(bench, LAYER, [a_peer(load, kinds=("cpu",))]) == []
    (line,) = read_lines(tmp_path / LINES)
    assert line["reason"] == "AssertionError: no such GPU"


def test_on_a_gpu_a_foreign_peer_must_have_run_alone(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "is_cuda", property(lambda _: True))
    peer = a_peer(lambda *_: pytest.fail("not tried alone"), kinds=("cpu",))
    assert contest.contestants(bench, LAYER, [peer]) == []
    (line,) = read_lines(tmp_path / LINES)
    assert line["reason"] == "not tried alone, or failed: python -m bench.gpu peer toy"


def test_a_trial_says_how_it_went(bench, tmp_path, monkeypatch):
    good = torch_int4((64, 256), "cpu")
    bad = Loaded(weights=good.weights, run=good.run, values=-good.values)

    def run(loaded):
        monkeypatch.setattr(contest, "PEERS", (a_peer(lambda *_: loaded),))
        monkeypatch.setattr(
            contest, "_checked", lambda *_: checked(peer_of(contest), (64, 256), "cpu")
        )
        contest.try_alone(bench.results, "toy")

    checked = contest._checked

    def peer_of(module):
        return a_peer(module.PEERS[0].load, kinds=("cpu",))

    monkeypatch.setattr(contest, "cuda_graph_sampler", lambda call, _: lambda: call(0) is None or 1)
    run(bad)
    run(good)
    wrong, right = read_lines(tmp_path / LINES)
    assert (wrong["ok"], wrong["reason"][:9], "key" in wrong) == (False, "is wrong:", False)
    assert (right["ok"], right["key"]) == (True, "peer:toy")
    with pytest.raises(UsageError, match="no peer 'nobody'"):
        contest.try_alone(bench.results, "nobody")
