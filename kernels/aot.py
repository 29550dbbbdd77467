"""`python -m kernels.aot`: compile every shipped kernel for GPUs that are not there, and report.

Registers, spills, shared memory, lane slots per decoded weight and unit, the decode ceiling and
the share of each device's DRAM bandwidth that it allows. A share above 1 means memory-bound.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from kernels.case import KernelCase
from kernels.ceiling import load_rates
from kernels.compile_report import AMD_TARGETS, CompileError, Report, report

NVIDIA_TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
MUST_NOT_SPILL = ("sm_80", "sm_86", "sm_89", "sm_90")
UNITS = ("issue", "alu", "fma_heavy", "fma", "half", "memory")
MARKDOWN_TARGET = "sm_90"  # whose instruction counts the Markdown table shows


def cases_of(target: str) -> tuple[KernelCase, ...]:
    """The shipped configurations for one target; AMD takes those of the smallest NVIDIA one."""
    from kernels.cases import kernel_cases

    return kernel_cases(80 if target in AMD_TARGETS else int(target.removeprefix("sm_")))


def make_report(job: tuple[KernelCase, str]) -> Report | str:
    """One line of the table; a string says why there is none."""
    case, target = job
    try:
        return report(case, target, load_rates())
    except CompileError as error:
        return f"{case.name} on {target}: {error}"


def make_reports(jobs: Sequence[tuple[KernelCase, str]], workers: int) -> list[Report | str]:
    """All lines, compiled side by side; each worker is a fresh process."""
    if workers == 1 or len(jobs) == 1:
        return [make_report(job) for job in jobs]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(make_report, jobs))


def failures(jobs: Sequence[tuple[KernelCase, str]], reports: Sequence[Report | str]) -> list[str]:
    """What `--check` forbids: spills, a ceiling that is missing or too low."""
    out = []
    for (case, target), found in zip(jobs, reports, strict=True):
        if isinstance(found, str):
            if target in NVIDIA_TARGETS:
                out.append(found)
            continue
        where = f"{found.case} on {found.target}"
        if target in MUST_NOT_SPILL and (found.spilled_bytes or found.spill_instructions):
            spills = f"{found.spilled_bytes} bytes per thread, {found.spill_instructions} accesses"
            out.append(f"{where}: spills {spills}")
        if found.problem and target in NVIDIA_TARGETS:
            out.append(f"{where}: {found.problem}")
        for device, share in (found.dram_share or {}).items():
            least = case.least_share.get(device, 0)
            if share < least:
                out.append(f"{where}: {share:.2f} of {device}'s bandwidth, needs {least:.2f}")
    return out


def as_table(reports: Sequence[Report | str]) -> str:
    """Aligned text, a line per kernel and target; the last column holds device=share."""
    header = ["kernel", "target", "regs", "spill B", "smem B", *UNITS, "w/SM-cycle", "bound"]
    rows = [[*header, "of DRAM"], *(_row(line) for line in reports if isinstance(line, Report))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header) + 1)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *_notes(reports)]) + "\n"


def _notes(reports: Sequence[Report | str]) -> list[str]:
    notes = [f"no report: {line}" for line in reports if isinstance(line, str)]
    for line in reports:
        if isinstance(line, Report) and line.problem:
            notes.append(f"no ceiling: {line.case} on {line.target}: {line.problem}")
        if isinstance(line, Report) and line.unknown_opcodes:
            opcodes = ", ".join(line.unknown_opcodes)
            notes.append(f"unknown opcodes: {line.case} on {line.target}: {opcodes}")
    return notes


def as_markdown(reports: Sequence[Report | str]) -> str:
    """A line per kernel: counts per weight on one target, and the share of every device."""
    found = [line for line in reports if isinstance(line, Report) and line.dram_share]
    units = ("issue", "alu", "fma_heavy", "memory")
    devices = list(dict.fromkeys(name for line in found for name in line.dram_share))
    header = ["kernel", "regs", *units, "w/SM-cycle", "bound", *devices]
    rows = [header, ["---"] * len(header)]
    for name in dict.fromkeys(line.case for line in found):
        mine = {line.target: line for line in found if line.case == name}
        shown = mine.get(MARKDOWN_TARGET) or next(iter(mine.values()))
        shares = {k: share for line in mine.values() for k, share in line.dram_share.items()}
        rows.append(
            [
                name,
                str(max(line.registers for line in mine.values())),
                *(f"{shown.per_weight.get(unit, 0):.2f}" for unit in units),
                f"{shown.weights_per_sm_cycle:.1f}",
                shown.bound,
                *(f"{shares[device]:.2f}" if device in shares else "-" for device in devices),
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _row(line: Report) -> list[str]:
    slots = line.per_weight or {}
    return [
        line.case,
        line.target,
        str(line.registers),
        str(line.spilled_bytes),
        str(line.shared_bytes),
        *(f"{slots[unit]:.2f}" if unit in slots else "-" for unit in UNITS),
        f"{line.weights_per_sm_cycle:.1f}" if line.weights_per_sm_cycle else "-",
        line.bound or "-",
        " ".join(f"{name}={share:.2f}" for name, share in (line.dram_share or {}).items()) or "-",
    ]


def as_json(reports: Sequence[Report | str]) -> str:
    """{"schema", "reports", "missing"}, reports field by field as in `Report`."""
    document = {
        "schema": "kernels.aot/1",
        "reports": [asdict(line) for line in reports if isinstance(line, Report)],
        "missing": [line for line in reports if isinstance(line, str)],
    }
    return json.dumps(document, indent=1) + "\n"


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="python -m kernels.aot", description=__doc__.split("\n")[0])
    out.add_argument(
        "case", nargs="*", help="kernels to report, by name; default: all shipped ones"
    )
    out.add_argument(
        "--target", nargs="+", choices=[*NVIDIA_TARGETS, *AMD_TARGETS], default=NVIDIA_TARGETS
    )
    out.add_argument("--json", action="store_true", help="print JSON, not a table")
    out.add_argument("--markdown", action="store_true", help="print a table of devices in Markdown")
    out.add_argument("--check", action="store_true", help="exit 1 on a spill or a ceiling too low")
    out.add_argument("--workers", type=int, default=os.cpu_count(), help="compiler processes")
    out.add_argument("-o", "--output", type=Path, help="write there instead of printing")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 ok, 1 a check failed, 2 usage."""
    options = parser().parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("TRITON_INTERPRET=1 is set: nothing can be compiled; unset it", file=sys.stderr)
        return 2
    try:
        jobs = [(case, target) for target in options.target for case in cases_of(target)]
    except ModuleNotFoundError as error:
        print(f"{error}: pip install -e '.[kernels]' in the checkout", file=sys.stderr)
        return 2
    if options.case:
        known = {case.name for case, _ in jobs}
        missing = sorted(set(options.case) - known)
        if missing:
            print(
                f"no kernel {', '.join(missing)}; have: {', '.join(sorted(known))}", file=sys.stderr
            )
            return 2
        jobs = [(case, target) for case, target in jobs if case.name in options.case]
    jobs.sort(key=lambda job: job[0].name)
    reports = make_reports(jobs, options.workers)
    write = as_json if options.json else as_markdown if options.markdown else as_table
    text = write(reports)
    if options.output:
        options.output.write_text(text)
    else:
        print(text, end="")
    problems = failures(jobs, reports) if options.check else []
    for problem in problems:
        print(f"FAILED {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("kernels.aot: interrupted")
