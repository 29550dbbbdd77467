"""What SqueezeLLM compares itself with: groups that have a codebook of their own, no sparse part.

SqueezeLLM, arXiv 2306.07629, section 5 and appendix: groups of 1024 or 512 weights cost about as
many bits as 0.05 and 0.1 % of sparse values. No kernel reads this format; the result is a plain
weight, for evaluation only. The other ablations are settings: `weighting="activation"`, and
`selection="sensitive"` or `"outliers"`.
"""

import msgspec
from torch import Tensor

from quantizer.codebooks import fit_table
from quantizer.matrix import SettingsError, check_matrix

ENTRY_BITS = 16


class GroupedWeight(msgspec.Struct, frozen=True, kw_only=True):
    """An (N, K) weight after quantization, and what storing it would take."""

    values: Tensor  # (N, K) float32
    bits_per_weight: float  # codes and FP16 tables
    error: float  # sum of importance x squared change


def grouped_codebook(weight: Tensor, importance: Tensor, *, bits: int, group: int) -> GroupedWeight:
    """A codebook of 2^bits FP16 entries per `group` neighbouring weights of a row.

    importance: (N, K) weights of the clustering, the Fisher diagonal for SqueezeLLM.

    Raises: SettingsError unless the group divides K; ClusteringError for bad importance.
    """
    check_matrix(weight)
    rows, columns = weight.shape
    if group < 1 or columns % group:
        raise SettingsError(f"group is {group}, expected a divisor of {columns} columns")
    cells = weight.detach().float().reshape(-1, group)
    table = fit_table(cells, importance.float().reshape(-1, group), bits=bits, kind="fp16")
    values = table.values.gather(1, table.codes.long())
    return GroupedWeight(
        values=values.reshape(rows, columns),
        bits_per_weight=bits + ENTRY_BITS * 2**bits / group,
        error=table.error,
    )
