"""Operations of one block, in numbers that fit on a page."""

import pytest
from msgspec.structs import replace

from perfmodel.attention import attention_ops, causal_pairs
from perfmodel.block import block_ops, collective_ops, outer_ops
from perfmodel.ops import Op, Traffic, gemm
from perfmodel.workload import first_pass
from tests.perfmodel.toys import policy, toy_model, toy_workload


def by_name(ops):
    return {op.name: op for op in ops}


def test_a_multiply_add_is_two_flops():
    assert gemm("g", 8 * 8 * 8, Traffic()).flops == 1024


def test_an_op_times_three_is_three_of_it():
    op = gemm("g", 10, Traffic(weight_bytes=5, read_bytes=2, write_bytes=1))
    assert op * 3 == op + op + op
    assert (op * 3).count == 3
    assert (op * 3).bytes == 24


def test_different_ops_do_not_add():
    with pytest.raises(ValueError, match="cannot add"):
        gemm("a", 1, Traffic()) + gemm("b", 1, Traffic())


def test_intensity_of_an_op_without_traffic_is_zero():
    assert Op(name="n", kind="vector", flops=1, traffic=Traffic()).intensity_flop_per_byte == 0


def test_a_projection_reads_its_weights_once_for_the_batch():
    one = by_name(block_ops(first_pass(toy_workload()), policy()))["q_proj"]
    eight = by_name(block_ops(first_pass(toy_workload(batch=8)), policy()))["q_proj"]
    assert one.traffic.weight_bytes == eight.traffic.weight_bytes == 2 * 64 * 64
    assert eight.traffic.read_bytes == 8 * one.traffic.read_bytes == 8 * 2 * 64


def test_weights_of_three_bits_are_three_sixteenths_of_fp16():
    step = first_pass(toy_workload())
    fp16, w3 = by_name(block_ops(step, policy())), by_name(block_ops(step, policy("w3")))
    for name in ("q_proj", "down_proj"):
        assert 16 * w3[name].traffic.weight_bytes == 3 * fp16[name].traffic.weight_bytes


def test_fused_accounting_names_what_it_merges():
    ops = by_name(block_ops(first_pass(toy_workload()), policy()))
    assert ops["q_proj"].merged == ("rope",)
    assert ops["o_proj"].merged == ("residual",)
    assert ops["up_proj"].merged == ("act",)
    assert set(ops) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm")
    }


def test_eager_accounting_has_every_elementwise_op_of_its_own():
    ops = by_name(block_ops(first_pass(toy_workload(accounting="eager")), policy()))
    assert {"norm", "rope", "act", "residual"} <= set(ops)
    assert not any(op.merged for op in ops.values())


def test_paper_accounting_has_blocks_only():
    step = first_pass(toy_workload(accounting="paper"))
    assert outer_ops(step, policy()) == ()
    assert {"rope", "act"}.isdisjoint(by_name(block_ops(step, policy())))


def test_paper_traffic_of_one_step_is_its_formula():
    # d = 64, f = 128, h = 4, t = 5 tokens with the new one, two bytes each
    d, f, h, t = 64, 128, 4, 5
    step = first_pass(toy_workload(accounting="paper", context=t - 1))
    ops = (*block_ops(step, policy()), *attention_ops(step))
    weights = 4 * d * d + 3 * d * f
    vectors = 8 * d + 3 * (d + f) + 2 * d + 2 * d + 10 * d
    assert sum(op.bytes for op in ops) == 2 * (weights + 2 * d * t + 8 * h * t + vectors)


def test_a_decode_step_reads_the_cache_and_writes_its_own():
    step = first_pass(toy_workload(context=100))
    kv_dim = 64
    ops = by_name((*block_ops(step, policy()), *attention_ops(step)))
    assert ops["qk_matmul"].traffic.kv_read_bytes == 100 * kv_dim * 2
    assert ops["pv_matmul"].traffic.kv_read_bytes == 100 * kv_dim * 2
    assert ops["k_proj"].traffic.kv_write_bytes == kv_dim * 2
    assert ops["qk_matmul"].flops == 2 * 101 * 64 + 5 * 101 * 4


def test_grouped_query_attention_reads_a_quarter_of_the_keys():
    grouped = first_pass(toy_workload(model=toy_model(kv_heads=1)))
    full = first_pass(toy_workload())
    quarter, whole = attention_ops(grouped)[0], attention_ops(full)[0]
    assert 4 * quarter.traffic.kv_read_bytes == whole.traffic.kv_read_bytes
    assert quarter.flops == whole.flops


def test_prefill_counts_the_causal_half_once():
    step = first_pass(toy_workload(phase="prefill", prompt=10))
    assert causal_pairs(step) == 55


def test_unfused_prefill_scores_every_pair():
    step = first_pass(toy_workload(phase="prefill", prompt=10, accounting="eager"))
    assert by_name(attention_ops(step))["pv_matmul"].flops == 2 * 10 * 10 * 64


@pytest.mark.parametrize(("cached", "tokens"), [(0, 10), (3, 10), (7, 1), (40, 5)])
def test_causal_pairs_with_a_sliding_window_are_counted_one_by_one(cached, tokens):
    model = toy_model(sliding_window=8)
    step = replace(first_pass(toy_workload(model=model)), cached=cached, tokens=tokens)
    assert causal_pairs(step) == sum(min(cached + i, 8) for i in range(1, tokens + 1))


def test_an_8_bit_cache_halves_the_traffic_of_keys():
    half = attention_ops(first_pass(toy_workload(kv_bits=8)))[0]
    full = attention_ops(first_pass(toy_workload()))[0]
    assert 2 * half.traffic.kv_read_bytes == full.traffic.kv_read_bytes


def test_embedding_reads_one_row_per_token():
    embedding = by_name(outer_ops(first_pass(toy_workload(batch=3)), policy()))["embedding"]
    assert embedding.traffic.weight_bytes == 3 * 64 * 2
    assert embedding.flops == 0


def test_lm_head_runs_on_the_last_token_of_each_sequence():
    ops = by_name(outer_ops(first_pass(toy_workload(phase="prefill", prompt=50)), policy()))
    assert ops["lm_head"].flops == 2 * 64 * 256


def test_biases_are_read_and_added():
    biased = first_pass(toy_workload(model=toy_model(qkv_bias=True)))
    plain = first_pass(toy_workload())
    with_bias = by_name(block_ops(biased, policy()))["v_proj"]
    without = by_name(block_ops(plain, policy()))["v_proj"]
    assert with_bias.traffic.weight_bytes - without.traffic.weight_bytes == 64 * 2
    assert with_bias.flops - without.flops == 64


def test_tensor_parallel_halves_the_weights_and_reduces_twice_per_block():
    step = first_pass(toy_workload(tensor_parallel=2))
    halved = by_name(block_ops(step, policy()))
    whole = by_name(block_ops(first_pass(toy_workload()), policy()))
    for name in ("q_proj", "k_proj", "o_proj", "up_proj", "down_proj"):
        assert 2 * halved[name].traffic.weight_bytes == whole[name].traffic.weight_bytes
    reduce = by_name(collective_ops(step))["all_reduce"]
    assert reduce.count == 2 * 2 + 1  # two blocks and the embedding
    assert reduce.send_bytes == 5 * 64 * 2  # 2 (p - 1) / p of the data, p = 2


def test_more_devices_than_key_value_heads_hold_one_each():
    step = first_pass(toy_workload(model=toy_model(kv_heads=2), tensor_parallel=4))
    assert step.kv_dim == 16


def test_one_device_has_no_collectives():
    assert collective_ops(first_pass(toy_workload())) == ()


def test_attention_and_mlp_side_by_side_share_a_norm_and_an_all_reduce():
    model = toy_model(parallel_mlp=True)
    step = first_pass(toy_workload(model=model, tensor_parallel=2))
    assert by_name(block_ops(step, policy()))["norm"].count == 1
    assert by_name(collective_ops(step))["all_reduce"].count == 2 + 1  # per block, and the logits'


def test_alibi_costs_two_flops_per_score_and_no_bytes():
    rotary = by_name(attention_ops(first_pass(toy_workload())))["qk_matmul"]
    step = first_pass(toy_workload(model=toy_model(positions="alibi")))
    alibi = by_name(attention_ops(step))["qk_matmul"]
    assert alibi.flops - rotary.flops == 2 * 4 * (128 + 1)  # four heads
    assert alibi.traffic == rotary.traffic
    assert by_name(block_ops(step, policy()))["q_proj"].merged == ()
