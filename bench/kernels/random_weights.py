"""Random weights of a format: true layout and true bytes, drawn word by word instead of packed.

A 65B model takes seconds this way. Values are of the size that trained layers have, so that
activations stay finite. The nonzeros of a sparse part are spread evenly: no row is much longer
than the mean, as the densest rows of a trained model are.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from kernels.layouts import (
    BilevelWeight,
    Codebook,
    CsrWeight,
    DenseRows,
    LutWeight,
    PackedCodes,
    UniformWeight,
    VectorWeight,
    Weight,
)
from kernels.layouts.bilevel import BITS as BILEVEL_BITS
from kernels.layouts.bilevel import BLOCK_ROWS, GROUP, PLANES, QUAD
from kernels.layouts.codebook import to_planes
from kernels.layouts.codes import (
    BITS,
    DEFAULT_TILE_CODES,
    K_ALIGN,
    codes_per_group,
    padded,
    row_words,
)
from kernels.layouts.sparse import pack_csr
from kernels.layouts.uniform import group_tile
from kernels.layouts.vector import FORMS, code_order, table_grid
from kernels.layouts.vector import QUAD as LEVEL_ROWS
from perfmodel.errors import UsageError
from perfmodel.format_names import parse_format
from perfmodel.formats import Sparse, WeightFormat

UNIFORM = ("rtn", "gptq", "awq")
LOOKUP = ("squeezellm", "kmeans")

# (weight,) or (weight, sparse part)
RandomWeight = tuple[Tensor | Weight | CsrWeight, ...]


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
    make = {"gptvq": _vector, "spqr": _bilevel}.get(method, _lookup)
    dense = make(stored, shape, generator)
    return (dense, _csr(stored.sparse, shape, generator)) if stored.sparse else (dense,)


def runnable_format(format_name: str) -> WeightFormat:
    """The format of that name.

    Raises: UsageError if there is none, or one that no kernel runs.
    """
    stored = parse_format(format_name)
    method = stored.name.partition("-")[0]
    packed = method in UNIFORM + LOOKUP and stored.code_bits in BITS
    if stored.codebook and method == "gptvq":
        form = (stored.codebook.dim, stored.code_bits * stored.codebook.dim)
        packed = form in FORMS and _subrow_is_read(stored, *map(int, form))
    elif stored.scales and method == "spqr":
        packed = stored.code_bits in BILEVEL_BITS and stored.scales.group == GROUP
    if "@" in stored.name or not (packed or method == "fp16"):
        names = (f"{name}-w{{{BITS[0]}..{BITS[-1]}}}" for name in UNIFORM + LOOKUP)
        vectors = (f"gptvq-{dim}d-w{bits / dim:g}" for dim, bits in FORMS)
        have = ", ".join(("fp16", *names, f"spqr-w{{2,3,4}}-g{GROUP}", *vectors))
        raise UsageError(f"no kernel runs weights {format_name!r}; have: {have}")
    return stored


def _subrow_is_read(stored: WeightFormat, dim: int, bits: int) -> bool:
    """Whether blockwise scales, if there are any, serve whole groups of codes."""
    group = stored.scales and stored.scales.group
    return not group or group >= dim * codes_per_group(bits)


def _codes(
    bits: int,
    shape: tuple[int, int],
    generator: torch.Generator,
    *,
    order: str,
    tile_codes: int,
    dim: int = 1,
) -> PackedCodes:
    empty = torch.empty((shape[0], 0), dtype=torch.int32)
    codes = PackedCodes(
        words=empty, bits=bits, columns=shape[1], tile_codes=tile_codes, order=order, dim=dim
    )
    words = torch.empty((shape[0], row_words(codes)), dtype=torch.int32, device=generator.device)
    return replace(codes, words=words.random_(-(2**31), 2**31, generator=generator))


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


def _vector(
    stored: WeightFormat, shape: tuple[int, int], generator: torch.Generator
) -> VectorWeight:
    """Tables of evenly spread bytes."""
    book = stored.codebook
    if book is None or book.columns is None:
        raise UsageError(f"weights {stored.name!r} have no vector codebook")
    dim, bits, group = book.dim, int(stored.code_bits * book.dim), book.rows * book.columns
    blocks = table_grid(*shape, group)
    size = (*blocks, book.entries * dim // 4)
    table = torch.empty(size, dtype=torch.int32, device=generator.device)
    step, subrow, levels = 1 / (128 * math.sqrt(shape[1])), None, None
    if stored.scales and stored.scales.group:
        subrow, step = stored.scales.group, step / 6  # the root mean square of the levels
        height, width = -(-shape[0] // LEVEL_ROWS), -(-padded(shape[1]) // subrow)
        levels = torch.empty((height, width), dtype=torch.int16, device=generator.device)
        levels.random_(-(2**15), 2**15, generator=generator)
    return VectorWeight(
        codes=_codes(
            bits, shape, generator, order=code_order(dim, bits), tile_codes=K_ALIGN // dim, dim=dim
        ),
        table=table.random_(-(2**31), 2**31, generator=generator),
        scale=torch.full(blocks, step, dtype=torch.float16, device=generator.device),
        group=group,
        subrow=subrow,
        levels=levels,
    )


def _bilevel(
    stored: WeightFormat, shape: tuple[int, int], generator: torch.Generator
) -> BilevelWeight:
    """Scales of one to two steps and zeros near the middle of the codes."""
    (rows, columns), bits, device = shape, int(stored.code_bits), generator.device
    groups = padded(columns) // GROUP
    first = torch.empty((-(-rows // QUAD), PLANES, groups // 2), dtype=torch.int16, device=device)
    s1 = 1 / (7 * 2**bits * math.sqrt(columns))
    second = torch.tensor([s1, -7.0, 1 / 7, -7.0 * (2 ** (bits - 1) - 1)], device=device).half()
    order = None
    if stored.order_bits:  # from the inputs alone, as `_uniform`
        order = torch.randperm(columns, generator=torch.Generator().manual_seed(columns))
        order = order.to(torch.int32).to(device)
    return BilevelWeight(
        codes=_codes(bits, shape, generator, order="field", tile_codes=K_ALIGN),
        first=first.random_(-(2**15), 2**15, generator=generator),
        second=second[:, None].expand(-(-rows // BLOCK_ROWS), 4, groups).contiguous(),
        order=order,
    )


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
