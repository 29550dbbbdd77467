"""Arithmetic that takes plain numbers or numpy arrays of them: one formula for one and millions.

numpy is imported only when an array comes along, so that a single prediction starts without it.
"""

from typing import Any


def is_array(value: Any) -> bool:
    """Whether the value is a numpy array (or scalar) and not a plain number."""
    return hasattr(value, "dtype")


def largest(first: Any, *others: Any) -> Any:
    """Largest value, element by element."""
    for other in others:
        if is_array(first) or is_array(other):
            import numpy

            first = numpy.maximum(first, other)
        else:
            first = max(first, other)
    return first


def smallest(first: Any, second: Any) -> Any:
    """Smaller value, element by element."""
    if is_array(first) or is_array(second):
        import numpy

        return numpy.minimum(first, second)
    return min(first, second)


def where(condition: Any, yes: Any, no: Any) -> Any:
    """`yes` where the condition holds, else `no`."""
    if is_array(condition):
        import numpy

        return numpy.where(condition, yes, no)
    return yes if condition else no


def bounds(value: Any) -> tuple[Any, Any]:
    """Smallest and largest element; twice the value itself if it is a plain number."""
    return (value.min(), value.max()) if is_array(value) else (value, value)
