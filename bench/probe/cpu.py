"""Loops that a CPU can do no faster: reading, the triad, and a call that does nothing."""

import numpy as np
from numba import get_num_threads, njit, prange

PIECES = 16  # per thread, so that a slow core does not hold up the rest


@njit(fastmath=True)
def _four_streams(a, b, c, d):
    """Four places at once keep more cache lines under way than one; sums in any order."""
    total = np.float32(0)
    for i in range(a.shape[0]):
        total += (a[i] + b[i]) + (c[i] + d[i])
    return total


@njit(parallel=True, nogil=True)
def _read(x, sums):
    quarter = x.shape[0] // sums.shape[0] // 4
    for piece in prange(sums.shape[0]):
        part = x[4 * quarter * piece : 4 * quarter * (piece + 1)]
        sums[piece] = _four_streams(
            part[:quarter],
            part[quarter : 2 * quarter],
            part[2 * quarter : 3 * quarter],
            part[3 * quarter :],
        )


@njit(parallel=True, nogil=True)
def _triad(a, b, c, scale):
    for i in prange(a.shape[0]):
        c[i] = a[i] + scale * b[i]


@njit(parallel=True, nogil=True)
def nothing(x):
    """Start all threads and stop them again."""
    for i in prange(x.shape[0]):
        x[i] = 0


def read(x: np.ndarray) -> None:
    """Sum a float32 vector on all threads."""
    _read(x, np.empty(PIECES * get_num_threads(), np.float32))


def triad(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    """c = a + 2 b."""
    _triad(a, b, c, np.float32(2))
