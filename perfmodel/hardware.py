"""Devices: strict YAML files in datasheet units, converted once to a record in SI base units."""

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec.structs import replace

import hardware
from perfmodel import names
from perfmodel.arrays import largest
from perfmodel.errors import SpecError, UnknownFactError, UsageError
from perfmodel.measured import Measured, MeasuredGroup, to_measured
from perfmodel.records import field_paths, to_record
from perfmodel.strict_yaml import Document, parse_yaml, plain_scalar, read_text
from perfmodel.units import GIGA, MEGA, MIB, TERA

# Bounds catch a wrong unit: datasheet GB/s and TFLOP/s, never bytes/s and FLOP/s.
Positive = Annotated[float, msgspec.Meta(ge=0.001, le=1_000_000)]
PositiveInt = Annotated[int, msgspec.Meta(gt=0, le=1_000_000)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
# Of the CPU in a desktop or workstation around a card: 4 to 5 GHz boost in 2023.
WORKSTATION_HOST_HZ = 4.4 * GIGA
HOST = "host"  # the name of the machine that the command runs on
HOST_FILE_VARIABLE = "MEMWALL_HOST"


class _Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of numbers with where they come from."""

    source: Text | None = None
    verified: bool = False


class MemoryGroup(_Group, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """DRAM and the last-level cache."""

    type: Text | None = None
    capacity_gb: Positive
    bandwidth_gb_per_s: Positive
    l2_mib: Positive | None = None


class ComputeGroup(_Group, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Peak rates; dense unless the name says sparse, FP32 accumulation unless it says FP16."""

    fp32_tflops: Positive | None = None
    fp16_vector_tflops: Positive | None = None
    fp16_tensor_tflops: Positive | None = None
    fp16_tensor_sparse_tflops: Positive | None = None
    fp16_tensor_fp16_accumulate_tflops: Positive | None = None
    bf16_tensor_tflops: Positive | None = None
    fp8_tensor_tflops: Positive | None = None
    fp8_tensor_sparse_tflops: Positive | None = None
    int8_tensor_tops: Positive | None = None
    int8_tensor_sparse_tops: Positive | None = None
    smem_per_sm_kib: Positive | None = None


class InterconnectGroup(_Group, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Link between devices; both directions together, as datasheets print it."""

    name: Text
    gb_per_s: Positive


class HardwareFile(_Group, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device file as written, in datasheet units; field by field in hardware/README.md."""

    name: Text
    aliases: tuple[Text, ...] = ()
    vendor: Text | None = None
    architecture: Text | None = None
    compute_capability: Text | None = None
    sm_count: PositiveInt | None = None
    boost_clock_mhz: Positive | None = None
    host_clock_mhz: Positive | None = None
    tdp_w: Positive | None = None
    memory: MemoryGroup
    compute: ComputeGroup
    interconnect: InterconnectGroup | None = None
    measured: MeasuredGroup | None = None
    notes: Text | None = None


class HardwareSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Datasheet ceilings of one device, in SI base units; None is unknown, never a guess."""

    key: str  # how it was asked for: file stem, e.g. "a6000"
    overrides: tuple[str, ...] = ()  # fields that --set replaced, "field=value"
    name: str
    dram_bytes: int
    dram_bytes_per_s: float
    l2_bytes: int | None
    fp16_matmul_flop_per_s: float | None  # dense, FP32 accumulation
    fp16_sparse_flop_per_s: float | None  # 2:4 structured sparsity; drawn, never used
    fp32_flop_per_s: float | None  # vector units
    link_bytes_per_s: float | None  # both directions together
    sm_count: int | None
    boost_clock_hz: float | None
    host_clock_hz: float | None  # of a CPU that is part of the device and a slower one than usual
    measured: Measured | None = None
    file: HardwareFile

    @property
    def matmul_flop_per_s(self) -> float:
        """Peak of FP16 matrix products.

        Raises: UnknownFactError if the device file leaves it open.
        """
        return self._known(
            self.fp16_matmul_flop_per_s, "compute.fp16_tensor_tflops", "matrix products"
        )

    @property
    def vector_flop_per_s(self) -> float:
        """Peak of elementwise work in FP32.

        Raises: UnknownFactError if the device file leaves it open.
        """
        return self._known(self.fp32_flop_per_s, "compute.fp32_tflops", "elementwise operations")

    @property
    def send_bytes_per_s(self) -> float:
        """Interconnect bandwidth in one direction.

        Raises: UnknownFactError if the device file names no interconnect.
        """
        return self._known(self.link_bytes_per_s, "interconnect.gb_per_s", "tensor parallelism") / 2

    @property
    def clock_hz(self) -> float:
        """Boost clock, which the latency of small kernels follows.

        Raises: UnknownFactError if the device file leaves it open.
        """
        return self._known(self.boost_clock_hz, "boost_clock_mhz", "costs in clock cycles")

    @property
    def sm_hz(self) -> float:
        """SM count times clock, which decoding of packed weights follows.

        Raises: UnknownFactError if the device file leaves either open.
        """
        return self._known(self.sm_count, "sm_count", "decoding of packed weights") * self.clock_hz

    @property
    def host_slowdown(self) -> Any:
        """How much longer the host takes to launch than a workstation's, where it is known."""
        known = self.host_clock_hz
        return 1.0 if known is None else largest(1.0, WORKSTATION_HOST_HZ / known)

    def _known(self, value: float | None, field: str, needed_for: str) -> float:
        """Raises: UnknownFactError for None."""
        if value is None:
            raise UnknownFactError(self.key, field, needed_for)
        return value

    @property
    def ridge_flop_per_byte(self) -> float:
        """Intensity at which a matrix product turns from memory-bound to compute-bound."""
        return self.matmul_flop_per_s / self.dram_bytes_per_s


def load_hardware(gpu: str, *, overrides: tuple[str, ...] = ()) -> HardwareSpec:
    """Device by built-in name, alias or path of a YAML file, with `field=value` overrides.

    Raises: UnknownNameError; SpecError if the file is wrong; UsageError for a wrong override.
    """
    path = device_path(gpu)
    return read_device(path, source=_shown_source(path), overrides=overrides)


def read_device(path: Path, *, source: str, overrides: tuple[str, ...] = ()) -> HardwareSpec:
    """Device from a file; `source` is what errors call it.

    Raises: SpecError if the file is wrong; UsageError for a wrong override.
    """
    document = parse_yaml(read_text(path), source=source)
    spec = to_spec(document, key=path.stem)
    if not overrides:
        return spec
    changed = Document(source="--set", value=document.value)  # without places in the file
    for override in overrides:
        _override(changed, override)
    try:
        return replace(to_spec(changed, key=path.stem), overrides=overrides)
    except SpecError as error:
        raise UsageError(str(error)) from None


def to_spec(document: Document, *, key: str) -> HardwareSpec:
    """A parsed device file as a record in SI base units.

    Raises: SpecError.
    """
    file = to_record(document, HardwareFile)
    _check_sparse_peaks(document, file)
    memory, compute, link = file.memory, file.compute, file.interconnect
    return HardwareSpec(
        key=key,
        name=file.name,
        dram_bytes=round(memory.capacity_gb * GIGA),
        dram_bytes_per_s=memory.bandwidth_gb_per_s * GIGA,
        l2_bytes=_scaled_int(memory.l2_mib, MIB),
        fp16_matmul_flop_per_s=_scaled(
            compute.fp16_tensor_tflops or compute.fp16_vector_tflops, TERA
        ),
        fp16_sparse_flop_per_s=_scaled(compute.fp16_tensor_sparse_tflops, TERA),
        fp32_flop_per_s=_scaled(compute.fp32_tflops, TERA),
        link_bytes_per_s=_scaled(link.gb_per_s if link else None, GIGA),
        sm_count=file.sm_count,
        boost_clock_hz=_scaled(file.boost_clock_mhz, MEGA),
        host_clock_hz=_scaled(file.host_clock_mhz, MEGA),
        measured=to_measured(file.measured) if file.measured else None,
        file=file,
    )


@lru_cache
def device_names() -> tuple[str, ...]:
    """Built-in devices, the two of the SqueezeLLM paper first."""
    stems = {path.stem for path in _folder().glob("*.yaml")}
    first = [name for name in ("a6000", "a5000") if name in stems]
    return (*first, *sorted(stems.difference(first)))


def host_path() -> Path:
    """Where `python -m bench probe` describes this machine: $MEMWALL_HOST, or the user's data."""
    chosen = os.environ.get(HOST_FILE_VARIABLE)
    if chosen:
        return Path(chosen)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "memwall" / "host.yaml"


def device_path(gpu: str) -> Path:
    """File of a device given by name, alias or path, or of this machine for `host`.

    Raises: UnknownNameError; UsageError for `host` before anything was measured.
    """
    if names.normalised(gpu) == HOST:
        path = host_path()
        if not path.exists():
            raise UsageError(f"--gpu host: no {path}; run `python -m bench probe` first")
        return path
    if gpu.endswith((".yaml", ".yml")) or "/" in gpu:
        return Path(gpu)
    exact = names.index_by_name(dict.fromkeys(device_names(), ()))
    found = exact.get(names.normalised(gpu)) or names.resolve("device", gpu, _alias_index())
    return _folder() / f"{found}.yaml"


def _folder() -> Path:
    return Path(hardware.__file__).parent


@lru_cache
def _alias_index() -> dict[str, str]:
    """Aliases by a text scan of the built-in files: parsing them all would cost 0.2 s."""
    aliases: dict[str, list[str]] = {}
    for name in device_names():
        text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
        line = re.search(r"^aliases: *\[(.*)\] *$", text, re.MULTILINE)
        listed = line[1].split(",") if line and line[1].strip() else []
        aliases[name] = [alias.strip(" \"'") for alias in listed]
    return names.index_by_name(aliases)


def _shown_source(path: Path) -> str:
    return f"hardware/{path.name}" if path.parent == _folder() else str(path)


def _override(document: Document, override: str) -> None:
    """Put `field=value` into the document, where the checks of the file see it.

    Raises: UsageError if it is no `field=value` or the field does not exist.
    """
    name, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"--set {override}: expected FIELD=VALUE")
    _check_field(name, override)
    group, _, leaf = name.rpartition(".")
    target = document.value
    if group:
        target[group] = target.get(group) or {"name": "given by --set"}
        target = target[group]
    try:
        target[leaf] = plain_scalar(text)
    except SpecError as error:
        raise UsageError(f"--set {override}: {error}") from None


def _check_field(name: str, override: str) -> None:
    known = [path for path in field_paths(HardwareFile) if not path.startswith("measured.")]
    if name in known:
        return
    import difflib  # only needed for an error message

    near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"fields: {', '.join(known)}"
    raise UsageError(f"--set {override}: no field {name!r} in a device file; {hint}")


def _check_sparse_peaks(document: Document, file: HardwareFile) -> None:
    """A sparse peak below its dense one means that the two were swapped or one is mistyped."""
    values = msgspec.structs.asdict(file.compute)
    for name, sparse in values.items():
        dense = values.get(name.replace("_sparse", ""))
        if "_sparse" in name and sparse and dense and sparse < dense:
            problem = f"found {sparse:g}, expected at least the dense peak, {dense:g}"
            raise document.error(("compute", name), problem)


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def _scaled_int(value: float | None, unit: int) -> int | None:
    return None if value is None else round(value * unit)


def sources(file: HardwareFile) -> dict[str, dict[str, Any]]:
    """Group -> its source and whether it was verified."""
    groups = {"chip": file, "memory": file.memory, "compute": file.compute}
    if file.interconnect:
        groups["interconnect"] = file.interconnect
    return {name: {"source": g.source, "verified": g.verified} for name, g in groups.items()}
