"""`QuantizedLinear`: a linear layer on packed weights, built from a checkpoint's tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kernels import ops
from kernels.checks import check_choice, check_tensor, fail
from kernels.dispatch import paths
from kernels.launch import new_counters
from kernels.layouts.bilevel import BilevelWeight
from kernels.layouts.codebook import LutWeight, to_fixed_point
from kernels.layouts.sparse import CsrWeight
from kernels.layouts.tensors import from_tensors, to_tensors
from kernels.layouts.weights import Weight

TENSORS = (
    "words", "table", "scale", "order", "levels", "row_pointers", "columns", "values",
    "start_rows", "dense_values", "dense_rows",
)  # fmt: skip


class QuantizedLinear(nn.Module):
    """y = x (W + S)^T + bias with packed W and an optional sparse part S.

    x (..., K) float16 -> (..., N) float16. One layer must not run on two streams at once: its
    arrival counters are its own. Safe to capture in a CUDA graph; never synchronizes.
    """

    def __init__(
        self,
        weight: Weight,
        sparse: CsrWeight | None = None,
        bias: Tensor | None = None,
        *,
        path: str = "exact",
    ) -> None:
        """path: `exact` or `int`, for one token; `int` derives a fixed-point table from FP16 here.

        Raises: LayoutError.
        """
        super().__init__()
        check_choice("path", path, paths(weight))
        if sparse is not None and not isinstance(weight, LutWeight | BilevelWeight):
            raise fail("sparse", f"given with a {type(weight).__name__}", "None")
        rows, columns = weight.shape
        if bias is not None:
            check_tensor("bias", bias, dtype=torch.float16, shape=(rows,), device=weight.device)
        self.in_features, self.out_features, self.path = columns, rows, path
        tensors, self.meta = to_tensors(weight, sparse)
        for name in TENSORS:
            self.register_buffer(name, tensors.get(name))
        self.register_buffer("bias", bias)
        fixed = None
        if path == "int" and self.meta["kind"] == "fp16":
            fixed = to_fixed_point(weight).codebook
        self.register_buffer("fixed_table", fixed and fixed.table, persistent=False)
        self.register_buffer("fixed_scale", fixed and fixed.scale, persistent=False)
        counters = new_counters(rows, weight.device)
        self.register_buffer("counters", counters, persistent=False)

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        meta: Mapping[str, int | str],
        *,
        path: str = "exact",
    ) -> "QuantizedLinear":
        """Build from the tensors of `layouts.tensors.to_tensors`, plus an optional `bias`.

        Raises: LayoutError naming what is missing or does not fit.
        """
        weight, sparse = from_tensors(tensors, meta)
        return cls(weight, sparse, tensors.get("bias"), path=path)

    def forward(self, x: Tensor) -> Tensor:
        meta = self.meta
        tokens = x.reshape(-1, self.in_features)
        kind, table, scale = meta["kind"], self.table, self.scale
        if self.fixed_table is not None and tokens.shape[0] == 1:
            kind, table, scale = "int16", self.fixed_table, self.fixed_scale
        geometry = (kind, meta["bits"], meta["columns"], meta["tile_codes"])
        if self.row_pointers is not None:
            y = ops.sparse_linear(
                tokens, self.words, table, scale, self.order, self.row_pointers, self.columns,
                self.values, self.dense_values, self.dense_rows, self.counters, *geometry,
                self.path,
            )  # fmt: skip
        else:
            groups = (meta.get("group_size", 0), meta.get("subrow", 0), meta.get("act_order", ""))
            y = ops.linear(
                tokens, self.words, table, scale, self.order, self.levels, self.counters,
                *geometry, *groups, self.path,
            )  # fmt: skip
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        described = ", ".join(f"{name}={value}" for name, value in self.meta.items())
        return f"{self.in_features}, {self.out_features}, path={self.path}, {described}"
