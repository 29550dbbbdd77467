"""Measurements of other software or other days: one row per workload, from CSV or JSON.

Columns (JSON: a list of objects with these keys):

device model weights       names as on the command line
time_s or tokens_per_s     of the whole workload (all new tokens of all sequences), or the rate
context, or prompt new     tokens cached in one decode step, or a generation; default context 128
batch tensor_parallel      default 1
lm_head                    its format; default fp16
kv_bits                    default 16
memory_bytes               peak on one device; optional
stack                      what software ran it; groups the rows of a table (measured: the
                           device's own probe)
source note                where it stands, what is special
"""

import csv
import math
from pathlib import Path
from typing import Annotated, Any

import msgspec

from perfmodel.errors import SpecError, UsageError
from perfmodel.format_names import parse_format
from perfmodel.formats import BitPolicy
from perfmodel.hardware import HardwareSpec, load_hardware
from perfmodel.models import load_model
from perfmodel.records import to_record
from perfmodel.strict_yaml import Document, read_text
from perfmodel.workload import Workload

MAX_FILE_BYTES = 16 * 1024 * 1024
DEFAULT_CONTEXT = 128
PUBLISHED = Path(__file__).parents[1] / "published"

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]
Size = Annotated[int, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(min_length=1)]


class MeasurementRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row as written."""

    device: Text
    model: Text
    weights: Text
    time_s: Positive | None = None
    tokens_per_s: Positive | None = None
    context: Size | None = None
    prompt: Size | None = None
    new: Count | None = None
    batch: Count = 1
    tensor_parallel: Count = 1
    lm_head: Text = "fp16"
    kv_bits: Count = 16
    memory_bytes: Positive | None = None
    stack: Text = "measured"
    source: str | None = None
    note: str | None = None


class MeasuredRun(msgspec.Struct, frozen=True, kw_only=True):
    """A workload on a device and how long it took there."""

    hardware: HardwareSpec
    workload: Workload
    time_s: float
    memory_bytes: float | None
    stack: str  # the software's name, as the row has it
    source: str | None

    @property
    def label(self) -> str:
        """Device, model, format and length in one line."""
        w = self.workload
        length = f"{w.new} new" if w.phase == "generate" else f"context {w.context}"
        ranks = f", tp {w.tensor_parallel}" if w.tensor_parallel > 1 else ""
        batch = f", batch {w.batch}" if w.batch > 1 else ""
        return f"{self.hardware.key} {w.model.name} {w.policy.linear.name}, {length}{batch}{ranks}"


def load_measurements(file: str) -> list[MeasuredRun]:
    """Rows of a file, or of a published set by its name.

    Raises: SpecError naming file, line and column; UnknownNameError inside it likewise.
    """
    path = PUBLISHED / f"{file}.csv"
    path = path if path.exists() else Path(file)
    rows = _json_rows(path) if path.suffix.lower() == ".json" else _csv_rows(path)
    if not rows:
        raise SpecError(f"{path}: found no rows, expected measurements")
    return [_measured(document) for document in rows]


def published_names() -> tuple[str, ...]:
    """Sets of measurements that come with the package."""
    return tuple(sorted(path.stem for path in PUBLISHED.glob("*.csv") if _is_measured(path)))


def _is_measured(path: Path) -> bool:
    return path.read_text(encoding="utf-8").startswith("device,")


def _measured(document: Document) -> MeasuredRun:
    row = to_record(document, MeasurementRow)
    try:
        workload = _workload(row)
        hardware = load_hardware(row.device)
        return MeasuredRun(
            hardware=hardware,
            workload=workload,
            time_s=_time_s(row, workload),
            memory_bytes=row.memory_bytes,
            stack=row.stack,
            source=row.source,
        )
    except UsageError as error:
        raise SpecError(f"{document.source}: {error}") from None


def _time_s(row: MeasurementRow, workload: Workload) -> float:
    if (row.time_s is None) == (row.tokens_per_s is None):
        raise UsageError("expected either time_s or tokens_per_s")
    if row.tokens_per_s is None:
        return row.time_s or 0.0
    return workload.batch * workload.steps / row.tokens_per_s


def _workload(row: MeasurementRow) -> Workload:
    generates = row.new is not None
    if not generates and row.prompt is not None:
        raise UsageError("found prompt without new, expected both or context")
    if generates and row.context is not None:
        raise UsageError("found context beside new, expected prompt and new, or context")
    return Workload(
        model=load_model(row.model),
        policy=BitPolicy(
            linear=parse_format(row.weights),
            lm_head=parse_format(row.lm_head),
            embedding=parse_format("fp16"),
        ),
        phase="generate" if generates else "decode",
        batch=row.batch,
        context=DEFAULT_CONTEXT if row.context is None else row.context,
        prompt=row.prompt or 0,
        new=row.new or 0,
        tensor_parallel=row.tensor_parallel,
        kv_bits=row.kv_bits,
    )


def _csv_rows(path: Path) -> list[Document]:
    """Cells as numbers where their column is one; empty cells are left out."""
    lines = read_text(path, max_bytes=MAX_FILE_BYTES).splitlines()
    reader = csv.reader(lines)
    header = next(reader, [])
    known = [field.name for field in msgspec.structs.fields(MeasurementRow)]
    for name in header:
        if name not in known:
            raise SpecError(f"{path}:1: found column {name!r}, expected of {', '.join(known)}")
    documents = []
    for cells in reader:
        source = f"{path}:{reader.line_num}"
        if len(cells) != len(header):
            raise SpecError(f"{source}: found {len(cells)} cells, expected {len(header)}")
        filled = {name: cell for name, cell in zip(header, cells, strict=True) if cell}
        value = {name: _cell(name, cell) for name, cell in filled.items()}
        documents.append(Document(source=source, value=value))
    return documents


def _cell(name: str, text: str) -> Any:
    """Text stays text in text columns; a number elsewhere if it is one."""
    if name in ("device", "model", "weights", "lm_head", "stack", "source", "note"):
        return text
    try:
        number = int(text) if text.isdigit() else float(text)
    except ValueError:
        return text  # refused by the record, with its name
    return number if math.isfinite(number) else text


def _json_rows(path: Path) -> list[Document]:
    try:
        value = msgspec.json.decode(read_text(path, max_bytes=MAX_FILE_BYTES))
    except msgspec.DecodeError as error:
        raise SpecError(f"{path}: found no valid JSON ({error}), expected a list") from None
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise SpecError(f"{path}: expected a list of objects, one per measurement")
    return [Document(source=f"{path}[{i}]", value=row) for i, row in enumerate(value)]
