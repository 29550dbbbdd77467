"""Workload x device x stack -> Prediction: time, traffic and memory, per operation and in total."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec
from msgspec.structs import replace

from perfmodel.attention import attention_ops
from perfmodel.block import block_ops, collective_ops, outer_ops
from perfmodel.footprint import Footprint, footprint, largest_batch, largest_context
from perfmodel.formats import BitPolicy
from perfmodel.hardware import HardwareSpec
from perfmodel.ops import Op, Traffic
from perfmodel.roofline import Bound, OpTime, compute_bound_batch, layers_time, op_time
from perfmodel.stacks import Stack
from perfmodel.workload import Pass, Workload, first_pass

OP_ORDER = (
    "embedding",
    "norm",
    "q_proj",
    "k_proj",
    "v_proj",
    "rope",
    "qk_matmul",
    "softmax",
    "pv_matmul",
    "o_proj",
    "residual",
    "gate_proj",
    "up_proj",
    "act",
    "down_proj",
    "lm_head",
    "all_reduce",
    "all_gather",
)
# What a reader wants to see together; everything else is "rest".
COMPONENTS = {
    "linear layers": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "lm_head": ("lm_head",),
    "attention": ("qk_matmul", "softmax", "pv_matmul"),
}


class OpPrediction(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of the workload, all its instances together."""

    op: Op
    time: OpTime
    compute_bound_batch: int | None  # batch at which it turns compute-bound


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What one workload takes on one device with one stack."""

    hardware: HardwareSpec
    workload: Workload
    stack: Stack
    ops: tuple[OpPrediction, ...]
    layers: OpTime  # what the stack adds per block, beside the operations
    time_s: float  # all passes of the workload; for generate without the prefill
    memory: Footprint
    prefill: "Prediction | None" = None  # of a generation's prompt

    @property
    def traffic(self) -> Traffic:
        return sum((p.op.traffic for p in self.ops), Traffic())

    @property
    def flops(self) -> int:
        return sum(p.op.flops for p in self.ops)

    @property
    def bytes(self) -> int:
        return sum(p.op.bytes for p in self.ops)

    @property
    def time_per_token_s(self) -> float:
        """Time of one step: each sequence of the batch gains one token in it."""
        return self.time_s / self.workload.steps

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all sequences per second; of the prompt in a prefill."""
        tokens = self.workload.prompt if self.workload.phase == "prefill" else self.workload.steps
        return self.workload.batch * tokens / self.time_s

    @property
    def total(self) -> OpTime:
        """All operations and layers together."""
        return sum((p.time for p in self.ops), self.layers)

    @property
    def bound(self) -> Bound:
        """The resource that takes longest in total."""
        return self.total.bound

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of the blocks' linear layers over their weights."""
        return linear_bits_per_weight(self.workload)

    @property
    def transferred(self) -> bool:
        """Whether the stack was fitted on other devices than this one, or this one is a what-if."""
        fitted_here = self.hardware.key in self.stack.devices and not self.hardware.overrides
        return bool(self.stack.devices) and not fitted_here

    @property
    def basis(self) -> str:
        """What the numbers rest on: "datasheet", "fitted on ...", "measured on ..."."""
        moved = f", transferred to {self.hardware.key}" if self.transferred else ""
        return f"{self.stack.basis}{moved}"

    @property
    def largest_context(self) -> int:
        """Tokens per sequence (cached, or of the prompt) that fit beside the weights."""
        return largest_context(self.workload, self.hardware.dram_bytes)

    @property
    def largest_batch(self) -> int:
        """Sequences of this length that fit beside the weights."""
        return largest_batch(self.workload, self.hardware.dram_bytes)

    @property
    def interval_s(self) -> tuple[float, float | None]:
        """Where four of five measurements lie; a lower bound alone where nobody measured.

        Stacks are fitted to decode steps: of their arithmetic and of larger batches they know
        nothing.
        """
        interval, workload = self.stack.interval, self.workload
        unseen = workload.phase == "prefill" or workload.batch > self.stack.largest_batch
        if interval is None or unseen:
            moved_s = self.bytes / self.hardware.dram_bytes_per_s
            return (self.time_s if self.stack.is_ideal else moved_s, None)
        width = interval.transferred if self.transferred else interval.fitted
        return (self.time_s / (1 + width), self.time_s * (1 + width))

    def share_of(self, names: Sequence[str]) -> float:
        """Share of the total time that the operations of these names take."""
        return sum(p.time.time_s for p in self.ops if p.op.name in names) / self.time_s


def predict(workload: Workload, hw: HardwareSpec, stack: Stack) -> Prediction:
    """Time, traffic and memory of a workload on each of its (equal) devices.

    Raises: UnknownFactError if the device file leaves a needed number open.
    """
    timed = _timed_ops(workload, hw, stack)
    layers = layers_time(workload.model.layers, hw, stack) * workload.steps
    return Prediction(
        hardware=hw,
        workload=workload,
        stack=stack,
        ops=tuple(
            OpPrediction(
                op=op, time=time, compute_bound_batch=compute_bound_batch(op, workload.batch, hw)
            )
            for op, time in timed
        ),
        layers=layers,
        time_s=sum(time.time_s for _, time in timed) + layers.time_s,
        memory=footprint(workload, hw.dram_bytes),
        prefill=_prefill(workload, hw, stack),
    )


def linear_bits_per_weight(workload: Workload) -> float:
    """Stored bits of the blocks' linear layers over their weights, unsharded."""
    stored_bytes = weights = 0
    for name, n, k, _ in workload.model.linears():
        stored_bytes += workload.policy.format_of(name).weight_bytes(n, k)
        weights += n * k
    return 8 * stored_bytes / weights


def constant_ops(step: Pass, policy: BitPolicy) -> tuple[Op, ...]:
    """Operations of one pass that do not depend on the cache; norms inside and after together."""
    layers = step.model.layers
    ops: dict[str, Op] = {op.name: op * layers for op in block_ops(step, policy)}
    for op in (*outer_ops(step, policy), *collective_ops(step)):
        ops[op.name] = ops[op.name] + op if op.name in ops else op
    return tuple(ops.values())


def cache_ops(step: Pass) -> tuple[Op, ...]:
    """Operations of one pass that read the cache: attention of all blocks."""
    return tuple(op * step.model.layers for op in attention_ops(step))


def workload_ops(workload: Workload) -> tuple[Op, ...]:
    """Operations of all passes of a workload, those of one name added up."""
    first, steps = first_pass(workload), workload.steps
    total: tuple[Op, ...] = ()
    for i in range(steps):
        now = cache_ops(replace(first, cached=first.cached + i))
        total = tuple(a + b for a, b in zip(total, now, strict=True)) if total else now
    return (*(op * steps for op in constant_ops(first, workload.policy)), *total)


def times_of_constant_ops(
    workload: Workload, hw: HardwareSpec, stack: Stack
) -> list[tuple[Op, OpTime]]:
    """Operations that do not depend on the cache, and their times, over all passes."""
    first, steps = first_pass(workload), workload.steps
    constant = constant_ops(first, workload.policy)
    return [(op * steps, op_time(op, hw, stack) * steps) for op in constant]


def times_of_cache_ops(
    first: Pass, steps: int, hw: HardwareSpec, stack: Stack
) -> tuple[tuple[Op, OpTime], ...]:
    """Attention and its times over all passes; only attention differs from pass to pass."""
    total: list[tuple[Op, OpTime]] = []
    for i in range(steps):
        ops = cache_ops(replace(first, cached=first.cached + i))
        now = [(op, op_time(op, hw, stack)) for op in ops]
        pairs = zip(total, now, strict=True) if total else ()
        total = [(a + op, b + time) for (a, b), (op, time) in pairs] or now
    return tuple(total)


def in_order(timed: Iterable[tuple[Op, OpTime]]) -> list[tuple[Op, OpTime]]:
    """As a pass runs them; sums in this order are the same everywhere."""
    return sorted(timed, key=lambda pair: OP_ORDER.index(pair[0].name))


# Kept, because attention is the same for every weight format.
_kept_times_of_cache_ops = lru_cache(maxsize=64)(times_of_cache_ops)


def _timed_ops(workload: Workload, hw: HardwareSpec, stack: Stack) -> list[tuple[Op, OpTime]]:
    attention = _kept_times_of_cache_ops(first_pass(workload), workload.steps, hw, stack)
    return in_order((*times_of_constant_ops(workload, hw, stack), *attention))


def _prefill(workload: Workload, hw: HardwareSpec, stack: Stack) -> Prediction | None:
    if workload.phase != "generate" or workload.prompt == 0:
        return None
    return predict(replace(workload, phase="prefill", new=0), hw, stack)
