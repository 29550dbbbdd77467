"""The `measured:` group of a device file, and `--gpu host`."""

import pytest

from perfmodel.cli import main
from perfmodel.errors import SpecError, UsageError
from perfmodel.hardware import host_path, load_hardware

HOST = """\
name: A CPU
memory: {capacity_gb: 24, bandwidth_gb_per_s: 20.5, l2_mib: 32, source: "measured"}
compute: {fp32_tflops: 0.1, fp16_vector_tflops: 0.1, source: "measured"}
measured:
  date: "2026-11-22"
  source: "bench probe"
  threads: 2
  read_gb_per_s: 20.5
  read_staircase:
    - {mib: 64, gb_per_s: 21.0}
    - {mib: 0.5, gb_per_s: 88.0}
  fp16_tflops: 0.0004
  launch_us: 1.5
  decode_gweights_per_s: {squeezellm-w3: 2.5, fp16: 4.0}
"""


@pytest.fixture
def host(tmp_path, monkeypatch):
    path = tmp_path / "host.yaml"
    monkeypatch.setenv("MEMWALL_HOST", str(path))
    return path


def test_measurements_are_read_in_si_units(host):
    host.write_text(HOST)
    measured = load_hardware("host").measured
    assert measured.read_bytes_per_s == 20.5e9
    assert measured.read_steps == ((2**19, 88e9), (2**26, 21e9))
    assert measured.launch_s == pytest.approx(1.5e-6)
    assert measured.fp16_flop_per_s == pytest.approx(4e8)
    assert measured.decode_weights_per_s == {"squeezellm-w3": 2.5e9, "fp16": 4e9}
    assert (measured.copy_bytes_per_s, measured.graph_launch_s) == (None, None)


def test_a_built_in_device_has_nothing_measured():
    assert load_hardware("a6000").measured is None


def test_host_is_predicted_like_any_device(host, capsys):
    host.write_text(HOST)
    assert main(["predict", "--gpu", "host", "--weights", "fp16,w4"]) == 0
    assert "A CPU" in capsys.readouterr().out


def test_without_measurements_host_says_what_to_run(host, capsys):
    assert main(["predict", "--gpu", "host"]) == 2
    expected = f"--gpu host: no {host}; run `python -m bench probe` first"
    assert capsys.readouterr().err == f"perfmodel: error: {expected}\n"


def test_the_file_of_this_machine_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("MEMWALL_HOST", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert host_path() == tmp_path / "memwall" / "host.yaml"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("  read_gb_per_s: 20.5\n", "", "measured: found no key read_gb_per_s"),
        ("mib: 64", "mb: 64", "measured.read_staircase[0].mb: found an unknown key"),
        ("fp16: 4.0", "fp16: -4.0", "measured.decode_gweights_per_s"),
        ('"2026-11-22"', "2026-11-22", "expected quotes around a date"),
    ],
)
def test_a_wrong_group_is_refused_with_its_place(host, old, new, problem):
    host.write_text(HOST.replace(old, new))
    with pytest.raises(SpecError) as caught:
        load_hardware("host")
    assert f"{host}:" in str(caught.value)
    assert problem in str(caught.value)


def test_what_was_measured_is_no_what_if(host):
    host.write_text(HOST)
    with pytest.raises(UsageError, match=r"no field 'measured\.launch_us'"):
        load_hardware("host", overrides=("measured.launch_us=1",))
