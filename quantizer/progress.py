"""Progress with the time that is left, on standard error and only on a terminal."""

import sys
import time


class Progress:
    """A line that rewrites itself; silent where nobody watches."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.begin = time.monotonic()
        self.shown = sys.stderr.isatty()

    def step(self, detail: str = "") -> None:
        self.to(self.done + 1, self.total, detail)

    def to(self, done: int, total: int, detail: str = "") -> None:
        self.done, self.total = done, total
        if not self.shown:
            return
        left_s = (time.monotonic() - self.begin) / done * (total - done) if done else 0.0
        line = f"{self.what} {done}/{total} {detail} {duration(left_s)} left"
        print(f"\r\x1b[K{line}", end="" if done < total else "\n", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """3 s, 4 min 10 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
