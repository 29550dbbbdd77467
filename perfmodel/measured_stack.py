"""A device's own probe as a stack: what it measured of itself instead of what a datasheet says."""

from perfmodel.errors import UsageError
from perfmodel.hardware import HardwareSpec
from perfmodel.measured import Measured
from perfmodel.stack_files import load_stack
from perfmodel.stacks import ANY, SparseCost, Stack

MEASURED = "measured"  # what --stack takes


def stack_for(name: str, hw: HardwareSpec) -> Stack:
    """The stack of that name; `measured` is the one of this device's own probe.

    Raises: UnknownNameError; SpecError; UsageError if nothing was measured on the device.
    """
    return measured_stack(hw) if name == MEASURED else load_stack(name)


def measured_stack(hw: HardwareSpec) -> Stack:
    """Bandwidth, peak, launch cost and decode rates as probed on the device.

    Kernels are taken as perfect beside that: decoding overlaps with DRAM, no time per layer. A
    rate in weights/s becomes SM-cycles per weight with the device's SM count (cores) and clock.
    Raises: UsageError if the device file has no `measured:` group; UnknownFactError if it has
    decode rates and no sm_count or boost_clock_mhz.
    """
    probe = hw.measured
    if probe is None:
        raise UsageError(
            f"stack measured: {hw.key} has no measured: group; run `python -m bench probe` on it, "
            "or choose another --stack"
        )
    launch_s = probe.launch_s if probe.graph_launch_s is None else probe.graph_launch_s
    launch_s = (launch_s or 0.0) / hw.host_slowdown  # which every prediction here multiplies
    decode = ((name, hw.sm_hz / rate) for name, rate in probe.decode_weights_per_s.items())
    return Stack(
        name=MEASURED,
        description=f"what a probe measured on {hw.name}; kernels perfect beside that",
        basis=f"measured on {hw.key}, {probe.date}",
        source=probe.source,
        devices=(hw.key,),
        largest_batch=1,
        formats=tuple(probe.decode_weights_per_s),
        bandwidth_steps=_bandwidth_steps(probe, hw),
        ragged_share=1.0,
        compute_efficiency=_share(_best_product(probe), hw.fp16_matmul_flop_per_s),
        launch_s=launch_s,
        layer_s=0.0,
        layer_cycles=0.0,
        collective_s=0.0,
        kv_traffic_multiplier=1.0,
        decode_overlap=1.0,
        decode_costs=tuple(decode),
        sparse_costs=((ANY, SparseCost(launch_s=launch_s)),),
        interval=None,
    )


def _bandwidth_steps(probe: Measured, hw: HardwareSpec) -> tuple[tuple[int, float], ...]:
    """Shares by size, descending; small reads may be slower than large ones, never faster.

    A step of the staircase above the DRAM's rate was read from a cache, where weights of a
    larger model never are.
    """
    full = _share(probe.read_bytes_per_s, hw.dram_bytes_per_s)
    steps = {0: full}
    for size_bytes, rate in probe.read_steps:
        steps[size_bytes] = min(full, rate / hw.dram_bytes_per_s)
    smallest = min((size for size in steps if size), default=0)
    steps[0] = steps[smallest]
    return tuple(sorted(steps.items(), reverse=True))


def _best_product(probe: Measured) -> float | None:
    """FLOP/s of matrix products on FP16 weights: a CPU is faster when it widens them to FP32."""
    return max(filter(None, (probe.fp16_flop_per_s, probe.fp32_flop_per_s)), default=None)


def _share(measured: float | None, nominal: float | None) -> float:
    return min(1.0, measured / nominal) if measured and nominal else 1.0
