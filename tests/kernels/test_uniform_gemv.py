"""Uniform GEMV in the interpreter: one scale per row, groups, act-order both ways."""

import pytest
import torch

from kernels.activations import activation_planes_ref
from kernels.checks import LayoutError
from kernels.layouts.codes import BITS
from kernels.layouts.uniform import dequantize_uniform
from kernels.uniform_gemv import uniform_gemv, uniform_gemv_ref
from tests.kernels.samples import EDGES, SHAPES, activations, guarded, uniform_weight
from tests.kernels.tolerance import assert_within, fp16_chains, fp32_sums, int_planes


def exact_tolerance(weight, x):
    """The chains add scale * (code - centre); the rest, scale * (centre - zero), is a plain sum."""
    scale, zero = weight.scale_zero.float().unbind(2)
    rest = (scale * (2 ** (weight.codes.bits - 1) - zero)).abs().amax(1, keepdim=True)
    products = dequantize_uniform(weight).abs() * x.float().abs()
    return fp16_chains(products + rest * x.float().abs()) + fp16_chains(rest * x.float())


@pytest.mark.parametrize("shape", [*SHAPES, *EDGES])
@pytest.mark.parametrize("bits", BITS)
def test_one_scale_per_row(bits, shape):
    weight, x = uniform_weight(bits, *shape), activations(shape[1])
    with guarded(shape[0]) as out:
        uniform_gemv(x, weight, out=out)
    assert_within(out, uniform_gemv_ref(x, weight), exact_tolerance(weight, x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_one_scale_per_row_int(bits, shape):
    weight, x = uniform_weight(bits, *shape), activations(shape[1])
    with guarded(shape[0]) as out:
        uniform_gemv(x, weight, path="int", out=out)
    _, block = activation_planes_ref(x, weight.codes)
    stored = weight.scale_zero[:, :, 0].float() * 2**bits
    tolerance = int_planes(dequantize_uniform(weight), x.float(), float(block[:, 0].max()))
    tolerance = tolerance + 2 * fp32_sums(stored * x.float())
    assert_within(out, uniform_gemv_ref(x, weight), tolerance)


@pytest.mark.parametrize(("columns", "group_size"), [(64, 64), (700, 64), (700, 512), (2688, 128)])
@pytest.mark.parametrize("bits", BITS)
def test_groups(bits, columns, group_size):
    weight = uniform_weight(bits, 5, columns, group_size=group_size)
    x = activations(columns)
    with guarded(5) as out:
        uniform_gemv(x, weight, out=out)
    assert_within(out, uniform_gemv_ref(x, weight), exact_tolerance(weight, x))


def test_smallest_groups():
    weight, x = uniform_weight(4, 6, 330, group_size=32), activations(330)
    with guarded(6) as out:
        uniform_gemv(x, weight, out=out)
    assert_within(out, uniform_gemv_ref(x, weight), exact_tolerance(weight, x))


@pytest.mark.parametrize("group_size", [None, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8])
def test_gathered_act_order_adds_in_fp32(bits, group_size):
    weight = uniform_weight(bits, 3, 300, group_size=group_size, act_order="gather")
    x = activations(300)
    with guarded(3) as out:
        uniform_gemv(x, weight, out=out)
    tolerance = 3 * fp32_sums(dequantize_uniform(weight) * x.float())
    assert_within(out, uniform_gemv_ref(x, weight), tolerance)


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_folded_act_order(bits):
    weight = uniform_weight(bits, 5, 700, group_size=128, act_order="fold")
    x = activations(700)
    with guarded(5) as out:
        uniform_gemv(x, weight, out=out)
    assert_within(out, uniform_gemv_ref(x, weight), exact_tolerance(weight, x))


def test_split_rows():
    weight, x = uniform_weight(4, 5, 2 * 1024 + 100), activations(2148)
    with guarded(5) as out:
        uniform_gemv(x, weight, out=out, parts=2)
    assert_within(out, uniform_gemv_ref(x, weight), exact_tolerance(weight, x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "int"}, "path is 'int', expected one of exact"),
        ({"parts": 2}, "parts of a grouped weight is 2, expected one of None, 1"),
        ({"out": torch.empty(5, dtype=torch.int32)}, "dtype of out is torch.int32, expected"),
    ],
)
def test_what_groups_cannot_do_is_named(arguments, message):
    weight = uniform_weight(4, 4, 256, group_size=128)
    with pytest.raises(LayoutError, match=message):
        uniform_gemv(activations(256), weight, **arguments)
