"""How often the gates cry wolf, and how soon they see a small step, on made-up runs.

    python -m tests.bench.detector_rates --between 0.005 --baseline 1

Every benchmark has its own noise between samples (1 to 3 %, lognormal) and every process shifts
each of its benchmarks (`--between`, standard deviation). The runs go through `gates.check` as real
ones do, with three fresh processes for every suspicion.
"""

import argparse
import time
from dataclasses import dataclass

import msgspec
import numpy as np

from bench.history.detect import Rules
from bench.history.gates import Finding, Past, check
from bench.history.store import Run
from tests.bench.runs import environment, measurement

EARLIER = 15  # runs before the first that is judged


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the made-up benchmarks are like."""

    keys: int = 500
    samples: int = 30
    least_noise: float = 0.01
    most_noise: float = 0.03
    between: float = 0.003  # from process to process
    baseline: int = 3  # runs that are promoted, the first of all


def run_of(world: World, index: int, generator: np.random.Generator, slower: float = 1.0) -> Run:
    """A process's run; `slower` is what all of its times are multiplied with."""
    noises = np.linspace(world.least_noise, world.most_noise, world.keys)[:, None]
    shifts = world.between * generator.standard_normal((world.keys, 1))
    samples = noises * generator.standard_normal((world.keys, world.samples))
    times = 1e-3 * slower * np.exp(shifts + samples)
    measurements = tuple(
        measurement(f"k{key}", tuple(row)) for key, row in enumerate(times.tolist())
    )
    return Run(id=f"{index:012x}", environment=environment(index), measurements=measurements)


def judged(
    run: Run, past: Past, again: "list[Run]", rules: Rules
) -> tuple[list[Finding], list[Finding]]:
    """(suspicions and regressions of the run alone, regressions after fresh processes)."""
    kinds = ("suspect", "regression")
    first = [f for f in check(run, past, rules) if f.kind in kinds]
    if not first:
        return [], []
    full = msgspec.structs.replace(past, fresh=again)
    return first, [f for f in check(run, full, rules) if f.kind == "regression"]


def false_alarms(world: World, runs: int, seed: int = 0) -> tuple[int, int]:
    """Of so many runs of unchanged code in one history, how many have (a suspicion, an alarm)."""
    generator, rules = np.random.default_rng(seed), Rules()
    history = [run_of(world, index, generator) for index in range(EARLIER)]
    suspected = failed = 0
    for index in range(EARLIER, EARLIER + runs):
        run = run_of(world, index, generator)
        past = Past(baseline=history[: world.baseline], earlier=history, fresh=())
        again = [run_of(world, index, generator) for _ in range(rules.fresh)]
        first, second = judged(run, past, again, rules)
        suspected, failed = suspected + bool(first), failed + bool(second)
        history.append(run)
    return suspected, failed


def found(world: World, slower: float, within: int, seed: int = 0) -> float:
    """The share of benchmarks that are called a regression within so many runs after the step."""
    generator, rules = np.random.default_rng(seed), Rules()
    history = [run_of(world, index, generator) for index in range(EARLIER)]
    seen: set[str] = set()
    for index in range(EARLIER, EARLIER + within):
        run = run_of(world, index, generator, slower)
        past = Past(baseline=history[: world.baseline], earlier=history, fresh=())
        again = [run_of(world, index, generator, slower) for _ in range(rules.fresh)]
        seen |= {finding.key for finding in judged(run, past, again, rules)[1]}
        history.append(run)
    return len(seen) / world.keys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, default=500, help="benchmarks (500)")
    parser.add_argument("--samples", type=int, default=30, help="per run and benchmark (30)")
    parser.add_argument("--between", type=float, default=0.003, help="process to process (0.003)")
    parser.add_argument("--baseline", type=int, default=3, help="promoted runs (3)")
    parser.add_argument("--histories", type=int, default=3, help="of 20 runs each (3)")
    args = parser.parse_args()
    start = time.monotonic()
    world = World(
        keys=args.keys, samples=args.samples, between=args.between, baseline=args.baseline
    )
    print(world)
    alarms = [false_alarms(world, 20, seed) for seed in range(args.histories)]
    for seed, (suspected, failed) in enumerate(alarms):
        print(f"unchanged, history {seed}: {suspected} of 20 runs suspected, {failed} alarms")
    for percent, within in ((5, 1), (3, 1), (3, 3), (3, 5)):
        shares = [found(world, 1 + percent / 100, within, s) for s in range(args.histories)]
        mean = sum(shares) / len(shares)
        print(f"step of {percent} %: {mean:.1%} found within {within} run(s)")
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
