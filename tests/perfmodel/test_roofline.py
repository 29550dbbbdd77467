"""Time of an operation, by hand: the toy device moves 1 TB/s and does 100 TFLOP/s."""

import pytest
from msgspec.structs import replace

from perfmodel.errors import UnknownCostError, UnknownFactError
from perfmodel.format_names import parse_format
from perfmodel.ops import Matrix, Op, Traffic, gemm
from perfmodel.roofline import compute_bound_batch, layers_time, op_time
from perfmodel.stack_files import load_stack, to_stack
from perfmodel.stacks import SparseCost, Stack
from perfmodel.strict_yaml import parse_yaml
from tests.perfmodel.toys import toy_hardware

IDEAL = load_stack("ideal")
SLOW = """\
name: slow
description: half the bandwidth for small operations, a launch and a copied cache
basis: made up
source: this test
bandwidth_efficiency:
  - {at_least_bytes: 0, share: 0.5}
  - {at_least_bytes: 1000000, share: 0.8}
compute_efficiency: 0.5
launch_us: 3.0
layer_us: 100.0
kv_traffic_multiplier: 3.0
decode: {overlap: 1.0, sm_cycles_per_weight: {any: 0.0}}
sparse:
  any: {launch_us: 0.0, sm_cycles_per_nonzero: 0.0, cycles_per_column: 0.0}
"""


def slow_stack():
    return to_stack(parse_yaml(SLOW, source="slow.yaml"))


def test_a_gemv_takes_the_time_of_its_weight_bytes():
    op = gemm("gemv", 4096 * 4096, Traffic(weight_bytes=2 * 4096 * 4096))
    time = op_time(op, toy_hardware(), IDEAL)
    assert time.time_s == pytest.approx(33.554432e-6)
    assert time.bound == "memory"


def test_a_gemm_above_the_ridge_takes_the_time_of_its_flops():
    op = gemm("gemm", 4096**3, Traffic(weight_bytes=2 * 4096 * 4096))
    time = op_time(op, toy_hardware(), IDEAL)
    assert time.time_s == pytest.approx(2 * 4096**3 / 1e14)
    assert time.bound == "compute"


def test_elementwise_work_runs_on_the_vector_units():
    op = Op(name="norm", kind="vector", flops=10**9, traffic=Traffic(read_bytes=8))
    assert op_time(op, toy_hardware(), IDEAL).time_s == pytest.approx(1e-4)


def test_a_collective_takes_the_time_of_its_link_in_one_direction():
    op = Op(name="all_reduce", kind="collective", flops=0, traffic=Traffic(), send_bytes=10**9)
    time = op_time(op, toy_hardware(), IDEAL)
    assert time.time_s == pytest.approx(0.01)
    assert time.bound == "link"


def test_an_unknown_peak_is_asked_for_and_not_guessed():
    hw = toy_hardware(fp16_matmul_flop_per_s=None)
    with pytest.raises(UnknownFactError, match=r"compute\.fp16_tensor_tflops is unknown"):
        op_time(gemm("g", 1, Traffic()), hw, IDEAL)


def test_a_missing_link_is_asked_for_by_name():
    op = Op(name="all_reduce", kind="collective", flops=0, traffic=Traffic(), send_bytes=1)
    with pytest.raises(UnknownFactError, match=r"interconnect\.gb_per_s is unknown"):
        op_time(op, toy_hardware(link_bytes_per_s=None), IDEAL)


def test_a_stack_slows_small_operations_more_and_adds_launches():
    stack = slow_stack()
    small = gemm("g", 1, Traffic(weight_bytes=500_000)) * 2
    large = gemm("g", 1, Traffic(weight_bytes=2_000_000))
    assert op_time(small, toy_hardware(), stack).time_s == pytest.approx(2e-6 + 6e-6)
    assert op_time(large, toy_hardware(), stack).time_s == pytest.approx(2.5e-6 + 3e-6)


def test_a_stack_multiplies_the_traffic_of_the_cache():
    op = gemm("qk", 1, Traffic(kv_read_bytes=400_000), kind="attention")
    assert op_time(op, toy_hardware(), slow_stack()).memory_s == pytest.approx(1.2e-6 / 0.8)


def test_a_stack_divides_the_peak():
    op = gemm("g", 10**12, Traffic(weight_bytes=8))
    assert op_time(op, toy_hardware(), slow_stack()).compute_s == pytest.approx(0.04)


def test_only_the_ideal_stack_is_ideal():
    assert IDEAL.is_ideal
    assert not slow_stack().is_ideal


def test_the_batch_that_turns_compute_bound_is_the_first_one():
    hw = toy_hardware()

    def projection(batch):
        io = Traffic(weight_bytes=2 * 1000**2, read_bytes=2000 * batch, write_bytes=2000 * batch)
        return gemm("p", batch * 1000**2, io)

    turning = compute_bound_batch(projection(1), 1, hw)
    assert turning == compute_bound_batch(projection(7), 7, hw) == 125
    assert op_time(projection(turning - 1), hw, IDEAL).bound == "memory"
    time = op_time(projection(turning), hw, IDEAL)
    assert time.compute_s >= time.memory_s * (1 - 1e-12)


def test_attention_never_turns_compute_bound_by_batch():
    op = gemm("qk", 1000, Traffic(kv_read_bytes=2000), kind="attention")
    assert compute_bound_batch(op, 1, toy_hardware()) is None


def test_times_add_and_scale():
    time = op_time(gemm("g", 10, Traffic(weight_bytes=10**6)), toy_hardware(), IDEAL)
    assert (time + time).time_s == (time * 2).time_s == pytest.approx(2e-6)


def test_ridge_is_peak_over_bandwidth():
    assert toy_hardware().ridge_flop_per_byte == pytest.approx(100)
    assert replace(toy_hardware(), dram_bytes_per_s=2e12).ridge_flop_per_byte == pytest.approx(50)


def decoding(name: str, **changes: object) -> Op:
    """A 1000 x 1000 matrix in a format, without traffic of its own."""
    matrix = Matrix(format=parse_format(name), out_features=1000, in_features=1000)
    op = Op(name="q_proj", kind="gemm", flops=0, traffic=Traffic(weight_bytes=10**6))
    return replace(op, matrix=matrix, **changes)


def decoder(**changes: object) -> Stack:
    return replace(IDEAL, decode_costs=(("any", 0.0), ("gptq", 0.3), ("gptq-act", 3.0)), **changes)


@pytest.mark.parametrize(("overlap", "time_us"), [(1.0, 3.0), (0.5, 3.5), (0.0, 4.0)])
def test_decoding_hides_behind_dram_or_adds_to_it(overlap, time_us):
    """1e6 weights x 0.3 SM-cycles on 100 SMs at 1 GHz: 3 us; 1e6 bytes at 1 TB/s: 1 us."""
    hw = toy_hardware(sm_count=100, boost_clock_hz=1e9)
    time = op_time(decoding("gptq-w4"), hw, decoder(decode_overlap=overlap))
    assert time.decode_s == pytest.approx(3e-6)
    assert time.time_s == pytest.approx(time_us * 1e-6)
    assert time.bound == "decode"


def test_the_entry_with_most_words_of_a_name_decides():
    costs = {
        "fp16": 0.0,
        "gptq-w4": 0.3,
        "gptq-w4-g128": 0.3,
        "gptq-w4-act": 0.3,  # without groups the order costs nothing
        "gptq-w4-g128-act": 3.0,
        "awq-w4-g128": 0.0,
    }
    assert {name: decoder().decode_sm_cycles(parse_format(name)) for name in costs} == costs


def test_decoding_is_faster_on_more_sms_and_a_higher_clock():
    slow = toy_hardware(sm_count=100, boost_clock_hz=1e9)
    fast = toy_hardware(sm_count=200, boost_clock_hz=2e9)
    op = decoding("gptq-w4")
    ratio = op_time(op, slow, decoder()).decode_s / op_time(op, fast, decoder()).decode_s
    assert ratio == pytest.approx(4)


def test_a_sparse_part_costs_a_launch_its_nonzeros_and_its_longest_row():
    cost = SparseCost(launch_s=1e-6, sm_cycles_per_nonzero=20.0, cycles_per_column=3.0)
    stack = replace(IDEAL, sparse_costs=(("rows", cost),))
    hw = toy_hardware(sm_count=100, boost_clock_hz=1e9)
    op = decoding("squeezellm-w3-s0.5", count=2)
    work_s = 20 * 5000 / 1e11 + 3 * 1000 / 1e9
    assert op_time(op, hw, stack).sparse_s == pytest.approx(2 * (1e-6 + work_s))
    slow_host = replace(hw, host_clock_hz=2.2e9)  # half of a workstation's
    assert op_time(op, slow_host, stack).sparse_s == pytest.approx(2 * (2e-6 + work_s))
    with pytest.raises(UnknownCostError, match=r"-hybrid \(hybrid\); it knows rows"):
        op_time(decoding("squeezellm-w3-s0.5-hybrid"), hw, stack)


def ragged_gemv(n: int, k: int) -> Op:
    op = gemm("gemv", n * k, Traffic(weight_bytes=2 * n * k))
    return replace(op, matrix=Matrix(format=parse_format("fp16"), out_features=n, in_features=k))


def test_a_matrix_with_an_odd_side_reaches_a_share_of_the_share():
    stack = replace(slow_stack(), ragged_share=0.5, launch_s=0.0)
    whole, odd = ragged_gemv(4608, 4608), ragged_gemv(4544, 4544)  # 36 x 128; 35.5 x 128
    assert op_time(whole, toy_hardware(), stack).time_s == pytest.approx(whole.bytes / 0.8e12)
    assert op_time(odd, toy_hardware(), stack).time_s == pytest.approx(odd.bytes / 0.4e12)
    assert not stack.is_ideal
    assert not replace(IDEAL, ragged_share=0.5).is_ideal


def test_what_the_host_paces_takes_longer_on_a_slow_host():
    slow_host = toy_hardware(host_clock_hz=2.2e9)  # half of a workstation's 4.4 GHz
    stack = replace(slow_stack(), layer_cycles=1e5)
    cycles_s = 1e5 / slow_host.clock_hz
    assert layers_time(2, toy_hardware(), stack).time_s == pytest.approx(2 * (100e-6 + cycles_s))
    assert layers_time(2, slow_host, stack).time_s == pytest.approx(2 * (200e-6 + cycles_s))
    op = Op(name="norm", kind="vector", flops=0, traffic=Traffic(read_bytes=8), count=4)
    assert op_time(op, slow_host, stack).launch_s == pytest.approx(4 * 6e-6)
    assert toy_hardware(host_clock_hz=5e9).host_slowdown == 1.0
