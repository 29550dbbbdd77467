"""Fit the parameters of a stack to measurements: few, physical, positive, each with a prior.

A prior says what any software on any device may cost (docs/model.md); with enough rows the data
decide, with few the prior keeps a parameter where it is plausible. The fit minimises the squared
logarithm of predicted over measured time with outliers damped, so that +10 % and -10 % weigh the
same at every model size.
"""

import re
from collections.abc import Mapping, Sequence
from math import exp, hypot, inf, log, sqrt
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from perfmodel.errors import missing_package
from perfmodel.fit.measurement import MeasuredRun
from perfmodel.formats import SparseLayout, WeightFormat
from perfmodel.ops import Op
from perfmodel.prediction import constant_ops, workload_ops
from perfmodel.roofline import layers_time, op_time
from perfmodel.stacks import ANY, PLAIN, Interval, SparseCost, Stack
from perfmodel.units import MICRO
from perfmodel.workload import first_pass

NOISE = 0.05  # relative scatter of a published rate; beyond about twice this a row is damped
NOISE_ROWS = 4  # what the assumption above is worth, in rows
# Further scatter of what the fit has not seen, from the held-out errors in docs/forecast.md.
OTHER_MODEL = 0.05
OTHER_DEVICE = 0.08
TEN_PERCENT_POINT = 1.2816  # of the normal distribution: 80 % lie within so many deviations
START = Stack(
    name="fit",
    description="",
    basis="",
    source="",
    devices=(),
    largest_batch=1,
    formats=(),
    bandwidth_steps=((0, 1.0),),
    ragged_share=1.0,
    compute_efficiency=1.0,
    launch_s=0.0,
    layer_s=0.0,
    layer_cycles=0.0,
    collective_s=0.0,
    kv_traffic_multiplier=1.0,
    decode_overlap=0.0,
    decode_costs=(),
    sparse_costs=(),
    interval=None,
)


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One number of a stack; its logarithm has a normal prior around the median."""

    name: str  # "share", "layer_us", "decode gptq", "sparse hybrid launch_us", ...
    unit: str
    median: float
    spread: float  # standard deviation of the logarithm
    most: float = inf


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A fitted parameter and how well the data determine it."""

    parameter: Parameter
    value: float
    deviation: float  # of the logarithm, after the fit

    @property
    def determined(self) -> float:
        """Share of the prior's variance that the data removed: 1 is known, 0 is the prior."""
        return max(0.0, 1 - (self.deviation / self.parameter.spread) ** 2)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the data cannot say and a person must."""

    decode: tuple[str, ...] | None = None  # words of format names; None: one key per method
    layer: Literal["host", "clock"] = "host"  # what the time per layer follows
    overlap: float = 0.0  # whether decoding hides behind DRAM (1) or adds to it (0)


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """A stack and where it comes from."""

    stack: Stack
    estimates: tuple[Estimate, ...]
    scatter: float  # standard deviation of the logarithm of predicted over measured


_Case = tuple[MeasuredRun, tuple[Op, ...]]


def fit(runs: Sequence[MeasuredRun], parameters: Sequence[Parameter], overlap: float) -> Fit:
    """The stack that explains the rows best, with its interval.

    Raises: UsageError if scipy is missing; UnknownFactError; UnknownCostError.
    """
    cases = [(run, workload_ops(run.workload)) for run in runs]
    logs, deviations = _solve(cases, parameters, overlap)
    estimates = tuple(
        Estimate(parameter=p, value=exp(x), deviation=d)
        for p, x, d in zip(parameters, logs, deviations, strict=True)
    )
    stack = stack_with(_named(parameters, logs), overlap)
    misses = [log(case_time_s(case, stack) / case[0].time_s) for case in cases]
    freedom = max(0.0, len(runs) - sum(e.determined for e in estimates))
    known = sum(miss**2 for miss in misses) * freedom / len(runs)
    scatter = sqrt((known + NOISE_ROWS * NOISE**2) / (freedom + NOISE_ROWS))
    devices = tuple(sorted({run.hardware.key for run in runs}))
    formats = tuple(dict.fromkeys(run.workload.policy.linear.name for run in runs))
    stack = replace(
        stack,
        devices=devices,
        largest_batch=max(run.workload.batch for run in runs),
        formats=formats,
        interval=interval(scatter),
    )
    return Fit(stack=stack, estimates=estimates, scatter=scatter)


def interval(scatter: float) -> Interval:
    """80 % of a normal distribution of logarithms, for other models here and on other devices."""
    return Interval(
        fitted=exp(TEN_PERCENT_POINT * hypot(scatter, OTHER_MODEL)) - 1,
        transferred=exp(TEN_PERCENT_POINT * hypot(scatter, OTHER_DEVICE)) - 1,
    )


def parameters_for(runs: Sequence[MeasuredRun], options: Options) -> list[Parameter]:
    """What these rows can say something about."""
    host = Parameter(name="layer_us", unit="us", median=40, spread=1.2)
    clock = Parameter(name="layer_cycles", unit="cycles", median=70_000, spread=1.2)
    found = [
        Parameter(name="share", unit="of the DRAM bandwidth", median=0.85, spread=0.15, most=1.0),
        host if options.layer == "host" else clock,
    ]
    if any(_has_ragged(run) for run in runs):
        found.append(
            Parameter(name="ragged_share", unit="of the share", median=0.8, spread=0.5, most=1.0)
        )
    if len({run.workload.cached_tokens_at_end for run in runs}) > 1:
        found.append(Parameter(name="kv_extra", unit="x KV traffic", median=0.2, spread=1.5))
    keys = decode_keys(runs) if options.decode is None else options.decode
    found += [_decode_parameter(key) for key in keys]
    for layout in sorted({layout for run in runs for layout in _layouts(run)}):
        found += _sparse_parameters(layout)
    if any(run.workload.tensor_parallel > 1 for run in runs):
        found.append(Parameter(name="collective_us", unit="us", median=10, spread=1.0))
    return found


def _decode_parameter(key: str) -> Parameter:
    """Two to seven instructions, 128 a cycle (docs/forecast.md); a gather of groups is a load."""
    median, spread = (2.0, 1.2) if "act" in key.split("-") else (0.03, 0.6)
    return Parameter(name=f"decode {key}", unit="SM-cycles/weight", median=median, spread=spread)


def _sparse_parameters(layout: str) -> list[Parameter]:
    """A thread per row waits for the longest row; the other layouts share the work evenly."""
    name = f"sparse {layout}"
    if layout == "rows":
        return [
            Parameter(name=f"{name} cycles_per_column", unit="cycles", median=20, spread=1.5),
        ]
    each = f"{name} sm_cycles_per_nonzero"
    return [
        Parameter(name=f"{name} launch_us", unit="us", median=8, spread=1.0),
        Parameter(name=each, unit="SM-cycles/nonzero", median=5, spread=1.5),
    ]


def decode_keys(runs: Sequence[MeasuredRun]) -> tuple[str, ...]:
    """One key per method: `any` (FP16 too) for ideal formats, METHOD-act for re-ordered groups."""
    policies = [run.workload.policy for run in runs]
    formats = [f for policy in policies for f in (policy.linear, policy.lm_head)]
    return tuple(dict.fromkeys(_decode_key(f) for f in formats if f.name not in PLAIN))


def _decode_key(weight_format: WeightFormat) -> str:
    method = weight_format.name.split("-")[0]
    if re.fullmatch(r"w[0-9.]+", method):
        return ANY
    grouped = weight_format.scales and weight_format.scales.group
    return f"{method}-act" if weight_format.order_bits and grouped else method


def _solve(
    cases: "Sequence[_Case]", parameters: Sequence[Parameter], overlap: float
) -> tuple[list[float], list[float]]:
    """Logarithms of the parameters and their standard deviations."""
    import numpy

    least_squares = _least_squares()
    medians = numpy.log([p.median for p in parameters])
    spreads = numpy.array([p.spread for p in parameters])
    highest = numpy.log([p.most for p in parameters])

    def misfits(logs: Any) -> Any:
        stack = stack_with(_named(parameters, logs), overlap)
        rows = [log(case_time_s(case, stack) / case[0].time_s) / NOISE for case in cases]
        return numpy.concatenate([rows, (logs - medians) / spreads])

    def from_start(shift: float) -> Any:
        start = numpy.minimum(medians + shift, highest - 0.01)
        limits = (-numpy.inf, highest)
        return least_squares(misfits, start, bounds=limits, loss="soft_l1", f_scale=2.0)

    # A roof far below the others has no slope; a second start lifts it.
    found = min((from_start(shift) for shift in (0.0, 1.0)), key=lambda result: result.cost)
    covariance = numpy.linalg.inv(found.jac.T @ found.jac)
    return found.x.tolist(), numpy.sqrt(numpy.diag(covariance)).tolist()


def case_time_s(case: _Case, stack: Stack) -> float:
    """Time of a row's workload; its operations are summed over all passes beforehand."""
    run, ops = case
    layers = run.workload.model.layers * run.workload.steps
    return layers_time(layers, run.hardware, stack).time_s + sum(
        op_time(op, run.hardware, stack).time_s for op in ops
    )


def stack_with(values: Mapping[str, float], overlap: float) -> Stack:
    """The stack that these parameter values describe."""
    sparse: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        if name.startswith("sparse "):
            _, layout, field = name.split(" ")
            sparse.setdefault(layout, {})[field] = value
    return replace(
        START,
        bandwidth_steps=((0, min(1.0, values["share"])),),
        ragged_share=min(1.0, values.get("ragged_share", 1.0)),
        layer_s=values.get("layer_us", 0.0) * MICRO,
        layer_cycles=values.get("layer_cycles", 0.0),
        collective_s=values.get("collective_us", 0.0) * MICRO,
        kv_traffic_multiplier=1 + values.get("kv_extra", 0.0),
        decode_overlap=overlap,
        decode_costs=tuple(
            (name.removeprefix("decode "), value)
            for name, value in values.items()
            if name.startswith("decode ")
        ),
        sparse_costs=tuple((layout, _sparse_cost(costs)) for layout, costs in sparse.items()),
    )


def _sparse_cost(costs: Mapping[str, float]) -> SparseCost:
    return SparseCost(
        launch_s=costs.get("launch_us", 0.0) * MICRO,
        sm_cycles_per_nonzero=costs.get("sm_cycles_per_nonzero", 0.0),
        cycles_per_column=costs.get("cycles_per_column", 0.0),
    )


def _named(parameters: Sequence[Parameter], logs: Any) -> dict[str, float]:
    return {p.name: exp(x) for p, x in zip(parameters, logs, strict=True)}


def _has_ragged(run: MeasuredRun) -> bool:
    ops = constant_ops(first_pass(run.workload), run.workload.policy)
    return any(op.matrix is not None and op.matrix.ragged for op in ops)


def _layouts(run: MeasuredRun) -> set[SparseLayout]:
    sparse = run.workload.policy.linear.sparse
    return {sparse.layout} if sparse else set()


def _least_squares() -> Any:
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise missing_package(error, "fit") from None
    return least_squares
