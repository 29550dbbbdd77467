"""FLOPs and memory operations of "Full Stack Optimization of Transformer Inference" (2302.14017).

The survey counts memory operations as bytes at 8-bit precision, each operation reads its inputs
and writes its output once, and decoders are summed over generating the whole sequence from
nothing. Its FLOPs of attention leave one addition out per dot product.
"""

import pytest

from perfmodel.ops import Op, Traffic, gemm
from tests.perfmodel.published import rows

HIDDEN, INNER, HEADS, LAYERS = 768, 3072, 12, 12  # BERT-Base and GPT-2 small
MATMULS = [
    row for row in rows("survey_flops_mops.csv") if row["operator"].startswith(("MHA", "FFN"))
]


@pytest.mark.parametrize(
    "row", MATMULS, ids=lambda r: f"{r['model']}-{r['sequence_length']}-{r['operator']}"
)
def test_matmul_rows_come_out_to_the_printed_digits(row):
    flops, mops = _counted(row)
    _assert_prints_as(flops / 1e9, row["giga_flops"])
    _assert_prints_as(mops / 1e9, row["giga_mops"])
    _assert_prints_as(flops / mops, row["intensity"])


def _assert_prints_as(value: float, printed: str) -> None:
    """The value, rounded or cut to the printed digits, is what stands in the survey."""
    last_digit = 10.0 ** -len(printed.partition(".")[2])
    assert float(printed) - last_digit / 2 <= value < float(printed) + last_digit


def _counted(row: dict[str, str]) -> tuple[int, int]:
    length, operator = int(row["sequence_length"]), row["operator"]
    encoder = row["model"] == "BERT-Base"
    if operator == "MHA act-to-act":
        per_layer = _encoder_attention(length) if encoder else _decoder_attention(length)
        missing_adds = HEADS * length**2 + length * HIDDEN if encoder else 2 * HIDDEN * length
        return LAYERS * (per_layer.flops - missing_adds), LAYERS * per_layer.bytes
    layer = _projections if operator == "MHA projections" else _feed_forward
    total = layer(length) if encoder else layer(1) * length
    return LAYERS * total.flops, LAYERS * total.bytes


def _dense(tokens: int, out_features: int, in_features: int) -> Op:
    traffic = Traffic(
        weight_bytes=out_features * in_features,
        read_bytes=tokens * in_features,
        write_bytes=tokens * out_features,
    )
    return gemm("dense", tokens * out_features * in_features, traffic)


def _projections(tokens: int) -> Op:
    return _dense(tokens, HIDDEN, HIDDEN) * 4


def _feed_forward(tokens: int) -> Op:
    return _dense(tokens, INNER, HIDDEN) + _dense(tokens, HIDDEN, INNER)


def _encoder_attention(length: int) -> Op:
    """Every head writes its l x l scores and reads them again."""
    scores, width = HEADS * length**2, length * HIDDEN
    qk = Traffic(read_bytes=2 * width, write_bytes=scores)
    pv = Traffic(read_bytes=scores + width, write_bytes=width)
    return gemm("attend", length * width, qk) + gemm("attend", length * width, pv)


def _decoder_attention(length: int) -> Op:
    """Step t reads t keys and values; the scores are counted once, vectors three times."""
    steps = [
        gemm("attend", t * HIDDEN, Traffic(kv_read_bytes=t * HIDDEN, read_bytes=2 * HIDDEN))
        + gemm(
            "attend",
            t * HIDDEN,
            Traffic(kv_read_bytes=t * HIDDEN, read_bytes=HEADS * t, write_bytes=HIDDEN),
        )
        for t in range(1, length + 1)
    ]
    return sum(steps[1:], steps[0])
