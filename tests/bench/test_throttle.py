"""When a GPU counts as throttled: its own reasons, or a low clock while it works."""

import sys
from types import SimpleNamespace

import pytest

from bench import environment
from bench.environment import throttle_reasons


def nvml(bits, clock):
    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda _index: "device",
        nvmlDeviceGetCurrentClocksEventReasons=lambda _device: bits,
        nvmlDeviceGetClockInfo=lambda _device, _kind: clock,
        nvmlDeviceGetMaxClockInfo=lambda _device, _kind: 1980,
        NVML_CLOCK_SM=1,
    )


@pytest.mark.parametrize(
    ("bits", "clock", "expected"),
    [
        (0x00, 1980, []),
        (0x04, 1980, []),  # the power cap alone: the device as it is
        (0x00, 345, ["SM clock 345 MHz of 1980"]),
        (0x01, 345, []),  # idle
        (0x48, 1980, ["hw_slowdown", "hw_thermal_slowdown"]),
    ],
)
def test_nvml_is_asked_first(bits, clock, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml(bits, clock))
    assert throttle_reasons() == expected


@pytest.mark.parametrize(("idle", "expected"), [("Active", []), ("Not Active", ["hw_slowdown"])])
def test_without_nvml_nvidia_smi_is(idle, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace())  # too old
    slowed = "Not Active" if idle == "Active" else "Active"
    words = {
        "clocks.sm": "1980" if expected else "345", "clocks.max.sm": "1980",
        "clocks_event_reasons.gpu_idle": idle, "clocks_event_reasons.hw_slowdown": slowed,
    }  # fmt: skip
    monkeypatch.setattr(environment, "nvidia_smi", lambda: words)
    assert throttle_reasons() == expected
