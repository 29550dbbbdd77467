"""The kernels that the GPU command checks and times: plain descriptions, and how to run one.

The table imports neither torch nor triton; `prepare` does.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

SPARSE_DENSITY = 0.0045  # SqueezeLLM's 0.45 % (arXiv 2306.07629, section 4.3)
DENSE_ROWS = 10
CHUNK_NNZ = 256  # nonzeros per program of the balanced form


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One kernel in one form."""

    family: str  # lut, lut-csr, uniform, csr, gemm, fp16 or cublas
    bits: int
    kind: str = "fp16"  # of the codebook
    path: str = "exact"
    group_size: int | None = None
    act_order: str | None = None
    form: str = "balanced"  # of a sparse matrix alone: rows, hybrid or balanced
    batch: int = 1


def _subjects() -> dict[str, Subject]:
    out = {
        "cublas-fp16": Subject(family="cublas", bits=16),
        "fp16": Subject(family="fp16", bits=16),
    }
    for bits, kind, path in (
        (3, "fp16", "exact"), (4, "fp16", "exact"), (4, "u7", "exact"), (4, "u7", "int"),
        (3, "int8", "int"), (2, "fp16", "exact"), (8, "fp16", "exact"), (4, "sym", "exact"),
        (4, "int8", "exact"), (4, "int8", "int"), (3, "int8", "exact"), (2, "int8", "int"),
        (4, "int16", "int"), (3, "int16", "int"), (2, "int16", "int"), (2, "int8", "exact"),
    ):  # fmt: skip
        out[f"lut{bits}-{kind}-{path}"] = Subject(family="lut", bits=bits, kind=kind, path=path)
    for bits, kind, path in (
        (3, "fp16", "exact"), (4, "fp16", "exact"), (4, "u7", "exact"), (4, "u7", "int"),
        (3, "int8", "int"),
    ):  # fmt: skip
        name = f"lut{bits}-{kind}-{path}-csr"
        out[name] = Subject(family="lut-csr", bits=bits, kind=kind, path=path)
    for bits in (3, 4, 8):
        out[f"uniform{bits}"] = Subject(family="uniform", bits=bits)
        out[f"uniform{bits}-g128"] = Subject(family="uniform", bits=bits, group_size=128)
    for act_order in ("fold", "gather"):
        out[f"uniform4-g128-{act_order}"] = Subject(
            family="uniform", bits=4, group_size=128, act_order=act_order
        )
    for batch in (4, 16):
        out[f"cublas-fp16-batch{batch}"] = Subject(family="cublas", bits=16, batch=batch)
        for bits in (3, 4):
            name = f"lut{bits}-fp16-batch{batch}"
            out[name] = Subject(family="gemm", bits=bits, batch=batch)
    for form in ("rows", "hybrid", "balanced"):
        out[f"csr-{form}"] = Subject(family="csr", bits=32, form=form)
    return out


SUBJECTS = _subjects()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A subject with weights of one shape on one device."""

    weights: tuple[Any, ...]  # records with `nbytes_by_item`, or tensors
    run: Callable[..., Any]  # (x, weights, out, counters): one call of the launcher
    reference: Callable[..., Any]  # (x, weights) -> float64, in the shape of out
    batch: int = 1

    @property
    def weight_bytes(self) -> int:
        return sum(_nbytes(weight) for weight in self.weights)

    def shape(self, length: int) -> tuple[int, ...]:
        """Of activations or outputs: (length,), or (M, length) for a batch."""
        return (length,) if self.batch == 1 else (self.batch, length)


def _nbytes(weight: Any) -> int:
    items = getattr(weight, "nbytes_by_item", None)
    return sum(items().values()) if items else weight.nbytes


def clone(value: Any) -> Any:
    """The same weight in memory of its own: tensors copied, records rebuilt around the copies."""
    if is_dataclass(value):
        changes = {field.name: clone(getattr(value, field.name)) for field in fields(value)}
        return replace(value, **changes)
    return value.clone() if hasattr(value, "clone") else value


def prepare(subject: Subject, shape: tuple[int, int], device: str, seed: int = 0) -> Prepared:
    """Random weights of a subject, its launcher and its FP64 reference."""
    import torch

    torch.manual_seed(seed)
    makers = {
        "lut": _lut,
        "lut-csr": _lut_csr,
        "uniform": _uniform,
        "csr": _csr,
        "gemm": _gemm,
        "fp16": _fp16,
        "cublas": _cublas,
    }
    with torch.device(device):
        return makers[subject.family](subject, shape)


def _lut_weight(subject: Subject, shape: tuple[int, int]) -> Any:
    import torch

    from kernels.layouts import pack_lut, to_fixed_point

    bits, rows = subject.bits, shape[0]
    kind = "fp16" if subject.kind == "int16" else subject.kind
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    scale = None
    if kind == "int8":
        entries = torch.randint(-128, 128, (rows, 2**bits)).to(torch.int8)
        scale = 0.01 * (1 + torch.rand(rows, 1)).half()
    elif kind == "u7":
        entries = torch.randint(0, 128, (rows, 16)).to(torch.uint8)
        scale = torch.stack((0.01 * (1 + torch.rand(rows)), 64 + torch.randn(rows)), dim=1).half()
    elif kind == "sym":
        entries = torch.rand(rows, 8).half()
    else:
        entries = torch.randn(rows, 2**bits).half()
    weight = pack_lut(codes, entries, bits=bits, kind=kind, scale=scale)
    return to_fixed_point(weight) if subject.kind == "int16" else weight


def _lut(subject: Subject, shape: tuple[int, int]) -> Prepared:
    from kernels.lut_gemv import lut_gemv, lut_gemv_ref

    def run(x: Any, weights: tuple, out: Any, counters: Any) -> None:
        lut_gemv(x, *weights, path=subject.path, out=out, counters=counters)

    return Prepared(
        weights=(_lut_weight(subject, shape),),
        run=run,
        reference=lambda x, weights: lut_gemv_ref(x, *weights),
    )


def _csr_weight(shape: tuple[int, int], form: str) -> Any:
    """0.45 % nonzeros at random; a few rows hold a fifth of their columns."""
    import torch

    from kernels.layouts import pack_csr, pack_hybrid
    from kernels.layouts.sparse import csr_from_dense

    keep = torch.rand(shape) < SPARSE_DENSITY
    keep[:: max(1, shape[0] // DENSE_ROWS)] |= torch.rand(shape[1]) < 0.2
    matrix = torch.where(keep, torch.randn(shape, dtype=torch.float16), 0.0)
    parts = csr_from_dense(matrix)
    if form == "hybrid":
        return pack_hybrid(*parts, shape=shape, dense=min(DENSE_ROWS, shape[0]))
    return pack_csr(*parts, shape=shape, chunk_nnz=CHUNK_NNZ if form == "balanced" else None)


def _csr(subject: Subject, shape: tuple[int, int]) -> Prepared:
    import torch

    from kernels.csr_spmv import counters_needed, csr_spmv, csr_spmv_ref

    weight = _csr_weight(shape, subject.form)
    own = torch.zeros(counters_needed(weight), dtype=torch.int32)

    def run(x: Any, weights: tuple, out: Any, _counters: Any) -> None:
        csr_spmv(x, *weights, out=out, counters=own)

    return Prepared(
        weights=(weight,),
        run=run,
        reference=lambda x, weights: csr_spmv_ref(x, *weights),
    )


def _lut_csr(subject: Subject, shape: tuple[int, int]) -> Prepared:
    from kernels.lut_csr_fused import lut_csr_gemv, lut_csr_gemv_ref

    def run(x: Any, weights: tuple, out: Any, counters: Any) -> None:
        lut_csr_gemv(x, *weights, path=subject.path, out=out, counters=counters)

    return Prepared(
        weights=(_lut_weight(subject, shape), _csr_weight(shape, "hybrid")),
        run=run,
        reference=lambda x, weights: lut_csr_gemv_ref(x, *weights),
    )


def _uniform(subject: Subject, shape: tuple[int, int]) -> Prepared:
    import torch

    from kernels.layouts import pack_uniform
    from kernels.uniform_gemv import uniform_gemv, uniform_gemv_ref

    bits, group = subject.bits, subject.group_size
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    groups = -(-shape[1] // (group or shape[1]))
    zero = torch.full((shape[0], groups), 2.0 ** (bits - 1))
    scale_zero = torch.stack((0.01 * (1 + torch.rand(shape[0], groups)), zero), dim=2).half()
    g_idx = None
    if subject.act_order:
        g_idx = (torch.arange(shape[1]) // group)[torch.randperm(shape[1])].to(torch.int32)
    weight = pack_uniform(
        codes, scale_zero, bits=bits, group_size=group, g_idx=g_idx, act_order=subject.act_order
    )

    def run(x: Any, weights: tuple, out: Any, counters: Any) -> None:
        split = {"counters": counters} if group is None else {}
        uniform_gemv(x, *weights, out=out, **split)

    return Prepared(
        weights=(weight,), run=run, reference=lambda x, weights: uniform_gemv_ref(x, *weights)
    )


def _gemm(subject: Subject, shape: tuple[int, int]) -> Prepared:
    from kernels.layouts.codebook import dequantize_lut
    from kernels.lut_gemm import lut_gemm

    def run(x: Any, weights: tuple, out: Any, _counters: Any) -> None:
        lut_gemm(x, *weights, out=out)

    return Prepared(
        weights=(_lut_weight(subject, shape),),
        run=run,
        reference=lambda x, weights: x.double() @ dequantize_lut(*weights).double().T,
        batch=subject.batch,
    )


def _dense(run: Callable[..., Any], shape: tuple[int, int], batch: int = 1) -> Prepared:
    import torch

    return Prepared(
        weights=(torch.randn(shape, dtype=torch.float16),),
        run=run,
        reference=lambda x, weights: x.double() @ weights[0].double().T,
        batch=batch,
    )


def _fp16(_subject: Subject, shape: tuple[int, int]) -> Prepared:
    from kernels.fp16_gemv import fp16_gemv

    def run(x: Any, weights: tuple, out: Any, counters: Any) -> None:
        fp16_gemv(x, *weights, out=out, counters=counters)

    return _dense(run, shape)


def _cublas(subject: Subject, shape: tuple[int, int]) -> Prepared:
    import torch

    def run(x: Any, weights: tuple, out: Any, _counters: Any) -> None:
        if subject.batch == 1:
            torch.mv(*weights, x, out=out)
        else:
            torch.mm(x, weights[0].T, out=out)

    return _dense(run, shape, subject.batch)
