"""`python -m bench report` on results of a made-up A6000: what it says, and what it refuses."""

import json

import pytest
from msgspec.structs import replace

from bench.cli import main
from bench.environment import Environment
from bench.folder import ResultsFolder
from bench.history.store import History, new_run
from bench.measurement import Measurement
from bench.report.past import history_section, sparkline

ENVIRONMENT = Environment(
    kind="cuda",
    device="a6000",
    device_name="NVIDIA RTX A6000",
    cache_bytes=6 << 20,
    cores=84,
    threads=2,
    driver={"driver_version": "570.1"},
    packages={"torch": "2.11.0"},
    python="3.12.3",
    system="Linux x86_64",
    commit="0123456789abcdef",
    dirty=False,
    date_utc="2026-11-22T12:00:00+00:00",
)
N, K = 4096, 4096


def kernel(name, bits, time_s, **changes):
    weight_bytes = round(N * K * bits / 8)
    facts = {
        "suite": "kernels",
        "name": name,
        "params": {"model": "llama-7b", "tensor": "q_proj", "rows": N, "columns": K, "batch": 1},
        "device": "a6000",
        "timing_mode": "cuda-graph",
        "l2_policy": "cold",
        "samples_s": (time_s, time_s * 1.001, time_s * 0.999),
        "bytes_moved": weight_bytes + 2 * (N + K),
        "flops": 2 * N * K,
        "facts": {"kernel": "triton", "weight_bytes": weight_bytes, "error": 1e-4},
        "environment": ENVIRONMENT.id,
    }
    return Measurement(**facts | changes)


FP16 = kernel("fp16", 16, 60e-6)
GPTQ = kernel("gptq-w3", 3 + 32 / K, 20e-6)
W3 = kernel("squeezellm-w3", 3 + 128 / K, 15e-6)
TOO_FAST = kernel("squeezellm-w4", 4 + 256 / K, 5e-6)  # 8.4 MB at 768 GB/s take 11 us
SHAKY = kernel("squeezellm-w2", 2 + 64 / K, 9e-6, refused="unsteady: quartiles 30 % apart")


@pytest.fixture
def results(tmp_path):
    def write(*measurements):
        folder = ResultsFolder(tmp_path / "results")
        folder.add_environment(ENVIRONMENT)
        for measurement in measurements:
            folder.add(measurement)
        folder.add_line({"kind": "skipped", "name": "gemlite", "reason": "is not installed"})
        return folder.path

    return write


def test_the_report_holds_every_number_with_its_place(results):
    folder = results(FP16, GPTQ, W3, SHAKY)
    assert main(["report", str(folder), "--history", "none"]) == 0
    page = (folder / "report.html").read_text()
    for title in ("Environment", "Roofline", "Speed-ups", "Predicted against", "Refused"):
        assert f"<h2>{title}" in page
    assert "unsteady: quartiles 30 % apart" in page
    assert "is not installed" in page
    assert len(page) < 1_000_000
    markdown = (folder / "report.md").read_text()
    row = next(line for line in markdown.splitlines() if "| squeezellm-w3 |" in line)
    assert "| 4.00 | 1.33 |" in row  # 60 / 15 over FP16, 20 / 15 over GPTQ
    cells = (folder / "report.csv").read_text()
    assert "speed-ups,0," in cells


def test_a_point_above_the_roof_is_named_as_an_error(results):
    folder = results(FP16, TOO_FAST)
    main(["report", str(folder), "--history", "none", "-o", str(folder / "r.md")])
    text = (folder / "r.md").read_text()
    assert "Above a roof, so wrong in bytes, units or cache: 4096x4096/squeezellm-w4." in text


def test_results_without_kernels_still_make_a_report(results):
    folder = results()
    assert main(["report", str(folder), "--history", "none"]) == 0
    assert "<h2>Roofline" not in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["{folder}/nothing"], "no results.jsonl; expected the --out folder"),
        (["{folder}", "--device", "h200"], "no device 'h200'; has results of: a6000"),
        (["{folder}", "-o", "x.pdf"], "expected a name that ends in one of .html, .md, .csv"),
        (["{folder}", "-o", "{folder}/no/x.md"], "cannot be written"),
    ],
)
def test_what_cannot_be_reported_is_said_in_a_line(results, capsys, arguments, problem):
    folder = str(results(FP16))
    code = main(["report", *(argument.format(folder=folder) for argument in arguments)])
    assert code == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "code", "problem"),
    [
        ('{"kind":"measurement","record":{}}\n', 3, "results.jsonl:1: measurement: "),
        ("", 2, "holds no results of any device"),
    ],
)
def test_a_broken_or_empty_file_is_named_before_any_option(tmp_path, capsys, line, code, problem):
    (tmp_path / "results.jsonl").write_text(line)
    assert main(["report", str(tmp_path)]) == code
    assert problem in capsys.readouterr().err


def test_the_history_section_has_a_line_per_benchmark(tmp_path):
    history = History(tmp_path)
    for day, time_s in ((1, 15e-6), (2, 15e-6), (3, 30e-6)):
        environment = replace(ENVIRONMENT, date_utc=f"2026-11-0{day}T00:00:00+00:00")
        history.add(new_run(environment, [kernel("squeezellm-w3", 3, time_s)]))
    (row,) = history_section(tmp_path, "a6000").tables[0].rows
    assert row["sparkline"] == "▁▁█"
    assert row["change"] == pytest.approx(1.0)
    assert history_section(tmp_path, "h200") is None


def test_sparklines_span_from_the_lowest_to_the_highest_bar():
    assert sparkline([1.0, 2.0, 1.5]) == "▁█▅"
    assert sparkline([3.0, 3.0]) == "▁▁"


def test_doctor_says_what_is_skipped_and_why(capsys):
    assert main(["doctor", "--json"]) == 0
    findings = {f["what"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["CPU"]["state"] == "yes"
    assert all(f["means"] for f in findings.values() if f["state"] != "yes")
