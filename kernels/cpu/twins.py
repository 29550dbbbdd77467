"""Which twin multiplies one token with a weight."""

from collections.abc import Callable

from torch import Tensor

from kernels.cpu.fp16 import fp16_gemv
from kernels.cpu.gemv import lut_gemv, uniform_gemv
from kernels.cpu.vector import vector_gemv
from kernels.layouts.codebook import LutWeight
from kernels.layouts.uniform import UniformWeight
from kernels.layouts.vector import VectorWeight
from kernels.layouts.weights import Weight

_TWINS: dict[type, Callable[..., Tensor]] = {
    LutWeight: lut_gemv,
    UniformWeight: uniform_gemv,
    VectorWeight: vector_gemv,
    Tensor: fp16_gemv,
}


def twin_of(weight: Weight | Tensor) -> Callable[..., Tensor] | None:
    """The function of (x, weight) -> FP32 that reads it, or None."""
    return _TWINS.get(type(weight))
