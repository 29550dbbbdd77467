"""Numbers of the SqueezeLLM paper (arXiv 2306.07629v1) that the model has to give."""

import pytest

from perfmodel.format_names import parse_format
from perfmodel.hardware import load_hardware
from perfmodel.models import load_model
from perfmodel.prediction import linear_bits_per_weight
from perfmodel.units import GIB
from perfmodel.workload import Workload
from tests.perfmodel.published import rows
from tests.perfmodel.toys import ideal, policy

BITS = rows("table1_2_bits.csv")
MEMORY = rows("table3_6_memory.csv")
SHARES = rows("weight_share.csv")


@pytest.mark.parametrize(
    "row", BITS, ids=lambda r: f"table{r['table']}-{r['model']}-{r['weights']}"
)
def test_average_bits_are_those_of_tables_1_and_2(row):
    workload = Workload(model=load_model(row["model"]), policy=policy(f"{row['weights']}@paper"))
    tolerance = 0.01 if row["model"] == "llama-7b" else 0.02
    assert abs(linear_bits_per_weight(workload) - float(row["average_bits"])) <= tolerance


@pytest.mark.parametrize(
    "row",
    [row for row in MEMORY if row["peak_memory_gib"] != "OOM"],
    ids=lambda r: f"table{r['table']}-{r['model']}-{r['weights']}",
)
def test_peak_memory_is_that_of_tables_3_and_6_within_5_percent(row):
    assert _memory_bytes(row) / GIB == pytest.approx(float(row["peak_memory_gib"]), rel=0.05)


@pytest.mark.parametrize(
    "row",
    [row for row in MEMORY if row["peak_memory_gib"] == "OOM"],
    ids=lambda r: f"table{r['table']}-{r['model']}-{r['weights']}",
)
def test_what_did_not_fit_on_an_a6000_does_not_fit(row):
    assert _memory_bytes(row) > load_hardware("a6000").dram_bytes


@pytest.mark.parametrize("row", SHARES, ids=lambda r: r["generated_tokens"])
def test_weights_are_997_and_958_permille_of_the_memory_traffic(row):
    workload = Workload(
        model=load_model("llama-7b"),
        policy=policy(),
        phase="generate",
        prompt=0,
        new=int(row["generated_tokens"]),
        accounting="paper",
    )
    traffic = ideal(workload, load_hardware("a5000")).traffic
    share = 100 * traffic.weight_bytes / traffic.bytes
    assert share == pytest.approx(float(row["exact_percent"]), abs=0.0005)
    assert share == pytest.approx(float(row["weight_share_percent"]), abs=0.05)


def test_a5000_has_its_dense_peak_and_keeps_the_sparse_one_apart():
    hw = load_hardware("a5000")
    assert hw.matmul_flop_per_s == pytest.approx(111.1e12)
    assert hw.fp16_sparse_flop_per_s == pytest.approx(222.2e12)
    assert hw.ridge_flop_per_byte == pytest.approx(144.7, abs=0.05)


def test_decoding_is_far_below_the_ridge_even_at_two_bits():
    workload = Workload(model=load_model("llama-7b"), policy=policy("w2"))
    prediction = ideal(workload, load_hardware("a5000"))
    assert prediction.flops / prediction.bytes < 10
    assert {item.time.bound for item in prediction.ops} == {"memory"}


def test_released_code_stores_more_than_the_paper_counts():
    paper = parse_format("squeezellm-w3-s0.45@paper").bits_per_weight(4096, 4096)
    released = parse_format("squeezellm-w3-s0.45@released").bits_per_weight(4096, 4096)
    # 3 bit codes, 8 float32 entries and 32-bit row pointers per row, 64 bits per nonzero,
    # ten float32 rows: 3 + 256/4096 + 32/4096 + 64 * 0.0045 + 10 * 32/4096
    assert released == pytest.approx(3.4365, abs=0.001)
    assert paper == pytest.approx(3 + 128 / 4096 + 48 * 0.0045, abs=1e-5)


def _memory_bytes(row: dict[str, str]) -> int:
    workload = Workload(
        model=load_model(row["model"]),
        policy=policy(row["weights"]),
        phase="generate",
        new=int(row["generated_tokens"]),
        accounting="eager",
    )
    return ideal(workload, load_hardware("a6000")).memory.total_bytes


def test_an_ideal_roofline_is_half_the_latency_that_the_paper_measured():
    """Tables 3 and 6, dense rows: why a bare roofline is a bound and not a forecast."""
    dense = {"fp16", "gptq-w3", "squeezellm-w3@released"}
    timed = [row for row in MEMORY if row["weights"] in dense and row["latency_s"] != "OOM"]
    shortfalls = [1 - _generation_s(row) / float(row["latency_s"]) for row in timed]
    assert len(timed) == 16
    assert min(shortfalls) > 0
    assert sum(shortfalls) / len(shortfalls) == pytest.approx(0.53, abs=0.01)


def _generation_s(row: dict[str, str]) -> float:
    workload = Workload(
        model=load_model(row["model"]),
        policy=policy(row["weights"]),
        phase="generate",
        new=int(row["generated_tokens"]),
    )
    return ideal(workload, load_hardware("a6000")).time_s
