"""The one function that turns an operation into time; predict, sweep and plots all call it.

Every formula here takes plain numbers or numpy arrays of them (perfmodel/arrays.py).
"""

from typing import Any, Literal

import msgspec

from perfmodel.arrays import largest, smallest
from perfmodel.hardware import HardwareSpec
from perfmodel.ops import Op
from perfmodel.stacks import Stack

Bound = Literal["memory", "compute", "decode", "sparse", "link", "launch"]
BOUNDS: tuple[Bound, ...] = ("memory", "compute", "decode", "sparse", "link", "launch")


class OpTime(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of one or more operations, and what each resource would take alone."""

    time_s: float = 0.0
    memory_s: float = 0.0
    compute_s: float = 0.0
    decode_s: float = 0.0  # unpacking codes and looking them up
    sparse_s: float = 0.0  # values kept apart, beside their bytes
    link_s: float = 0.0
    launch_s: float = 0.0

    @property
    def of_bounds(self) -> tuple[float, ...]:
        """Seconds that each of `BOUNDS` would take alone."""
        fixed = (self.sparse_s, self.link_s, self.launch_s)
        return (self.memory_s, self.compute_s, self.decode_s, *fixed)

    @property
    def bound(self) -> Bound:
        """The resource that takes longest."""
        times = self.of_bounds
        return BOUNDS[times.index(max(times))]

    def __add__(self, other: "OpTime") -> "OpTime":
        return OpTime(
            time_s=self.time_s + other.time_s,
            memory_s=self.memory_s + other.memory_s,
            compute_s=self.compute_s + other.compute_s,
            decode_s=self.decode_s + other.decode_s,
            sparse_s=self.sparse_s + other.sparse_s,
            link_s=self.link_s + other.link_s,
            launch_s=self.launch_s + other.launch_s,
        )

    def __mul__(self, times: float) -> "OpTime":
        return OpTime(
            time_s=self.time_s * times,
            memory_s=self.memory_s * times,
            compute_s=self.compute_s * times,
            decode_s=self.decode_s * times,
            sparse_s=self.sparse_s * times,
            link_s=self.link_s * times,
            launch_s=self.launch_s * times,
        )


def op_time(op: Op, hw: HardwareSpec, stack: Stack) -> OpTime:
    """Time of `op.count` operations: the slowest of DRAM, arithmetic, decoding and link.

    Added to it: launches, the sparse kernel, and what decoding does not overlap with DRAM. With
    the ideal stack this is the roofline, a lower bound: perfect overlap, cold L2, no launch.
    Raises: UnknownFactError if the device file leaves a needed number open; UnknownCostError.
    Source: Williams, Waterman, Patterson, "Roofline", CACM 2009, section 3; the decode roof and
    the sparse terms: docs/model.md.
    """
    moved_bytes = op.bytes + op.traffic.kv_bytes * (stack.kv_traffic_multiplier - 1)
    efficiency = stack.bandwidth_efficiency(moved_bytes / op.count)
    if op.matrix is not None and op.matrix.ragged:
        efficiency = efficiency * stack.ragged_share
    memory_s = moved_bytes / (hw.dram_bytes_per_s * efficiency)
    compute_s = _compute_s(op, hw) / stack.compute_efficiency
    decode_s = _decode_s(op, hw, stack)
    sparse_s = _sparse_s(op, hw, stack)
    link_s = _link_s(op, hw, stack)
    launch_s = stack.launch_s * hw.host_slowdown * op.count
    exposed_s = (1 - stack.decode_overlap) * smallest(memory_s, decode_s)
    fed_s = largest(memory_s, decode_s) + exposed_s
    return OpTime(
        time_s=largest(fed_s, compute_s, link_s) + sparse_s + launch_s,
        memory_s=memory_s,
        compute_s=compute_s,
        decode_s=decode_s,
        sparse_s=sparse_s,
        link_s=link_s,
        launch_s=launch_s,
    )


def layers_time(layers: int, hw: HardwareSpec, stack: Stack) -> OpTime:
    """What the stack adds per block, for so many of them."""
    cycles_s = stack.layer_cycles / hw.clock_hz if stack.layer_cycles else 0.0
    added_s = (stack.layer_s * hw.host_slowdown + cycles_s) * layers
    return OpTime(time_s=added_s, launch_s=added_s)


def peak_flop_per_s(op: Op, hw: HardwareSpec) -> float:
    """Flat roof of an operation: matrix units for products, FP32 vector units for the rest.

    Raises: UnknownFactError.
    """
    return hw.matmul_flop_per_s if op.kind in ("gemm", "attention") else hw.vector_flop_per_s


def compute_bound_batch(op: Op, batch: int, hw: HardwareSpec) -> int | None:
    """Smallest batch at which this operation takes longer to compute than to read, or None.

    Weights are read once for the whole batch; everything else grows with it:
    weight_bytes / bandwidth = B (flops / peak - other bytes / bandwidth), per sequence.
    """
    if not op.flops or op.kind == "gather":
        return None
    moved_s = (op.bytes - op.traffic.weight_bytes) / batch / hw.dram_bytes_per_s
    gained_s = op.flops / batch / peak_flop_per_s(op, hw) - moved_s
    if gained_s <= 0:
        return None
    exact = op.traffic.weight_bytes / hw.dram_bytes_per_s / gained_s
    return max(1, -int(-exact // 1))


def _compute_s(op: Op, hw: HardwareSpec) -> Any:
    needs_none = isinstance(op.flops, int) and op.flops == 0
    return 0.0 if needs_none else op.flops / peak_flop_per_s(op, hw)


def _decode_s(op: Op, hw: HardwareSpec, stack: Stack) -> Any:
    """Once per weight, whatever the batch: a decoded weight serves all rows."""
    if op.matrix is None:
        return 0.0
    cycles = stack.decode_sm_cycles(op.matrix.format)
    return op.count * op.matrix.weights * cycles / hw.sm_hz if cycles else 0.0


def _sparse_s(op: Op, hw: HardwareSpec, stack: Stack) -> Any:
    """A launch, work for every nonzero shared by all SMs, and the wait for the longest row."""
    matrix = op.matrix
    if matrix is None or matrix.format.sparse is None:
        return 0.0
    cost = stack.sparse_cost(matrix.format, matrix.format.sparse)
    one_s = cost.launch_s * hw.host_slowdown
    if cost.sm_cycles_per_nonzero:
        one_s = one_s + cost.sm_cycles_per_nonzero * matrix.nonzeros / hw.sm_hz
    if cost.cycles_per_column:
        one_s = one_s + cost.cycles_per_column * matrix.in_features / hw.clock_hz
    return op.count * one_s


def _link_s(op: Op, hw: HardwareSpec, stack: Stack) -> Any:
    if op.kind != "collective":
        return 0.0
    return op.send_bytes / hw.send_bytes_per_s + stack.collective_s * op.count
