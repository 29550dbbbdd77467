"""What has to be in DRAM at once: weights, KV cache, activations; and how far it can grow."""

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from perfmodel.arrays import largest
from perfmodel.block import shard_shape
from perfmodel.formats import BitPolicy
from perfmodel.workload import ELEMENT_BYTES, MAX_BATCH, MAX_TOKENS, Pass, Workload, first_pass

LOGIT_BYTES = 4  # logits are sampled in FP32


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """Peak bytes on one device."""

    weights_bytes: int
    kv_cache_bytes: int
    activation_bytes: int
    capacity_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.activation_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.capacity_bytes


def footprint(workload: Workload, capacity_bytes: int) -> Footprint:
    """Peak memory of a workload on each of its devices.

    Weights include codebooks, scales and sparse parts, embedding, positions, norms, biases and
    lm_head (once if tied and of one format). No driver context, no allocator slack.
    """
    step = first_pass(workload)
    return Footprint(
        weights_bytes=weights_bytes(step, workload.policy),
        kv_cache_bytes=_kv_cache_bytes(workload, step),
        activation_bytes=_activation_bytes(workload, step),
        capacity_bytes=capacity_bytes,
    )


def growing_bytes(workload: Workload) -> int:
    """What grows with batch and length: KV cache and activations, on one device."""
    step = first_pass(workload)
    return _kv_cache_bytes(workload, step) + _activation_bytes(workload, step)


def weights_bytes(step: Pass, policy: BitPolicy) -> int:
    """Bytes of everything that is loaded from a checkpoint, on one device."""
    model = step.model
    block = model.norms_per_block * model.norm_elements * ELEMENT_BYTES
    for linear in model.linears():
        n, k = shard_shape(step, linear)
        block += policy.format_of(linear.name).weight_bytes(n, k)
        block += n * ELEMENT_BYTES if linear.bias else 0
    tables = model.position_rows * model.hidden * ELEMENT_BYTES
    vocab = step.shard(model.vocab)
    embedding, lm_head = policy.format_of("embedding"), policy.format_of("lm_head")
    tables += embedding.weight_bytes(vocab, model.hidden)
    if not (model.tied_embeddings and embedding == lm_head):
        tables += lm_head.weight_bytes(vocab, model.hidden)
    return model.layers * block + model.norm_elements * ELEMENT_BYTES + tables


def largest_context(workload: Workload, capacity_bytes: int) -> int:
    """Most tokens per sequence (cached or prompt) that still fit; 0 if none do."""
    left_bytes = capacity_bytes - weights_bytes(first_pass(workload), workload.policy)

    def fits(tokens: int) -> bool:
        if workload.phase == "decode":
            grown = replace(workload, context=tokens)
        else:
            grown = replace(workload, prompt=tokens)
        return growing_bytes(grown) <= left_bytes

    return _bisect(fits, MAX_TOKENS)


def largest_batch(workload: Workload, capacity_bytes: int) -> int:
    """Most sequences of this length that still fit; 0 if not even one does."""
    left_bytes = capacity_bytes - weights_bytes(first_pass(workload), workload.policy)

    def fits(batch: int) -> bool:
        return growing_bytes(replace(workload, batch=batch)) <= left_bytes

    return _bisect(fits, MAX_BATCH)


def _bisect(holds: Callable[[int], bool], limit: int) -> int:
    """Largest value in 1..limit for which a condition holds that fails from some value on, or 0."""
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _kv_cache_bytes(workload: Workload, step: Pass) -> int:
    """Keys and values of every sequence; a sliding window keeps no more than itself."""
    tokens = workload.model.attended(workload.cached_tokens_at_end)
    per_token = 2 * step.model.layers * step.kv_dim
    return step.kv_bytes(workload.batch * tokens * per_token)


def _activation_bytes(workload: Workload, step: Pass) -> int:
    """The widest moment of a pass: residual stream beside q, k, v or the MLP, or the logits.

    Unfused attention also holds its scores twice (before and after the softmax).
    """
    model = step.model
    attention_width = step.q_dim + 2 * step.kv_dim
    mlp_width = step.shard(model.intermediate) * (2 if model.gated_mlp else 1)
    elements = step.rows * (2 * model.hidden + max(attention_width, mlp_width))
    if step.accounting != "fused":
        positions = model.attended(workload.cached_tokens_at_end)
        elements = elements + 2 * step.rows * positions * step.heads
    logits_bytes = workload.batch * model.vocab * LOGIT_BYTES
    return largest(elements * ELEMENT_BYTES, logits_bytes)  # type: ignore[no-any-return]
