"""The CPU as a device: which cores we may use, and whether another process had them meanwhile.

Linux counts for every thread how long it stood in the queue for a core. A sample during which our
threads waited measures the neighbours, not the kernel: it is discarded, as a GPU's samples below
its clock are.
"""

import os
from pathlib import Path

from perfmodel.errors import UsageError

_TASKS = Path("/proc/self/task")
NANO = 1e-9


def cores_allowed() -> list[int]:
    """Cores that this process may run on, in order."""
    return sorted(os.sched_getaffinity(0))


def use_threads(threads: int | None) -> int:
    """Keep this process on its first cores, one thread each; all of them by default.

    To be called before numba is imported, which counts the cores once. Returns the threads.
    Raises: UsageError for more threads than cores.
    """
    cores = cores_allowed()
    threads = len(cores) if threads is None else threads
    if threads > len(cores):
        raise UsageError(f"--threads {threads}: this process may use {len(cores)} cores")
    os.sched_setaffinity(0, cores[:threads])
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = str(threads)
    import torch

    torch.set_num_threads(threads)
    return threads


def waited_s() -> float:
    """Seconds that our threads have stood in a queue for a core; 0 where nobody counts them."""
    total_ns = 0
    try:
        for task in _TASKS.iterdir():
            total_ns += int((task / "schedstat").read_bytes().split()[1])
    except (OSError, IndexError):  # no Linux, no such accounting, or a thread that has just ended
        return 0.0
    return total_ns * NANO
