"""Every measured kernel beside its predictions: the bare roofline, and calibrated by the probe."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from bench.environment import Environment
from bench.folder import read_environments, read_measurements
from bench.measurement import Measurement
from bench.probe.host import decode_name, hardware_of
from perfmodel.fit.validation import Pair
from perfmodel.format_names import parse_format
from perfmodel.formats import WeightFormat
from perfmodel.hardware import HardwareSpec
from perfmodel.measured_stack import measured_stack
from perfmodel.ops import Matrix, Op, Traffic, gemm
from perfmodel.roofline import Bound, op_time
from perfmodel.stack_files import load_stack
from perfmodel.stacks import Stack

__all__ = ["Compared", "compare", "hardware_of"]

SUITES = ("kernels", "peers")
PLAIN = ("fp16", "bf16", "fp32")
ROOF_TOLERANCE = 0.05  # of a roof that was measured: it has noise of its own


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement and what was predicted for it."""

    measurement: Measurement
    label: str
    ideal_s: float
    calibrated_s: float | None  # None without a probe that knows the format
    bound: Bound  # of the calibrated prediction, else of the ideal one
    roof_s: float  # no call can be faster

    @property
    def best_s(self) -> float:
        return self.ideal_s if self.calibrated_s is None else self.calibrated_s

    @property
    def ideal_pair(self) -> Pair:
        return self._pair(self.ideal_s)

    @property
    def pair(self) -> Pair:
        """The calibrated prediction where there is one, else the ideal one."""
        return self._pair(self.best_s)

    @property
    def error(self) -> float | None:
        """Signed, predicted over measured - 1; None where the samples were refused."""
        return None if self.measurement.refused else self.pair.error

    @property
    def is_above_roof(self) -> bool:
        """Faster than the memory and the arithmetic units of the device allow: an error."""
        return not self.measurement.refused and self.measurement.median_s < self.roof_s

    def _pair(self, predicted_s: float) -> Pair:
        return Pair(
            label=self.label,
            device=self.measurement.device,
            group=self.measurement.name,
            predicted_s=predicted_s,
            measured_s=self.measurement.median_s,
        )


def compare(measurements: Iterable[Measurement], hardware: HardwareSpec) -> list[Compared]:
    """The kernels and peers among the measurements, with their predictions on that device."""
    ideal = load_stack("ideal")
    probed = measured_stack(hardware) if hardware.measured else None
    return [_compared(m, hardware, ideal, probed) for m in measurements if m.suite in SUITES]


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What a results folder holds about one device, with its predictions."""

    environment: Environment
    hardware: HardwareSpec
    measurements: tuple[Measurement, ...]
    compared: tuple[Compared, ...]


def devices_in(folder: Path) -> Iterator[Device]:
    """Every device on which kernels were measured.

    Raises: SpecError if the results are damaged; UsageError for a CPU that nobody probed.
    """
    environments, measurements = read_environments(folder), read_measurements(folder)
    for name in dict.fromkeys(m.device for m in measurements if m.suite == "kernels"):
        environment = next(e for e in environments.values() if e.device == name)
        mine = tuple(m for m in measurements if m.device == name)
        hardware = hardware_of(environment, mine)
        yield Device(
            environment=environment,
            hardware=hardware,
            measurements=mine,
            compared=tuple(compare(mine, hardware)),
        )


def _compared(
    measurement: Measurement, hardware: HardwareSpec, ideal: Stack, probed: Stack | None
) -> Compared:
    op = op_of(measurement)
    bare = op_time(op, hardware, ideal)
    calibrated = None
    if probed is not None and op.matrix is not None:
        if measurement.name in PLAIN and not probed.knows(op.matrix.format):
            op = replace(op, matrix=None)  # nothing to decode
        if op.matrix is None or probed.knows(op.matrix.format):
            calibrated = op_time(op, hardware, probed)
    return Compared(
        measurement=measurement,
        label=label_of(measurement),
        ideal_s=bare.time_s,
        calibrated_s=calibrated.time_s if calibrated else None,
        bound=(calibrated or bare).bound,
        roof_s=bare.time_s * (1 - _tolerance(hardware)),
    )


def op_of(measurement: Measurement) -> Op:
    """What the kernel did, in the terms of perfmodel; bytes of weights are the format's own."""
    params, facts = measurement.params, measurement.facts
    rows, columns, batch = (int(params[name]) for name in ("rows", "columns", "batch"))
    peer = measurement.suite == "peers"
    stored = parse_format(str(facts["format"]) if peer else measurement.name)
    weight_bytes = stored.weight_bytes(rows, columns)
    if params.get("part") == "csr":
        weight_bytes = int(facts["weight_bytes"])
    activations = measurement.bytes_moved - int(facts["weight_bytes"])
    format_ = _with_options(stored, measurement)
    return replace(
        gemm(
            str(params.get("tensor", "gemv")),
            batch * rows * columns,
            Traffic(weight_bytes=weight_bytes, read_bytes=activations),
        ),
        matrix=None
        if peer or params.get("part") == "csr"
        else Matrix(format=format_, out_features=rows, in_features=columns),
    )


def label_of(measurement: Measurement) -> str:
    """Where and what, in one word: 4096x11008/squeezellm-w3."""
    params = measurement.params
    name = decode_name({**params, "format": measurement.name})
    batch = "" if params["batch"] == 1 else f" x{params['batch']}"
    return f"{params['rows']}x{params['columns']}/{name}{batch}"


def _with_options(stored: WeightFormat, measurement: Measurement) -> WeightFormat:
    """The format under the name that the probe gave to its kernel; sparse costs are in its rate."""
    name = decode_name({**measurement.params, "format": stored.name})
    return replace(stored, name=name, sparse=None)


def _tolerance(hardware: HardwareSpec) -> float:
    probe = hardware.measured
    from_probe = probe is not None and probe.read_bytes_per_s == hardware.dram_bytes_per_s
    return ROOF_TOLERANCE if from_probe else 0.0


def usable(compared: Sequence[Compared]) -> list[Compared]:
    """Those whose samples were not refused."""
    return [c for c in compared if not c.measurement.refused]
