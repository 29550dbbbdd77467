"""Device files: what ships is sound, names are found, a file of the user's own works."""

from math import log2

import pytest
import yaml

from perfmodel.errors import UnknownNameError
from perfmodel.hardware import device_names, device_path, load_hardware, sources
from tests.perfmodel.toys import ideal, toy_workload

# Their datasheets quote tensor peaks at a clock below the boost clock.
QUOTED_BELOW_BOOST = {"b200", "gh200", "h100-nvl", "h100-pcie", "h100-sxm", "h200"}
# The example of the hardware README and of the design: everything else is unknown.
SHORT = """\
name: My GPU
memory: {capacity_gb: 48, bandwidth_gb_per_s: 768, source: "datasheet", verified: true}
compute: {fp32_tflops: 38.7, fp16_tensor_tflops: 154.8, source: "datasheet"}
"""


@pytest.mark.parametrize("device", device_names())
def test_every_group_of_numbers_has_a_source(device):
    for group, source in sources(load_hardware(device).file).items():
        assert source["source"], group


@pytest.mark.parametrize("device", device_names())
def test_aliases_found_by_text_are_those_of_the_parsed_file(device):
    parsed = yaml.safe_load(device_path(device).read_text())["aliases"]
    assert list(load_hardware(device).file.aliases) == parsed
    for alias in parsed:
        assert device_path(alias).stem == device


@pytest.mark.parametrize("device", device_names())
def test_dense_fp16_peak_is_units_times_clock_times_a_power_of_two(device):
    """FLOP per unit and clock; a swapped sparse peak would pass, a mistyped digit does not."""
    hw = load_hardware(device)
    assert hw.sm_count
    assert hw.boost_clock_hz
    per_clock = hw.matmul_flop_per_s / (hw.sm_count * hw.boost_clock_hz)
    deviation = per_clock / 2 ** round(log2(per_clock)) - 1
    if device in QUOTED_BELOW_BOOST:
        assert -0.14 < deviation < -0.05
    else:
        assert abs(deviation) < 0.021


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("A6000", "a6000"),
        ("NVIDIA RTX A6000", "a6000"),
        ("rtx_a5000", "a5000"),
        ("RTX 4090", "rtx4090"),
        ("a100", "a100-80gb-sxm"),
        ("H100 SXM", "h100-sxm"),
        ("rtx6000-ada", "rtx6000-ada"),
        ("jetson-orin", "orin"),
        ("Apple M2 Ultra", "m2-ultra"),
    ],
)
def test_names_are_found_as_people_type_them(typed, meant):
    assert load_hardware(typed).key == meant


def test_a_typo_lists_near_matches():
    with pytest.raises(UnknownNameError, match=r"no device 'a600'; did you mean a6000"):
        load_hardware("a600")


def test_a_short_file_of_ones_own_works_by_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(SHORT)
    hw = load_hardware(str(path))
    assert (hw.key, hw.dram_bytes, hw.l2_bytes) == ("mine", 48 * 10**9, None)
    assert ideal(toy_workload(), hw).time_s > 0


def test_a_device_without_matrix_units_uses_its_vector_rate():
    hw = load_hardware("m2-ultra")
    assert hw.file.compute.fp16_tensor_tflops is None
    assert hw.matmul_flop_per_s == pytest.approx(27.2e12)


def test_geforce_counts_with_fp32_accumulation():
    compute = load_hardware("rtx3090").file.compute
    assert compute.fp16_tensor_tflops == 71
    assert compute.fp16_tensor_fp16_accumulate_tflops == 142
