"""One thing timed once: what it was, under which conditions, and every sample."""

from statistics import median, quantiles

import msgspec

SCHEMA = "memwall.measurement/1"

Scalar = bool | int | float | str | None


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All samples of one case on one device; statistics are derived, never stored."""

    schema: str = SCHEMA
    suite: str  # "kernels", "probe", "generate", ...
    name: str  # what ran: a weight format, a peer's kernel, a roof
    params: dict[str, int | float | str]  # what tells cases of one name apart: rows, columns, ...
    device: str  # slug of the device, see Environment
    timing_mode: str  # "cpu-clock", "cuda-graph", "cuda-events" or "profiler"
    l2_policy: str  # "cold" or "warm": where the weights come from
    clock_policy: str = "default"  # "locked" where the clocks were fixed
    samples_s: tuple[float, ...]  # seconds of one call each, in the order taken
    bytes_moved: int  # per call, what must reach DRAM
    flops: int  # per call
    facts: dict[str, Scalar] = {}  # error against the reference, copies, kernel, ...
    refused: str | None = None  # why these samples are no result; None: they are one
    environment: str  # id of the Environment

    @property
    def key(self) -> str:
        """What has to agree before two measurements may be compared."""
        params = ",".join(f"{name}={self.params[name]}" for name in sorted(self.params))
        modes = "/".join((self.timing_mode, self.l2_policy, self.clock_policy))
        return f"{self.suite}/{self.name}[{params}]@{self.device}/{modes}"

    @property
    def median_s(self) -> float:
        return median(self.samples_s)

    @property
    def quartiles_s(self) -> tuple[float, float]:
        """First and third quartile; the sample itself where there is only one."""
        return quartiles(self.samples_s)

    @property
    def noise(self) -> float:
        """Interquartile range over the median."""
        return noise(self.samples_s)

    @property
    def bytes_per_s(self) -> float:
        return self.bytes_moved / self.median_s

    @property
    def flop_per_s(self) -> float:
        return self.flops / self.median_s


def quartiles(samples_s: tuple[float, ...] | list[float]) -> tuple[float, float]:
    """First and third quartile, linear between samples."""
    if len(samples_s) == 1:
        return samples_s[0], samples_s[0]
    first, _, third = quantiles(samples_s, n=4, method="inclusive")
    return first, third


def noise(samples_s: tuple[float, ...] | list[float]) -> float:
    """Interquartile range over the median: what the stop rule and the verdict look at."""
    first, third = quartiles(samples_s)
    return (third - first) / median(samples_s)
