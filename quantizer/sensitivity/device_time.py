"""What a format costs a device in time: `perfmodel`'s prediction of one decoding step."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from perfmodel.format_names import parse_format
from perfmodel.formats import BitPolicy
from perfmodel.hardware import HardwareSpec
from perfmodel.models import load_model
from perfmodel.prediction import COMPONENTS, Prediction, predict
from perfmodel.stacks import Stack
from perfmodel.workload import Workload

LINEAR_OPS = COMPONENTS["linear layers"]
_OP_OF = {"out_proj": "o_proj", "fc1": "up_proj", "fc2": "down_proj"}  # OPT's own names
_FP16 = parse_format("fp16")


class StepTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of one decoding step, batch 1, by what a format decides and what it does not."""

    others_s: float  # attention, lm_head, norms, and what a stack adds per block
    linear_s: dict[str, dict[str, float]]  # format -> operation -> one linear layer

    def layer_s(self, layer: str, format_name: str) -> float:
        """layer: as in a checkpoint, model.layers.0.mlp.up_proj."""
        name = layer.rpartition(".")[2]
        return self.linear_s[format_name][_OP_OF.get(name, name)]


def step_times(
    model: Path, formats: Sequence[str], hw: HardwareSpec, *, stack: Stack, context: int
) -> StepTimes:
    """Times of the model's decoding step with each format; lm_head and embeddings in FP16.

    Raises: SpecError for a config.json that `perfmodel` cannot read, UnknownFactError for a device
    file that leaves a needed number open, UsageError.
    """
    shape = load_model(str(model / "config.json"))
    predictions = {}
    for name in formats:
        policy = BitPolicy(linear=parse_format(name), lm_head=_FP16, embedding=_FP16)
        predictions[name] = predict(
            Workload(model=shape, policy=policy, context=context), hw, stack
        )
    first = predictions[formats[0]]
    linear_s = sum(seconds * count for seconds, count in _linears(first).values())
    return StepTimes(
        others_s=first.time_s - linear_s,
        linear_s={
            name: {op: seconds for op, (seconds, _) in _linears(prediction).items()}
            for name, prediction in predictions.items()
        },
    )


def _linears(prediction: Prediction) -> dict[str, tuple[float, int]]:
    """Seconds of one instance, and how many, of each linear layer of a block."""
    return {
        part.op.name: (part.time.time_s / part.op.count, part.op.count)
        for part in prediction.ops
        if part.op.name in LINEAR_OPS
    }
