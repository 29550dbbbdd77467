"""Random weights are of the true format: its bytes, its layout, values that a decoder can bear."""

import pytest
import torch

from bench.kernels.random_weights import random_weight
from kernels.dispatch import matmul_ref
from kernels.layouts import CsrWeight
from kernels.layouts.sparse import check_csr
from perfmodel.errors import UsageError
from perfmodel.format_names import parse_format

ROWS, COLUMNS = 64, 384
FORMATS = (
    *("fp16", "gptq-w4", "gptq-w3-g128", "awq-w4-g128", "rtn-w8", "rtn-w2", "gptq-w4-act"),
    *("gptq-w4-g128-act", "squeezellm-w2", "squeezellm-w3", "squeezellm-w4", "squeezellm-w8"),
    *("squeezellm-w5", "squeezellm-w6-s0.45", "kmeans-w7", "gptq-w5", "awq-w6-g128", "rtn-w7"),
    *("squeezellm-w3-s0.45", "squeezellm-w4-s5-hybrid", "squeezellm-w3-s0.45-balanced"),
    *("squeezellm-w4-int8", "squeezellm-w4-u7", "squeezellm-w4-sym", "kmeans-w3"),
    *("gptvq-1d-w3", "gptvq-2d-w2", "gptvq-2d-w2-n64", "gptvq-4d-w2", "spqr-w3-g16-s1"),
    *("spqr-w4-g16-s1-act", "spqr-w2-g16"),
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_are_those_of_the_format(name):
    parts = random_weight(name, (ROWS, COLUMNS), generator())
    stored = sum(
        part.nbytes if isinstance(part, torch.Tensor) else sum(part.nbytes_by_item().values())
        for part in parts
    )
    assert stored == parse_format(name).weight_bytes(ROWS, COLUMNS)


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "fp16"])
def test_records_pass_their_checks_and_keep_activations_of_their_size(name):
    parts = random_weight(name, (ROWS, COLUMNS), generator())
    x = torch.randn(4, COLUMNS, generator=generator(1), dtype=torch.float16)
    y = matmul_ref(x, *parts)
    assert 0.1 < float(y.std()) < 2.0
    if len(parts) == 2:
        assert isinstance(parts[1], CsrWeight)
        check_csr(parts[1])


def test_rows_kept_dense_have_no_nonzeros_of_their_own():
    _, sparse = random_weight("squeezellm-w4-s5-hybrid", (ROWS, COLUMNS), generator())
    counts = sparse.row_pointers.diff()
    assert int(counts[sparse.dense_rows.rows.long()].sum()) == 0
    assert int(counts.max()) - int(counts[10:].min()) <= 2  # evenly spread


def test_the_seed_decides():
    first, second, other = (
        random_weight("squeezellm-w3", (8, 128), generator(s))[0] for s in (0, 0, 1)
    )
    assert torch.equal(first.codes.words, second.codes.words)
    assert not torch.equal(first.codes.words, other.codes.words)


def test_weights_of_one_input_share_their_order():
    q, k = (random_weight("gptq-w4-g128-act", (8, 256), generator(s))[0] for s in (0, 1))
    assert torch.equal(q.order, k.order)
    gather = random_weight("gptq-w4-g128-act", (8, 256), generator(), act_order="gather")[0]
    assert torch.bincount(gather.order).tolist() == [128, 128]


@pytest.mark.parametrize(
    "name", ["w4", "spqr-w3-g32", "gptvq-4d-w3", "gptvq-1d-w3-n16", "squeezellm-w3@paper"]
)
def test_a_format_that_no_kernel_runs_is_refused(name):
    with pytest.raises(UsageError, match="no kernel runs weights"):
        random_weight(name, (8, 128), generator())
