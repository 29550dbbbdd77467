"""What can be timed: a weight format of perfmodel and the kernel that runs it, by name.

A name is a weight format and options after colons: `squeezellm-w3`, `squeezellm-w4-u7:int`,
`gptq-w4-g128-act:gather`, `fp16:library`, `squeezellm-w3-s0.45-hybrid:csr`, `gptq-w4:batch4`.

int          the path on fixed-point products (the default is `exact`)
int16        the FP16 table as 16-bit fixed point, for the `int` path
gather, fold how the activation order is applied
csr          the sparse part alone
library      the vendor's library (cuBLAS, or torch on a CPU) instead of our kernel
batchN       N tokens at once
"""

from dataclasses import dataclass, replace

from perfmodel.errors import UsageError
from perfmodel.format_names import parse_format

ACT_ORDERS = ("fold", "gather")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One weight format run by one kernel."""

    weights: str  # name of a perfmodel weight format
    path: str = "exact"
    table: str | None = None  # "int16": made from the FP16 table
    act_order: str | None = None
    part: str = "all"  # "all" or "csr", the sparse part alone
    library: bool = False
    batch: int = 1

    @property
    def name(self) -> str:
        """What `subject` reads."""
        options = [self.table, self.act_order]
        options += ["int"] * (self.path == "int") + ["csr"] * (self.part == "csr")
        options += ["library"] * self.library + [f"batch{self.batch}"] * (self.batch > 1)
        return ":".join([self.weights, *filter(None, options)])

    @property
    def options(self) -> dict[str, str]:
        """What tells kernels of one format apart, the batch excepted; empty for the plain one."""
        found = {"table": self.table, "act_order": self.act_order}
        found["path"] = self.path if self.path != "exact" else None
        found["part"] = self.part if self.part != "all" else None
        found["kernel"] = "library" if self.library else None
        return {name: value for name, value in found.items() if value}


def subject(name: str) -> Subject:
    """The subject of that name.

    Raises: UsageError for an unknown option or weight format, or options that do not fit it.
    """
    weights, *options = name.split(":")
    found = Subject(weights=parse_format(weights).name)
    for option in options:
        found = replace(found, **_option(name, option))
    if found.weights.endswith("-act"):
        found = replace(found, act_order=found.act_order or "fold")
    elif found.act_order:
        raise UsageError(f"subject {name!r}: {found.act_order} needs a format that ends in -act")
    if found.weights == "fp32" and not found.library:
        raise UsageError(f"subject {name!r}: only the library runs it, as fp32:library")
    if found.part == "csr" and parse_format(found.weights).sparse is None:
        raise UsageError(f"subject {name!r}: csr needs a sparse format, as -s0.45")
    return found


def _option(name: str, option: str) -> dict[str, object]:
    if option in ACT_ORDERS:
        return {"act_order": option}
    if option.startswith("batch") and option[5:].isdigit() and int(option[5:]) > 0:
        return {"batch": int(option[5:])}
    known = {
        "int": {"path": "int"},
        "int16": {"table": "int16"},
        "csr": {"part": "csr"},
        "library": {"library": True},
    }
    if option not in known:
        have = ", ".join([*known, *ACT_ORDERS, "batchN"])
        raise UsageError(f"subject {name!r}: unknown option {option!r}; have: {have}")
    return known[option]


# One token, most telling first, should the time end; the paper's comparison before the rest.
GPU_SUBJECTS = (
    "fp16:library", "fp16", "squeezellm-w3", "squeezellm-w4", "squeezellm-w4-u7",
    "squeezellm-w4-u7:int", "squeezellm-w3-int8:int", "squeezellm-w3-s0.45-hybrid",
    "squeezellm-w4-s0.45-hybrid", "gptq-w4", "gptq-w3", "gptq-w4-g128", "squeezellm-w2",
    "squeezellm-w8", "squeezellm-w3-s0.05-hybrid", "squeezellm-w4-s0.05-hybrid",
    "squeezellm-w4-u7-s0.45-hybrid:int", "gptq-w3-g128", "gptq-w4-g128-act:fold",
    "gptq-w4-g128-act:gather", "gptq-w8", "gptq-w8-g128", "squeezellm-w4-sym",
    "squeezellm-w4-u7-s0.45-hybrid", "squeezellm-w3-int8-s0.45-hybrid:int",
    "squeezellm-w4-int8", "squeezellm-w4-int8:int", "squeezellm-w3-int8", "squeezellm-w2-int8:int",
    "squeezellm-w2-int8", "squeezellm-w4:int16:int", "squeezellm-w3:int16:int",
    "squeezellm-w2:int16:int", "squeezellm-w3-s0.45", "squeezellm-w3-s0.45:csr",
    "squeezellm-w3-s0.45-hybrid:csr", "squeezellm-w3-s0.45-balanced:csr",
    "gptvq-4d-w2", "gptvq-2d-w2", "gptvq-2d-w3", "spqr-w3-g16-s1", "gptvq-1d-w3", "gptvq-2d-w4",
    "gptvq-2d-w2.5", "gptvq-2d-w2-n64", "gptvq-1d-w2", "gptvq-1d-w4", "spqr-w4-g16-s1",
    "spqr-w3-g16", "spqr-w3-g16-s1-act",
)  # fmt: skip

# What a GPU is to reach (bench/aims.py) is said of these, and of the formats that generate text.
AIMED = (
    "fp16:library", "fp16", "squeezellm-w3", "squeezellm-w4", "squeezellm-w4-u7",
    "squeezellm-w4-u7:int", "squeezellm-w3-int8:int", "squeezellm-w3-s0.45-hybrid",
    "squeezellm-w4-s0.45-hybrid", "gptq-w4", "gptq-w3", "gptq-w4-g128", "gptq-w4-g128-act:fold",
    "gptvq-2d-w3",
)  # fmt: skip

# Several tokens: the fused GEMM, and beyond it the dispatcher's dequantize and multiply.
GPU_BATCHED = (
    "fp16:library:batch4", "squeezellm-w3:batch4", "squeezellm-w4:batch4", "gptq-w4:batch4",
    "fp16:library:batch16", "squeezellm-w3:batch16", "squeezellm-w4:batch16", "gptq-w4:batch16",
    "squeezellm-w3-s0.45-hybrid:batch4", "squeezellm-w4:batch32", "gptq-w4-g128:batch32",
    "squeezellm-w3-s0.45-hybrid:batch32",
)  # fmt: skip

# The numba twins decode one token. FP16 on a CPU has to be widened first; FP32 has not.
CPU_SUBJECTS = (
    "fp32:library", "fp16", "squeezellm-w3", "squeezellm-w4", "gptq-w4", "squeezellm-w3-s0.45",
    "gptq-w4-g128", "squeezellm-w4-u7", "gptq-w3", "squeezellm-w2", "squeezellm-w8",
    "squeezellm-w4-s0.45", "squeezellm-w3-s0.05", "squeezellm-w3-s0.45-hybrid",
    "gptq-w4-g128-act:fold", "gptq-w4-g128-act:gather", "fp16:library", "gptvq-4d-w2",
    "gptvq-2d-w2", "gptvq-2d-w4", "gptvq-1d-w4",
)  # fmt: skip


def default_subjects(kind: str) -> tuple[str, ...]:
    """Names of the subjects of a kind of device ("cuda" or "cpu"), most telling first."""
    return (*GPU_SUBJECTS, *GPU_BATCHED) if kind == "cuda" else CPU_SUBJECTS
