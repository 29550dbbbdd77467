"""Where each microsecond of a prediction goes, which roof binds, and how far the next one is."""

import msgspec
from msgspec.structs import replace

from perfmodel.format_names import parse_format
from perfmodel.ops import Op
from perfmodel.prediction import Prediction, predict
from perfmodel.roofline import BOUNDS, Bound, OpTime
from perfmodel.workload import MAX_BATCH

PARTS = (
    "weights from DRAM",
    "KV cache from DRAM",
    "activations from DRAM",
    "decoding",
    "arithmetic",
    "link",
    "sparse kernel",
    "launches and layers",
)
NO_HELP = 1.05  # a speed-up below this is not worth another format


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction taken apart; the parts add up to its time."""

    parts: dict[str, float]  # seconds by name of `PARTS`
    roofs: tuple[tuple[Bound, float], ...]  # what each resource would take alone, longest first
    helps_below_batch: int | None  # smallest batch where FP16 is as good; None: at none


def explain(prediction: Prediction) -> Explanation:
    """Parts, roofs and the batch at which a low-bit format stops helping."""
    parts = dict.fromkeys(PARTS, 0.0)
    for item in prediction.ops:
        for name, seconds in _parts(item.op, item.time, prediction).items():
            parts[name] += seconds
    parts["launches and layers"] += prediction.layers.time_s
    roofs = zip(BOUNDS, prediction.total.of_bounds, strict=True)
    return Explanation(
        parts=parts,
        roofs=tuple(sorted(((b, s) for b, s in roofs if s), key=lambda pair: -pair[1])),
        helps_below_batch=_no_help_batch(prediction),
    )


def _parts(op: Op, time: OpTime, prediction: Prediction) -> dict[str, float]:
    """Time of one operation by cause; what hides behind something longer costs nothing."""
    busy_s = time.time_s - time.sparse_s - time.launch_s
    parts = {"sparse kernel": time.sparse_s, "launches and layers": time.launch_s}
    longest = max(time.memory_s, time.decode_s, time.compute_s, time.link_s)
    if longest == time.compute_s > max(time.memory_s, time.decode_s):
        return parts | {"arithmetic": busy_s}
    if longest == time.link_s > max(time.memory_s, time.decode_s):
        return parts | {"link": busy_s}
    memory_s = time.memory_s if time.memory_s >= time.decode_s else busy_s - time.decode_s
    traffic = op.traffic
    kv_bytes = traffic.kv_bytes * prediction.stack.kv_traffic_multiplier
    moved_bytes = traffic.weight_bytes + kv_bytes + traffic.activation_bytes
    per_byte_s = memory_s / moved_bytes if moved_bytes else 0.0
    return parts | {
        "weights from DRAM": traffic.weight_bytes * per_byte_s,
        "KV cache from DRAM": kv_bytes * per_byte_s,
        "activations from DRAM": traffic.activation_bytes * per_byte_s,
        "decoding": busy_s - memory_s,
    }


def _no_help_batch(prediction: Prediction) -> int | None:
    """Smallest batch at which the format is no more than 5 % faster than FP16; by bisection."""
    low, high = 0, 1
    while high < MAX_BATCH and _speedup(prediction, high) >= NO_HELP:
        low, high = high, 2 * high
    if high >= MAX_BATCH:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _speedup(prediction, middle) >= NO_HELP else (low, middle)
    return high


def _speedup(prediction: Prediction, batch: int) -> float:
    """FP16's time over the format's at another batch; lm_head and embedding as they are."""
    workload = replace(prediction.workload, batch=batch)
    fp16 = replace(workload.policy, linear=parse_format("fp16"), overrides=())
    hw, stack = prediction.hardware, prediction.stack
    plain = predict(replace(workload, policy=fp16), hw, stack)
    return plain.time_s / predict(workload, hw, stack).time_s
