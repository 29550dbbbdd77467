"""What a shipped kernel configuration is: the record that launches, compiles and reports it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCase:
    """One kernel in one configuration, as `kernels.aot` compiles it and its launcher runs it.

    The function is named, not held, so that a table of cases imports neither torch nor triton.
    """

    name: str  # unique; what the tables print, such as "lut4-exact"
    module: str  # where the Triton function lives, such as "kernels.lut"
    function: str
    weight_bits: float  # bits that the loop reads from DRAM per weight
    weights_per_iteration: int  # decoded by one program in one trip of its inner loop
    signature: Mapping[str, str]  # every argument that is no constexpr -> "*i32", "*fp16", "i32"
    constexprs: Mapping[str, object]
    divisible: tuple[str, ...] = ()  # arguments that are multiples of 16: pointers, row strides
    invariants: Mapping[str, float] = field(default_factory=dict)  # SASS opcode -> per weight
    num_warps: int = 1
    num_stages: int = 1
    maxnreg: int | None = None  # registers per thread that ptxas may use; None: its own choice
    least_share: Mapping[str, float] = field(default_factory=dict)  # device -> of DRAM bandwidth
