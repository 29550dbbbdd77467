"""Which weight format to take: what fits, what is fast enough, and of that what is best."""

from collections.abc import Sequence
from math import inf

import msgspec
from msgspec.structs import replace

from perfmodel.footprint import Footprint, footprint
from perfmodel.format_names import EXAMPLES, parse_format
from perfmodel.formats import BitPolicy, WeightFormat
from perfmodel.hardware import HardwareSpec
from perfmodel.measured_stack import MEASURED, stack_for
from perfmodel.prediction import Prediction, linear_bits_per_weight, predict
from perfmodel.quality import Quality
from perfmodel.stack_files import load_stack, stack_names
from perfmodel.stacks import Stack
from perfmodel.units import GIGA, MILLI
from perfmodel.workload import Workload

NEARLY = 1.02  # this much more perplexity is hardly noticed
MUCH_FASTER = 1.2


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the user can afford; None is no limit beyond the device's."""

    memory_bytes: float | None = None
    time_per_token_s: float | None = None
    perplexity: float | None = None


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One format on the software to run it with, and why it is out, if it is."""

    weight_format: WeightFormat
    prediction: Prediction | None  # None: no software is known that runs it
    memory: Footprint
    bits_per_weight: float
    perplexity: float | None
    refusals: tuple[str, ...] = ()
    beaten_by: str | None = None  # another one that is no worse in any way, and better in one
    doubt: str | None = None  # within the limits, but the interval reaches beyond

    @property
    def accepted(self) -> bool:
        return not self.refusals


def candidates(quality: Quality, asked: Sequence[WeightFormat] | None) -> list[WeightFormat]:
    """Formats asked for, or all with a known perplexity; if none is known, the built-in examples.

    A sparse part takes its hybrid layout, whose kernel is two to three times faster than rows'.
    """
    if asked is not None:
        return list(asked)
    names = quality.by_format or [name for name in EXAMPLES if not name.startswith("w")]
    formats = [parse_format(name) for name in names]
    rows = [f.sparse is not None and f.sparse.layout == "rows" for f in formats]
    return [
        parse_format(f"{f.name}-hybrid") if row and f.name.startswith("squeezellm") else f
        for f, row in zip(formats, rows, strict=True)
    ]


def stacks_for(name: str | None, hw: HardwareSpec) -> list[Stack]:
    """The stack asked for, or every one that rests on measurements, the device's own included."""
    if name is not None:
        return [stack_for(name, hw)]
    fitted = [stack for stack in map(load_stack, stack_names()) if stack.devices]
    own = [stack_for(MEASURED, hw)] if hw.measured and hw.measured.decode_weights_per_s else []
    return own or fitted


def options(
    workload: Workload,
    hw: HardwareSpec,
    stacks: Sequence[Stack],
    formats: Sequence[WeightFormat],
    quality: Quality,
) -> list[Option]:
    """Every format on its fastest software."""
    found = []
    for weight_format in formats:
        asked = replace(workload, policy=replace(workload.policy, linear=weight_format))
        found.append(
            Option(
                weight_format=weight_format,
                prediction=_fastest(asked, hw, stacks),
                memory=footprint(asked, hw.dram_bytes),
                bits_per_weight=linear_bits_per_weight(asked),
                perplexity=quality.of(weight_format.name),
            )
        )
    return found


def judged(found: Sequence[Option], limits: Limits) -> list[Option]:
    """The options with reasons, the accepted ones first.

    Best perplexity first, then fastest; with a limit on perplexity the fastest, for then the user
    has said what is good enough.
    """
    reasoned = [_with_refusals(option, limits) for option in found]
    accepted = [option for option in reasoned if option.accepted]
    compared = [_with_rival(o, accepted) if o.accepted else o for o in reasoned]
    if limits.perplexity is not None:
        return sorted(compared, key=lambda option: (not option.accepted, _time_s(option)))
    return sorted(compared, key=_rank)


def _fastest(workload: Workload, hw: HardwareSpec, stacks: Sequence[Stack]) -> Prediction | None:
    """Of the software that was measured on this device, if any was; else of all that is able."""
    linear = workload.policy.linear
    able = [s for s in stacks if s.runs(linear)]
    predictions = [predict(workload, hw, stack) for stack in able]
    # The least of several transfers is too good to be true more often than not.
    return min(predictions, key=lambda p: (p.transferred, p.time_s), default=None)


def _with_refusals(option: Option, limits: Limits) -> Option:
    prediction, refusals = option.prediction, []
    if prediction is None:
        refusals.append("no measured software runs it")
    needed, capacity = option.memory.total_bytes, option.memory.capacity_bytes
    most = min(capacity, limits.memory_bytes or capacity)
    if needed > most:
        refusals.append(f"needs {needed / GIGA:.1f} GB, limit {most / GIGA:g} GB")
    time_s, limit_s = _time_s(option), limits.time_per_token_s
    if prediction is not None and limit_s is not None and time_s > limit_s:
        refusals.append(f"takes {time_s / MILLI:.1f} ms per token, limit {limit_s / MILLI:g} ms")
    if limits.perplexity is not None:
        if option.perplexity is None:
            refusals.append("perplexity unknown")
        elif option.perplexity > limits.perplexity:
            refusals.append(f"perplexity {option.perplexity:g}, limit {limits.perplexity:g}")
    return replace(option, refusals=tuple(refusals), doubt=_doubt(prediction, limit_s))


def _doubt(prediction: Prediction | None, limit_s: float | None) -> str | None:
    """Said when the interval reaches beyond the limit, or has no upper end."""
    if limit_s is None or prediction is None:
        return None
    high_s = prediction.interval_s[1]
    if high_s is None:
        return "at best: nobody measured this"
    high_s /= prediction.workload.steps
    return f"may take up to {high_s / MILLI:.1f} ms" if high_s > limit_s else None


def _with_rival(option: Option, others: Sequence[Option]) -> Option:
    better = [other for other in others if _beats(other, option)]
    if not better:
        return option
    return replace(option, beaten_by=min(better, key=_rank).weight_format.name)


def _beats(a: Option, b: Option) -> bool:
    """No worse in perplexity, time and memory, and better in one; both known."""
    if a.perplexity is None or b.perplexity is None or not (a.prediction and b.prediction):
        return False
    left = (a.perplexity, a.prediction.time_s, a.memory.total_bytes)
    right = (b.perplexity, b.prediction.time_s, b.memory.total_bytes)
    return left != right and all(x <= y for x, y in zip(left, right, strict=True))


def _rank(option: Option) -> tuple[bool, bool, float, float]:
    unknown = option.perplexity is None
    return (not option.accepted, unknown, option.perplexity or 0.0, _time_s(option))


def _time_s(option: Option) -> float:
    return option.prediction.time_per_token_s if option.prediction else inf


def bargain(accepted: Sequence[Option]) -> Option | None:
    """A much faster format at hardly more perplexity than the first; None if there is none."""
    best = accepted[0]
    if best.perplexity is None:
        return None
    near = [o for o in accepted if o.perplexity and o.perplexity <= NEARLY * best.perplexity]
    fastest = min(near, key=_time_s)
    return fastest if _time_s(fastest) * MUCH_FASTER <= _time_s(best) else None


def fp16_policy() -> BitPolicy:
    """Everything FP16; the linear layers are replaced format by format."""
    fp16 = parse_format("fp16")
    return BitPolicy(linear=fp16, lm_head=fp16, embedding=fp16)
