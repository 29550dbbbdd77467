"""What the model counts is what the kernels store: every item, every format, any shape."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.layouts import (
    pack_bilevel,
    pack_csr,
    pack_hybrid,
    pack_lut,
    pack_uniform,
    pack_vector,
)
from kernels.layouts.codes import padded
from kernels.layouts.vector import table_grid
from perfmodel.format_names import DENSEST_ROWS, NONZEROS_PER_START_ROW, parse_format

SHAPES = ((128, 128), (96, 300), (64, 2050), (300, 129))
LOOKUP = (
    *("squeezellm-w2", "squeezellm-w3", "squeezellm-w4", "squeezellm-w8", "kmeans-w3-int8"),
    *("squeezellm-w5", "kmeans-w6", "squeezellm-w7"),
    *("squeezellm-w2-int8", "squeezellm-w4-int8", "squeezellm-w4-u7", "squeezellm-w4-sym"),
)
VECTOR = (
    *("gptvq-1d-w2", "gptvq-1d-w2-g384", "gptvq-1d-w3", "gptvq-1d-w4", "gptvq-2d-w2"),
    *("gptvq-2d-w2.5-g1152", "gptvq-2d-w3", "gptvq-2d-w4-g2048", "gptvq-4d-w2"),
    *("gptvq-1d-w2-g384-n32", "gptvq-2d-w2-n16", "gptvq-2d-w2-n256", "gptvq-4d-w2-n64"),
)
UNIFORM = (
    *("rtn-w2", "gptq-w3", "gptq-w4", "rtn-w8", "gptq-w3-g128", "awq-w4-g128", "rtn-w4-g64"),
    *("gptq-w4-g128-act", "gptq-w3-g128-act", "rtn-w5", "gptq-w6-g128", "awq-w7-g64"),
)


def stored(*records) -> dict[str, int]:
    """Bytes by item of packed records together."""
    return {item: count for record in records for item, count in record.nbytes_by_item().items()}


def counted(name: str, n: int, k: int) -> dict[str, int]:
    items = parse_format(name).itemised_bytes(n, k)
    return {item: count for item, count in items.items() if count}


def packed_lookup(name: str, n: int, k: int):
    words = name.split("-")
    bits, kind = int(words[1][1:]), words[2] if len(words) > 2 else "fp16"
    entries = {
        "fp16": torch.zeros(n, 2**bits, dtype=torch.float16),
        "int8": torch.zeros(n, 2**bits, dtype=torch.int8),
        "u7": torch.zeros(n, 16, dtype=torch.uint8),
        "sym": torch.zeros(n, 8, dtype=torch.float16),
    }[kind]
    columns = {"int8": 1, "u7": 2}.get(kind)
    scale = None if columns is None else torch.ones(n, columns, dtype=torch.float16)
    codes = torch.zeros(n, k, dtype=torch.uint8)
    return pack_lut(codes, entries, bits=bits, kind=kind, scale=scale)


def packed_uniform(name: str, n: int, k: int):
    words = name.split("-")
    bits = int(words[1][1:])
    group = next(
        (int(word[1:]) for word in words if word.startswith("g") and word[1:].isdigit()), k
    )
    groups = -(-k // group)
    act = {"act_order": "fold", "g_idx": torch.arange(k, dtype=torch.int32) // group}
    return pack_uniform(
        torch.zeros(n, k, dtype=torch.uint8),
        torch.ones(n, groups, 2, dtype=torch.float16),
        bits=bits,
        group_size=group,
        **(act if words[-1] == "act" else {}),
    )


def packed_sparse(n: int, k: int, nonzeros: int, layout: str | None):
    """`nonzeros` values, the first rows filled first, so that ten rows are the densest."""
    per_row = torch.full((n,), nonzeros // n)
    per_row[: nonzeros % n] += 1
    pointers = torch.cat((torch.zeros(1, dtype=torch.int64), per_row.cumsum(0)))
    columns = torch.cat([torch.arange(count) for count in per_row.tolist()])
    values = torch.ones(nonzeros, dtype=torch.float16)
    if layout == "hybrid":
        return pack_hybrid(pointers, columns, values, shape=(n, k), dense=DENSEST_ROWS)
    chunk = NONZEROS_PER_START_ROW if layout == "balanced" else None
    return pack_csr(pointers, columns, values, shape=(n, k), chunk_nnz=chunk)


def packed_vector(name: str, n: int, k: int):
    codebook = parse_format(name).codebook
    group = codebook.rows * codebook.columns
    blocks = table_grid(n, k, group)
    scales = parse_format(name).scales
    subrow = scales and scales.group
    return pack_vector(
        torch.zeros(n, -(-k // codebook.dim), dtype=torch.uint8),
        torch.zeros(*blocks, codebook.entries, codebook.dim, dtype=torch.int8),
        torch.ones(blocks, dtype=torch.float16),
        group=group,
        columns=k,
        subrow=subrow,
        levels=torch.zeros(n, -(-padded(k) // subrow), dtype=torch.uint8) if subrow else None,
    )


def packed_bilevel(name: str, n: int, k: int):
    groups = -(-k // 128) * 8
    return pack_bilevel(
        torch.zeros(n, k, dtype=torch.uint8),
        torch.zeros(n, groups, 2, dtype=torch.uint8),
        torch.zeros(-(-n // 16), groups, 4, dtype=torch.float16),
        bits=int(parse_format(name).code_bits),
        order=torch.arange(k, dtype=torch.int32) if name.endswith("act") else None,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", VECTOR)
def test_vector_formats(name, shape):
    assert stored(packed_vector(name, *shape)) == counted(name, *shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["spqr-w2-g16", "spqr-w3-g16", "spqr-w4-g16-act"])
def test_bilevel_formats(name, shape):
    assert stored(packed_bilevel(name, *shape)) == counted(name, *shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LOOKUP)
def test_lookup_formats(name, shape):
    assert stored(packed_lookup(name, *shape)) == counted(name, *shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", UNIFORM)
def test_uniform_formats(name, shape):
    assert stored(packed_uniform(name, *shape)) == counted(name, *shape)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 40),
    k=st.integers(1, 700),
    name=st.sampled_from([*LOOKUP, *(f"rtn-w{bits}" for bits in range(2, 9))]),
)
def test_formats_of_any_shape(n, k, name):
    pack = packed_lookup if name in LOOKUP else packed_uniform
    assert stored(pack(name, n, k)) == counted(name, n, k)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "name",
    ["squeezellm-w3-s2", "squeezellm-w5-s0.45", "squeezellm-w4-s0.45-balanced", "spqr-w3-g16-s1"],
)
def test_sparse_formats(name, shape):
    weight_format = parse_format(name)
    layout = name.rpartition("-")[2] if name.endswith("balanced") else None
    sparse = packed_sparse(*shape, weight_format.sparse.nonzeros(*shape), layout)
    pack = packed_bilevel if name.startswith("spqr") else packed_lookup
    dense = pack(re.sub("-s.*", "", name), *shape)
    assert stored(dense, sparse) == counted(name, *shape)


def test_the_hybrid_format_counts_nonzeros_and_ten_dense_rows():
    """Nonzeros of the dense rows leave the sparse part: the count is an upper bound by those."""
    n, k = 300, 1024
    weight_format = parse_format("squeezellm-w3-s2-hybrid")
    sparse = packed_sparse(n, k, weight_format.sparse.nonzeros(n, k), "hybrid")
    held, expected = stored(sparse), counted(weight_format.name, n, k)
    assert held["dense_rows"] == expected["dense_rows"] == 10 * (k * 2 + 4)
    moved = weight_format.sparse.nonzeros(n, k) - sparse.nnz
    assert held["sparse_values"] + 2 * moved == expected["sparse_values"]


def test_columns_beyond_16_bits_take_four_bytes():
    n, k = 2, 65536
    weight_format = parse_format("squeezellm-w2-s0.01")
    sparse = packed_sparse(n, k, weight_format.sparse.nonzeros(n, k), None)
    assert stored(sparse)["sparse_indices"] == counted(weight_format.name, n, k)["sparse_indices"]
