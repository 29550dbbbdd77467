"""A device file of the machine that was probed: what `perfmodel --gpu host` reads."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.environment import Environment
from bench.measurement import Measurement
from perfmodel.errors import OutputError, UsageError
from perfmodel.hardware import (
    HardwareSpec,
    device_names,
    device_path,
    host_path,
    load_hardware,
    to_spec,
)
from perfmodel.output import whole_file
from perfmodel.strict_yaml import Document, parse_yaml, read_text
from perfmodel.units import GIGA, MIB, MICRO, TERA

DIGITS = 5
LEAST_PEAK_TFLOPS = 0.001
# The call that a launch of this kind of device costs, the first that was measured.
LAUNCHES = {"cuda": ("eager",), "cpu": ("gemv", "threads")}


def hardware_of(environment: Environment, measurements: Iterable[Measurement] = ()) -> HardwareSpec:
    """The device of an environment, with what the probe among the measurements found.

    Without a probe among them: the built-in device, or the file of this machine if it describes
    the same device.
    Raises: UsageError for a CPU that nobody probed.
    """
    probe = _usable(measurements)
    if probe:
        file = device_file(environment, probe)
        return to_spec(Document(source="probe", value=file), key=environment.device)
    if environment.device in device_names():
        return load_hardware(environment.device)
    if host_path().exists():
        host = load_hardware("host")
        if host.name == environment.device_name:
            return host
    raise UsageError(
        f"nothing is known about {environment.device_name}; run `python -m bench probe` first, "
        "with the same --threads and --out"
    )


def device_file(environment: Environment, measurements: Iterable[Measurement]) -> dict[str, Any]:
    """The probe's results in datasheet units; a CPU's upper part is measured too."""
    probe = _usable(measurements)
    group = _measured(environment, probe)
    if environment.device in device_names():
        path = device_path(environment.device)
        return parse_yaml(read_text(path), source=path.name).value | {"measured": group}
    source = f"measured here by `python -m bench probe`, {group['date']}"
    best = max(filter(None, (group.get("fp16_tflops"), group.get("fp32_tflops"))), default=None)
    return {
        "name": environment.device_name,
        "architecture": environment.system,
        "sm_count": environment.cores,
        "boost_clock_mhz": _clock_mhz(environment),
        "memory": {
            "capacity_gb": _rounded(_memory_bytes(environment) / GIGA),
            "bandwidth_gb_per_s": group["read_gb_per_s"],
            "l2_mib": _rounded(environment.cache_bytes / MIB),
            "source": f"bandwidth of reading, {source}; sizes: the system",
        },
        "compute": {
            "fp32_tflops": _peak(group.get("fp32_tflops")),
            "fp16_vector_tflops": _peak(best),
            "source": f"matrix products, {source}; FP16 weights are widened to FP32 where that "
            "is faster",
        },
        "measured": group,
        "notes": "A CPU: no datasheet, so its roofs are what was measured.",
    }


def write_host(path: Path, file: Mapping[str, Any]) -> None:
    """Write a device file, whole or not at all, and read it back.

    Raises: OutputError; SpecError if perfmodel would refuse it.
    """
    import yaml

    text = yaml.safe_dump(dict(file), sort_keys=False, width=100, allow_unicode=True)
    to_spec(parse_yaml(text, source=str(path)), key=path.stem)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _usable(measurements: Iterable[Measurement]) -> list[Measurement]:
    return [m for m in measurements if m.suite == "probe" and not m.refused]


def _measured(environment: Environment, probe: list[Measurement]) -> dict[str, Any]:
    """Raises: UsageError unless reading was measured."""
    reads = sorted((m.params["mib"], m.bytes_per_s / GIGA) for m in probe if m.name == "read")
    if not reads:
        raise UsageError(
            "the probe has no bandwidth of reading that can be used: the machine was too busy; "
            "run it again, with --threads 1 if others use the machine too"
        )
    packages = ", ".join(f"{name} {version}" for name, version in environment.packages.items())
    one = {m.name: m for m in probe}
    launches = {m.params["mode"]: m.median_s / MICRO for m in probe if m.name == "launch"}
    flops = {m.params["type"]: m.flop_per_s / TERA for m in probe if m.name == "matmul"}
    launch_us = next((launches[x] for x in LAUNCHES[environment.kind] if x in launches), None)
    found = {
        "date": environment.date_utc[:10],
        "source": f"python -m bench probe on {environment.device_name}; {packages}",
        "threads": environment.threads if environment.kind == "cpu" else None,
        "read_gb_per_s": _rounded(reads[-1][1]),
        "copy_gb_per_s": _rate(one.get("copy")),
        "triad_gb_per_s": _rate(one.get("triad")),
        "read_staircase": [{"mib": mib, "gb_per_s": _rounded(rate)} for mib, rate in reads],
        "fp16_tflops": _rounded(flops.get("fp16")),
        "fp32_tflops": _rounded(flops.get("fp32")),
        "launch_us": _rounded(launch_us),
        "graph_launch_us": _rounded(launches.get("graph")),
        "decode_gweights_per_s": _decode_rates(probe, launches.get("graph", launch_us)),
    }
    return {name: value for name, value in found.items() if value is not None}


def decode_name(params: Mapping[str, Any]) -> str:
    """Key of a decode rate: the weight format, and the kernel's options as further words."""
    options = (params.get(name) for name in ("table", "act_order", "path", "kernel"))
    return "-".join([params.get("format", ""), *(str(option) for option in options if option)])


def _decode_rates(probe: list[Measurement], launch_us: float | None) -> dict[str, float]:
    """1e9 weights per second, without the call's own cost."""
    rates, launch_s = {}, (launch_us or 0.0) * MICRO
    for m in probe:
        if m.name == "decode":
            weights = int(m.params["rows"]) * int(m.params["columns"])
            seconds = max(m.median_s - launch_s, m.median_s / 2)
            rates[decode_name(m.params)] = _rounded(weights / seconds / GIGA)
    return rates


def _rate(measurement: Measurement | None) -> float | None:
    return None if measurement is None else _rounded(measurement.bytes_per_s / GIGA)


def _peak(tflops: float | None) -> float | None:
    """A device file takes nothing slower for a peak: it would be a wrong unit."""
    return tflops if tflops and tflops >= LEAST_PEAK_TFLOPS else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _clock_mhz(environment: Environment) -> float | None:
    """Clock of the CPU; the decode rates are carried in cycles of it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^cpu MHz\s*: ([0-9.]+)", info.read_text(), re.M) if info.exists() else None
    return _rounded(float(found[1])) if found and environment.kind == "cpu" else None


def _memory_bytes(environment: Environment) -> int:
    if environment.kind == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
