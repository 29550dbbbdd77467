"""The lines of results.jsonl as a table for people; no GPU, nothing measured here."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median, quantiles

# What issue and notes aim at, on an H200 with a cold L2: kernel, shape, and what is compared.
AIM_LUT3_SHARE = ("lut3-fp16-exact", "22016x4096", 0.65)  # of the datasheet bandwidth
AIM_LUT4_SECONDS = ("lut4-fp16-exact", "8192x8192", 12e-6)
AIM_SPARSE_OVER_DENSE = ("lut3-fp16-exact-csr", "lut3-fp16-exact", "22016x4096", 1.10)


def as_table(lines: Sequence[Mapping]) -> str:
    """All sections that have lines; timings first."""
    sections = [
        _environment(lines),
        _checks(lines),
        _timings(lines, "cold"),
        _aims(lines),
        _rates(lines),
        _tuning(lines),
        _timings(lines, "isolated"),
        _sanitizer(lines),
        _problems(lines),
    ]
    return "\n".join(section for section in sections if section)


def _of(lines: Iterable[Mapping], kind: str) -> list[Mapping]:
    return [line for line in lines if line["kind"] == kind]


def _grid(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join([title, *lines, ""])


def _environment(lines: Sequence[Mapping]) -> str:
    found = _of(lines, "environment")
    if not found:
        return ""
    facts = ", ".join(f"{k} {v}" for k, v in found[0].items() if k != "kind" and v is not None)
    return f"{facts}\n"


def _checks(lines: Sequence[Mapping]) -> str:
    checks = _of(lines, "check")
    if not checks:
        return ""
    wrong = [line for line in checks if not line["ok"]]
    rows = [
        [line["kernel"], line["shape"], f"{line['error']:.1e}", f"{line['limit']:.0e}", line["why"]]
        for line in wrong
    ]
    title = f"correctness against FP64: {len(checks) - len(wrong)} right, {len(wrong)} wrong"
    header = ["kernel", "shape", "error", "limit", "why"]
    return _grid(title, header, rows) or title + "\n"


def _timings(lines: Sequence[Mapping], kind: str) -> str:
    timings = _of(lines, kind)
    peak = next((line.get("dram_bytes_per_s") for line in _of(lines, "environment")), None)
    read = next((line["bytes_per_s"] for line in _of(lines, "read_bandwidth")), None)
    baseline = {
        (line["shape"], line["batch"]): median(line["samples_s"])
        for line in timings
        if line["kernel"].startswith("cublas")
    }
    rows = []
    for line in timings:
        time_s = median(line["samples_s"])
        rate = line["bytes"] / time_s
        key = line["shape"], line["batch"]
        low, _, high = (
            quantiles(line["samples_s"], n=4) if len(line["samples_s"]) > 1 else [0, 0, 0]
        )
        rows.append(
            [
                line["shape"],
                line["kernel"],
                f"{time_s * 1e6:.2f}",
                f"{100 * (high - low) / time_s:.1f}",
                f"{rate / 1e9:.0f}",
                f"{100 * rate / peak:.0f}" if peak else "-",
                f"{100 * rate / read:.0f}" if read else "-",
                f"{baseline[key] / time_s:.2f}" if key in baseline else "-",
                line["flag"],
            ]
        )
    title = {
        "cold": "cold L2: CUDA graph over distinct weight copies, time per launch",
        "isolated": "isolated: device time of one call after its weights were flushed from L2",
    }[kind]
    header = ["shape", "kernel", "us", "iqr %", "GB/s", "% peak", "% read", "x cuBLAS", ""]
    return _grid(title, header, rows)


def _aims(lines: Sequence[Mapping]) -> str:
    cold = {(line["kernel"], line["shape"]): line for line in _of(lines, "cold")}
    peak = next((line.get("dram_bytes_per_s") for line in _of(lines, "environment")), None)
    times = {key: median(line["samples_s"]) for key, line in cold.items()}
    rows = []
    kernel, shape, aim = AIM_LUT3_SHARE
    if (kernel, shape) in times and peak:
        share = cold[kernel, shape]["bytes"] / times[kernel, shape] / peak
        rows.append([f"{kernel} {shape}: share of peak", f">= {aim:.2f}", f"{share:.2f}"])
    kernel, shape, aim = AIM_LUT4_SECONDS
    if (kernel, shape) in times:
        found = times[kernel, shape]
        rows.append([f"{kernel} {shape}: us", f"<= {aim * 1e6:.1f}", f"{found * 1e6:.2f}"])
    sparse, dense, shape, aim = AIM_SPARSE_OVER_DENSE
    if (sparse, shape) in times and (dense, shape) in times:
        ratio = times[sparse, shape] / times[dense, shape]
        rows.append([f"{sparse} over {dense} {shape}", f"<= {aim:.2f}", f"{ratio:.2f}"])
    return _grid("aims on an H200", ["what", "aim", "found"], rows)


def _rates(lines: Sequence[Mapping]) -> str:
    rows = [
        [line["instruction"], f"{line['lanes_per_clock_per_sm']:.1f}", f"{line['assumed']:g}"]
        for line in _of(lines, "rate")
    ]
    rows += [
        ["read bandwidth, GB/s", f"{line['bytes_per_s'] / 1e9:.0f}", "-"]
        for line in _of(lines, "read_bandwidth")
    ]
    title = "rates: lanes per clock per SM, the clock taken from FFMA"
    return _grid(title, ["instruction", "measured", "rates.yaml"], rows)


def _tuning(lines: Sequence[Mapping]) -> str:
    rows = []
    for line in _of(lines, "tune"):
        best = min(line["seconds_by_setting"], key=line["seconds_by_setting"].__getitem__)
        shipped, fastest = (line["seconds_by_setting"][s] for s in (line["shipped"], best))
        rows.append(
            [line["shape"], line["kernel"], line["shipped"], f"{shipped * 1e6:.2f}", best,
             f"{fastest * 1e6:.2f}"]
        )  # fmt: skip
    header = ["shape", "kernel", "shipped", "us", "best", "us"]
    return _grid("tuning: settings of kernels/configs.py", header, rows)


def _sanitizer(lines: Sequence[Mapping]) -> str:
    rows = [[line["tool"], str(line["errors"]), line["detail"]] for line in _of(lines, "sanitizer")]
    return _grid("compute-sanitizer", ["tool", "errors", "detail"], rows)


def _problems(lines: Sequence[Mapping]) -> str:
    rows = [[line["job"], line["reason"]] for line in lines if line.get("reason")]
    return _grid("not done", ["job", "reason"], rows)
