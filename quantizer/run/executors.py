"""Run tasks through the `concurrent.futures` interface, and survive those who kill their worker.

serial            in this process
local[:N]         N processes of this machine
dask://HOST:PORT  the workers of a Dask cluster (extra `dist`); Dask has no authentication and
                  its processes trust each other: only on a network that you trust

A task that raises is tried again, `ATTEMPTS` times in all, then put aside, and the rest goes on. A
process that dies breaks the pool of its machine: a new pool is made, and the tasks that were in
work run one at a time until it is known which of them kills it.
"""

import multiprocessing
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import msgspec

from perfmodel.errors import missing_package
from quantizer.errors import CheckFailedError, PerfmodelError, UsageError

ATTEMPTS = 3
POLL_S = 0.2  # how often a request to stop is looked at
WAIT_S = 30.0  # for a Dask scheduler to answer
_LOCAL = re.compile(r"local(:(?P<count>[1-9][0-9]{0,3}))?")
_DASK = re.compile(r"dask://(?P<address>[A-Za-z0-9_.\-]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5})")


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A task that was given up."""

    task: Any
    reason: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Results in the order in which they came, failures, and whether it was stopped before."""

    results: list[Any]
    failures: list[Failure]
    stopped: bool


def check_executor(spec: str) -> None:
    """Raises: UsageError unless `open_workers` knows what this is."""
    if spec != "serial" and not _LOCAL.fullmatch(spec) and not _DASK.fullmatch(spec):
        raise UsageError(f"no executor {spec!r}; have: serial, local, local:N, dask://HOST:PORT")


def workers_of(spec: str) -> int:
    """How many tasks run at once, as far as is known without asking a cluster."""
    match = _LOCAL.fullmatch(spec)
    return int(match["count"] or os.cpu_count() or 1) if match else 1


def run_tasks(
    spec: str,
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    *,
    on_result: Callable[[Any], None],
    stopping: Callable[[], bool],
) -> Outcome:
    """Run `function` on every task; after a request to stop, those in work are finished.

    An error of ours (PerfmodelError: a full disk, another identity) is nothing that a second try
    would mend: it ends the run.

    Raises: UsageError, PerfmodelError of a task.
    """
    check_executor(spec)
    if spec == "serial":
        return _run_serial(function, tasks, on_result, stopping)
    run = _Run(function, tasks, on_result, stopping)
    while run.unfinished():
        with _open_workers(spec) as (executor, width):
            run.until_broken(executor, width)
        if run.stopping():
            break
    return Outcome(
        results=run.results, failures=run.failures, stopped=run.stopping() and run.unfinished()
    )


def _run_serial(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    on_result: Callable[[Any], None],
    stopping: Callable[[], bool],
) -> Outcome:
    results, failures = [], []
    for index, task in enumerate(tasks):
        if stopping():
            return Outcome(results=results, failures=failures, stopped=index < len(tasks))
        for attempt in range(ATTEMPTS):
            try:
                results.append(function(task))
                on_result(results[-1])
                break
            except PerfmodelError:
                raise
            except Exception as error:
                if attempt + 1 == ATTEMPTS:
                    failures.append(Failure(task=task, reason=_reason(error)))
    return Outcome(results=results, failures=failures, stopped=False)


class _Run:
    """Tasks that wait, tasks in work, and suspects: in work when a pool broke."""

    def __init__(
        self,
        function: Callable[[Any], Any],
        tasks: Sequence[Any],
        on_result: Callable[[Any], None],
        stopping: Callable[[], bool],
    ) -> None:
        self.function, self.on_result, self.stopping = function, on_result, stopping
        self.tasks = tasks
        self.attempts = [0] * len(tasks)
        self.waiting = deque(range(len(tasks)))
        self.suspects: deque[int] = deque()
        self.results: list[Any] = []
        self.failures: list[Failure] = []

    def unfinished(self) -> bool:
        return bool(self.waiting or self.suspects)

    def until_broken(self, executor: Executor, width: int) -> None:
        """Work until nothing is left, a stop is asked for, or the pool has broken."""
        running: dict[Future[Any], int] = {}
        broken = False
        while True:
            if not broken and not self.stopping():
                broken = not self._fill(executor, width, running)
            if not running:
                return
            done, _ = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                broken |= self._settle(running.pop(future), future)

    def _fill(self, executor: Executor, width: int, running: dict[Future[Any], int]) -> bool:
        """Submit what may run now; suspects run alone. False if the pool is broken."""
        while self.unfinished() and len(running) < (1 if self.suspects else width):
            queue = self.suspects or self.waiting
            try:
                future = executor.submit(self.function, self.tasks[queue[0]])
            except BrokenProcessPool:
                return False
            except (RuntimeError, OSError) as error:  # a cluster that is gone
                raise CheckFailedError(
                    f"the executor takes no more work: {_reason(error)}; what is finished is kept"
                ) from None
            running[future] = queue.popleft()
            if queue is self.suspects:
                break
        return True

    def _settle(self, index: int, future: Future[Any]) -> bool:
        """Take a result, or count the attempt. True if the pool is broken."""
        error = CancelledError() if future.cancelled() else future.exception()
        if error is None:
            self.results.append(future.result())
            self.on_result(self.results[-1])
            return False
        if isinstance(error, PerfmodelError):
            raise error
        broken = isinstance(error, BrokenProcessPool)
        self.attempts[index] += 1
        if self.attempts[index] < ATTEMPTS:
            (self.suspects if broken else self.waiting).append(index)
        else:
            self.failures.append(Failure(task=self.tasks[index], reason=_reason(error)))
        return broken


@contextmanager
def _open_workers(spec: str) -> Iterator[tuple[Executor, int]]:
    """An executor and how many tasks it runs at once."""
    match = _LOCAL.fullmatch(spec)
    if match is None:
        with _dask_workers(spec) as workers:
            yield workers
        return
    width = workers_of(spec)
    threads = max(1, (os.cpu_count() or 1) // width)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(width, context, _start_worker, (threads,))
    try:
        yield pool, width
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _dask_workers(spec: str) -> Iterator[tuple[Executor, int]]:
    try:
        from distributed import Client
    except ImportError as error:
        raise missing_package(error, "dist") from None
    address = spec.removeprefix("dask://")
    try:
        client = Client(f"tcp://{address}", timeout=WAIT_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise UsageError(f"{spec}: no scheduler answers: {error}") from None
    try:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        threads = sum(worker["nthreads"] for worker in workers.values())
        executor = client.get_executor(pure=False)
        try:
            yield executor, max(1, threads)
        finally:
            executor.shutdown(wait=False)
    finally:
        client.close()


def _start_worker(threads: int) -> None:
    """Share the cores, before torch and numba count them; leave Ctrl-C to the one that waits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ |= {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
