"""Dispatch, operators and the module: one answer whatever the number of tokens."""

import pytest
import torch

from kernels import ops
from kernels.checks import LayoutError
from kernels.dispatch import choose, matmul, matmul_ref
from kernels.layouts.tensors import to_tensors
from kernels.linear import QuantizedLinear
from tests.kernels.samples import (
    activations,
    bilevel_weight,
    csr_weight,
    generator,
    lut_weight,
    sparse_matrix,
    uniform_weight,
    vector_weight,
)
from tests.kernels.tolerance import assert_within, fp16_output

ROWS, COLUMNS = 11, 300


def tolerance(expected: torch.Tensor) -> torch.Tensor:
    """FP16 weights, sums and outputs: a few roundings of a typical output, K = 300."""
    typical = expected.norm(dim=-1, keepdim=True) / expected.shape[-1] ** 0.5
    return 2 * fp16_output(expected) + 8 * 2.0**-11 * typical


@pytest.mark.parametrize("tokens", [1, 3, 17])
@pytest.mark.parametrize("form", [None, "hybrid"])
@pytest.mark.parametrize(
    ("kind", "bits", "path"),
    [("fp16", 3, "exact"), ("fp16", 4, "int"), ("u7", 4, "exact"), ("fp16", 7, "exact")],
)
def test_layer(kind, bits, path, form, tokens):
    weight = lut_weight(kind, bits, ROWS, COLUMNS)
    sparse = None if form is None else csr_weight(sparse_matrix(ROWS, COLUMNS), form)
    bias = torch.randn(ROWS, generator=generator(1)).half()
    layer = QuantizedLinear(weight, sparse, bias, path=path)
    x = activations(COLUMNS, tokens=tokens)
    expected = matmul_ref(x, weight, sparse) + bias
    assert_within(layer(x), expected, tolerance(expected))
    assert not layer.counters.any()


@pytest.mark.parametrize("form", ["rows", "balanced"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_layer_with_other_sparse_parts(form, tokens):
    weight = lut_weight("fp16", 3, ROWS, COLUMNS)
    sparse = csr_weight(sparse_matrix(ROWS, COLUMNS), form)
    x = activations(COLUMNS, tokens=tokens)
    expected = matmul_ref(x, weight, sparse)
    assert_within(QuantizedLinear(weight, sparse)(x), expected, tolerance(expected))


@pytest.mark.parametrize("tokens", [1, 5, 17])
@pytest.mark.parametrize(
    ("group_size", "act_order"), [(None, None), (128, None), (128, "gather"), (128, "fold")]
)
def test_uniform_layer(group_size, act_order, tokens):
    weight = uniform_weight(4, ROWS, COLUMNS, group_size=group_size, act_order=act_order)
    x = activations(COLUMNS, tokens=tokens)
    expected = matmul_ref(x, weight)
    assert_within(QuantizedLinear(weight)(x), expected, tolerance(expected))


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize(
    ("weight", "outliers"),
    [
        (vector_weight(2, 4, ROWS, COLUMNS), False),
        (vector_weight(4, 8, ROWS, COLUMNS), False),
        (vector_weight(2, 4, ROWS, COLUMNS, subrow=32), False),
        (bilevel_weight(3, ROWS, COLUMNS), True),
        (bilevel_weight(4, ROWS, COLUMNS, ordered=True), False),
    ],
    ids=["2-d", "4-d", "blockwise", "spqr", "ordered"],
)
def test_layers_of_vectors_and_of_bilevel_scales(weight, outliers, tokens):
    sparse = csr_weight(sparse_matrix(ROWS, COLUMNS), "rows") if outliers else None
    x = activations(COLUMNS, tokens=tokens)
    expected = matmul_ref(x, weight, sparse)
    layer = QuantizedLinear(weight, sparse)
    assert_within(layer(x), expected, tolerance(expected))
    again = QuantizedLinear.from_tensors(layer.state_dict(), layer.meta)
    assert torch.equal(again(x), layer(x))


@pytest.mark.parametrize(
    ("weight", "tokens", "kernel"),
    [
        (lut_weight("fp16", 4, 4, 300), 1, "gemv"),
        (lut_weight("fp16", 4, 4, 300), 16, "gemm"),
        (lut_weight("fp16", 4, 4, 300), 17, "dequantize"),
        (lut_weight("fp16", 5, 4, 300), 2, "dequantize"),
        (uniform_weight(6, 4, 300), 2, "gemm"),
        (uniform_weight(4, 4, 300, group_size=128), 2, "dequantize"),
    ],
)
def test_the_table_of_dispatch(weight, tokens, kernel):
    assert choose(weight, tokens) == kernel


def test_a_layer_survives_its_state_dict():
    sparse = csr_weight(sparse_matrix(ROWS, COLUMNS), "hybrid")
    weight = lut_weight("u7", 4, ROWS, COLUMNS)
    layer = QuantizedLinear(weight, sparse)
    state = layer.state_dict()
    assert sorted(state) == [
        "columns", "dense_rows", "dense_values", "row_pointers", "scale", "table", "values",
        "words",
    ]  # fmt: skip
    x = activations(COLUMNS, tokens=1)
    again = QuantizedLinear.from_tensors(state, to_tensors(weight, sparse)[1])
    assert torch.equal(again(x), layer(x))


def test_leading_dimensions_are_kept():
    layer = QuantizedLinear(lut_weight("fp16", 3, ROWS, COLUMNS))
    x = activations(COLUMNS, tokens=6)
    y = layer(x.view(2, 3, COLUMNS))
    assert y.shape == (2, 3, ROWS)
    assert torch.equal(y.view(6, ROWS), layer(x))


def operator_samples():
    lut, sparse = lut_weight("u7", 4, 6, 128), csr_weight(sparse_matrix(6, 128, 0.2), "hybrid")
    t, meta = to_tensors(lut, sparse)
    x = activations(128, tokens=1)
    geometry = ("u7", 4, 128, meta["tile_codes"])
    csr = (t["row_pointers"], t["columns"], t["values"])
    dense = (t["dense_values"], t["dense_rows"])
    table = (t["words"], t["table"], t["scale"])
    return {
        "linear": (ops.linear, (x, *table, None, None, None, *geometry, 0, 0, "", "exact")),
        "sparse_linear": (
            ops.sparse_linear,
            (x, *table, None, *csr, *dense, None, *geometry, "exact"),
        ),
        "csr_spmv": (ops.csr, (x[0], *csr, None, *dense, 0)),
        "fp16_gemv": (ops.fp16, (x[0], torch.ones(5, 128).half())),
    }


@pytest.mark.parametrize("name", ["linear", "sparse_linear", "csr_spmv", "fp16_gemv"])
def test_operators_pass_opcheck(name):
    operator, arguments = operator_samples()[name]
    torch.library.opcheck(operator, arguments)


def test_a_layer_is_one_graph():
    layer = QuantizedLinear(lut_weight("fp16", 3, 6, 128))
    x = activations(128, tokens=1)
    compiled = torch.compile(lambda a: layer(a) * 2, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x) * 2)


def test_missing_tensors_are_named():
    tensors, meta = to_tensors(lut_weight("u7", 4, 4, 64))
    del tensors["table"]
    with pytest.raises(LayoutError, match="table is missing, expected a tensor; have: words"):
        QuantizedLinear.from_tensors(tensors, meta)


def test_a_uniform_weight_has_no_sparse_part():
    sparse = csr_weight(torch.ones(4, 64), "rows")
    with pytest.raises(LayoutError, match="sparse is given with a UniformWeight"):
        QuantizedLinear(uniform_weight(4, 4, 64), sparse)


@pytest.mark.parametrize(
    "weight",
    [
        lut_weight("sym", 4, 4, 64),
        lut_weight("fp16", 5, 4, 64),
        uniform_weight(4, 4, 256, group_size=64),
    ],
    ids=["sym", "5-bit", "groups"],
)
def test_a_path_that_a_weight_lacks_is_named_at_once(weight):
    with pytest.raises(LayoutError, match="path is 'int', expected one of exact"):
        QuantizedLinear(weight, path="int")


def test_no_tokens_are_refused():
    with pytest.raises(LayoutError, match=r"tokens is 0"):
        matmul(torch.zeros(0, 64).half(), lut_weight("fp16", 4, 4, 64))
