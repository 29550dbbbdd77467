"""Arguments of the command line into the records that predictions and sweeps take."""

import argparse
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from perfmodel.errors import UsageError
from perfmodel.format_names import bits_format, parse_format
from perfmodel.formats import BitPolicy, WeightFormat
from perfmodel.hardware import HardwareSpec, device_names, load_hardware
from perfmodel.measured_stack import stack_for
from perfmodel.models import load_model, model_names
from perfmodel.prediction import OP_ORDER, Prediction, predict
from perfmodel.stack_files import stack_names
from perfmodel.stacks import Stack
from perfmodel.strict_yaml import plain_scalar
from perfmodel.workload import Workload

if TYPE_CHECKING:
    from perfmodel.sweep import Grid

DEFAULT_WEIGHTS = "fp16,w8,w4,w3,w2,gptq-w4-g128,squeezellm-w4,squeezellm-w3,squeezellm-w3-s0.45"
DEFAULT_LENGTH = 128


def predictions_of(args: argparse.Namespace, default_weights: str) -> list[Prediction]:
    """One prediction per weight format asked for, or of the default ones that the stack knows."""
    hw = load_hardware(args.gpu, overrides=tuple(args.set))
    stack = stack_for(args.stack, hw)
    policies = _known(policies_of(args, default_weights), stack, asked=_asked(args))
    return [predict(workload_of(args, policy), hw, stack) for policy in policies]


def _asked(args: argparse.Namespace) -> bool:
    return args.weights is not None or args.bits is not None


def _known(policies: list[BitPolicy], stack: Stack, *, asked: bool) -> list[BitPolicy]:
    """Of formats that nobody asked for, those that the stack runs."""
    return policies if asked else [p for p in policies if stack.runs(p.linear)]


def policies_of(args: argparse.Namespace, default_weights: str) -> list[BitPolicy]:
    """One policy per weight format asked for.

    Raises: UsageError for a format or tensor that does not exist.
    """
    if args.bits is not None:
        chosen = [bits_format(bits) for bits in split_names(args.bits, "--bits")]
    else:
        names = default_weights if args.weights is None else args.weights
        chosen = [parse_format(name) for name in split_names(names, "--weights")]
    overrides = tuple(_tensor_override(text) for text in args.tensor)
    if len({name for name, _ in overrides}) < len(overrides):
        raise UsageError(f"--tensor: found one tensor twice in {', '.join(args.tensor)}")
    lm_head, embedding = parse_format(args.lm_head), parse_format(args.embedding)
    return [
        BitPolicy(linear=linear, lm_head=lm_head, embedding=embedding, overrides=overrides)
        for linear in chosen
    ]


def workload_of(args: argparse.Namespace, policy: BitPolicy) -> Workload:
    """The one workload that `predict` and the roofline take.

    Raises: UsageError if a length is given that the phase does not have.
    """
    phase = args.phase
    _refuse_foreign_lengths(args)
    prompt = args.prompt if args.prompt is not None else DEFAULT_LENGTH * (phase == "prefill")
    return Workload(
        model=load_model(args.model),
        policy=policy,
        phase=phase,
        batch=args.batch,
        context=DEFAULT_LENGTH if args.context is None else args.context,
        prompt=prompt,
        new=(args.new or DEFAULT_LENGTH) if phase == "generate" else 0,
        tensor_parallel=args.tp,
        accounting=args.accounting,
        kv_bits=args.kv_bits,
    )


def grid_of(args: argparse.Namespace) -> "Grid":
    """Axes of a sweep; `all` is every built-in device, model or stack."""
    from perfmodel.sweep import Grid

    _refuse_foreign_lengths(args)
    lengths = args.context if args.phase == "decode" else args.prompt
    devices = _devices(args)
    machines = [
        (hw, stack_for(name, hw))
        for hw, _ in devices
        for name in names_or_all("stack", args.stack, stack_names)
    ]
    per_device = len(machines) // len(devices)
    return Grid(
        machines=machines,
        what_if={
            field: [values[field] for _, values in devices for _ in range(per_device)]
            for field in devices[0][1]
        },
        models=[load_model(name) for name in names_or_all("model", args.model, model_names)],
        policies=policies_of(args, DEFAULT_WEIGHTS),
        phase=args.phase,
        accountings=args.accounting,
        batches=args.batch,
        lengths=lengths or [DEFAULT_LENGTH],
        new=(args.new or DEFAULT_LENGTH) if args.phase == "generate" else 0,
        tensor_parallel=args.tp,
        kv_bits=args.kv_bits,
    )


def _devices(args: argparse.Namespace) -> list[tuple[HardwareSpec, dict[str, Any]]]:
    """Every device with every combination of the values that --device-axis gives its fields."""
    axes = [_device_axis(text) for text in args.device_axis]
    found = []
    for gpu in names_or_all("gpu", args.gpu, device_names):
        for values in product(*(values for _, values in axes)):
            given = {field: value for (field, _), value in zip(axes, values, strict=True)}
            overrides = (*args.set, *(f"{field}={value}" for field, value in given.items()))
            numbers = {field: plain_scalar(value) for field, value in given.items()}
            found.append((load_hardware(gpu, overrides=overrides), numbers))
    return found


def _device_axis(text: str) -> tuple[str, list[str]]:
    field, equals, values = text.partition("=")
    if not equals:
        raise UsageError(f"--device-axis {text}: expected FIELD=VALUE,VALUE")
    return field, split_names(values, f"--device-axis {field}")


_LENGTHS_OF_PHASE = {"decode": ("context",), "prefill": ("prompt",), "generate": ("prompt", "new")}


def _refuse_foreign_lengths(args: argparse.Namespace) -> None:
    """Raises: UsageError for a length that the phase would ignore."""
    taken = _LENGTHS_OF_PHASE[args.phase]
    for name in ("context", "prompt", "new"):
        if getattr(args, name) is not None and name not in taken:
            have = " and ".join(f"--{other}" for other in taken)
            raise UsageError(
                f"--{name} does not belong to --phase {args.phase}, which takes {have}"
            )


def _tensor_override(text: str) -> tuple[str, WeightFormat]:
    tensor, equals, name = text.partition("=")
    known = [op for op in OP_ORDER if op.endswith("_proj")]
    if not equals or tensor not in known:
        raise UsageError(f"--tensor {text}: expected TENSOR=FORMAT with one of {', '.join(known)}")
    return tensor, parse_format(name)


def split_names(text: str, option: str) -> list[str]:
    """Names between commas.

    Raises: UsageError for an empty one.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"{option} {text!r}: found an empty entry, expected names between commas")
    return parts


def names_or_all(option: str, text: str, known: Callable[[], Sequence[str]]) -> Sequence[str]:
    """Names between commas, or everything built in."""
    return known() if text == "all" else split_names(text, f"--{option}")
