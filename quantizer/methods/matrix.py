"""What a method takes and gives: settings, statistics, and a quantized matrix."""

import re
from fractions import Fraction
from typing import Any

import msgspec
import torch
from msgspec.structs import replace
from torch import Tensor

from kernels.layouts import CsrWeight, Weight, dequantized
from kernels.layouts.bilevel import GROUP as BILEVEL_GROUP
from kernels.layouts.codes import BITS, codes_per_group
from kernels.layouts.uniform import group_sizes
from kernels.layouts.vector import FORMS as VECTOR_FORMS
from perfmodel.errors import UsageError
from perfmodel.format_names import parse_format
from perfmodel.formats import WeightFormat

WEIGHTINGS = ("fisher", "activation", "none")
SELECTIONS = ("paper", "gain", "sensitive", "outliers")
ACT_ORDER_FORMS = ("fold", "gather")
VECTOR_METRICS = ("paper", "released", "joint")
SUBROW_SIZES = ("rms", "max")
TABLE_SEEDS = ("mahalanobis", "kmeans++", "exact")
LARGEST = torch.finfo(torch.float16).max  # tables, scales and sparse values are FP16


class SettingsError(UsageError):
    """Settings, weights or statistics that no method could use."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to quantize a matrix: the storage format by its `perfmodel` name, and the rest.

    Plain JSON values only: the settings are part of a layer's key in the ledger.
    """

    format: str  # e.g. "squeezellm-w3-s0.45"
    # Codebook methods.
    weighting: str | None = None  # of the clustering; None: fisher for squeezellm, none for kmeans
    selection: str = "paper"  # which values the sparse part holds
    sensitive_share: float = 0.0005  # SqueezeLLM, section 4.2: 0.05 % by sensitivity
    iqr_range: float | None = None  # outliers beyond so many quartile ranges; None: a percentile
    clustering: str = "exact"
    # GPTQ and AWQ.
    damping: float = 0.01  # share of the mean diagonal of the Hessian
    act_order: bool = True  # quantize columns by falling diagonal of the Hessian
    static_groups: bool = True  # fix the grids of all groups on the weight as it was
    act_order_form: str = "fold"  # how dynamic groups under act-order are stored
    clip: bool = True  # AWQ: search the clipping range
    # GPTVQ.
    vector_metric: str = "paper"
    seeds: str | None = None  # of a codebook; None: exact for 1-D, mahalanobis else
    subrow_size: str = "rms"  # what blockwise scales measure; the paper: max
    em_rounds: int = 100
    update_codebook: bool = True

    def __post_init__(self) -> None:
        """Raises: SettingsError, or UsageError for the name."""
        known = parse_format(self.format)  # refuses what is no format at all
        choices = {
            "weighting": (*WEIGHTINGS, None),
            "selection": SELECTIONS,
            "clustering": ("exact", "fast"),
            "act_order_form": ACT_ORDER_FORMS,
            "vector_metric": VECTOR_METRICS,
            "subrow_size": SUBROW_SIZES,
            "seeds": (*TABLE_SEEDS, None),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                have = ", ".join(str(choice) for choice in allowed)
                raise SettingsError(f"{name} is {value!r}, expected one of {have}")
        _check_readable(known)
        if self.seeds == "exact" and self.dim > 1:
            raise SettingsError(f"seeds is 'exact', expected another for {self.dim}-D codebooks")

    @property
    def method(self) -> str:
        return self.format.partition("-")[0]

    @property
    def weight_format(self) -> WeightFormat:
        return parse_format(self.format)

    @property
    def bits(self) -> int:
        return int(self.weight_format.code_bits)

    @property
    def dim(self) -> int:
        """Columns per code."""
        codebook = self.weight_format.codebook
        return codebook.dim if codebook else 1

    @property
    def table_entries(self) -> int:
        """Vectors of a codebook."""
        return int(2 ** (self.weight_format.code_bits * self.dim))

    @property
    def table_group(self) -> int:
        """Weights that share a vector codebook."""
        codebook = self.weight_format.codebook
        return (codebook.rows * (codebook.columns or 0)) if codebook else 0

    @property
    def subrow(self) -> int | None:
        """Columns of a vector codebook's blockwise scale."""
        return self.group if self.method == "gptvq" else None

    @property
    def table_seeds(self) -> str:
        return self.seeds or ("exact" if self.dim == 1 else "mahalanobis")

    @property
    def group(self) -> int | None:
        scales = self.weight_format.scales
        return scales.group if scales else None

    @property
    def share(self) -> float:
        """Share of the values that the sparse part holds."""
        sparse = self.weight_format.sparse
        return float(sparse.density) if sparse else 0.0

    @property
    def entry(self) -> str:
        """Kind of codebook: fp16, int8, u7 or sym."""
        found = re.search(r"-(int8|u7|sym)\b", self.format)
        return found[1] if found else "fp16"

    @property
    def layout(self) -> str:
        """Of the sparse part: csr, balanced or hybrid."""
        found = re.search(r"-(balanced|hybrid)\b", self.format)
        return found[1] if found else "csr"

    @property
    def stores_order(self) -> bool:
        return self.weight_format.order_bits > 0


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What calibration says about one (N, K) weight; `methods.needs` names those in use."""

    fisher: Tensor | None = None  # (N, K) float32: sum of squared gradients
    hessian: Tensor | None = None  # (K, K) float32: 2/n X^T X over n tokens
    mean_abs: Tensor | None = None  # (K,) float32: mean |x| per input channel


class QuantizedMatrix(msgspec.Struct, frozen=True, kw_only=True):
    """An (N, K) weight as the kernels read it."""

    weight: Weight
    sparse: CsrWeight | None = None
    notes: dict[str, float | int | str] = {}  # facts for the report: damping, cost, nnz

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        apart = self.sparse.nbytes_by_item() if self.sparse is not None else {}
        return sum(self.weight.nbytes_by_item().values()) + sum(apart.values())

    def dequantize(self) -> Tensor:
        """(N, K) float32, sparse part included."""
        return dequantized(self.weight, self.sparse)

    def weight_format(self, settings: Settings) -> WeightFormat:
        """The format that this matrix really has: with its own number of nonzeros."""
        nominal = settings.weight_format
        if self.sparse is None:
            return replace(nominal, sparse=None)
        rows, columns = self.shape
        apart = self.sparse.dense_rows
        changes: dict[str, Any] = {
            "density": Fraction(self.sparse.nnz, rows * columns),
            "nonzeros_per_start_row": self.sparse.chunk_nnz,
            "dense_rows": 0 if apart is None else apart.rows.numel(),
        }
        return replace(nominal, sparse=replace(nominal.sparse, **changes))


def _check_readable(known: WeightFormat) -> None:
    """Raises: SettingsError for a format that has no packed layout."""
    bits, codebook = known.code_bits, known.codebook
    if known.name.startswith("gptvq"):
        form = (codebook.dim, bits * codebook.dim) if codebook else (0, 0)
        have = ", ".join(f"{dim}d-w{bits / dim:g}" for dim, bits in VECTOR_FORMS)
        readable = form in VECTOR_FORMS
    else:
        have = f"{', '.join(map(str, BITS))} bits"
        readable = bits in BITS
    if "@" in known.name or not readable:
        raise SettingsError(f"format {known.name!r} has {float(bits):g} bits; kernels read {have}")
    group = known.scales.group if known.scales else None
    if group is not None:
        _check_group(known, group)


def _check_group(known: WeightFormat, group: int) -> None:
    method, bits, codebook = known.name.partition("-")[0], known.code_bits, known.codebook
    if method == "gptvq" and codebook:
        least = codebook.dim * codes_per_group(int(bits * codebook.dim))
        if group < least:
            raise SettingsError(f"format {known.name!r}: kernels read sub-rows of {least} or more")
        return
    groups = (BILEVEL_GROUP,) if method == "spqr" else group_sizes(int(bits))
    if group not in groups:
        have = ", ".join(map(str, groups))
        raise SettingsError(f"format {known.name!r}: kernels read groups of {have}")


def check_matrix(weight: Tensor) -> None:
    """Raises: SettingsError unless it is an (N, K) float matrix, not empty, of FP16's range."""
    if weight.ndim != 2 or weight.numel() == 0 or not weight.is_floating_point():
        found = f"{tuple(weight.shape)} of {weight.dtype}"
        raise SettingsError(f"weight is {found}, expected a float matrix (N, K)")
    most = float(weight.abs().max())
    if not most <= LARGEST:
        raise SettingsError(f"largest magnitude of the weight is {most:g}, expected <= {LARGEST:g}")


def required(statistics: Statistics, name: str, shape: tuple[int, ...]) -> Tensor:
    """One statistic as float32, checked.

    Raises: SettingsError if it is missing, has another shape, is not finite or is negative.
    """
    found = getattr(statistics, name)
    if found is None:
        raise SettingsError(f"{name} is missing from the statistics of this layer")
    if tuple(found.shape) != shape:
        raise SettingsError(f"shape of {name} is {tuple(found.shape)}, expected {shape}")
    if not bool(torch.isfinite(found).all()):
        raise SettingsError(f"{name} has values that are not finite")
    if name != "hessian" and bool((found < 0).any()):
        raise SettingsError(f"{name} has negative values; least is {float(found.min()):g}")
    return found.float()
