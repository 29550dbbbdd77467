"""One writer per block: an O_EXCL file that its holder touches while it works.

A lease is broken when its holder is dead (same machine) or has not touched it for as long as
somebody has watched (`STALE_S`); clocks of two machines are never compared. Breaking a lease too
early costs work done twice, never a wrong file: commits are atomic and their bytes are equal.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from quantizer.errors import OutputError
from quantizer.run.ledger import FOLDER

HEARTBEAT_S = 5.0
STALE_S = 60.0
UNREADABLE_STALE_S = 2.0  # killed between creating the file and filling it


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a lease."""

    host: str
    pid: int
    started: str  # start of the process, since numbers of processes are used again
    token: str


def lease_path(folder: Path, block: str) -> Path:
    return folder / FOLDER / f"{block}.lease"


@contextmanager
def leased(path: Path) -> Iterator[bool]:
    """Hold the lease at `path`; False if somebody else, alive as far as known, holds it.

    Raises: OutputError if the folder cannot be written.
    """
    mine = Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_started(os.getpid()),
        token=secrets.token_hex(8),
    )
    if not _create(path, mine) and not (_take_over(path) and _create(path, mine)):
        yield False
        return
    stop = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, stop), daemon=True)
    thread.start()
    try:
        yield True
    finally:
        stop.set()
        thread.join()
        if _read(path) == mine:
            path.unlink(missing_ok=True)


@contextmanager
def patiently_leased(path: Path) -> Iterator[None]:
    """Hold the lease at `path`, after whoever else has it.

    Raises: OutputError.
    """
    while True:
        with leased(path) as mine:
            if mine:
                yield
                return
        wait_until_free(path)


def wait_until_free(path: Path, *, poll_s: float = 0.2) -> None:
    """Return when the lease is gone; break it when its holder shows no life."""
    seen, since = _touched(path), time.monotonic()
    while path.exists():
        if _touched(path) != seen:
            seen, since = _touched(path), time.monotonic()
        holder = _read(path)
        patience_s = STALE_S if holder else UNREADABLE_STALE_S
        if _dead(holder) or time.monotonic() - since > patience_s:
            break_lease(path)
            return
        time.sleep(poll_s)


def _take_over(path: Path) -> bool:
    return _dead(_read(path)) and break_lease(path)


def break_lease(path: Path) -> bool:
    """Take a dead lease away; False if it was renewed or taken away meanwhile."""
    before = _read(path)
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.tmp")
    try:
        path.rename(aside)
        renewed = _read(aside) != before
        if renewed and not path.exists():
            aside.rename(path)
            return False
        aside.unlink(missing_ok=True)
    except FileNotFoundError:
        return False
    return not renewed


def _create(path: Path, holder: Holder) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        os.write(handle, msgspec.json.encode(holder))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        os.close(handle)
    return True


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        try:
            os.utime(path)
        except OSError:
            return  # the lease was broken: the work goes on, its result is the same


def _read(path: Path) -> Holder | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Holder)
    except (OSError, msgspec.DecodeError):
        return None


def _touched(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


def _dead(holder: Holder | None) -> bool:
    """Known to be dead: a process of this machine that is gone."""
    if holder is None or holder.host != socket.gethostname():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _started(holder.pid) != holder.started


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot; empty where /proc is missing."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]
