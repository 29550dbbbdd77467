"""What there is: devices, models, formats and stacks, each with its source."""

from collections.abc import Sequence
from typing import Any

from perfmodel.format_names import parse_format
from perfmodel.formats import ITEMS
from perfmodel.hardware import device_names, load_hardware, sources
from perfmodel.models import load_model, model_names, preset_about
from perfmodel.output import Output
from perfmodel.shape import ModelShape
from perfmodel.show.tables import Column, Table
from perfmodel.stack_files import load_stack, stack_names
from perfmodel.units import GIGA, TERA, significant


def devices() -> Output:
    """All built-in devices, with the source of each group of numbers."""
    rows = []
    for name in device_names():
        hw = load_hardware(name)
        peak, sparse = hw.fp16_matmul_flop_per_s, hw.fp16_sparse_flop_per_s
        rows.append(
            {
                "device": name,
                "name": hw.name,
                "aliases": list(hw.file.aliases),
                "architecture": hw.file.architecture,
                "dram_bytes": hw.dram_bytes,
                "dram_bytes_per_s": hw.dram_bytes_per_s,
                "fp16_matmul_flop_per_s": peak,
                "fp16_sparse_flop_per_s": sparse,
                "ridge_flop_per_byte": hw.ridge_flop_per_byte if peak else None,
                "l2_bytes": hw.l2_bytes,
                "sm_count": hw.sm_count,
                "verified": all(source["verified"] for source in sources(hw.file).values()),
                "sources": sources(hw.file),
            }
        )
    columns = [
        Column(key="device", heading="device", right=False),
        Column(key="name", heading="name", right=False),
        Column(key="architecture", heading="architecture", right=False),
        Column(key="dram_bytes", heading="GB", show=lambda v: f"{v / GIGA:g}"),
        Column(key="dram_bytes_per_s", heading="GB/s", show=lambda v: f"{v / GIGA:g}"),
        Column(key="fp16_matmul_flop_per_s", heading="FP16 TFLOP/s", show=_tera),
        Column(key="fp16_sparse_flop_per_s", heading="(2:4 sparse)", show=_tera),
        Column(key="ridge_flop_per_byte", heading="ridge FLOP/B", show=lambda v: f"{v:.0f}"),
        Column(key="verified", heading="verified", show=lambda v: "yes" if v else "partly"),
    ]
    foot = ["sources of every number: --json, or the files in hardware/"]
    return _listing("devices", Table(columns=columns, rows=rows, foot=foot))


def models() -> Output:
    """All built-in models with their shapes."""
    rows = []
    for name in model_names():
        shape, about = load_model(name), preset_about(name)
        rows.append(
            {
                "model": name,
                "parameters": shape.parameters,
                "layers": shape.layers,
                "hidden": shape.hidden,
                "intermediate": shape.intermediate,
                "heads": shape.heads,
                "kv_heads": shape.kv_heads,
                "head_dim": shape.head_dim,
                "vocab": shape.vocab,
                "max_positions": shape.max_positions,
                "tied_embeddings": shape.tied_embeddings,
                "aliases": about.aliases,
                "source": about.source,
                "verified": about.verified,
            }
        )
    columns = [
        Column(key="model", heading="model", right=False),
        Column(
            key="parameters", heading="parameters", show=lambda v: f"{significant(v / GIGA, 4)} B"
        ),
        *(Column(key=key, heading=key) for key in ("layers", "hidden", "intermediate", "heads")),
        Column(key="kv_heads", heading="KV heads"),
        Column(key="head_dim", heading="head dim"),
        Column(key="vocab", heading="vocab"),
        Column(key="max_positions", heading="positions"),
    ]
    foot = ["any config.json works by path: --model ./config.json"]
    return _listing("models", Table(columns=columns, rows=rows, foot=foot))


def formats(model: ModelShape, names: Sequence[str]) -> Output:
    """Weight formats, itemised in bits per weight over the linear layers of a model."""
    rows = [_format_row(name, model) for name in names]
    items = [Column(key=item, heading=_short(item), show=_bits) for item in ITEMS]
    columns = [
        Column(key="weights", heading="weights", right=False),
        Column(key="bits_per_weight", heading="stored", show=_bits),
        Column(key="paper_bits_per_weight", heading="@paper", show=_bits),
        *items,
    ]
    head = [f"bits per weight over the linear layers of {model.name}; stored = sum of the items"]
    foot = [
        "@paper: as the papers' tables count, 48 bits per nonzero and 32 per group; "
        "a name may end in it"
    ]
    return _listing("formats", Table(head=head, columns=columns, rows=rows, foot=foot))


def stacks() -> Output:
    """Built-in software stacks."""
    rows = []
    for name in stack_names():
        stack = load_stack(name)
        rows.append(
            {
                "stack": name,
                "description": stack.description,
                "basis": stack.basis,
                "source": stack.source,
                "fitted_on": list(stack.devices),
                "runs": list(stack.formats),
            }
        )
    columns = [
        Column(key=key, heading=key, right=False) for key in ("stack", "basis", "description")
    ]
    foot = ["your own by path: --stack ./my-stack.yaml"]
    return _listing("stacks", Table(columns=columns, rows=rows, foot=foot))


def checked(rows: list[dict[str, Any]]) -> Output:
    """Files that were found to be right."""
    columns = [Column(key=key, heading=key, right=False) for key in ("file", "kind", "name")]
    columns.append(Column(key="ok", heading="result", show=lambda _: "ok", right=False))
    return _listing("check", Table(columns=columns, rows=rows))


def _listing(what: str, table: Table) -> Output:
    document = {"schema": f"perfmodel.{what}/1", "results": table.rows}
    return Output(document=lambda: document, rows=lambda: list(table.rows), tables=lambda: [table])


def _format_row(name: str, model: ModelShape) -> dict[str, Any]:
    stored, base = parse_format(name), name.partition("@")[0]
    weights = sum(n * k for _, n, k, _ in model.linears())
    totals = dict.fromkeys(ITEMS, 0)
    paper_bytes = 0
    for _, n, k, _ in model.linears():
        for item, count in stored.itemised_bytes(n, k).items():
            totals[item] += count
        paper_bytes += parse_format(f"{base}@paper").weight_bytes(n, k)
    return {
        "weights": stored.name,
        "bits_per_weight": 8 * sum(totals.values()) / weights,
        "paper_bits_per_weight": 8 * paper_bytes / weights,
        **{item: 8 * count / weights for item, count in totals.items()},
    }


def _short(item: str) -> str:
    return item.replace("sparse_", "nnz ").replace("_", " ")


def _bits(value: float) -> str:
    return f"{value:.3f}" if value else "-"


def _tera(value: float) -> str:
    return significant(value / TERA, 4)
