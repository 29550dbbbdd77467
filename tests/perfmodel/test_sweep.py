"""A sweep over arrays gives, bit for bit, what predict gives one by one."""

import random
from typing import Any

import pytest
from msgspec.structs import replace

from perfmodel.errors import UsageError
from perfmodel.hardware import load_hardware
from perfmodel.models import load_model
from perfmodel.prediction import predict
from perfmodel.stack_files import load_stack
from perfmodel.sweep import Grid, sweep
from perfmodel.workload import ACCOUNTINGS, PHASES, Workload
from tests.perfmodel.toys import policy

DEVICES = ("a6000", "a5000", "h200", "rtx4090", "a100", "orin", "mi300x", "l40s")
# What the host paces, and matrices with odd sides: Falcon on an Orin has both.
HOST_PACED = replace(
    load_stack("squeezellm-2023"), name="host-paced", layer_s=1e-4, launch_s=1e-6, ragged_share=0.6
)
STACKS = (*map(load_stack, ("ideal", "squeezellm-2023", "memwall")), HOST_PACED)
MODELS = (
    *("llama-7b", "llama-3-70b", "mistral-7b", "opt-13b", "qwen2.5-0.5b", "llama-3.1-405b"),
    *("mpt-7b", "falcon-7b"),
)
FORMATS = ("fp16", "gptq-w3-g128", "squeezellm-w3", "squeezellm-w3-s0.45", "squeezellm-w4")


def random_grids(seed: int, rows: int) -> list[Grid]:
    """Grids of random axes with at least so many rows in all."""
    grids: list[Grid] = []
    draw = random.Random(seed)  # noqa: S311  configurations, no secrets
    while sum(grid.size for grid in grids) < rows:
        phase = draw.choice(PHASES)
        tensor_parallel = draw.choice([[1], [1, 2]])
        devices = [name for name in DEVICES if tensor_parallel == [1] or name != "orin"]
        machines = [
            (load_hardware(device), stack)
            for device in draw.sample(devices, 3)
            for stack in draw.sample(STACKS, 2)
        ]
        grids.append(
            Grid(
                machines=machines,
                models=[load_model(draw.choice(MODELS))],
                policies=[policy(name) for name in draw.sample(FORMATS, 3)],
                phase=phase,
                accountings=[draw.choice(ACCOUNTINGS)],
                batches=draw.sample(range(1, 300), 3),
                lengths=draw.sample(range(1, 9000), 3),
                new=draw.randint(1, 4) if phase == "generate" else 0,
                tensor_parallel=tensor_parallel if draw.random() < 0.9 else [1],
                kv_bits=draw.choice([4, 8, 16]),
            )
        )
    return [grid for grid in grids if _possible(grid)]


def _possible(grid: Grid) -> bool:
    heads = {model.heads for model in grid.models} | {model.kv_heads for model in grid.models}
    return max(grid.tensor_parallel) == 1 or all(count % 2 == 0 for count in heads)


def predicted_row(grid: Grid, row: dict[str, Any]) -> dict[str, Any]:
    """The row of a sweep as one call of predict gives it."""
    hw, stack = next(
        (hw, stack)
        for hw, stack in grid.machines
        if (hw.key, stack.name) == (row["device"], row["stack"])
    )
    model = next(model for model in grid.models if model.name == row["model"])
    workload = Workload(
        model=model,
        policy=policy(row["weights"]),
        phase=row["phase"],
        batch=row["batch"],
        context=128 if row["context"] is None else row["context"],
        prompt=row["prompt"] or 0,
        new=row["new"] or 0,
        tensor_parallel=row["tensor_parallel"],
        accounting=row["accounting"],
        kv_bits=grid.kv_bits,
    )
    prediction = predict(workload, hw, stack)
    return row | {
        "time_s": prediction.time_s,
        "tokens_per_s": prediction.tokens_per_s,
        "bound": prediction.bound,
        "flops": prediction.flops,
        "bytes": prediction.bytes,
        "bits_per_weight": prediction.bits_per_weight,
        "memory_bytes": prediction.memory.total_bytes,
        "fits": prediction.memory.fits,
    }


@pytest.mark.parametrize("seed", range(4))
def test_random_configurations_are_those_of_predict(seed):
    grids = random_grids(seed, rows=200)
    rows = [(grid, row) for grid in grids for row in sweep(grid)]
    assert len(rows) > 50
    for grid, row in rows[::3]:
        assert row == predicted_row(grid, row)


def test_numbers_beyond_64_bits_are_refused_and_not_wrapped():
    grid = Grid(
        machines=[(load_hardware("a6000"), load_stack("ideal"))],
        models=[load_model("llama-3.1-405b")],
        policies=[policy()],
        phase="prefill",
        accountings=["fused"],
        batches=[1_000_000],
        lengths=[10_000_000],
        new=0,
        tensor_parallel=[1],
        kv_bits=16,
    )
    with pytest.raises(UsageError, match="too many to sweep"):
        next(sweep(grid))
