"""Every method by its name: `quantize_matrix` is the one way in."""

from collections.abc import Callable

import msgspec
from torch import Tensor

from quantizer.methods.awq import quantize_awq
from quantizer.methods.gptq import quantize_gptq
from quantizer.methods.gptvq import quantize_gptvq
from quantizer.methods.matrix import (
    QuantizedMatrix,
    Settings,
    SettingsError,
    Statistics,
    check_matrix,
)
from quantizer.methods.rtn import quantize_rtn
from quantizer.methods.spqr import quantize_spqr
from quantizer.methods.squeezellm import quantize_codebook, weighting_of


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """A pure function of one matrix, and what it must know."""

    quantize: Callable[[Tensor, Statistics, Settings], QuantizedMatrix]
    needs: Callable[[Settings], frozenset[str]]


def _nothing(_settings: Settings) -> frozenset[str]:
    return frozenset()


def _hessian(_settings: Settings) -> frozenset[str]:
    return frozenset({"hessian"})


def _inputs(_settings: Settings) -> frozenset[str]:
    return frozenset({"hessian", "mean_abs"})


def _sensitivity(settings: Settings) -> frozenset[str]:
    needed = {"fisher": "fisher", "activation": "hessian"}.get(weighting_of(settings))
    return frozenset({needed} if needed else ())


METHODS = {
    "rtn": Method(quantize=quantize_rtn, needs=_nothing),
    "kmeans": Method(quantize=quantize_codebook, needs=_sensitivity),
    "squeezellm": Method(quantize=quantize_codebook, needs=_sensitivity),
    "gptq": Method(quantize=quantize_gptq, needs=_hessian),
    "awq": Method(quantize=quantize_awq, needs=_inputs),
    "spqr": Method(quantize=quantize_spqr, needs=_hessian),
    "gptvq": Method(quantize=quantize_gptvq, needs=_hessian),
}


def method_of(settings: Settings) -> Method:
    """Raises: SettingsError listing the known methods."""
    if settings.method not in METHODS:
        have = ", ".join(METHODS)
        raise SettingsError(f"no method {settings.method!r} in the quantizer; have: {have}")
    return METHODS[settings.method]


def needs(settings: Settings) -> frozenset[str]:
    """The fields of `Statistics` that the method reads.

    Raises: SettingsError.
    """
    return method_of(settings).needs(settings)


def quantize_matrix(weight: Tensor, statistics: Statistics, settings: Settings) -> QuantizedMatrix:
    """Quantize an (N, K) weight of any float dtype; deterministic, and nothing is changed.

    Raises: SettingsError, ClusteringError, or LayoutError for shapes that no kernel reads.
    """
    method = method_of(settings)
    check_matrix(weight)
    return method.quantize(weight.detach(), statistics, settings)
