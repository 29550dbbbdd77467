"""`python -m bench generate`: whole generations, timed step by step, beside their prediction.

One model in memory at a time, since a 65B in FP16 leaves no room for another: formats follow each
other instead of being timed in turn, and every run is kept, so that drift can be seen.
"""

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from msgspec.structs import replace

from bench.environment import Environment, Kind, throttle_reasons
from bench.folder import ResultsFolder
from bench.generate.generation import Generation, Runner, peak_bytes, timed_run, warm_up
from bench.generate.source import GenerateOptions, Source, build, sources, workload
from bench.measurement import Measurement, Scalar
from bench.probe.host import hardware_of
from bench.session import measurements_of
from bench.timing import CACHE_MULTIPLE, DISTURBED, StopRule, refusal
from kernels.checks import LayoutError
from perfmodel.errors import UsageError
from perfmodel.footprint import footprint
from perfmodel.hardware import HardwareSpec, load_hardware
from perfmodel.measured_stack import measured_stack
from perfmodel.prediction import cache_ops, constant_ops, predict
from perfmodel.stack_files import load_stack
from perfmodel.units import GIGA
from perfmodel.workload import Workload, first_pass

SUITE, STEP_SUITE = "generate", "generate-step"
SLACK = 1.05  # of what a model needs: activations, one block twice while it is loaded
_UNSTEADY = {"cuda": 0.05, "cpu": 0.15}  # as the rules of bench.timing have them


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Where results go, on what they are taken, and until when."""

    results: ResultsFolder
    environment: Environment
    options: GenerateOptions
    deadline_s: float  # of time.monotonic
    hardware: HardwareSpec | None
    say: Callable[[str], None]
    skipped: list[str]

    @property
    def seconds_left(self) -> float:
        return self.deadline_s - time.monotonic()

    def skip(self, case: Measurement, reason: str) -> None:
        """Said, and not counted as done: the next run of the same command tries again."""
        self.results.add_line({"kind": "skipped", "case": case.key, "reason": reason})
        self.skipped.append(f"{case.name}, {case.params['new']} new: {reason}")


def run(
    options: GenerateOptions,
    environment: Environment,
    results: ResultsFolder,
    deadline_s: float,
    *,
    say: Callable[[str], None] | None = None,
) -> list[str]:
    """Measure what is not in the folder yet, each case on disk as soon as it is known.

    A case that does not fit into memory or would not end by the deadline (of `time.monotonic`) is
    skipped; returns the reasons.

    Raises: UsageError, SpecError.
    """
    results.add_environment(environment)
    session = Session(
        results=results,
        environment=environment,
        options=options,
        deadline_s=deadline_s,
        hardware=known_hardware(options, environment, results),
        say=say or (lambda _: None),
        skipped=[],
    )
    for source in list(sources(options)):
        for stack in options.stacks:
            _run_source(session, source, stack)
    return session.skipped


def known_hardware(
    options: GenerateOptions, environment: Environment, results: ResultsFolder
) -> HardwareSpec | None:
    """The device to predict for: as asked, else this one, as probed or by its datasheet."""
    if options.hardware is not None:
        return load_hardware(options.hardware)
    try:
        return hardware_of(environment, measurements_of(results.path, environment.device))
    except UsageError:  # nobody has probed it yet
        return None


def _run_source(session: Session, source: Source, stack: str) -> None:
    """All lengths of one model in one format, loaded once."""
    cases = [_case(session, source, stack, new) for new in session.options.new]
    cases = [case for case in cases if not session.results.is_done(case.key)]
    while cases:
        problem = _problem(session, source, cases[-1])
        if problem is None:
            break
        session.skip(cases.pop(), problem)
    if not cases:
        return
    kind = session.environment.kind
    before = torch.cuda.memory_allocated() if kind == "cuda" else 0
    capacity = session.options.prompt + int(cases[0].params["new"])
    try:
        runner = build(source, stack, kind=kind, capacity=capacity)
        while cases:
            _measure(session, source, runner, cases[0], before)
            cases.pop(0)
    except (UsageError, LayoutError, torch.OutOfMemoryError) as error:
        for case in cases:
            session.skip(case, str(error).splitlines()[0])
    runner = None
    gc.collect()  # a module and its hooks can hold each other
    if kind == "cuda":
        torch.cuda.empty_cache()


def _case(session: Session, source: Source, stack: str, new: int) -> Measurement:
    """The case with everything but its samples."""
    options, environment = session.options, session.environment
    cuda = "cuda-graph" if stack == "memwall" else "cuda-events"
    traffic = workload(source, prompt=options.prompt, new=new)
    moved, flops = totals(traffic)
    cold = moved // new > CACHE_MULTIPLE * environment.cache_bytes
    return Measurement(
        suite=SUITE,
        name=source.format_name,
        params={
            "model": source.shape.name,
            "layers": source.shape.layers,
            "prompt": options.prompt,
            "new": new,
            "batch": 1,
            "stack": stack,
        },
        device=environment.device,
        timing_mode=cuda if environment.kind == "cuda" else "cpu-clock",
        l2_policy="cold" if cold else "warm",
        samples_s=(),
        bytes_moved=moved,
        flops=flops,
        environment=environment.id,
    )


def totals(asked: Workload) -> tuple[int, int]:
    """Bytes that must reach DRAM and FLOPs, over all steps of a generation."""
    first = first_pass(asked)
    ops = [op * asked.steps for op in constant_ops(first, asked.policy)]
    for step in range(asked.steps):
        ops += cache_ops(replace(first, cached=first.cached + step))
    return sum(op.bytes for op in ops), sum(op.flops for op in ops)


def _problem(session: Session, source: Source, case: Measurement) -> str | None:
    """Why a case cannot be run now, or None."""
    if session.seconds_left <= 0:
        return "no time left"
    free = free_bytes(session.environment.kind)
    asked = workload(source, prompt=session.options.prompt, new=int(case.params["new"]))
    needed = footprint(asked, free).total_bytes
    if needed * SLACK > free:
        return f"out of memory: needs {needed / GIGA:.1f} GB, {free / GIGA:.1f} GB are free"
    return None


def free_bytes(kind: Kind) -> int:
    """Memory that a new model could have."""
    if kind == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    info = Path("/proc/meminfo")
    if not info.exists():  # no Linux: nobody says what is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = info.read_text().splitlines()
    available = next(line for line in lines if line.startswith("MemAvailable:"))
    return 1024 * int(available.split()[1])


def _measure(
    session: Session, source: Source, runner: Runner, case: Measurement, before: int
) -> None:
    """Warm up, run, and store whole runs and single steps."""
    options, new = session.options, int(case.params["new"])
    prompt = prompt_tokens(options.prompt, source.shape.vocab)
    runner.reserve(options.prompt + new)
    expected_s = new * warm_up(runner, prompt, new)
    if expected_s > session.seconds_left:
        left = max(session.seconds_left, 0)
        session.skip(case, f"would take {expected_s:.0f} s, {left:.0f} s are left")
        return
    runs: list[Generation] = []
    while len(runs) < options.runs and (not runs or expected_s < session.seconds_left):
        runs.append(timed_run(runner, prompt, new))
    peak, counted_by = peak_bytes(runner, before)
    asked = workload(source, prompt=options.prompt, new=new, weight_bytes=runner.weight_bytes)
    facts: dict[str, Scalar] = {
        "weights": source.origin,
        "weight_bytes": runner.weight_bytes,
        "cache_bytes": runner.cache_bytes,
        "peak_bytes": peak,
        "peak_counted_by": counted_by,
        "fused": runner.fused,
        "own_fp16_gemv": runner.own_gemv,
        "prompt_s": median(run.prompt_s for run in runs),
        **predicted(asked, session.hardware),
        "waited": max(run.waited for run in runs),
    }
    _store(session, case, runs, facts)


def prompt_tokens(prompt: int, vocabulary: int) -> list[int]:
    """A first token, and random ones before it that fill the cache; always the same."""
    generator = torch.Generator().manual_seed(prompt)
    return torch.randint(vocabulary, (prompt + 1,), generator=generator).tolist()


def predicted(asked: Workload, hw: HardwareSpec | None) -> dict[str, Scalar]:
    """The ideal roofline's time of a generation and its prompt, and the probe's; where known."""
    if hw is None:
        return {"predicted_s": None, "predicted_device": None}
    found = predict(asked, hw, load_stack("ideal"))
    facts = {"predicted_s": found.time_s, "predicted_device": hw.key}
    if found.prefill:
        facts["predicted_prompt_s"] = found.prefill.time_s
    stack = measured_stack(hw) if hw.measured else None
    if stack and stack.knows(asked.policy.linear):
        facts["calibrated_s"] = predict(asked, hw, stack).time_s
    return facts


def _store(
    session: Session, case: Measurement, runs: list[Generation], facts: dict[str, Scalar]
) -> None:
    """Steps first: the key of the runs says that a case is done; refused ones are tried again."""
    new, refused = int(case.params["new"]), _refusal(session, runs)
    session.results.add(
        replace(
            case,
            suite=STEP_SUITE,
            samples_s=tuple(step for run in runs for step in run.step_s),
            bytes_moved=case.bytes_moved // new,
            flops=case.flops // new,
            refused=refused,
        ),
        try_again=True,
    )
    runs_s = tuple(run.run_s for run in runs)
    done = replace(case, samples_s=runs_s, facts=facts, refused=refused)
    session.results.add(done, try_again=True)
    session.say(f"{done.name}, {new} new, {done.params['stack']}: {done.median_s:.3g} s")


def _refusal(session: Session, runs: list[Generation]) -> str | None:
    """Why these runs are no result, or None."""
    kind = session.environment.kind
    rule = StopRule(least_samples=session.options.runs, unsteady=_UNSTEADY[kind])
    throttled = throttle_reasons() if kind == "cuda" else []
    waited = max(run.waited for run in runs)
    if waited > DISTURBED:
        return f"disturbed: our threads waited for a core in {waited:.0%} of a run"
    return refusal([run.run_s for run in runs], rule, throttled)
