"""Predictions: totals, phases, footprints; the sweep gives the same numbers."""

import pytest
from msgspec.structs import replace

from perfmodel.errors import UsageError
from perfmodel.footprint import footprint, largest_batch, largest_context
from perfmodel.hardware import device_names, load_hardware
from perfmodel.models import load_model, model_names
from perfmodel.prediction import predict
from perfmodel.stack_files import load_stack
from perfmodel.sweep import Grid, sweep
from perfmodel.workload import Workload
from tests.perfmodel.test_roofline import slow_stack
from tests.perfmodel.toys import ideal, policy, toy_hardware, toy_model, toy_workload


def llama_7b(**changes):
    return replace(Workload(model=load_model("llama-7b"), policy=policy()), **changes)


def test_llama_7b_in_fp16_on_an_a6000_takes_17_milliseconds():
    prediction = ideal(llama_7b(context=128), load_hardware("a6000"))
    # linear layers 12.952 GB, lm_head 0.262 GB, 128 keys and values 0.067 GB, over 768 GB/s
    assert prediction.time_s == pytest.approx((12.952e9 + 0.2621e9 + 0.0671e9) / 768e9, rel=0.001)
    assert prediction.time_s == pytest.approx(17.29e-3, rel=0.005)


def test_totals_are_sums_of_operations():
    prediction = ideal(llama_7b(), load_hardware("a6000"))
    assert prediction.time_s == pytest.approx(sum(p.time.time_s for p in prediction.ops))
    assert prediction.bytes == prediction.traffic.bytes == sum(p.op.bytes for p in prediction.ops)


def test_generate_is_the_sum_of_its_decode_steps():
    whole = ideal(toy_workload(phase="generate", prompt=5, new=4))
    steps = [ideal(toy_workload(context=context)) for context in (5, 6, 7, 8)]
    assert whole.time_s == pytest.approx(sum(step.time_s for step in steps))
    assert whole.bytes == sum(step.bytes for step in steps)
    assert whole.flops == sum(step.flops for step in steps)
    assert whole.time_per_token_s == pytest.approx(whole.time_s / 4)


def test_generate_reports_its_prefill_apart():
    whole = ideal(toy_workload(phase="generate", prompt=5, new=4))
    assert whole.prefill is not None
    assert whole.prefill.time_s == ideal(toy_workload(phase="prefill", prompt=5)).time_s
    assert ideal(toy_workload(phase="generate", prompt=0, new=4)).prefill is None


def test_a_stack_adds_its_time_per_layer_to_every_step():
    workload = toy_workload(phase="generate", new=3)
    without = replace(slow_stack(), layer_s=0.0)
    added = (
        predict(workload, toy_hardware(), slow_stack()).time_s
        - predict(workload, toy_hardware(), without).time_s
    )
    assert added == pytest.approx(3 * 2 * 100e-6)


def test_an_ideal_prediction_is_a_lower_bound_without_an_upper_end():
    prediction = ideal(toy_workload())
    assert prediction.interval_s == (prediction.time_s, None)
    assert prediction.basis == "datasheet"


@pytest.mark.parametrize("device", device_names())
def test_every_device_runs_every_phase(device):
    hw = load_hardware(device)
    for workload in (
        llama_7b(policy=policy("w3")),
        llama_7b(phase="prefill", prompt=64),
        llama_7b(phase="generate", new=2, accounting="eager"),
    ):
        assert ideal(workload, hw).time_s > 0


@pytest.mark.parametrize("model", model_names())
@pytest.mark.parametrize("accounting", ["fused", "eager", "paper"])
def test_every_model_runs_in_every_accounting(model, accounting):
    workload = Workload(model=load_model(model), policy=policy("w4"), accounting=accounting)
    assert ideal(workload, load_hardware("h200")).time_s > 0


def test_weights_in_memory_are_the_parameters_at_two_bytes():
    memory = footprint(llama_7b(context=0), 48 * 10**9)
    assert memory.weights_bytes == 2 * load_model("llama-7b").parameters


def test_tied_tables_are_counted_once_unless_their_formats_differ():
    tied = toy_workload(model=toy_model(tied_embeddings=True))
    once = footprint(tied, 1).weights_bytes
    apart = footprint(replace(tied, policy=policy(lm_head="w4")), 1).weights_bytes
    assert once == 2 * toy_model(tied_embeddings=True).parameters
    assert apart - once == 256 * 64 // 2


def test_the_cache_holds_the_new_token_too():
    memory = footprint(toy_workload(context=99), 1)
    assert memory.kv_cache_bytes == 2 * 2 * 64 * 100 * 2  # K and V, layers, width, tokens, bytes


def test_a_sliding_window_bounds_the_cache():
    windowed = toy_workload(model=toy_model(sliding_window=10), context=5000)
    assert footprint(windowed, 1).kv_cache_bytes == 2 * 2 * 64 * 10 * 2


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("accounting", ["fused", "eager"])
def test_the_largest_context_fits_and_one_more_does_not(phase, accounting):
    capacity = 10**7
    workload = toy_workload(phase=phase, prompt=1, accounting=accounting)
    most = largest_context(workload, capacity)
    field = "context" if phase == "decode" else "prompt"
    assert footprint(replace(workload, **{field: most}), capacity).fits
    assert not footprint(replace(workload, **{field: most + 1}), capacity).fits


def test_the_largest_batch_fits_and_one_more_does_not():
    capacity = 10**7
    most = largest_batch(toy_workload(), capacity)
    assert footprint(toy_workload(batch=most), capacity).fits
    assert not footprint(toy_workload(batch=most + 1), capacity).fits


def test_nothing_fits_beside_weights_that_do_not_fit():
    assert largest_batch(toy_workload(), 1000) == 0


def test_llama_30b_in_fp16_does_not_fit_an_a6000():
    workload = Workload(model=load_model("llama-30b"), policy=policy())
    assert not ideal(workload, load_hardware("a6000")).memory.fits


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"phase": "prefill", "prompt": 0}, "prompt is 0"),
        ({"phase": "generate", "new": 0}, "new is 0"),
        ({"phase": "train"}, "phase is 'train'"),
        ({"accounting": "mine"}, "accounting is 'mine'"),
        ({"kv_bits": 64}, "kv-bits is 64"),
        ({"tensor_parallel": 3}, "expected a divisor of toy's heads"),
    ],
)
def test_impossible_workloads_are_refused(changes, problem):
    with pytest.raises(UsageError, match=problem):
        toy_workload(**changes)


@pytest.mark.parametrize("phase", ["decode", "prefill", "generate"])
@pytest.mark.parametrize("stack", [load_stack("ideal"), slow_stack()], ids=lambda s: s.name)
def test_a_sweep_gives_the_numbers_of_predict(phase, stack):
    grid = Grid(
        machines=[(toy_hardware(), stack), (load_hardware("h200"), stack)],
        models=[toy_model(), load_model("llama-3-8b")],
        policies=[policy(), policy("squeezellm-w3-s0.45")],
        phase=phase,
        accountings=["fused", "eager"],
        batches=[1, 300],
        lengths=[7, 900],
        new=3 if phase == "generate" else 0,
        tensor_parallel=[1, 2],
        kv_bits=8,
    )
    rows = list(sweep(grid))
    assert len(rows) == grid.size == 128
    for row in rows:
        prediction = _predicted(row, grid, stack)
        assert row["time_s"] == pytest.approx(prediction.time_s, rel=1e-12)
        assert row["tokens_per_s"] == pytest.approx(prediction.tokens_per_s, rel=1e-12)
        assert (row["bytes"], row["flops"]) == (prediction.bytes, prediction.flops)
        assert (row["bound"], row["fits"]) == (prediction.bound, prediction.memory.fits)
        assert row["memory_bytes"] == prediction.memory.total_bytes
        assert row["bits_per_weight"] == prediction.bits_per_weight


def _predicted(row, grid, stack):
    def named(records, name):
        return next(r for r in records if name in (r.name, getattr(r, "key", None)))

    workload = Workload(
        model=named(grid.models, row["model"]),
        policy=policy(row["weights"]),
        phase=row["phase"],
        batch=row["batch"],
        context=row["context"] if row["phase"] == "decode" else 128,
        prompt=row["prompt"] or 0,
        new=row["new"] or 0,
        tensor_parallel=row["tensor_parallel"],
        accounting=row["accounting"],
        kv_bits=8,
    )
    return predict(workload, named([hw for hw, _ in grid.machines], row["device"]), stack)
