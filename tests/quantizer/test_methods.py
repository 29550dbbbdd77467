"""Every method: stored bytes, round trips, sparse places exact, and what it must beat."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kernels.layouts.tensors import from_tensors, to_tensors
from perfmodel.format_names import parse_format
from quantizer.methods.matrix import QuantizedMatrix, Settings, SettingsError, Statistics
from quantizer.methods.registry import METHODS, needs, quantize_matrix

FORMATS = [
    *("rtn-w2", "rtn-w3", "rtn-w4", "rtn-w8", "rtn-w3-g128", "rtn-w4-g64"),
    *("kmeans-w3", "kmeans-w4-s0.45", "squeezellm-w2", "squeezellm-w3", "squeezellm-w4"),
    *("squeezellm-w3-int8", "squeezellm-w4-int8", "squeezellm-w4-u7", "squeezellm-w4-sym"),
    *("squeezellm-w3-s0.05", "squeezellm-w3-s0.45", "squeezellm-w4-u7-s0.45"),
    *("gptq-w3", "gptq-w4", "gptq-w3-g64", "gptq-w4-g128", "gptq-w3-g64-act", "gptq-w4-g256"),
    *("awq-w3-g128", "awq-w4-g64", "spqr-w2-g16", "spqr-w4-g16-act"),
    *("gptvq-1d-w2-g384", "gptvq-2d-w2-g1024", "gptvq-2d-w2-g1024-n32"),
    *("rtn-w5", "squeezellm-w6-s0.45", "kmeans-w7", "gptq-w6-g128", "awq-w5-g64"),
]
LAYOUTS = [
    "spqr-w3-g16-s1",
    "squeezellm-w3-s0.45-balanced",
    "squeezellm-w3-s0.45-hybrid",
    "squeezellm-w3-s40-hybrid",
]
SHAPES = [(16, 256), (24, 200), (5, 384)]


def problem(rows, columns, seed=0):
    """A weight with a few large columns, and statistics of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    weight[:, ::37] *= 4
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    x = torch.randn(4 * columns, columns, generator=generator) @ (mixing + torch.eye(columns))
    statistics = Statistics(
        fisher=torch.rand(rows, columns, generator=generator) ** 4,
        hessian=2 * x.T @ x / x.shape[0],
        mean_abs=x.abs().mean(dim=0),
    )
    return weight.half(), statistics


def hessian_norm(weight, matrix, hessian):
    change = matrix.dequantize() - weight.float()
    return float((change @ hessian * change).sum())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_stored_bytes_are_those_of_the_format(name, shape):
    weight, statistics = problem(*shape)
    chosen = Settings(format=name)
    matrix = quantize_matrix(weight, statistics, chosen)
    assert matrix.nbytes == parse_format(name).weight_bytes(*shape)
    assert matrix.nbytes == matrix.weight_format(chosen).weight_bytes(*shape)


@pytest.mark.parametrize("shape", [(16, 256), (5, 384)], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_stored_bytes_are_those_of_the_true_density(name, shape):
    weight, statistics = problem(*shape)
    chosen = Settings(format=name)
    matrix = quantize_matrix(weight, statistics, chosen)
    assert matrix.nbytes == matrix.weight_format(chosen).weight_bytes(*shape)


@pytest.mark.parametrize("name", [*FORMATS, *LAYOUTS])
def test_a_matrix_survives_its_tensors(name):
    weight, statistics = problem(16, 256)
    matrix = quantize_matrix(weight, statistics, Settings(format=name))
    restored = QuantizedMatrix(
        **dict(
            zip(
                ("weight", "sparse"),
                from_tensors(*to_tensors(matrix.weight, matrix.sparse)),
                strict=True,
            )
        )
    )
    assert torch.equal(restored.dequantize(), matrix.dequantize())


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_changed_and_twice_is_the_same(name):
    weight, statistics = problem(16, 256)
    before = weight.clone(), statistics.hessian.clone(), statistics.fisher.clone()
    first = quantize_matrix(weight, statistics, Settings(format=name)).dequantize()
    second = quantize_matrix(weight, statistics, Settings(format=name)).dequantize()
    assert torch.equal(first, second)
    assert torch.equal(weight, before[0])
    assert torch.equal(statistics.hessian, before[1])
    assert torch.equal(statistics.fisher, before[2])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_asks_for_what_it_needs(method):
    name = {"awq": "awq-w4-g128", "spqr": "spqr-w4-g16", "gptvq": "gptvq-2d-w2"}.get(method)
    chosen = Settings(format=name or f"{method}-w4")
    weight, statistics = problem(16, 256)
    asked = {name: getattr(statistics, name) for name in needs(chosen)}
    full = quantize_matrix(weight, statistics, chosen).dequantize()
    assert torch.equal(full, quantize_matrix(weight, Statistics(**asked), chosen).dequantize())
    if asked:
        with pytest.raises(SettingsError, match="is missing from the statistics"):
            quantize_matrix(weight, Statistics(), chosen)


def at_sparse_places(matrix, weight):
    """What comes back at the sparse places, the weight there, and the stored remainders."""
    rows = torch.repeat_interleave(torch.arange(weight.shape[0]), matrix.sparse.row_pointers.diff())
    columns = matrix.sparse.columns.long()
    return matrix.dequantize()[rows, columns], weight[rows, columns], matrix.sparse.values


@given(
    seed=st.integers(0, 10_000),
    share=st.sampled_from(["0.45", "5", "30"]),
    kind=st.sampled_from(["", "-int8", "-u7", "-sym"]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
)
@hypothesis_settings(max_examples=20, deadline=None)
def test_dense_plus_sparse_is_the_weight_at_sparse_places(seed, share, kind, dtype):
    weight, statistics = problem(12, 160, seed)
    weight = weight.to(dtype)
    chosen = Settings(format=f"squeezellm-w4{kind}-s{share}", sensitive_share=0.01)
    matrix = quantize_matrix(weight, statistics, chosen)
    found, due, remainders = at_sparse_places(matrix, weight)
    assert len(due) == round(float(share) / 100 * weight.numel())
    misses = found.half() != due.half()
    assert int(misses.sum()) == matrix.notes["inexact_nonzeros"]
    # Half a unit in the last place of the remainder, or of the least FP16.
    bound = torch.maximum(2.0**-11 * remainders.float().abs(), torch.tensor(2.0**-25))
    assert bool(((found - due.float()).abs() <= bound).all())
    assert bool((due.float().abs()[misses] < 0.01).all())  # half a standard deviation


@pytest.mark.parametrize("kind", ["", "-int8", "-u7", "-sym"])
def test_outliers_come_back_exactly(kind):
    weight, statistics = problem(64, 512)
    chosen = Settings(format=f"squeezellm-w4{kind}-s2", selection="outliers")
    matrix = quantize_matrix(weight, statistics, chosen)
    found, due, _ = at_sparse_places(matrix, weight)
    assert torch.equal(found.half(), due)


def test_rows_stored_in_full_are_exact():
    weight, statistics = problem(64, 256)
    matrix = quantize_matrix(weight, statistics, Settings(format="squeezellm-w3-s0.45-hybrid"))
    rows = matrix.sparse.dense_rows.rows.long()
    assert len(rows) == 10
    assert torch.equal(matrix.dequantize()[rows].half(), weight[rows])


@pytest.mark.parametrize("bits", [3, 4])
def test_squeezellm_beats_kmeans_beats_rtn_under_the_fisher_norm(bits):
    weight, statistics = problem(32, 512)
    errors = {}
    for name in ("rtn", "kmeans", "squeezellm"):
        matrix = quantize_matrix(weight, statistics, Settings(format=f"{name}-w{bits}"))
        change = matrix.dequantize() - weight.float()
        errors[name] = float((statistics.fisher * change.square()).sum())
    sparse = quantize_matrix(weight, statistics, Settings(format=f"squeezellm-w{bits}-s0.45"))
    change = sparse.dequantize() - weight.float()
    errors["sparse"] = float((statistics.fisher * change.square()).sum())
    assert errors["sparse"] < errors["squeezellm"] < errors["kmeans"] < errors["rtn"]


def test_activation_weighting_is_the_diagonal_of_the_hessian():
    weight, statistics = problem(8, 256)
    columns = statistics.hessian.diagonal().expand(8, 256).contiguous()
    obs = quantize_matrix(
        weight, statistics, Settings(format="squeezellm-w3", weighting="activation")
    )
    same = quantize_matrix(weight, Statistics(fisher=columns), Settings(format="squeezellm-w3"))
    assert torch.equal(obs.dequantize(), same.dequantize())


def test_values_by_gain_leave_less_error_than_the_rule_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 1024, generator=generator)
    fisher = torch.randn(32, 1024, generator=generator).mul(1.5).exp()
    errors = {}
    for selection in ("paper", "gain", "sensitive", "outliers"):
        chosen = Settings(format="squeezellm-w3-s0.45", selection=selection)
        matrix = quantize_matrix(weight, Statistics(fisher=fisher), chosen)
        errors[selection] = float((fisher * (matrix.dequantize() - weight).square()).sum())
    assert errors["gain"] == min(errors.values())
    assert len(set(errors.values())) == 4


@pytest.mark.parametrize("columns", [256, 300])
def test_rows_without_fisher_and_of_one_value_are_handled(columns):
    weight, statistics = problem(6, columns)
    statistics.fisher[0] = 0.0
    weight[1] = 0.0
    weight[2] = 0.5
    matrix = quantize_matrix(weight, statistics, Settings(format="squeezellm-w3-s0.45"))
    plain = quantize_matrix(weight, Statistics(), Settings(format="kmeans-w3"))
    assert bool(matrix.dequantize().isfinite().all())
    assert torch.equal(matrix.dequantize()[1:3], weight[1:3].float())
    error = (matrix.dequantize()[0] - weight[0].float()).square().sum()
    assert float(error) <= float((plain.dequantize()[0] - weight[0].float()).square().sum())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "gptvq-2d-w3.5"}, "has 3.5 bits; kernels read 1d-w2"),
        ({"format": "squeezellm-w3@paper"}, "kernels read"),
        ({"format": "gptvq-4d-w3"}, "kernels read 1d-w2, 1d-w3, .*, 4d-w2"),
        ({"format": "spqr-w3-g32"}, "kernels read groups of 16"),
        ({"format": "gptvq-2d-w2-g1024-n8"}, "found sub-rows of 8 weights"),
        ({"format": "gptvq-1d-w3-n16"}, "kernels read sub-rows of 32 or more"),
        ({"format": "rtn-w5-g32"}, "kernels read groups of 64, 128, 256, 512, 1024"),
        ({"format": "gptq-w4-g96-act"}, "kernels read groups of 32, 64, 128, 256, 512, 1024"),
        ({"format": "gptvq-2d-w2", "seeds": "exact"}, "expected another for 2-D codebooks"),
        ({"format": "rtn-w4", "selection": "best"}, "selection is 'best', expected one of paper"),
        ({"format": "gone-w4"}, "no weight format 'gone-w4'"),
    ],
)
def test_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Settings(**fields)


def test_an_unknown_method_lists_the_known_ones():
    weight, statistics = problem(16, 256)
    with pytest.raises(SettingsError, match="have: rtn, kmeans, squeezellm, gptq, awq"):
        quantize_matrix(weight, statistics, Settings(format="w4"))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(3), "expected a float matrix"),
        (torch.ones(2, 3, dtype=torch.int32), "expected a float matrix"),
        (torch.full((2, 3), torch.nan), "largest magnitude of the weight is nan"),
        (torch.full((2, 3), 1e6), r"largest magnitude of the weight is 1e\+06"),
    ],
)
def test_weights_are_refused(weight, message):
    with pytest.raises(SettingsError, match=message):
        quantize_matrix(weight, Statistics(), Settings(format="rtn-w4"))


@pytest.mark.parametrize(
    ("fisher", "message"),
    [
        (torch.ones(3, 3), "shape of fisher"),
        (-torch.ones(16, 256), "fisher has negative values; least is -1"),
        (torch.full((16, 256), torch.inf), "not finite"),
    ],
)
def test_statistics_are_refused(fisher, message):
    weight, _ = problem(16, 256)
    with pytest.raises(SettingsError, match=message):
        quantize_matrix(weight, Statistics(fisher=fisher), Settings(format="squeezellm-w4"))
