"""`--stack measured`: a device's own probe instead of its datasheet."""

import pytest

from perfmodel.errors import UnknownFactError, UsageError
from perfmodel.format_names import parse_format
from perfmodel.hardware import HardwareSpec, to_spec
from perfmodel.measured_stack import measured_stack, stack_for
from perfmodel.prediction import predict
from perfmodel.roofline import op_time
from perfmodel.strict_yaml import parse_yaml
from tests.perfmodel.toys import policy, toy_workload

CPU = """\
name: A CPU
sm_count: 2
boost_clock_mhz: 2000
memory: {capacity_gb: 24, bandwidth_gb_per_s: 25, l2_mib: 32, source: "measured"}
compute: {fp32_tflops: 0.1, fp16_vector_tflops: 0.1, source: "measured"}
measured:
  date: "2026-11-22"
  source: "a probe"
  read_gb_per_s: 20
  read_staircase:
    - {mib: 64, gb_per_s: 20}
    - {mib: 1, gb_per_s: 88}
    - {mib: 0.125, gb_per_s: 10}
  fp16_tflops: 0.05
  launch_us: 2
  decode_gweights_per_s: {squeezellm-w3: 4, fp16: 8}
"""


def cpu(text: str = CPU) -> HardwareSpec:
    return to_spec(parse_yaml(text, source="cpu.yaml"), key="cpu")


def test_bandwidth_is_what_was_read_and_no_cache_is_faster_than_dram():
    stack = measured_stack(cpu())
    assert stack.bandwidth_efficiency(10**9) == 0.8
    assert stack.bandwidth_efficiency(2**20) == 0.8
    assert stack.bandwidth_efficiency(2**17) == 0.4
    assert stack.bandwidth_efficiency(1) == 0.4
    assert stack.compute_efficiency == 0.5


def test_a_rate_in_weights_per_second_comes_back_as_time():
    hw = cpu()
    stack = measured_stack(hw)
    prediction = predict(toy_workload(policy=policy("squeezellm-w3")), hw, stack)
    q_proj = next(item.op for item in prediction.ops if item.op.name == "q_proj")
    assert op_time(q_proj, hw, stack).decode_s == pytest.approx(2 * 64 * 64 / 4e9)
    assert prediction.basis == "measured on cpu, 2026-11-22"
    assert not prediction.transferred


def test_what_the_probe_did_not_decode_is_unknown():
    stack = measured_stack(cpu())
    assert stack.knows(parse_format("squeezellm-w3-s0.45"))
    assert not stack.knows(parse_format("gptq-w4"))


def test_a_device_without_a_probe_has_no_measured_stack():
    hw = cpu(CPU.partition("measured:\n")[0])
    with pytest.raises(UsageError, match=r"cpu has no measured: group; run `python -m bench"):
        stack_for("measured", hw)


def test_decode_rates_need_cores_and_clock():
    with pytest.raises(UnknownFactError, match="sm_count is unknown"):
        measured_stack(cpu(CPU.replace("sm_count: 2\n", "")))


def test_a_launch_that_was_measured_on_a_slow_host_is_not_slowed_again():
    slow = cpu(CPU.replace("boost_clock_mhz: 2000", "boost_clock_mhz: 2000\nhost_clock_mhz: 2200"))
    assert slow.host_slowdown == 2.0
    op = predict(toy_workload(), slow, measured_stack(slow)).ops[0]
    assert op.time.launch_s == pytest.approx(2e-6 * op.op.count)
