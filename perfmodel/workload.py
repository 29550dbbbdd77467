"""What is run: model x formats x phase x batch x accounting, and the forward passes it takes."""

from typing import Literal, get_args

import msgspec

from perfmodel.arrays import bounds
from perfmodel.errors import UsageError
from perfmodel.formats import BitPolicy
from perfmodel.shape import ModelShape
from perfmodel.units import bytes_of_bits, ceil_div

Phase = Literal["decode", "prefill", "generate"]
Accounting = Literal["fused", "eager", "paper"]

PHASES: tuple[Phase, ...] = get_args(Phase)
ACCOUNTINGS: tuple[Accounting, ...] = get_args(Accounting)
ELEMENT_BYTES = 2  # activations, norms and biases are FP16 or BF16
MAX_TOKENS = 10_000_000
MAX_NEW_TOKENS = 200_000  # a generation is summed step by step, 20 us each
MAX_BATCH = 1_000_000


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """One question to the model.

    decode: one step with `context` tokens in the cache. prefill: `prompt` tokens from an empty
    cache. generate: `new` steps with prompt, prompt + 1, ... tokens in the cache. Batch, context
    and prompt may be numpy arrays of whole numbers that broadcast: many questions at once.
    """

    model: ModelShape
    policy: BitPolicy
    phase: Phase = "decode"
    batch: int = 1
    context: int = 128
    prompt: int = 0
    new: int = 0
    tensor_parallel: int = 1
    accounting: Accounting = "fused"
    kv_bits: int = 16

    def __post_init__(self) -> None:
        _check(self)

    @property
    def steps(self) -> int:
        """Forward passes."""
        return self.new if self.phase == "generate" else 1

    @property
    def cached_tokens_at_end(self) -> int:
        """Tokens in the KV cache of each sequence when the work is done."""
        if self.phase == "decode":
            return self.context + 1
        return self.prompt + self.new if self.phase == "generate" else self.prompt


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """One forward pass on one of `tensor_parallel` devices."""

    model: ModelShape
    batch: int
    tokens: int  # new tokens of each sequence
    cached: int  # tokens of each sequence that are in the KV cache when it starts
    tensor_parallel: int
    accounting: Accounting
    kv_bits: int

    @property
    def rows(self) -> int:
        """M: new tokens of all sequences."""
        return self.batch * self.tokens

    @property
    def q_dim(self) -> int:
        """Width of the queries on this device."""
        return self.heads * self.model.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of the keys (or values) on this device."""
        return kv_heads_per_device(self.model, self.tensor_parallel) * self.model.head_dim

    @property
    def heads(self) -> int:
        return self.model.heads // self.tensor_parallel

    def shard(self, features: int) -> int:
        """Features that one device holds when they are split over all."""
        return ceil_div(features, self.tensor_parallel)

    def kv_bytes(self, elements: int) -> int:
        return bytes_of_bits(elements * self.kv_bits)


def kv_heads_per_device(model: ModelShape, tensor_parallel: int) -> int:
    """Key-value heads on each device; with more devices than heads they are replicated."""
    return max(1, model.kv_heads // tensor_parallel)


def first_pass(workload: Workload) -> Pass:
    """The forward pass of a decode or prefill, or the first step of a generation."""
    prefill = workload.phase == "prefill"
    cached = {"decode": workload.context, "prefill": 0, "generate": workload.prompt}
    return Pass(
        model=workload.model,
        batch=workload.batch,
        tokens=workload.prompt if prefill else 1,
        cached=cached[workload.phase],
        tensor_parallel=workload.tensor_parallel,
        accounting=workload.accounting,
        kv_bits=workload.kv_bits,
    )


def _check(workload: Workload) -> None:
    """Raises: UsageError for a size that is out of range."""
    _in_range("batch", workload.batch, 1, MAX_BATCH)
    _in_range("context", workload.context, 0, MAX_TOKENS)
    _in_range("prompt", workload.prompt, 1 if workload.phase == "prefill" else 0, MAX_TOKENS)
    _in_range("new", workload.new, 1 if workload.phase == "generate" else 0, MAX_NEW_TOKENS)
    _in_range("kv-bits", workload.kv_bits, 1, 32)
    if workload.phase not in PHASES:
        raise UsageError(f"phase is {workload.phase!r}, expected one of {', '.join(PHASES)}")
    if workload.accounting not in ACCOUNTINGS:
        known = ", ".join(ACCOUNTINGS)
        raise UsageError(f"accounting is {workload.accounting!r}, expected one of {known}")
    _check_tensor_parallel(workload.model, workload.tensor_parallel)
    layers = [linear.name for linear in workload.model.linears()]
    for tensor, _ in workload.policy.overrides:
        if tensor not in layers:
            have = ", ".join(layers)
            raise UsageError(f"{workload.model.name} has no {tensor}; its layers: {have}")


def _in_range(name: str, value: int, low: int, high: int) -> None:
    for found in bounds(value):
        if not low <= found <= high:
            raise UsageError(f"{name} is {found}, expected {low}..{high}")


def _check_tensor_parallel(model: ModelShape, devices: int) -> None:
    _in_range("tp", devices, 1, 1024)
    for name, size in (("heads", model.heads), ("intermediate", model.intermediate)):
        if size % devices:
            raise UsageError(
                f"tp is {devices}, expected a divisor of {model.name}'s {name}, {size}"
            )
    if model.kv_heads % devices and devices % model.kv_heads:
        raise UsageError(
            f"tp is {devices}, expected a divisor or multiple of {model.name}'s key-value heads, "
            f"{model.kv_heads}"
        )
