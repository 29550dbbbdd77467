"""Vector codebooks and bilevel scales: values survive, and bad arguments are named."""

import math
from dataclasses import replace

import pytest
import torch

from kernels.checks import LayoutError
from kernels.layouts import dequantized, pack_bilevel, pack_vector
from kernels.layouts.bilevel import column_groups, scales_and_zeros
from kernels.layouts.codes import codes_per_group, pack_codes, unpack_codes
from kernels.layouts.vector import (
    FORMS,
    LEVELS,
    SUBROWS,
    check_vector,
    column_subrows,
    pack_levels,
    table_block,
    table_grid,
)
from tests.kernels.samples import bilevel_weight, generator, vector_weight


@pytest.mark.parametrize("columns", [1, 2, 255, 300, 1024])
@pytest.mark.parametrize(("dim", "bits"), FORMS)
def test_indices_survive(dim, bits, columns):
    codes = torch.randint(0, 2**bits, (3, -(-columns // dim)), generator=generator(dim, columns))
    packed = pack_codes(codes, bits, tile_codes=128 // dim, order="field", dim=dim, columns=columns)
    assert packed.words.shape == (3, -(-columns // 128) * 128 // dim * bits // 32)
    assert torch.equal(unpack_codes(packed), codes.to(torch.uint8))


@pytest.mark.parametrize("group", [256, 384, 2048])
@pytest.mark.parametrize(("dim", "bits"), FORMS)
def test_a_weight_is_its_tables_vectors(dim, bits, group):
    """Weight by weight: row 11 and column 299 are in partly filled blocks."""
    rows, columns, g = 11, 300, generator(dim, bits)
    blocks = table_grid(rows, columns, group)
    codes = torch.randint(0, 2**bits, (rows, -(-columns // dim)), generator=g)
    entries = torch.randint(-127, 128, (*blocks, 2**bits, dim), generator=g).to(torch.int8)
    scale = torch.rand(blocks, generator=g).half()
    weight = dequantized(pack_vector(codes, entries, scale, group=group, columns=columns))
    height, width = table_block(group)
    for n, k in ((0, 0), (0, 127), (3, 128), (7, 257), (10, 299)):
        table = n // height, k // width
        entry = entries[table][codes[n, k // dim], k % dim]
        assert float(weight[n, k]) == float(entry) * float(scale[table])


@pytest.mark.parametrize(("dim", "bits"), FORMS)
def test_sub_rows_are_whole_vectors_of_one_block(dim, bits):
    least = dim * codes_per_group(bits)
    for subrow in (size for size in SUBROWS if size >= least):
        place = column_subrows(dim, bits, 512, subrow)
        assert place.bincount().tolist() == [subrow] * (512 // subrow)
        first = place.unflatten(0, (-1, max(subrow, 128)))[:, :1]
        assert torch.equal(first[:, 0], torch.arange(0, 512 // subrow, max(1, 128 // subrow)))
        assert bool((place.view(-1, dim) == place.view(-1, dim)[:, :1]).all())


def test_a_blockwise_scale_is_a_float_of_four_bits():
    """By hand: code 0 is 1, 5 is 2 x 1.25, 15 is 8 x 1.75; codes step by a fourth of an octave."""
    assert [LEVELS[code] for code in (0, 3, 4, 5, 15)] == [1.0, 1.75, 2.0, 2.5, 14.0]
    assert max(abs(math.log2(level) - c / 4) for c, level in enumerate(LEVELS)) < 0.087
    plain, scaled = (vector_weight(2, 4, 6, 300, subrow=subrow) for subrow in (None, 64))
    levels = torch.randint(0, 16, (6, 6), generator=generator(1))
    scaled = replace(scaled, levels=pack_levels(levels))
    values = torch.tensor(LEVELS)[levels][:, column_subrows(2, 4, 300, 64)]
    assert torch.equal(dequantized(scaled), dequantized(plain) * values)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("ordered", [False, True])
def test_a_bilevel_weight_is_scale_times_code_minus_zero(bits, ordered):
    rows, columns, g = 19, 300, generator(bits)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=g)
    statistics = torch.randint(0, 8, (rows, 24, 2), generator=g).to(torch.uint8)
    second = torch.rand(2, 24, 4, generator=g).half()
    order = torch.randperm(columns, generator=g).to(torch.int32) if ordered else None
    packed = pack_bilevel(codes, statistics, second, bits=bits, order=order)
    scale, zero = scales_and_zeros(packed)
    weight = dequantized(packed)
    groups = column_groups(columns).tolist()
    for n, position in ((0, 0), (3, 3), (15, 64), (16, 127), (18, 299)):
        k = position if order is None else int(order[position])
        group = groups[position]
        s1, z1, s2, z2 = second[n // 16, group].float()
        p, q = statistics[n, group].float()
        assert float(scale[n, group]) == float(s1 * (p - z1))
        assert float(zero[n, group]) == float(s2 * (q - z2))
        assert float(weight[n, k]) == float(s1 * (p - z1) * (codes[n, k] - s2 * (q - z2)))


def test_every_group_has_sixteen_columns_of_one_tile():
    groups = column_groups(384)
    assert groups.bincount().tolist() == [16] * 24
    assert torch.equal(groups // 8, torch.arange(384) // 128)


def test_wrong_arguments_are_named():
    vector, bilevel = vector_weight(2, 4, 5, 256), bilevel_weight(3, 5, 256)
    codes = unpack_codes(vector.codes)
    entries, scale = torch.zeros(1, 1, 16, 2, dtype=torch.int8), torch.ones(1, 1).half()
    with pytest.raises(LayoutError, match=r"group is 100, expected a multiple of 128"):
        pack_vector(codes, entries, scale, group=100)
    with pytest.raises(LayoutError, match=r"dim and index bits is \(2, 3\)"):
        pack_vector(codes, entries[:, :, :8], scale, group=2048)
    with pytest.raises(LayoutError, match=r"columns is 300, expected those of 128 codes"):
        pack_vector(codes, entries, scale, group=2048, columns=300)
    with pytest.raises(LayoutError, match=r"shape of scale is \(2, 1\)"):
        pack_vector(codes, entries, torch.ones(2, 1).half(), group=2048)
    one = vector_weight(2, 4, 5, 256, subrow=64)
    with pytest.raises(LayoutError, match=r"subrow is 32, expected one of 64, 128, 256"):
        vector_weight(2, 5, 5, 256, subrow=32)
    with pytest.raises(LayoutError, match=r"subrow is 256, expected no more columns than a table"):
        vector_weight(2, 4, 5, 256, group=384, subrow=256)
    with pytest.raises(LayoutError, match=r"shape of levels is \(2, 4\), expected \(2, 2\)"):
        check_vector(replace(one, subrow=128))
    with pytest.raises(LayoutError, match="subrow is None"):
        check_vector(replace(one, subrow=None))
    with pytest.raises(LayoutError, match="levels is a NoneType"):
        check_vector(replace(one, levels=None))
    codes = unpack_codes(bilevel.codes)
    statistics, second = torch.full((5, 16, 2), 8, dtype=torch.uint8), torch.ones(1, 16, 4).half()
    with pytest.raises(LayoutError, match=r"range of statistics is 8..8"):
        pack_bilevel(codes, statistics, second, bits=3)
    with pytest.raises(LayoutError, match="order is no permutation"):
        pack_bilevel(codes, statistics - 8, second, bits=3, order=torch.zeros(256).int())
