"""The only place with powers of ten and of two: datasheet units in, SI base units inside.

GB is 1e9 bytes and GiB is 2**30 bytes. Bandwidths and capacities of datasheets are GB; caches are
KiB and MiB.
"""

KILO = 1e3
MEGA = 1e6
GIGA = 1e9
TERA = 1e12
MILLI = 1e-3
MICRO = 1e-6

KIB = 2**10
MIB = 2**20
GIB = 2**30

_PREFIXES = ((TERA, "T"), (GIGA, "G"), (MEGA, "M"), (KILO, "k"))


def ceil_div(numerator: int, denominator: int) -> int:
    """Smallest integer not below numerator / denominator."""
    return -(-numerator // denominator)


def bytes_of_bits(bits: int) -> int:
    """Whole bytes that hold this many bits."""
    return ceil_div(bits, 8)


def significant(value: float, digits: int = 3) -> str:
    """Value with this many significant digits, never in exponent form: 0.0173, 17.3, 1730."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = int(f"{rounded:e}".partition("e")[2])
    return f"{rounded:.{max(0, digits - 1 - exponent)}f}"


def si(value: float, unit: str, digits: int = 3) -> str:
    """Value with an SI prefix: si(154.8e12, "FLOP/s") is "155 TFLOP/s"."""
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale:
            return f"{significant(value / scale, digits)} {prefix}{unit}"
    return f"{significant(value, digits)} {unit}"


def duration(time_s: float, digits: int = 4) -> str:
    """Time in the unit that reads best: "17.30 ms", "412.0 us", "2.214 s"."""
    if time_s >= 1:
        return f"{significant(time_s, digits)} s"
    if time_s >= MILLI:
        return f"{significant(time_s / MILLI, digits)} ms"
    return f"{significant(time_s / MICRO, digits)} us"
