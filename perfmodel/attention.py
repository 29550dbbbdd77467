"""Attention of one block: products of queries with cached keys and values, and the softmax."""

from perfmodel.arrays import largest, smallest, where
from perfmodel.ops import Op, Traffic, gemm
from perfmodel.workload import ELEMENT_BYTES, Pass

SOFTMAX_FLOPS = 5  # per score: scale, running maximum, subtract and exponential, sum, divide
ALIBI_FLOPS = 2  # per score: slope times distance, added; unfused it rides in the mask's pass
# Unfused attention touches the score matrix 8 times: written by QK^T; read and written by each of
# scale, mask and softmax; read by PV. Source: the rule that reproduces SqueezeLLM's 99.7 % and
# 95.8 % (docs/model.md).
ELEMENTWISE_SCORE_PASSES = 3


def attention_ops(step: Pass) -> tuple[Op, ...]:
    """QK^T, softmax and PV of one block of one pass, in the pass's accounting."""
    return _fused(step) if step.accounting == "fused" else _unfused(step)


def _fused(step: Pass) -> tuple[Op, ...]:
    """One kernel: scores stay on chip, K and V are read once, the causal half is computed once."""
    pairs = step.batch * causal_pairs(step)
    key_bytes = step.kv_bytes(step.batch * _tokens_read(step) * step.kv_dim)
    width = step.rows * step.q_dim * ELEMENT_BYTES
    return (
        gemm(
            "qk_matmul",
            pairs * step.q_dim,
            Traffic(kv_read_bytes=key_bytes, read_bytes=width),
            kind="attention",
            extra_flops=_score_flops(step) * pairs * step.heads,
            merged=("softmax",),
        ),
        gemm(
            "pv_matmul",
            pairs * step.q_dim,
            Traffic(kv_read_bytes=key_bytes, write_bytes=width),
            kind="attention",
        ),
    )


def _unfused(step: Pass) -> tuple[Op, ...]:
    """Separate kernels: every token is scored against every position, scores go to DRAM."""
    positions = step.model.attended(step.cached + step.tokens)
    pairs = step.rows * positions
    score_bytes = pairs * step.heads * ELEMENT_BYTES
    key_bytes = step.kv_bytes(step.batch * positions * step.kv_dim)
    appended = step.kv_bytes(step.rows * step.kv_dim)
    width = step.rows * step.q_dim * ELEMENT_BYTES
    passes = ELEMENTWISE_SCORE_PASSES * score_bytes
    return (
        gemm(
            "qk_matmul",
            pairs * step.q_dim,
            Traffic(
                kv_read_bytes=key_bytes,
                kv_write_bytes=appended,
                read_bytes=width,
                write_bytes=score_bytes,
            ),
            kind="attention",
        ),
        Op(
            name="softmax",
            kind="vector",
            flops=_score_flops(step) * pairs * step.heads,
            traffic=Traffic(read_bytes=passes, write_bytes=passes),
        ),
        gemm(
            "pv_matmul",
            pairs * step.q_dim,
            Traffic(
                kv_read_bytes=key_bytes,
                kv_write_bytes=appended,
                read_bytes=score_bytes,
                write_bytes=width,
            ),
            kind="attention",
        ),
    )


def _score_flops(step: Pass) -> int:
    return SOFTMAX_FLOPS + (ALIBI_FLOPS if step.model.positions == "alibi" else 0)


def causal_pairs(step: Pass) -> int:
    """(query, key) pairs of one sequence: each new token sees the cache, itself and before."""
    window = step.model.sliding_window
    first, last = step.cached + 1, step.cached + step.tokens
    full = last if window is None else largest(step.cached, smallest(last, window))
    below = (full - step.cached) * (first + full) // 2  # first + ... + full
    return below + (last - full) * (window or 0)


def _tokens_read(step: Pass) -> int:
    """Positions whose keys come from DRAM: the cache, and a prefill's own keys.

    A decode step has its own key and value in registers.
    """
    cached = step.model.attended(step.cached + 1) - 1
    return where(step.tokens == 1, cached, cached + step.tokens)  # type: ignore[no-any-return]
