"""Records as flat tensors and a few plain values, for checkpoints and `torch.library` ops.

Tensor names: `words`, `table`, `scale`, `order`, `row_pointers`, `columns`, `values`,
`start_rows`, `dense_values`, `dense_rows`; a name that a weight does not need is absent.
"""

from collections.abc import Mapping

from torch import Tensor

from kernels.checks import check_choice, fail
from kernels.layouts.codebook import Codebook, LutWeight, check_lut
from kernels.layouts.codes import PackedCodes
from kernels.layouts.sparse import CsrWeight, DenseRows, check_csr
from kernels.layouts.uniform import UniformWeight, check_uniform

Meta = dict[str, int | str]


def to_tensors(
    weight: LutWeight | UniformWeight, sparse: CsrWeight | None = None
) -> tuple[dict[str, Tensor], Meta]:
    """Tensors and metadata of a weight; the inverse of `from_tensors`."""
    codes = weight.codes
    tensors = {"words": codes.words}
    meta: Meta = {"bits": codes.bits, "columns": codes.columns, "tile_codes": codes.tile_codes}
    if isinstance(weight, LutWeight):
        meta["kind"] = weight.codebook.kind
        tensors |= {"table": weight.codebook.table, "scale": weight.codebook.scale}
    else:
        meta |= {"kind": "uniform", "group_size": weight.group_size}
        meta["act_order"] = weight.act_order or ""
        tensors |= {"scale": weight.scale_zero, "order": weight.order}
    if sparse is not None:
        meta["chunk_nnz"] = sparse.chunk_nnz or 0
        tensors |= {name: getattr(sparse, name) for name in ("row_pointers", "columns", "values")}
        tensors["start_rows"] = sparse.start_rows
        if sparse.dense_rows is not None:
            tensors["dense_values"] = sparse.dense_rows.values
            tensors["dense_rows"] = sparse.dense_rows.rows
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}, meta


def from_tensors(
    tensors: Mapping[str, Tensor | None], meta: Mapping[str, int | str]
) -> tuple[LutWeight | UniformWeight, CsrWeight | None]:
    """Build and check the records.

    Raises: LayoutError naming a tensor or value that is missing or does not fit.
    """
    kind = _value(meta, "kind")
    codes = PackedCodes(
        words=_tensor(tensors, "words"),
        bits=int(_value(meta, "bits")),
        columns=int(_value(meta, "columns")),
        tile_codes=int(_value(meta, "tile_codes")),
        order={"sym": "signed", "uniform": "field"}.get(kind, "selector"),
    )
    check_choice("bits", codes.bits, (2, 3, 4, 8))
    if kind == "uniform":
        weight = UniformWeight(
            codes=codes,
            scale_zero=_tensor(tensors, "scale"),
            group_size=int(_value(meta, "group_size")),
            act_order=_value(meta, "act_order") or None,
            order=tensors.get("order"),
        )
        check_uniform(weight)
    else:
        codebook = Codebook(
            kind=kind,
            bits=codes.bits,
            table=_tensor(tensors, "table"),
            scale=tensors.get("scale"),
        )
        weight = LutWeight(codes=codes, codebook=codebook)
        check_lut(weight)
    if tensors.get("row_pointers") is None:
        return weight, None
    return weight, csr_from_tensors(tensors, weight.shape, int(meta.get("chunk_nnz", 0)))


def csr_from_tensors(
    tensors: Mapping[str, Tensor | None], shape: tuple[int, int], chunk_nnz: int
) -> CsrWeight:
    """The sparse part alone. Raises: LayoutError."""
    dense = None
    if tensors.get("dense_values") is not None:
        values, rows = tensors["dense_values"], _tensor(tensors, "dense_rows")
        dense = DenseRows(values=values, rows=rows)
    weight = CsrWeight(
        row_pointers=_tensor(tensors, "row_pointers"),
        columns=_tensor(tensors, "columns"),
        values=_tensor(tensors, "values"),
        shape=shape,
        chunk_nnz=chunk_nnz or None,
        start_rows=tensors.get("start_rows"),
        dense_rows=dense,
    )
    check_csr(weight)
    return weight


def _tensor(tensors: Mapping[str, Tensor | None], name: str) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise fail(name, "missing", f"a tensor; have: {', '.join(tensors)}")
    return tensor


def _value(meta: Mapping[str, int | str], name: str) -> int | str:
    if name not in meta:
        raise fail(name, "missing", f"a value; have: {', '.join(meta)}")
    return meta[name]
