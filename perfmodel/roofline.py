"""The one function that turns an operation into time; predict, sweep and plots all call it."""

from typing import Literal

import msgspec

from perfmodel.hardware import HardwareSpec
from perfmodel.ops import Op
from perfmodel.stacks import Stack

Bound = Literal["memory", "compute", "link", "launch"]


class OpTime(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of one or more operations, and what each resource would take alone."""

    time_s: float = 0.0
    memory_s: float = 0.0
    compute_s: float = 0.0
    link_s: float = 0.0
    launch_s: float = 0.0

    @property
    def bound(self) -> Bound:
        """The resource that takes longest."""
        longest = max(self.memory_s, self.compute_s, self.link_s, self.launch_s)
        if longest == self.memory_s:
            return "memory"
        if longest == self.compute_s:
            return "compute"
        return "link" if longest == self.link_s else "launch"

    def __add__(self, other: "OpTime") -> "OpTime":
        return OpTime(
            time_s=self.time_s + other.time_s,
            memory_s=self.memory_s + other.memory_s,
            compute_s=self.compute_s + other.compute_s,
            link_s=self.link_s + other.link_s,
            launch_s=self.launch_s + other.launch_s,
        )

    def __mul__(self, times: float) -> "OpTime":
        return OpTime(
            time_s=self.time_s * times,
            memory_s=self.memory_s * times,
            compute_s=self.compute_s * times,
            link_s=self.link_s * times,
            launch_s=self.launch_s * times,
        )


def op_time(op: Op, hw: HardwareSpec, stack: Stack) -> OpTime:
    """Time of `op.count` operations: the slowest of DRAM, arithmetic and link, plus launches.

    With the ideal stack this is the roofline, a lower bound: perfect overlap, cold L2, no launch.
    Raises: UnknownFactError if the device file leaves a needed peak open.
    Source: Williams, Waterman, Patterson, "Roofline", CACM 2009, section 3.
    """
    traffic = op.traffic
    kv_extra_bytes = traffic.kv_bytes * (stack.kv_traffic_multiplier - 1)
    moved_bytes = op.bytes + kv_extra_bytes
    efficiency = stack.bandwidth_efficiency(moved_bytes / op.count)
    memory_s = moved_bytes / (hw.dram_bytes_per_s * efficiency)
    compute_s = _compute_s(op, hw) / stack.compute_efficiency
    link_s = op.send_bytes / hw.send_bytes_per_s if op.send_bytes else 0.0
    launch_s = stack.launch_s * op.count
    return OpTime(
        time_s=max(memory_s, compute_s, link_s) + launch_s,
        memory_s=memory_s,
        compute_s=compute_s,
        link_s=link_s,
        launch_s=launch_s,
    )


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


def _compute_s(op: Op, hw: HardwareSpec) -> float:
    return op.flops / peak_flop_per_s(op, hw) if op.flops else 0.0
