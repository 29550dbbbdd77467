"""The probe: what it writes is a device file, and predictions follow from it."""

import pytest

from bench.environment import Environment
from bench.folder import ResultsFolder, read_measurements
from bench.kernels.contest import Bench
from bench.kernels.predicted import compare, op_of
from bench.kernels.validate import held_out, judge, verdict_output
from bench.measurement import Measurement
from bench.probe.host import decode_name, device_file, hardware_of, write_host
from bench.probe.measure import bandwidths, decoding, launches, matrix_products
from bench.probe.tables import probe_output
from bench.timing import StopRule
from perfmodel.cli import main
from perfmodel.errors import UsageError
from perfmodel.hardware import load_hardware
from perfmodel.output import render

CPU = Environment(
    kind="cpu", device="toy-cpu-2-cores", device_name="Toy CPU, 2 cores", cache_bytes=2**20,
    cores=2, threads=2, driver={}, packages={"torch": "2"}, python="3", system="Linux x86_64",
    commit=None, dirty=False, date_utc="2026-11-22T10:00:00+00:00",
)  # fmt: skip
QUICK = StopRule(least_samples=1, least_s=0.0, most_s=0.01, unsteady=1e9)


def probed(name, params, seconds, *, bytes_moved=0, flops=0, refused=None, mode="cpu-clock"):
    return Measurement(
        suite="probe", name=name, params=params, device=CPU.device, timing_mode=mode,
        l2_policy="warm", samples_s=(seconds,), bytes_moved=bytes_moved, flops=flops,
        refused=refused, environment=CPU.id,
    )  # fmt: skip


# 20 GB/s from DRAM, 40 from the cache; 1 TFLOP/s; 10 us per call; 1e9 3-bit weights per second.
PROBE = [
    probed("read", {"mib": 256.0}, 256 * 2**20 / 20e9, bytes_moved=256 * 2**20),
    probed("read", {"mib": 1.0}, 2**20 / 40e9, bytes_moved=2**20),
    probed("copy", {"mib": 256.0}, 1.0, bytes_moved=10**10),
    probed("matmul", {"type": "fp32", "size": 100}, 2e-6, flops=2 * 10**6),
    probed("matmul", {"type": "fp16", "size": 100}, 2e-3, flops=2 * 10**6),
    probed("launch", {"mode": "gemv"}, 10e-6),
    probed("launch", {"mode": "torch"}, 1e-6),
    probed("decode", {"format": "squeezellm-w3", "rows": 1000, "columns": 1000}, 1010e-6),
    probed("decode", {"format": "gptq-w4", "rows": 9, "columns": 9}, 1e-3, refused="unsteady"),
]


def kernel(rows, columns, seconds, name="squeezellm-w3", **params):
    weight_bytes = 10
    return Measurement(
        suite="kernels", name=name, device=CPU.device, timing_mode="cpu-clock", l2_policy="cold",
        params={"model": "m", "tensor": "t", "rows": rows, "columns": columns, "batch": 1} | params,
        samples_s=(seconds,) * 5, bytes_moved=weight_bytes + 100, flops=2 * rows * columns,
        facts={"weight_bytes": weight_bytes, "kernel": "toy"}, environment=CPU.id,
    )  # fmt: skip


def test_a_cpus_roofs_are_what_was_measured():
    hw = hardware_of(CPU, PROBE)
    assert hw.dram_bytes_per_s == pytest.approx(20e9)
    assert hw.fp32_flop_per_s == pytest.approx(1e12)
    assert hw.matmul_flop_per_s == pytest.approx(1e12)  # the faster of the two
    assert hw.measured.fp16_flop_per_s == pytest.approx(1e9)
    assert hw.measured.launch_s == pytest.approx(10e-6)
    assert hw.measured.decode_weights_per_s == {"squeezellm-w3": pytest.approx(1e9)}
    assert "measured here" in hw.file.memory.source
    assert "torch 2" in hw.measured.source


def test_what_is_written_is_what_gpu_host_reads(tmp_path, monkeypatch, capsys):
    path = tmp_path / "data" / "host.yaml"
    monkeypatch.setenv("MEMWALL_HOST", str(path))
    write_host(path, device_file(CPU, PROBE))
    assert load_hardware("host").measured == hardware_of(CPU, PROBE).measured
    assert (
        main(["predict", "--gpu", "host", "--weights", "squeezellm-w3", "--stack", "measured"]) == 0
    )
    assert "Toy CPU" in capsys.readouterr().out
    assert "20.0 GB/s" in render(probe_output(load_hardware("host")), "text")


def test_a_gpu_keeps_its_datasheet():
    environment = Environment(**{f: getattr(CPU, f) for f in CPU.__struct_fields__} | {
        "kind": "cuda", "device": "h200", "device_name": "NVIDIA H200"})  # fmt: skip
    hw = hardware_of(environment, PROBE)
    assert hw.dram_bytes_per_s == load_hardware("h200").dram_bytes_per_s
    assert hw.measured.read_bytes_per_s == pytest.approx(20e9)
    assert hw.measured.threads is None


def test_a_probe_without_bandwidth_says_that_the_machine_was_busy():
    with pytest.raises(UsageError, match="the machine was too busy"):
        hardware_of(CPU, [m for m in PROBE if m.name != "read"])


def test_nobody_knows_a_cpu_that_was_not_probed(monkeypatch, tmp_path):
    monkeypatch.setenv("MEMWALL_HOST", str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match="nothing is known about Toy CPU, 2 cores; run"):
        hardware_of(CPU)


def test_options_of_a_kernel_are_words_of_its_decode_rate():
    assert decode_name({"format": "fp16", "kernel": "library"}) == "fp16-library"
    assert decode_name({"format": "gptq-w4-g128-act", "act_order": "gather"}) == (
        "gptq-w4-g128-act-gather"
    )


# ---- predicted against measured ----------------------------------------------------------------


def test_decoding_binds_where_the_probe_says_so():
    """1e6 weights at 1e9/s are 1 ms, and a call 10 us; their bytes would take 19 us."""
    (found,) = compare([kernel(1000, 1000, 2e-3)], hardware_of(CPU, PROBE))
    assert found.calibrated_s == pytest.approx(1010e-6)
    assert found.bound == "decode"
    assert found.error == pytest.approx(1010e-6 / 2e-3 - 1)
    assert found.ideal_s == pytest.approx(op_of(found.measurement).bytes / 20e9)
    assert found.pair.predicted_s == found.best_s == found.calibrated_s


def test_a_format_that_was_not_decoded_has_the_roofline_alone():
    (found,) = compare([kernel(1000, 1000, 2e-3, name="gptq-w4")], hardware_of(CPU, PROBE))
    assert found.calibrated_s is None
    assert found.best_s == found.ideal_s


def test_plain_weights_have_nothing_to_decode():
    (found,) = compare([kernel(1000, 1000, 2e-3, name="fp32")], hardware_of(CPU, PROBE))
    assert found.bound == "memory"
    assert found.calibrated_s == pytest.approx((4e6 + 100) / 20e9 + 10e-6)


def test_a_point_above_its_roof_fails():
    hw = hardware_of(CPU, PROBE)
    fast, noisy = kernel(1000, 1000, 1e-6), kernel(1000, 1000, 0.97 * 19.6e-6, tensor="u")
    verdict = judge(compare([fast, noisy], hw))
    assert [c.measurement for c in verdict.above_roof] == [fast]
    text = render(verdict_output(verdict, compare([fast], hw), "toy"), "text")
    assert "ABOVE ITS ROOF: 1000x1000/squeezellm-w3" in text


def test_the_fit_is_judged_on_shapes_that_it_has_not_seen():
    """Kernels take 1.5 times what the probe predicts, but for one of the held-out shapes."""
    hw = hardware_of(CPU, PROBE)
    sides = (1000, 2000, 3000, 4000)
    times = [1.5 * (n * n * 1e-9 + 10e-6) for n in sides]
    times[3] *= 1.1
    pairs = held_out(compare([kernel(n, n, t) for n, t in zip(sides, times, strict=True)], hw))
    assert [pair.label for pair in pairs] == [f"{n}x{n}/squeezellm-w3" for n in (2000, 4000)]
    assert [pair.error for pair in pairs] == pytest.approx([0, 1 / 1.1 - 1])
    assert all(pair.held_out for pair in pairs)


# ---- the real thing, quickly -------------------------------------------------------------------


def test_every_part_of_the_probe_can_be_timed(tmp_path, monkeypatch):
    from bench.probe import measure as probe

    monkeypatch.setattr(probe, "CPU_READ_MIB", (0.25, 1))
    monkeypatch.setattr(probe, "CPU_MATMUL", {"fp32": 256, "fp16": 16})
    bench = Bench(environment=CPU, results=ResultsFolder(tmp_path), rule=QUICK)
    monkeypatch.setattr("bench.timing.waited_s", lambda: 0.0)
    for part in (bandwidths, matrix_products):
        for contestants in part(bench):
            bench.time(contestants)
    assert [c.params["mode"] for (*found,) in launches(bench) for c in found] == [
        "gemv", "threads", "torch",
    ]  # fmt: skip
    for contestants in decoding(bench, ["fp32:library"]):
        bench.time(contestants)
    names = [(m.name, *m.params.values()) for m in read_measurements(tmp_path)]
    assert names[:4] == [("read", 1.0), ("read", 0.25), ("copy", 1.0), ("triad", 1.0)]
    assert ("decode", "fp32", 64, 4096, "library") in names
    assert list(decoding(bench, ["fp32:library"])) == [[]]  # done
    assert hardware_of(CPU, read_measurements(tmp_path)).measured.copy_bytes_per_s > 0
