"""Seeded weights and activations, and output buffers with canaries around them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kernels.layouts import (
    BilevelWeight,
    CsrWeight,
    LutWeight,
    UniformWeight,
    VectorWeight,
    pack_bilevel,
    pack_csr,
    pack_hybrid,
    pack_lut,
    pack_uniform,
    pack_vector,
    to_fixed_point,
)
from kernels.layouts.codes import padded
from kernels.layouts.sparse import csr_from_dense
from kernels.layouts.vector import table_grid

# Tiles hold 512 to 2048 codes: a row of less than one, and one of whole tiles with a tail.
SHAPES = ((5, 300), (3, 2348))
EDGES = ((1, 1), (2, 2048))  # one weight; whole tiles alone
# (kind, bits) that each path of the LUT kernels decodes from registers.
EXACT = (
    ("fp16", 2), ("fp16", 3), ("fp16", 4), ("int8", 2), ("int8", 3), ("int8", 4), ("u7", 4),
    ("sym", 4),
)  # fmt: skip
INT = (
    ("int16", 2), ("int16", 3), ("int16", 4), ("int8", 2), ("int8", 3), ("int8", 4), ("u7", 4),
)  # fmt: skip

WIDE = (("fp16", 5), ("fp16", 6), ("fp16", 7), ("fp16", 8))  # tables that stay in memory

CANARY = -12345.0  # exact in FP16


def generator(*seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(seed) % 2**31)


def activations(columns: int, *, tokens: int | None = None, seed: int = 0) -> Tensor:
    shape = (columns,) if tokens is None else (tokens, columns)
    return torch.randn(shape, generator=generator(seed, columns)).half()


def lut_weight(kind: str, bits: int, rows: int, columns: int) -> LutWeight:
    """Random codes and tables of the size of LLaMA's weights."""
    g = generator(bits, rows, columns)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=g)
    entries, scale = torch.randn(rows, 2**bits, generator=g).mul(0.05).half(), None
    if kind == "sym":
        entries = entries[:, :8].abs()
    elif kind == "int8":
        entries = torch.randint(-128, 128, (rows, 2**bits), generator=g).to(torch.int8)
        scale = (torch.rand(rows, 1, generator=g) / 1000 + 1e-4).half()
    elif kind == "u7":
        entries = torch.randint(0, 128, (rows, 16), generator=g).to(torch.uint8)
        step = torch.rand(rows, generator=g) / 1000 + 1e-4
        scale = torch.stack((step, 60 + 10 * torch.rand(rows, generator=g)), dim=1).half()
    stored = "fp16" if kind == "int16" else kind
    weight = pack_lut(codes, entries, bits=bits, kind=stored, scale=scale)
    return to_fixed_point(weight) if kind == "int16" else weight


def uniform_weight(
    bits: int, rows: int, columns: int, *, group_size: int | None = None,
    act_order: str | None = None,
) -> UniformWeight:  # fmt: skip
    g = generator(bits, rows, columns)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=g)
    size = columns if group_size is None else group_size
    groups = -(-columns // size)
    scale = 0.005 + 0.01 * torch.rand(rows, groups, generator=g)
    zero = 2 ** (bits - 1) + torch.randn(rows, groups, generator=g)
    g_idx = None
    if act_order is not None:
        g_idx = (torch.randperm(columns, generator=g) // size).to(torch.int32)
    return pack_uniform(
        codes, torch.stack((scale, zero), dim=2).half(), bits=bits, group_size=group_size,
        g_idx=g_idx, act_order=act_order,
    )  # fmt: skip


def vector_weight(
    dim: int, bits: int, rows: int, columns: int, *, group: int = 512, subrow: int | None = None
) -> VectorWeight:
    """Random indices and tables; groups of 512 are two rows of 256 columns."""
    g = generator(dim, bits, rows, columns)
    blocks = table_grid(rows, columns, group)
    codes = torch.randint(0, 2**bits, (rows, -(-columns // dim)), generator=g)
    entries = torch.randint(-127, 128, (*blocks, 2**bits, dim), generator=g).to(torch.int8)
    scale = (torch.rand(blocks, generator=g) / 1000 + 1e-4).half()
    levels = None
    if subrow is not None:
        levels = torch.randint(0, 16, (rows, -(-padded(columns) // subrow)), generator=g)
    return pack_vector(
        codes, entries, scale, group=group, columns=columns, subrow=subrow, levels=levels
    )


def bilevel_weight(bits: int, rows: int, columns: int, *, ordered: bool = False) -> BilevelWeight:
    """Scales of 0.005 to 0.02 and zeros around the middle, each of a random 3-bit code."""
    g = generator(bits, rows, columns)
    groups = -(-columns // 128) * 8
    codes = torch.randint(0, 2**bits, (rows, columns), generator=g)
    statistics = torch.randint(0, 8, (rows, groups, 2), generator=g).to(torch.uint8)
    u = torch.rand(-(-rows // 16), groups, 4, generator=g)
    steps = torch.tensor([0.002, -4.0, 2.0 ** (bits - 4), -1.0])  # s1, z1, s2, z2
    order = torch.randperm(columns, generator=g).to(torch.int32) if ordered else None
    second = (steps * (1 + u)).half()
    return pack_bilevel(codes, statistics, second, bits=bits, order=order)


def sparse_matrix(rows: int, columns: int, density: float = 0.02) -> Tensor:
    """FP16-valued, with empty rows first, in the middle and last, and two much denser ones."""
    g = generator(rows, columns)
    keep = torch.rand(rows, columns, generator=g) < density
    if rows > 8:
        keep[[0, 4, -1]] = False
        keep[[2, 7]] = torch.rand(2, columns, generator=g) < 0.6
    return (torch.randn(rows, columns, generator=g) * 0.1 * keep).half().float()


def csr_weight(matrix: Tensor, form: str) -> CsrWeight:
    """form: `rows`, `hybrid` (two dense rows) or `balanced` (chunks of 64)."""
    arrays, shape = csr_from_dense(matrix), tuple(matrix.shape)
    if form == "hybrid":
        return pack_hybrid(*arrays, shape=shape, dense=2)
    return pack_csr(*arrays, shape=shape, chunk_nnz=64 if form == "balanced" else None)


@contextmanager
def guarded(*shape: int, dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
    """A contiguous output of NaN between two canaries, which must survive."""
    count = torch.Size(shape).numel()
    buffer = torch.full((count + 128,), CANARY, dtype=dtype)
    out = buffer[64 : 64 + count].view(shape)
    out.fill_(float("nan"))
    yield out
    around = torch.cat((buffer[:64], buffer[64 + count :]))
    assert (around == CANARY).all(), "a kernel wrote outside its output"
