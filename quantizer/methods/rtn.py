"""Round to nearest: the baseline that looks at nothing but the weight."""

import torch
from torch import Tensor

from kernels.layouts import pack_uniform
from quantizer.methods.grids import fit_groups, group_of_column, to_codes
from quantizer.methods.matrix import QuantizedMatrix, Settings, Statistics


def quantize_rtn(weight: Tensor, _statistics: Statistics, settings: Settings) -> QuantizedMatrix:
    """Asymmetric min-max grid per row or group, nearest codes of the (N, K) weight."""
    wide = weight.float()
    grids = fit_groups(wide, settings.bits, settings.group)
    group = group_of_column(wide.shape[1], settings.group, wide.device)
    codes = to_codes(wide, grids[:, group], settings.bits)
    return packed_uniform(codes, grids, settings)


def packed_uniform(
    codes: Tensor, grids: Tensor, settings: Settings, **notes: float | int | str
) -> QuantizedMatrix:
    """Float (N, K) codes on (N, groups, 2) grids as the kernels read them."""
    packed = pack_uniform(
        codes.to(torch.uint8),
        grids.to(torch.float16),
        bits=settings.bits,
        group_size=settings.group,
    )
    return QuantizedMatrix(weight=packed, notes=notes)
