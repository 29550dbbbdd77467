"""What must hold for any model, device, format and workload."""

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perfmodel.format_names import EXAMPLES
from perfmodel.hardware import device_names, load_hardware
from perfmodel.models import load_model, model_names
from perfmodel.prediction import COMPONENTS
from perfmodel.workload import ACCOUNTINGS, Workload
from tests.perfmodel.toys import ideal, policy

devices = st.sampled_from(device_names()).map(load_hardware)
workloads = st.builds(
    Workload,
    model=st.sampled_from(model_names()).map(load_model),
    policy=st.sampled_from(EXAMPLES).map(policy),
    phase=st.sampled_from(["decode", "prefill"]),
    batch=st.integers(1, 300),
    context=st.integers(0, 5000),
    prompt=st.integers(1, 5000),
    accounting=st.sampled_from(ACCOUNTINGS),
    kv_bits=st.sampled_from([4, 8, 16]),
)


@given(workload=workloads, hw=devices)
def test_time_is_never_below_any_roof(workload, hw):
    prediction = ideal(workload, hw)
    assert prediction.time_s >= prediction.bytes / hw.dram_bytes_per_s * (1 - 1e-12)
    for item in prediction.ops:
        assert item.time.time_s >= item.time.memory_s
        assert item.time.time_s >= item.time.compute_s
    fastest = max(hw.matmul_flop_per_s, hw.vector_flop_per_s)
    assert prediction.time_s >= prediction.flops / fastest * (1 - 1e-12)


@given(workload=workloads, hw=devices, more=st.integers(1, 100))
def test_more_work_is_never_faster_or_smaller(workload, hw, more):
    now = ideal(workload, hw)
    for field in ("batch", "context", "prompt"):
        grown = ideal(replace(workload, **{field: getattr(workload, field) + more}), hw)
        assert grown.time_s >= now.time_s
        assert grown.memory.total_bytes >= now.memory.total_bytes


@given(workload=workloads, hw=devices, bits=st.integers(1, 31))
def test_more_bits_are_never_faster_or_smaller(workload, hw, bits):
    few = ideal(replace(workload, policy=policy(f"w{bits}")), hw)
    many = ideal(replace(workload, policy=policy(f"w{bits + 1}")), hw)
    assert many.time_s >= few.time_s
    assert many.memory.weights_bytes > few.memory.weights_bytes
    assert many.flops == few.flops


@given(workload=workloads, hw=devices)
def test_more_bandwidth_is_never_slower(workload, hw):
    faster = replace(hw, dram_bytes_per_s=2 * hw.dram_bytes_per_s)
    slow_s, fast_s = ideal(workload, hw).time_s, ideal(workload, faster).time_s
    assert slow_s >= fast_s >= slow_s / 2 * (1 - 1e-12)


@given(workload=workloads, hw=devices)
def test_shares_add_up(workload, hw):
    prediction = ideal(workload, hw)
    names = [item.op.name for item in prediction.ops]
    assert len(names) == len(set(names))
    shares = sum(prediction.share_of([name]) for name in names)
    assert abs(shares - 1) < 1e-9
    assert sum(prediction.share_of(ops) for ops in COMPONENTS.values()) <= 1 + 1e-9


@settings(max_examples=30)
@given(workload=workloads, hw=devices)
def test_eager_moves_at_least_what_fused_moves(workload, hw):
    fused = ideal(replace(workload, accounting="fused"), hw)
    eager = ideal(replace(workload, accounting="eager"), hw)
    assert eager.bytes >= fused.bytes
    assert eager.traffic.weight_bytes == fused.traffic.weight_bytes
