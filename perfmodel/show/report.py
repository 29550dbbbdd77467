"""Predictions as plain data: the JSON contract, and rows for tables and CSV."""

from collections.abc import Sequence
from typing import Any

from perfmodel.footprint import Footprint
from perfmodel.prediction import OpPrediction, Prediction

PREDICT_SCHEMA = "perfmodel.predict/1"


def predictions_json(predictions: Sequence[Prediction], baseline: Prediction) -> dict[str, Any]:
    """The document of `predict --json`; a contract that other tools read.

    All times are seconds, all sizes bytes, per device. An op's numbers are those of its `count`
    instances together, and totals are their sums (plus the stack's time per layer).
    """
    workload = predictions[0].workload
    return {
        "schema": PREDICT_SCHEMA,
        "device": predictions[0].hardware.key,
        "overrides": list(predictions[0].hardware.overrides),
        "model": workload.model.name,
        "phase": workload.phase,
        "batch": workload.batch,
        "context": workload.context if workload.phase == "decode" else None,
        "prompt": None if workload.phase == "decode" else workload.prompt,
        "new": workload.new if workload.phase == "generate" else None,
        "tensor_parallel": workload.tensor_parallel,
        "accounting": workload.accounting,
        "kv_bits": workload.kv_bits,
        "stack": predictions[0].stack.name,
        "results": [_result(prediction, baseline) for prediction in predictions],
    }


def summary_row(prediction: Prediction, baseline: Prediction) -> dict[str, Any]:
    """One flat row per weight format, units in the keys."""
    traffic = prediction.traffic
    return {
        "weights": prediction.workload.policy.linear.name,
        "bits_per_weight": prediction.bits_per_weight,
        "time_s": prediction.time_s,
        "interval_s": list(prediction.interval_s),
        "time_per_token_s": prediction.time_per_token_s,
        "tokens_per_s": prediction.tokens_per_s,
        "speedup": baseline.time_s / prediction.time_s,
        "bound": prediction.bound,
        "flops": prediction.flops,
        "bytes": traffic.bytes,
        "weight_bytes": traffic.weight_bytes,
        "kv_bytes": traffic.kv_bytes,
        "activation_bytes": traffic.activation_bytes,
        "intensity_flop_per_byte": prediction.flops / traffic.bytes,
        "prefill_time_s": prediction.prefill.time_s if prediction.prefill else None,
        "memory_bytes": prediction.memory.total_bytes,
        "capacity_bytes": prediction.memory.capacity_bytes,
        "fits": prediction.memory.fits,
    }


def op_rows(prediction: Prediction) -> list[dict[str, Any]]:
    """One flat row per operation."""
    return [_op_row(prediction, item) for item in prediction.ops]


def memory_json(memory: Footprint) -> dict[str, Any]:
    """The `memory` object of the contract."""
    return {
        "weights_bytes": memory.weights_bytes,
        "kv_cache_bytes": memory.kv_cache_bytes,
        "activation_bytes": memory.activation_bytes,
        "total_bytes": memory.total_bytes,
        "capacity_bytes": memory.capacity_bytes,
        "fits": memory.fits,
    }


def _result(prediction: Prediction, baseline: Prediction) -> dict[str, Any]:
    row = summary_row(prediction, baseline)
    for key in ("memory_bytes", "capacity_bytes", "fits"):
        del row[key]
    row |= {
        "basis": prediction.basis,
        "memory": memory_json(prediction.memory) | _room(prediction),
        "ops": op_rows(prediction),
    }
    return row


def _room(prediction: Prediction) -> dict[str, int]:
    return {
        "largest_context": prediction.largest_context,
        "largest_batch": prediction.largest_batch,
    }


def _op_row(prediction: Prediction, item: OpPrediction) -> dict[str, Any]:
    op, traffic = item.op, item.op.traffic
    return {
        "name": op.name,
        "kind": op.kind,
        "count": op.count,
        "flops": op.flops,
        "bytes": traffic.bytes,
        "weight_bytes": traffic.weight_bytes,
        "kv_bytes": traffic.kv_bytes,
        "activation_bytes": traffic.activation_bytes,
        "send_bytes": op.send_bytes,
        "intensity_flop_per_byte": op.intensity_flop_per_byte,
        "time_s": item.time.time_s,
        "bound": item.time.bound,
        "share": item.time.time_s / prediction.time_s,
        "compute_bound_batch": item.compute_bound_batch,
        "merged": list(op.merged),
    }
