"""Launch constants per architecture: a plain table, never a search at run time."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchTable:
    """How many one-warp programs an SM should hold so that enough bytes are in flight."""

    warps_per_sm: int
    # The `int` path of a 7-bit table: "u7" ORs the two half-table lookups, "u7sum" feeds both to
    # DP4A (fewer ALU, more FMA-heavy instructions).
    int_u7_step: str = "u7"
    gemm_tokens: int = 16  # more tokens than this: dequantize, then the vendor's matmul


# Little's law: bandwidth x latency / SM count, 2 KiB in flight per warp (four 128-bit row loads).
# H200: 4.8 TB/s x 0.7 us / 132 = 26 KiB; A6000: 768 GB/s x 0.6 us / 84 = 5.5 KiB. Not yet tuned
# on a device: `python -m bench all` measures it.
LAUNCH_TABLES = {
    (8, 0): LaunchTable(warps_per_sm=10),
    (8, 6): LaunchTable(warps_per_sm=6),
    (8, 9): LaunchTable(warps_per_sm=6),
    (9, 0): LaunchTable(warps_per_sm=13),
}
DEFAULT_TABLE = LaunchTable(warps_per_sm=8)


def programs_wanted(device: torch.device) -> int:
    """Programs that fill a device; 1 where nothing runs in parallel (the interpreter)."""
    if device.type != "cuda":
        return 1
    sm_count = torch.cuda.get_device_properties(device).multi_processor_count
    return launch_table(device).warps_per_sm * sm_count


def int_u7_step(device: torch.device) -> str:
    return launch_table(device).int_u7_step


def gemm_tokens(device: torch.device) -> int:
    return launch_table(device).gemm_tokens


def launch_table(device: torch.device) -> LaunchTable:
    if device.type != "cuda":
        return DEFAULT_TABLE
    return LAUNCH_TABLES.get(torch.cuda.get_device_capability(device), DEFAULT_TABLE)
