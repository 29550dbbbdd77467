"""Where a measurement was taken: device, clocks, versions, commit. No host name, no user."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import msgspec

from perfmodel.errors import UnknownNameError, UsageError
from perfmodel.hardware import device_path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "numba", "numpy", "transformers")
DEFAULT_CACHE_BYTES = 32 << 20  # where the system reports none
LEAST_CLOCK = 0.75  # of the highest SM clock; below it a GPU is throttled (NVBench's rule)
# What decides over the clock, and its bit in NVML (nvml.h, nvmlClocksEventReasons).
_REASONS = {
    "gpu_idle": 0x01,  # nobody asks for more: the clock says nothing
    "hw_slowdown": 0x08,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
}

Kind = Literal["cuda", "cpu"]


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be known to read a measurement, and to take it again."""

    schema: str = "memwall.environment/1"
    kind: Kind
    device: str  # slug: the name of its file in hardware/ where it has one
    device_name: str  # as the driver or the system calls it
    cache_bytes: int  # last cache before DRAM
    cores: int  # streaming multiprocessors, or CPU cores that this process may use
    threads: int  # that the CPU work runs on
    driver: dict[str, str]  # nvidia-smi: driver, clocks, power cap, ECC; empty on a CPU
    packages: dict[str, str]
    python: str
    system: str
    commit: str | None
    dirty: bool
    date_utc: str

    @property
    def id(self) -> str:
        """Short hash of everything but the date."""
        same = msgspec.structs.replace(self, date_utc="")
        return hashlib.sha256(msgspec.json.encode(same, order="sorted")).hexdigest()[:12]


def this_environment(kind: Kind) -> Environment:
    """The environment of this process on its GPU or CPU.

    Raises: UsageError where `kind` is "cuda" and there is no CUDA device.
    """
    commit, dirty = _commit()
    facts = _cuda() if kind == "cuda" else _cpu()
    return Environment(
        kind=kind,
        **facts,
        threads=cpu_threads(),
        packages=_packages(),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        commit=commit,
        dirty=dirty,
        date_utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def default_kind() -> Kind:
    """The GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def cpu_threads() -> int:
    """Threads that the CPU twins and torch run on: NUMBA_NUM_THREADS, or the cores allowed."""
    return int(os.environ.get("NUMBA_NUM_THREADS", len(os.sched_getaffinity(0))))


def slug(device_name: str) -> str:
    """Name of the device's file in hardware/, or the name in lower case with hyphens."""
    try:
        return device_path(device_name).stem
    except UnknownNameError:
        return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


def throttle_reasons() -> list[str]:
    """Why the GPU runs slower than it could right now; empty where nobody says.

    By NVML, in microseconds: when nvidia-smi has started, an idle GPU has lowered its clock.
    """
    try:
        state = _nvml()
    except Exception:  # not installed, too old, or without a driver
        state = nvidia_smi()
    return _throttle_reasons(state)


def _nvml() -> dict[str, str]:
    """What `_throttle_reasons` reads of nvidia-smi's words. Raises: whatever pynvml raises."""
    import pynvml

    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    bits = pynvml.nvmlDeviceGetCurrentClocksEventReasons(device)
    state = {name: "Active" for name, bit in _REASONS.items() if bits & bit}
    state["clocks.sm"] = str(pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_SM))
    highest = pynvml.nvmlDeviceGetMaxClockInfo(device, pynvml.NVML_CLOCK_SM)
    return {**state, "clocks.max.sm": str(highest)}


def _throttle_reasons(state: dict[str, str]) -> list[str]:
    """An idle GPU is not throttled, whatever its clock."""
    reasons = [name.rpartition(".")[2] for name, value in state.items() if value == "Active"]
    now, highest = state.get("clocks.sm", ""), state.get("clocks.max.sm", "")
    slow = now.isdigit() and highest.isdigit() and int(now) < LEAST_CLOCK * int(highest)
    if slow and "gpu_idle" not in reasons:
        reasons.append(f"SM clock {now} MHz of {highest}")
    return [reason for reason in reasons if reason != "gpu_idle"]


def nvidia_smi() -> dict[str, str]:
    """Driver, clocks (MHz), power (W), ECC and throttling as nvidia-smi reports them."""
    if shutil.which("nvidia-smi") is None:
        return {}
    fields = ["driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu"]
    fields += ["power.draw", "power.limit", "ecc.mode.current"]
    for prefix in ("clocks_event_reasons", "clocks_throttle_reasons"):  # new and old name
        asked = fields + [f"{prefix}.{reason}" for reason in _REASONS]
        command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return dict(zip(asked, done.stdout.splitlines()[0].split(", "), strict=True))
    return {}


def _cuda() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        raise UsageError("no CUDA device here; use --device cpu")
    properties = torch.cuda.get_device_properties(0)
    state = nvidia_smi()
    lasting = ("driver_version", "clocks.max.sm", "power.limit", "ecc.mode.current")
    return {
        "device": slug(properties.name),
        "device_name": properties.name,
        "cache_bytes": properties.L2_cache_size,
        "cores": properties.multi_processor_count,
        "driver": {name: state[name] for name in lasting if name in state},
    }


def _cpu() -> dict[str, Any]:
    name, cores = _cpu_name(), len(os.sched_getaffinity(0))
    return {
        "device": f"{slug(name)}-{cores}-cores",
        "device_name": f"{name}, {cores} cores",
        "cache_bytes": cpu_cache_bytes(),
        "cores": cores,
        "driver": {},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = (
        re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE)
        if info.exists()
        else None
    )
    return found[1].strip() if found else platform.processor() or platform.machine()


def cpu_cache_bytes() -> int:
    """Size of the largest cache that Linux reports, or a usual one where it reports none."""
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [int(file.read_text().strip().removesuffix("K")) << 10 for file in files]
    return max(sizes, default=DEFAULT_CACHE_BYTES)


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> tuple[str | None, bool]:
    """Commit of the checkout that runs, and whether tracked files differ from it.

    A copy without its repository says it in MEMWALL_COMMIT.
    """
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return os.environ.get("MEMWALL_COMMIT"), False
    status = [*git, "status", "--porcelain", "--untracked-files=no"]
    done = subprocess.run(status, capture_output=True, text=True, check=False)
    return head.stdout.strip(), bool(done.stdout.strip())
