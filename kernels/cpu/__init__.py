"""numba twins of the GEMV kernels: the same packed weights, on all cores of a CPU."""

from kernels.cpu.fp16 import fp16_gemv
from kernels.cpu.gemv import lut_gemv, uniform_gemv
from kernels.cpu.sparse import csr_gemv
from kernels.cpu.twins import twin_of
from kernels.cpu.vector import vector_gemv

__all__ = ["csr_gemv", "fp16_gemv", "lut_gemv", "twin_of", "uniform_gemv", "vector_gemv"]
