"""Records as flat tensors and a few plain values, for checkpoints and `torch.library` ops.

Tensor names: `words`, `table`, `scale`, `order`, `row_pointers`, `columns`, `values`,
`start_rows`, `dense_values`, `dense_rows`, `levels`; a name that a weight does not need is absent.
Kinds: those of a codebook, `uniform`, `vector1`, `vector2`, `vector4` (by dimension; `group_size`
is the weights of a table, `subrow` the columns of a blockwise scale or 0), and `bilevel` (`scale`
is its first level, `table` the second).
"""

from collections.abc import Mapping

from torch import Tensor

from kernels.checks import check_choice, fail
from kernels.layouts.bilevel import BilevelWeight, check_bilevel
from kernels.layouts.codebook import Codebook, LutWeight, check_lut
from kernels.layouts.codes import BITS, PackedCodes
from kernels.layouts.sparse import CsrWeight, DenseRows, check_csr
from kernels.layouts.uniform import UniformWeight, check_uniform
from kernels.layouts.vector import VectorWeight, check_vector, code_order
from kernels.layouts.weights import Weight

Meta = dict[str, int | str]
VECTOR_KINDS = {"vector1": 1, "vector2": 2, "vector4": 4}


def to_tensors(weight: Weight, sparse: CsrWeight | None = None) -> tuple[dict[str, Tensor], Meta]:
    """Tensors and metadata of a weight; the inverse of `from_tensors`."""
    codes = weight.codes
    meta: Meta = {"bits": codes.bits, "columns": codes.columns, "tile_codes": codes.tile_codes}
    own: dict[str, Tensor | None]
    if isinstance(weight, LutWeight):
        meta["kind"] = weight.codebook.kind
        own = {"table": weight.codebook.table, "scale": weight.codebook.scale}
    elif isinstance(weight, UniformWeight):
        meta |= {"kind": "uniform", "group_size": weight.group_size}
        meta["act_order"] = weight.act_order or ""
        own = {"scale": weight.scale_zero, "order": weight.order}
    elif isinstance(weight, VectorWeight):
        meta |= {"kind": f"vector{codes.dim}", "group_size": weight.group}
        meta["subrow"] = weight.subrow or 0
        own = {"table": weight.table, "scale": weight.scale, "levels": weight.levels}
    else:
        meta["kind"] = "bilevel"
        own = {"table": weight.second, "scale": weight.first, "order": weight.order}
    tensors = {"words": codes.words, **own}
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
) -> tuple[Weight, CsrWeight | None]:
    """Build and check the records.

    Raises: LayoutError naming a tensor or value that is missing or does not fit.
    """
    weight = _weight_from(tensors, meta)
    if tensors.get("row_pointers") is None:
        return weight, None
    return weight, csr_from_tensors(tensors, weight.shape, int(meta.get("chunk_nnz", 0)))


def _weight_from(tensors: Mapping[str, Tensor | None], meta: Mapping[str, int | str]) -> Weight:
    kind = str(_value(meta, "kind"))
    codes = _codes_from(tensors, meta, kind)
    if kind == "uniform":
        uniform = UniformWeight(
            codes=codes,
            scale_zero=_tensor(tensors, "scale"),
            group_size=int(_value(meta, "group_size")),
            act_order=str(_value(meta, "act_order")) or None,
            order=tensors.get("order"),
        )
        check_uniform(uniform)
        return uniform
    if kind in VECTOR_KINDS:
        vector = VectorWeight(
            codes=codes,
            table=_tensor(tensors, "table"),
            scale=_tensor(tensors, "scale"),
            group=int(_value(meta, "group_size")),
            subrow=int(meta.get("subrow", 0)) or None,
            levels=tensors.get("levels"),
        )
        check_vector(vector)
        return vector
    if kind == "bilevel":
        bilevel = BilevelWeight(
            codes=codes,
            first=_tensor(tensors, "scale"),
            second=_tensor(tensors, "table"),
            order=tensors.get("order"),
        )
        check_bilevel(bilevel)
        return bilevel
    table = _tensor(tensors, "table")
    codebook = Codebook(kind=kind, bits=codes.bits, table=table, scale=tensors.get("scale"))
    weight = LutWeight(codes=codes, codebook=codebook)
    check_lut(weight)
    return weight


def _codes_from(
    tensors: Mapping[str, Tensor | None], meta: Mapping[str, int | str], kind: str
) -> PackedCodes:
    bits, dim = int(_value(meta, "bits")), VECTOR_KINDS.get(kind, 1)
    check_choice("bits", bits, BITS)
    order = {"sym": "signed", "uniform": "field", "bilevel": "field"}.get(kind, "selector")
    order = code_order(dim, bits) if kind in VECTOR_KINDS else order
    return PackedCodes(
        words=_tensor(tensors, "words"),
        bits=bits,
        columns=int(_value(meta, "columns")),
        tile_codes=int(_value(meta, "tile_codes")),
        order=order,
        dim=dim,
    )


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
