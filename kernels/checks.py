"""Argument checks shared by layouts and launchers: what was given, what was found, what was due."""

from collections.abc import Sequence

import torch
from torch import Tensor


class LayoutError(ValueError):
    """An argument whose shape, dtype, stride, device or values a kernel cannot read."""


def fail(argument: str, found: object, expected: object) -> LayoutError:
    return LayoutError(f"{argument} is {found}, expected {expected}")


def check_tensor(
    argument: str,
    tensor: object,
    *,
    dtype: torch.dtype | Sequence[torch.dtype],
    shape: Sequence[int | None],
    device: torch.device | None = None,
    contiguous: bool = True,
) -> None:
    """Check one tensor; `None` in `shape` leaves that length free.

    Raises: LayoutError naming the argument, what was found and what was expected.
    """
    if not isinstance(tensor, Tensor):
        raise fail(argument, f"a {type(tensor).__name__}", "a torch.Tensor")
    dtypes = (dtype,) if isinstance(dtype, torch.dtype) else tuple(dtype)
    if tensor.dtype not in dtypes:
        raise fail(f"dtype of {argument}", tensor.dtype, " or ".join(str(d) for d in dtypes))
    fits = tensor.ndim == len(shape) and all(
        due is None or size == due for size, due in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        due = ", ".join("any" if size is None else str(size) for size in shape)
        raise fail(f"shape of {argument}", tuple(tensor.shape), f"({due})")
    if device is not None and tensor.device != device:
        raise fail(f"device of {argument}", tensor.device, device)
    if contiguous and not tensor.is_contiguous():
        raise fail(f"stride of {argument}", tensor.stride(), "a contiguous tensor")


def check_choice(argument: str, value: object, choices: Sequence[object]) -> None:
    """Raises: LayoutError unless `value` is one of `choices`."""
    if value not in choices:
        raise fail(argument, repr(value), "one of " + ", ".join(str(c) for c in choices))


def check_range(argument: str, tensor: Tensor, low: int, high: int) -> None:
    """Check that integers lie in low..high-1; for packing only, as it reads the whole tensor.

    Raises: LayoutError naming the argument and its extremes.
    """
    if tensor.numel() == 0:
        return
    least, most = int(tensor.min()), int(tensor.max())
    if least < low or most >= high:
        raise fail(f"range of {argument}", f"{least}..{most}", f"{low}..{high - 1}")
