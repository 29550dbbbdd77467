"""LUT GEMV in the interpreter: every codebook, both paths, ragged shapes, split rows."""

import pytest
import torch

from kernels import configs
from kernels.activations import STEPS, activation_planes, activation_planes_ref
from kernels.checks import LayoutError
from kernels.launch import new_counters
from kernels.layouts import pack_lut, table_values, unpack_codes
from kernels.layouts.codebook import dequantize_lut
from kernels.lut_gemv import lut_gemv, lut_gemv_ref
from tests.kernels.samples import EDGES, EXACT, INT, SHAPES, activations, guarded, lut_weight
from tests.kernels.tolerance import (
    assert_within,
    fixed_point_table,
    fp16_chains,
    fp16_output,
    fp32_sums,
    int_planes,
)

CENTRE = {"u7": 64, "int8": 128}


def chain_values(weight):
    """What the FP16 chains add: entries minus the centre, scaled; and the part added in the end."""
    values, book = dequantize_lut(weight), weight.codebook
    if book.kind != "u7":
        return values, torch.zeros_like(values)
    shift = book.scale[:, :1].float() * (book.scale[:, 1:].float() - CENTRE["u7"])
    return values + shift, -shift.expand_as(values)


def exact_tolerance(weight, x):
    chained, rest = chain_values(weight)
    return fp16_chains(chained * x.float()) + fp16_chains(rest * x.float())


def int_tolerance(weight, x, planes_block):
    values, book = dequantize_lut(weight), weight.codebook
    stored = values  # what the bytes stand for, before their zero point is subtracted
    if book.kind in CENTRE:
        stored = book.scale[:, :1].float() * (
            table_values(book) / book.scale[:, :1].float()
            + (book.scale[:, 1:].float() if book.kind == "u7" else CENTRE["int8"])
        ).gather(1, unpack_codes(weight.codes).long())
    return int_planes(values, x.float(), float(planes_block[:, 0].max())) + 2 * fp32_sums(
        stored * x.float()
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "bits"), EXACT)
def test_exact_path(kind, bits, shape):
    check_exact(kind, bits, shape)


@pytest.mark.parametrize("shape", EDGES)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_exact_path_at_the_edges(bits, shape):
    check_exact("fp16", bits, shape)


def check_exact(kind, bits, shape):
    weight, x = lut_weight(kind, bits, *shape), activations(shape[1])
    with guarded(shape[0]) as out:
        lut_gemv(x, weight, out=out)
    assert_within(out, lut_gemv_ref(x, weight), exact_tolerance(weight, x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "bits"), INT)
def test_int_path(kind, bits, shape):
    check_int(kind, bits, shape)


@pytest.mark.parametrize("shape", EDGES)
@pytest.mark.parametrize(("kind", "bits"), [("int8", 3), ("u7", 4)])
def test_int_path_at_the_edges(kind, bits, shape):
    check_int(kind, bits, shape)


def check_int(kind, bits, shape):
    weight, x = lut_weight(kind, bits, *shape), activations(shape[1])
    with guarded(shape[0]) as out:
        lut_gemv(x, weight, path="int", out=out)
    _, block = activation_planes_ref(x, weight.codes)
    assert_within(out, lut_gemv_ref(x, weight), int_tolerance(weight, x, block))


def test_int_path_of_an_fp16_table_is_as_good_as_its_fixed_point():
    original, x = lut_weight("fp16", 3, 8, 2048), activations(2048)
    fixed = lut_weight("int16", 3, 8, 2048)
    y = lut_gemv(x, fixed, path="int", out=torch.empty(8))
    _, block = activation_planes_ref(x, fixed.codes)
    tolerance = int_tolerance(fixed, x, block)
    tolerance = tolerance + fixed_point_table(dequantize_lut(original), x.float())
    assert_within(y, lut_gemv_ref(x, original), tolerance)


@pytest.mark.parametrize("shape", [*SHAPES, *EDGES])
@pytest.mark.parametrize("bits", [5, 6, 7, 8])
def test_wide_tables_are_gathered_and_added_in_fp32(bits, shape):
    weight, x = lut_weight("fp16", bits, *shape), activations(shape[1])
    with guarded(shape[0]) as out:
        lut_gemv(x, weight, out=out)
    assert_within(out, lut_gemv_ref(x, weight), fp32_sums(dequantize_lut(weight) * x.float()))


def test_both_merges_of_a_7_bit_table_add_the_same_integers(monkeypatch):
    weight, x = lut_weight("u7", 4, 4, 1500), activations(1500)
    merged = lut_gemv(x, weight, path="int", out=torch.empty(4))
    summing = configs.LaunchTable(warps_per_sm=8, int_u7_step="u7sum")
    monkeypatch.setattr(configs, "DEFAULT_TABLE", summing)
    assert torch.equal(lut_gemv(x, weight, path="int", out=torch.empty(4)), merged)


@pytest.mark.parametrize("column", [0, 1, 2047, 2048, 3000, 4299])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_single_activation_picks_its_column(bits, column):
    weight, x = lut_weight("fp16", bits, 4, 4300), torch.zeros(4300).half()
    x[column] = 1
    assert torch.equal(lut_gemv(x, weight, out=torch.empty(4)), dequantize_lut(weight)[:, column])


@pytest.mark.parametrize(
    ("kind", "bits", "path", "columns", "parts"),
    [
        ("fp16", 4, "exact", 4096 + 300, 2),
        ("fp16", 3, "exact", 2 * 2048, 2),
        ("u7", 4, "exact", 3 * 1024 + 128, 3),
        ("u7", 4, "int", 3 * 1024 + 128, 3),
        ("int8", 3, "int", 4 * 2048, 2),
        ("fp16", 6, "exact", 2 * 2048 + 300, 2),
        ("fp16", 8, "exact", 2 * 512 + 300, 2),
    ],
)
def test_split_rows_reset_their_counters_and_repeat_bit_for_bit(kind, bits, path, columns, parts):
    weight, x = lut_weight(kind, bits, 6, columns), activations(columns)
    counters = new_counters(6, x.device)
    results = []
    for _ in range(2):
        with guarded(6) as out:
            lut_gemv(x, weight, path=path, out=out, parts=parts, counters=counters)
        assert not counters.any()
        results.append(out)
    assert torch.equal(*results)
    _, block = activation_planes_ref(x, weight.codes)
    tolerance = exact_tolerance(weight, x) + int_tolerance(weight, x, block)
    assert_within(results[0], lut_gemv_ref(x, weight), tolerance)


def test_the_default_output_is_fp16():
    weight, x = lut_weight("fp16", 3, 5, 300), activations(300)
    y = lut_gemv(x, weight)
    assert y.dtype == torch.float16
    expected = lut_gemv_ref(x, weight)
    assert_within(y, expected, exact_tolerance(weight, x) + fp16_output(expected))


def test_large_activations_do_not_overflow_the_chains():
    weight, x = lut_weight("u7", 4, 4, 1024), activations(1024)
    x[::100] = 4000
    assert_within(
        lut_gemv(x, weight, out=torch.empty(4)),
        lut_gemv_ref(x, weight),
        exact_tolerance(weight, x),
    )


@pytest.mark.parametrize(
    ("bits", "order_of", "columns"), [(2, "int8", 5000), (3, "int8", 300), (4, "u7", 1500)]
)
def test_activation_planes_restore_the_activations(bits, order_of, columns):
    codes = lut_weight(order_of, bits, 1, columns).codes
    x = activations(columns)
    planes, block = activation_planes(x, codes)
    planes_ref, block_ref = activation_planes_ref(x, codes)
    # A quotient on the edge between two steps may round either way: one step of the low plane.
    steps = planes.view(torch.int8).int() - planes_ref.view(torch.int8).int()
    assert (steps != 0).float().mean() < 0.01
    assert torch.allclose(block[:, 0], block_ref[:, 0], rtol=1e-6, atol=0)
    assert torch.allclose(block[:, 1], block_ref[:, 1], rtol=1e-3, atol=float(block[:, 0].max()))
    total = sum(float(tile.sum()) for tile in x.double().split(codes.tile_codes))
    assert abs(float(block[:, 1].sum()) - total) < columns * float(block[:, 0].max())


def test_zero_activations_quantize_to_zero():
    codes = lut_weight("u7", 4, 1, 300).codes
    planes, block = activation_planes(torch.zeros(300).half(), codes)
    assert not planes.any()
    assert not block.any()


def test_the_largest_step_fits_the_high_plane():
    assert (STEPS + 128) >> 8 == 127


WEIGHT = lut_weight("fp16", 4, 4, 2048)


@pytest.mark.parametrize(
    ("x", "arguments", "message"),
    [
        (torch.zeros(2047).half(), {}, r"shape of x is \(2047,\), expected \(2048\)"),
        (torch.zeros(2048), {}, "dtype of x is torch.float32, expected torch.float16"),
        (torch.zeros(4096).half()[::2], {}, r"stride of x is \(2,\), expected a contiguous"),
        (torch.zeros(2048, device="meta").half(), {}, "device of x is meta, expected cpu"),
        (torch.zeros(2048).half(), {"path": "fast"}, "path is 'fast', expected one of exact, int"),
        (torch.zeros(2048).half(), {"path": "int"}, "codebook kind of the int path is 'fp16'"),
        (torch.zeros(2048).half(), {"parts": 3}, "parts is 3, expected a divisor of the 2 full"),
        (torch.zeros(2048).half(), {"out": torch.empty(3)}, r"shape of out is \(3,\), expected"),
        (
            torch.zeros(2048).half(),
            {"parts": 2, "counters": torch.zeros(2, dtype=torch.int32)},
            r"shape of counters is \(2,\), expected \(1\)",
        ),
    ],
)
def test_bad_arguments_are_named(x, arguments, message):
    with pytest.raises(LayoutError, match=message):
        lut_gemv(x, WEIGHT, **arguments)


def test_a_tile_that_no_warp_reads_is_named():
    codes = torch.zeros(2, 64, dtype=torch.uint8)
    weight = pack_lut(codes, torch.zeros(2, 16).half(), bits=4, tile_codes=64)
    with pytest.raises(LayoutError, match="groups per tile is 8, expected one of 32, 64, 128"):
        lut_gemv(activations(64), weight)
