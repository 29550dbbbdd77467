"""Random weights of a format: true layout and true bytes, drawn word by word instead of packed.

A 65B model takes seconds this way. Values are of the size that trained layers have, so that
activations stay finite. The nonzeros of a sparse part are spread evenly: no row is much longer
than the mean, as the densest rows of a trained model are.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from kernels.layouts import Codebook, CsrWeight, DenseRows, LutWeight, PackedCodes, UniformWeight
from kernels.layouts.codebook import to_planes
from kernels.layouts.codes import DEFAULT_TILE_CODES, row_words
from kernels.layouts.sparse import pack_csr
from kernels.layouts.uniform import group_tile
from perfmodel.errors import UsageError
from perfmodel.format_names import parse_format
from perfmodel.formats import Sparse, WeightFormat

UNIFORM = ("rtn", "gptq", "awq")
LOOKUP = ("squeezellm", "kmeans")
BITS = (2, 3, 4, 8)

# (weight,) or (weight, sparse part)
RandomWeight = tuple[Tensor | LutWeight | UniformWeight | CsrWeight, ...]


def random_weight(
    format_name: str,
    shape: tuple[int, int],
    generator: torch.Generator,
    *,
    act_order: str = "fold",
) -> RandomWeight:
    """An (N, K) weight of a format by its `perfmodel` name, on the generator's device.

    act_order: form of formats that store an order, `fold` or `gather`. Their order depends on K
    alone, as GPTQ's depends on the inputs alone: q, k and v share it.

    Raises: UsageError for a format that no kernel reads.
    """
    stored = runnable_format(format_name)
    method = stored.name.partition("-")[0]
    if method == "fp16":
        weight = torch.randn(shape, generator=generator, device=generator.device)
        return (weight.mul_(0.5 / math.sqrt(shape[1])).half(),)
    if method in UNIFORM:
        return (_uniform(stored, shape, generator, act_order),)
    lookup = _lookup(stored, shape, generator)
    return (lookup, _csr(stored.sparse, shape, generator)) if stored.sparse else (lookup,)


def runnable_format(format_name: str) -> WeightFormat:
    """The format of that name.

    Raises: UsageError if there is none, or one that no kernel runs.
    """
    stored = parse_format(format_name)
    method = stored.name.partition("-")[0]
    packed = method in UNIFORM + LOOKUP and stored.code_bits in BITS
    if "@" in stored.name or not (packed or method == "fp16"):
        have = ", ".join(("fp16", *(f"{name}-w{{2,3,4,8}}" for name in UNIFORM + LOOKUP)))
        raise UsageError(f"no kernel runs weights {format_name!r}; have: {have}")
    return stored


def _codes(
    bits: int, shape: tuple[int, int], generator: torch.Generator, *, order: str, tile_codes: int
) -> PackedCodes:
    empty = torch.empty((shape[0], 0), dtype=torch.int32)
    codes = PackedCodes(
        words=empty, bits=bits, columns=shape[1], tile_codes=tile_codes, order=order
    )
    words = torch.empty((shape[0], row_words(codes)), dtype=torch.int32, device=generator.device)
    words.random_(-(2**31), 2**31, generator=generator)
    return PackedCodes(words=words, bits=bits, columns=shape[1], tile_codes=tile_codes, order=order)


def _uniform(
    stored: WeightFormat, shape: tuple[int, int], generator: torch.Generator, act_order: str
) -> UniformWeight:
    """Steps such that the grid spans a few standard deviations of a trained layer."""
    (rows, columns), bits = shape, int(stored.code_bits)
    group = min((stored.scales and stored.scales.group) or columns, columns)
    form = act_order if stored.order_bits else None
    tile = group_tile(bits, group, columns, form) or DEFAULT_TILE_CODES[bits]
    scales = torch.rand(
        (rows, -(-columns // group), 2), generator=generator, device=generator.device
    )
    scales[..., 0] = (1 + scales[..., 0]) / (2**bits * math.sqrt(columns))
    scales[..., 1] = 2 ** (bits - 1) - scales[..., 1]
    order = None
    if form:  # from the inputs alone, as in GPTQ: q, k and v have the same
        order = torch.randperm(columns, generator=torch.Generator().manual_seed(columns))
        order = (order if form == "fold" else order // group).to(torch.int32)
        order = order.to(generator.device)
    return UniformWeight(
        codes=_codes(bits, shape, generator, order="field", tile_codes=tile),
        scale_zero=scales.half(),
        group_size=group,
        act_order=form,
        order=order,
    )


def _lookup(stored: WeightFormat, shape: tuple[int, int], generator: torch.Generator) -> LutWeight:
    bits, rows = int(stored.code_bits), shape[0]
    kind = next((kind for kind in ("int8", "u7", "sym") if f"-{kind}" in stored.name), "fp16")
    order = "signed" if kind == "sym" else "selector"
    codes = _codes(bits, shape, generator, order=order, tile_codes=DEFAULT_TILE_CODES[bits])
    book = _codebook(kind, bits, rows, size=0.5 / math.sqrt(shape[1]), generator=generator)
    return LutWeight(codes=codes, codebook=book)


def _codebook(
    kind: str, bits: int, rows: int, *, size: float, generator: torch.Generator
) -> Codebook:
    """Tables with entries of about `size`."""
    device = generator.device
    if kind in ("fp16", "sym"):
        width = 2 ** (bits - (kind == "sym"))
        entries = torch.randn((rows, width), generator=generator, device=device) * size
        entries = entries.abs() if kind == "sym" else entries
        return Codebook(kind=kind, bits=bits, table=to_planes(entries.half(), bits))
    top = 256 if kind == "int8" else 128  # int8 is stored as entry + 128
    table = torch.randint(0, top, (rows, 2**bits), generator=generator, device=device)
    scale = torch.full((rows, 1), 2 * size / top, device=device)
    if kind == "u7":
        scale = torch.cat((scale, torch.full_like(scale, 64)), dim=1)
    table = table.to(torch.uint8).view(torch.int32)
    return Codebook(kind=kind, bits=bits, table=table, scale=scale.half())


def _csr(sparse: Sparse, shape: tuple[int, int], generator: torch.Generator) -> CsrWeight:
    """Exactly the format's number of nonzeros, one in each of as many equal stretches.

    Rows kept dense come first, and have no nonzeros of their own.
    """
    (rows, columns), device = shape, generator.device
    apart, nnz = min(sparse.dense_rows, rows - 1), sparse.nonzeros(rows, columns)
    stretch = (rows - apart) * columns / max(nnz, 1)
    first = torch.arange(nnz, device=device, dtype=torch.float64) * stretch
    inside = torch.rand(nnz, generator=generator, device=device, dtype=torch.float64)
    flat = (first + inside * (stretch - 1)).ceil().long() + apart * columns
    counts = torch.bincount(flat // columns, minlength=rows)
    csr = pack_csr(
        torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
        flat % columns,
        _values((nnz,), columns, generator),
        shape=shape,
        chunk_nnz=sparse.nonzeros_per_start_row,
    )
    if not apart:
        return csr
    numbers = torch.arange(apart, device=device, dtype=torch.int32)
    dense = DenseRows(values=_values((apart, columns), columns, generator), rows=numbers)
    return replace(csr, dense_rows=dense)


def _values(shape: tuple[int, ...], columns: int, generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator, device=generator.device)
    return (values / math.sqrt(columns)).half()
