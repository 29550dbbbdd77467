"""Weight formats: exact bytes, item by item, and the names they go by."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.errors import UsageError
from perfmodel.format_names import EXAMPLES, bits_format, parse_format
from perfmodel.formats import ITEMS, BitPolicy

N, K = 4096, 4096


@pytest.mark.parametrize(
    ("name", "item", "expected_bytes"),
    [
        ("fp16", "codes", N * K * 2),
        ("w3", "codes", N * K * 3 // 8),
        ("w4.85", "codes", 10171188),  # 4096 * 4096 * 4.85 / 8, rounded up
        ("gptq-w4", "scales", N * 4),
        ("gptq-w4-g128", "scales", N * 32 * 4),
        ("gptq-w4-g128-act", "order", K * 4),
        ("squeezellm-w3", "codes", N * K * 3 // 8),
        ("squeezellm-w3", "codebook", N * 8 * 2),
        ("squeezellm-w4-int8", "codebook", N * 16),
        ("squeezellm-w4-int8", "scales", N * 2),
        ("squeezellm-w4-u7", "codebook", N * 16),
        ("squeezellm-w4-u7", "scales", N * 4),
        ("squeezellm-w4-sym", "codebook", N * 8 * 2),
        ("squeezellm-w3-s0.45", "sparse_values", 75497 * 2),
        ("squeezellm-w3-s0.45", "sparse_indices", 75497 * 2),
        ("squeezellm-w3-s0.45", "row_pointers", (N + 1) * 4),
        ("squeezellm-w3-s0.45-balanced", "start_rows", 295 * 4),
        ("squeezellm-w3-s0.45-hybrid", "dense_rows", 10 * (K * 2 + 4)),
        ("squeezellm-w3-s0.45@paper", "sparse_indices", 75497 * 4),
        ("squeezellm-w3-s0.45@released", "sparse_values", 75497 * 4),
        ("spqr-w3-g16", "scales", N * 256 * 6 // 8 + 256 * 256 * 8),
        ("gptvq-2d-w2", "codebook", 512 * 16 * 16 * 2),  # tables of 8 rows x 256 columns
        ("gptvq-2d-w2", "scales", 512 * 16 * 2),
        ("gptvq-2d-w2-n64", "scales", 512 * 16 * 2 + N * 64 // 2),  # a nibble per 64 weights
    ],
)
def test_bytes_of_an_item(name, item, expected_bytes):
    assert parse_format(name).itemised_bytes(N, K)[item] == expected_bytes


def test_rows_are_padded_to_128_codes():
    assert parse_format("squeezellm-w3").itemised_bytes(2, 129)["codes"] == 2 * 256 * 3 // 8


def test_columns_beyond_65535_need_32_bit_indices():
    narrow = parse_format("squeezellm-w4-s1").itemised_bytes(100, 65535)
    wide = parse_format("squeezellm-w4-s1").itemised_bytes(100, 65536)
    assert narrow["sparse_indices"] == narrow["sparse_values"]
    assert wide["sparse_indices"] == 2 * wide["sparse_values"]


@given(
    name=st.sampled_from(EXAMPLES),
    n=st.integers(1, 3000),
    k=st.integers(1, 3000),
    more=st.integers(0, 99),
)
def test_bytes_are_the_sum_of_their_items_and_never_fall_with_size(name, n, k, more):
    weight_format = parse_format(name)
    items = weight_format.itemised_bytes(n, k)
    assert tuple(items) == ITEMS
    assert weight_format.weight_bytes(n, k) == sum(items.values())
    assert weight_format.weight_bytes(n + more, k) >= weight_format.weight_bytes(n, k)
    assert weight_format.weight_bytes(n, k + more) >= weight_format.weight_bytes(n, k)


@pytest.mark.parametrize("name", EXAMPLES)
def test_names_come_back_as_they_were_given(name):
    assert parse_format(f" {name.upper()} ").name == name


def test_sixteen_bits_is_fp16_and_other_numbers_are_ideal():
    assert bits_format("16") == parse_format("fp16")
    assert bits_format("3.5").code_bits == Fraction("3.5")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("sqeezellm-w3", "did you mean squeezellm-w3"),
        ("squeezellm", "bits is missing"),
        ("squeezellm-w9", "expected one of 2, 3, 4, 5, 6, 7, 8"),
        ("squeezellm-w3-s0.45-s1", "a second sparsity"),
        ("squeezellm-w3-hybrid", "needs a sparse share"),
        ("squeezellm-w3-sym", "sym codebooks have 4 bits"),
        ("squeezellm-w5-int8", "int8 codebooks have 2 or 3 or 4 bits"),
        ("squeezellm-w3-s100", "above 0 and below 100"),
        ("awq-w4", "group is missing"),
        ("gptq-w4-g0", "group size 0"),
        ("rtn-w4-act", "takes no act"),
        ("gptvq-1d-w2.5", "to be whole"),
        ("gptvq-2d-w2-n48", "found sub-rows of 48 weights; have: 16, 32, .* codebook, 256"),
        ("gptvq-2d-w2-g384-n256", "columns of a codebook, 128"),
        ("gptq-w4-n64", "takes no subrow"),
        ("gptq-w4@released", "unknown accounting"),
        ("w0", "above 0"),
        ("w33", "at most 32"),
        ("", "no weight format"),
    ],
)
def test_wrong_names_say_what_is_wrong(name, problem):
    with pytest.raises(UsageError, match=problem):
        parse_format(name)


def test_policy_leaves_head_and_embedding_apart_and_takes_overrides():
    fp16, w3, w4 = parse_format("fp16"), parse_format("w3"), parse_format("w4")
    policy = BitPolicy(linear=w3, lm_head=w4, embedding=fp16, overrides=(("down_proj", w4),))
    names = ("q_proj", "down_proj", "lm_head", "embedding")
    assert [policy.format_of(name).name for name in names] == ["w3", "w4", "w4", "fp16"]
