"""All packed weights together: which there are, and what each stands for."""

from torch import Tensor

from kernels.layouts.bilevel import BilevelWeight, dequantize_bilevel
from kernels.layouts.codebook import LutWeight, dequantize_lut
from kernels.layouts.sparse import CsrWeight, dequantize_csr
from kernels.layouts.uniform import UniformWeight, dequantize_uniform
from kernels.layouts.vector import VectorWeight, dequantize_vector

Weight = LutWeight | UniformWeight | VectorWeight | BilevelWeight

_DEQUANTIZE = {
    LutWeight: dequantize_lut,
    UniformWeight: dequantize_uniform,
    VectorWeight: dequantize_vector,
    BilevelWeight: dequantize_bilevel,
}


def dequantized(weight: Weight, sparse: CsrWeight | None = None) -> Tensor:
    """The (N, K) FP32 weight and its sparse part: plain PyTorch, any device."""
    dense: Tensor = _DEQUANTIZE[type(weight)](weight)
    return dense if sparse is None else dense + dequantize_csr(sparse)
