"""Codebooks, grids and CSR: values survive, bytes are the contract's, bad arguments are named."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.checks import LayoutError
from kernels.layouts import pack_csr, pack_hybrid, pack_lut, pack_uniform, table_values
from kernels.layouts.codebook import check_lut, dequantize_lut, to_fixed_point
from kernels.layouts.codes import BITS
from kernels.layouts.sparse import csr_from_dense, dequantize_csr
from kernels.layouts.tensors import from_tensors, to_tensors
from kernels.layouts.uniform import dequantize_uniform
from tests.kernels.samples import (
    EXACT,
    WIDE,
    csr_weight,
    generator,
    lut_weight,
    sparse_matrix,
    uniform_weight,
)


@pytest.mark.parametrize(("kind", "bits"), [*EXACT, *WIDE])
def test_lut_bytes_are_the_contract(kind, bits):
    rows, columns = 7, 300  # padded to 384
    weight = lut_weight(kind, bits, rows, columns)
    entries = rows * 2**bits
    due = {
        "fp16": {"codebook": entries * 2},
        "int8": {"codebook": entries, "scales": rows * 2},
        "u7": {"codebook": entries, "scales": rows * 4},
        "sym": {"codebook": entries // 2 * 2},
    }[kind]
    assert weight.nbytes_by_item() == {"codes": rows * 384 * bits // 8, **due}


@pytest.mark.parametrize(("kind", "bits"), [*EXACT, *WIDE])
def test_lut_values_are_table_entries(kind, bits):
    g = generator(bits)
    codes = torch.randint(0, 2**bits, (3, 200), generator=g)
    scale, values = None, None
    if kind == "int8":
        entries = torch.randint(-128, 128, (3, 2**bits), generator=g).to(torch.int8)
        scale = torch.rand(3, 1, generator=g).half()
        values = entries.float() * scale.float()
    elif kind == "u7":
        entries = torch.randint(0, 128, (3, 16), generator=g).to(torch.uint8)
        scale = torch.tensor([[0.5, 64.25]] * 3).half()
        values = (entries.float() - 64.25) * 0.5
    elif kind == "sym":
        entries = torch.rand(3, 8, generator=g).half()
        values = torch.cat((entries, -entries), dim=1).float()
    else:
        entries = torch.randn(3, 2**bits, generator=g).half()
        values = entries.float()
    weight = pack_lut(codes, entries, bits=bits, kind=kind, scale=scale)
    assert torch.equal(table_values(weight.codebook), values)
    assert torch.equal(dequantize_lut(weight), values.gather(1, codes))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_fixed_point_tables_are_within_half_a_step(bits):
    weight = lut_weight("fp16", bits, 4, 64)
    values = table_values(weight.codebook)
    error = (table_values(to_fixed_point(weight).codebook) - values).abs()
    assert (error <= values.abs().amax(1, keepdim=True) / 65534 * 1.001).all()


def test_fixed_point_of_a_zero_row_is_zero():
    codes, entries = torch.zeros(2, 8, dtype=torch.uint8), torch.zeros(2, 8).half()
    weight = to_fixed_point(pack_lut(codes, entries, bits=3))
    assert not dequantize_lut(weight).any()


@pytest.mark.parametrize("act_order", [None, "gather", "fold"])
@pytest.mark.parametrize("group_size", [None, 64, 128])
@pytest.mark.parametrize("bits", BITS)
def test_uniform_bytes_are_the_contract(bits, group_size, act_order):
    weight = uniform_weight(bits, 3, 700, group_size=group_size, act_order=act_order)
    groups = 1 if group_size is None else -(-700 // group_size)
    order = {"order": 700 * 4} if act_order else {}
    due = {"codes": 3 * 768 * bits // 8, "scales": 3 * groups * 4, **order}
    assert weight.nbytes_by_item() == due


@pytest.mark.parametrize("act_order", ["gather", "fold"])
def test_act_order_gives_each_column_its_groups_scale(act_order):
    codes = torch.ones(1, 256, dtype=torch.uint8)
    scale_zero = torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]).half()
    g_idx = (torch.arange(256) % 2).to(torch.int32)  # even columns in group 0, odd ones in group 1
    weight = pack_uniform(
        codes, scale_zero, bits=4, group_size=128, g_idx=g_idx, act_order=act_order
    )
    assert torch.equal(dequantize_uniform(weight), (1.0 + g_idx)[None])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 300),
    density=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    form=st.sampled_from(["rows", "balanced"]),
)
def test_csr_survives_packing(rows, columns, density, form):
    matrix = sparse_matrix(rows, columns, density)
    assert torch.equal(dequantize_csr(csr_weight(matrix, form)), matrix)


def test_hybrid_keeps_the_densest_rows_apart():
    matrix = sparse_matrix(20, 300)
    weight = csr_weight(matrix, "hybrid")
    assert weight.dense_rows.rows.tolist() == [2, 7]
    assert weight.row_pointers.diff()[[2, 7]].tolist() == [0, 0]
    assert torch.equal(dequantize_csr(weight), matrix)


@pytest.mark.parametrize(("columns", "index_bytes"), [(65535, 2), (65536, 4)])
def test_csr_bytes_are_the_contract(columns, index_bytes):
    pointers, indices = torch.tensor([0, 1, 70, 100]), torch.arange(100)
    indices[-1] = columns - 1
    values = torch.ones(100).half()
    weight = pack_csr(pointers, indices, values, shape=(3, columns), chunk_nnz=32)
    assert weight.nbytes_by_item() == {
        "sparse_values": 200,
        "sparse_indices": 100 * index_bytes,
        "row_pointers": 16,
        "start_rows": 4 * 4,
    }
    assert weight.start_rows.tolist() == [0, 1, 1, 2]


def test_ten_dense_rows_cost_their_columns_and_numbers():
    matrix = sparse_matrix(40, 300)
    weight = pack_hybrid(*csr_from_dense(matrix), shape=(40, 300))
    assert weight.nbytes_by_item()["dense_rows"] == 10 * 300 * 2 + 10 * 4


@pytest.mark.parametrize("form", ["rows", "hybrid", "balanced"])
def test_records_survive_as_flat_tensors(form):
    weight = lut_weight("u7", 4, 20, 300)
    sparse = csr_weight(sparse_matrix(20, 300), form)
    again, sparse_again = from_tensors(*to_tensors(weight, sparse))
    assert torch.equal(dequantize_lut(again), dequantize_lut(weight))
    assert torch.equal(dequantize_csr(sparse_again), dequantize_csr(sparse))
    grid = uniform_weight(3, 4, 700, group_size=128, act_order="fold")
    assert torch.equal(
        dequantize_uniform(from_tensors(*to_tensors(grid))[0]), dequantize_uniform(grid)
    )


CODES = torch.zeros(2, 8, dtype=torch.uint8)
HALVES = torch.zeros(2, 16).half()


@pytest.mark.parametrize(
    ("entries", "arguments", "message"),
    [
        (HALVES[:, :8], {}, r"shape of entries is \(2, 8\), expected \(2, 16\)"),
        (HALVES.float(), {}, "dtype of entries is torch.float32, expected torch.float16"),
        (HALVES + float("inf"), {}, "range of entries is not finite"),
        (HALVES[:, :8] - 1, {"kind": "sym"}, r"range of entries is least -1\.0, expected magn"),
        (HALVES, {"kind": "u7"}, "dtype of entries is torch.float16, expected torch.uint8"),
        (HALVES, {"kind": "nf4"}, "kind is 'nf4', expected one of"),
        (HALVES.char(), {"kind": "int8"}, "scale is a NoneType, expected a torch.Tensor"),
        (HALVES.byte() + 128, {"kind": "u7"}, r"range of entries is 128\.\.128, expected 0\.\.127"),
    ],
)
def test_bad_tables_are_named(entries, arguments, message):
    with pytest.raises(LayoutError, match=message):
        pack_lut(CODES, entries, bits=4, **arguments)


def test_a_table_on_another_device_is_named():
    weight = lut_weight("fp16", 4, 2, 8)
    book = replace(weight.codebook, table=weight.codebook.table.to("meta"))
    with pytest.raises(LayoutError, match="device of table is meta, expected cpu"):
        check_lut(replace(weight, codebook=book))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_size": 100}, "group_size is 100, expected one of 32, 64"),
        ({"group_size": 32}, r"shape of scale_zero is \(2, 1, 2\), expected \(2, 2, 2\)"),
        ({"act_order": "gather"}, "g_idx is None, expected to match"),
        (
            {"act_order": "fold", "g_idx": torch.ones(64, dtype=torch.int32)},
            r"range of g_idx is 1\.\.1, expected 0\.\.0",
        ),
    ],
)
def test_bad_grids_are_named(arguments, message):
    codes, scale_zero = torch.zeros(2, 64, dtype=torch.uint8), torch.ones(2, 1, 2).half()
    with pytest.raises(LayoutError, match=message):
        pack_uniform(codes, scale_zero, bits=4, **arguments)


def test_uneven_groups_cannot_be_folded():
    g_idx = torch.zeros(128, dtype=torch.int32)
    g_idx[0] = 1
    codes, scale_zero = torch.zeros(1, 128, dtype=torch.uint8), torch.ones(1, 2, 2).half()
    with pytest.raises(LayoutError, match=r"columns per group of g_idx is \[127, 1\]"):
        pack_uniform(codes, scale_zero, bits=4, group_size=64, g_idx=g_idx, act_order="fold")


@pytest.mark.parametrize(
    ("pointers", "columns", "message"),
    [
        ([0, 1, 3], [0, 5, 9], r"range of columns is 0\.\.9, expected 0\.\.7"),
        ([0, 1, 2], [0, 1, 2], r"first and last of row_pointers is \(0, 2\), expected \(0, 3\)"),
        ([0, 4, 3], [0, 1, 2], "row_pointers is descending somewhere"),
        ([0, 3], [0, 1, 2], r"shape of row_pointers is \(2,\), expected \(3\)"),
        ([0, 0, 3], [0, 2, 1], "columns is not ascending within a row"),
    ],
)
def test_bad_csr_arrays_are_named(pointers, columns, message):
    values = torch.ones(3).half()
    with pytest.raises(LayoutError, match=message):
        pack_csr(torch.tensor(pointers), torch.tensor(columns), values, shape=(2, 8))
