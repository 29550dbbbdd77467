"""The disassembly reader and the decode ceiling, on machine code made by hand."""

from pathlib import Path

import pytest

from kernels.ceiling import RATES_FILE, decode_ceiling, dram_share, load_rates
from kernels.sass import SassError, find_decode_loop, parse, spill_instructions

# One lane decodes 4 weights per trip: 4 PRMT, 2 HFMA2, 1 LOP3, a 128-bit load. A prologue loop
# over the table comes first, the padding branch to itself last, as nvdisasm prints them.
SASS = """
.text.gemv:
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_3:
        /*0010*/                   LDG.E R4, [R2.64] ;
        /*0020*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0030*/               @P1 BRA `(.L_x_3) ;
.L_x_1:
        /*0040*/                   LDG.E.128.CONSTANT R8, [R6.64] ;
        /*0050*/                   LOP3.LUT R5, R8.reuse, 0x77777777, RZ, 0xc0, !PT ;
        /*0060*/                   PRMT R12, R20, R5.reuse, R21 ;
        /*0070*/                   PRMT R13, R22, R5, R23 ;
        /*0080*/                   PRMT R14, R12, 0x5140, R13 ;
        /*0090*/                   PRMT R15, R12, 0x7362, R13 ;
        /*00a0*/                   HFMA2.MMA R16, R14, R24, R16 ;
        /*00b0*/                   HFMA2 R16, R15, R25, R16 ;
        /*00c0*/                   XYZZY.NEW R1, R1 ;
        /*00d0*/                   ISETP.GE.AND P0, PT, R6, R7, PT ;
        /*00e0*/              @!P0 BRA `(.L_x_1) ;
        /*00f0*/                   EXIT ;
.L_x_2:
        /*0100*/                   BRA `(.L_x_2);
.L_x_4:
"""
INVARIANTS = {"PRMT": 1.0, "HFMA2": 0.5}


def test_parse_reads_opcodes_operands_and_both_loops():
    program = parse(SASS)
    assert len(program.instructions) == 17
    assert program.instructions[4].opcode == "LDG.E.128.CONSTANT"
    assert program.instructions[4].operands == "R8, [R6.64]"
    assert program.loops == (range(1, 4), range(4, 15))  # the branch to itself is padding


def test_words_of_a_memory_access_follow_its_width():
    words = {i.opcode: i.words for i in parse(SASS).instructions if i.base == "LDG"}
    assert words == {"LDG.E": 1, "LDG.E.128.CONSTANT": 4}


def test_the_decode_loop_is_the_one_whose_counts_fit():
    loop = find_decode_loop(parse(SASS), INVARIANTS, weights_per_lane=4)
    assert (len(loop.body), loop.unrolling, loop.outside) == (11, 1, 3)
    assert loop.per_weight("PRMT") == 1.0


def test_an_unrolled_loop_is_recognised_by_its_counts():
    loop = find_decode_loop(parse(SASS), INVARIANTS, weights_per_lane=2)
    assert (loop.unrolling, loop.weights_per_lane) == (2, 4)


def test_the_outer_of_two_nested_loops_is_no_candidate():
    nested = SASS.replace("EXIT ;", "@P2 BRA `(.L_x_3) ;")
    program = parse(nested)
    assert len(program.loops) == 3
    assert program.innermost_loops == (range(1, 4), range(4, 15))


def test_no_fitting_loop_says_what_was_found():
    with pytest.raises(SassError, match=r"no loop has PRMT 3\.000.*11 instructions: PRMT 1\.000"):
        find_decode_loop(parse(SASS), {"PRMT": 3.0}, weights_per_lane=4)
    with pytest.raises(SassError, match="innermost loops: none"):
        find_decode_loop(parse(""), INVARIANTS, weights_per_lane=4)
    with pytest.raises(SassError, match="without invariants"):
        find_decode_loop(parse(SASS), {}, weights_per_lane=4)


def test_branches_through_uniform_predicates_make_loops():
    text = SASS.replace("@!P0 BRA `(.L_x_1)", "BRA.U !UP0, `(.L_x_1)")
    assert parse(text).loops == parse(SASS).loops


def test_local_memory_counts_as_spills():
    assert spill_instructions(parse(SASS)) == 0
    assert spill_instructions(parse(SASS.replace("XYZZY.NEW R1, R1", "STL [R1], R9"))) == 1


# ---- the ceiling ---------------------------------------------------------------------------


def test_ceiling_by_hand_on_ampere():
    rates = load_rates()
    loop = find_decode_loop(parse(SASS), INVARIANTS, weights_per_lane=4)
    ceiling = decode_ceiling(loop, rates.architectures[86], rates)
    # issue 11/4; alu 4 PRMT + LOP3 + ISETP = 6/4; HFMA2 2/4; the 128-bit load takes 4 slots
    assert ceiling.per_weight == {
        "issue": 2.75,
        "alu": 1.5,
        "fma_heavy": 0.5,
        "fma": 0.5,
        "memory": 1.0,
        "conversion": 0.0,
    }
    assert ceiling.bound == "memory"
    assert ceiling.weights_per_sm_cycle == 32.0  # 32 lanes per clock / 1.0
    assert ceiling.unknown == ("XYZZY",)


def test_the_units_differ_between_architectures():
    rates = load_rates()
    loop = find_decode_loop(parse(SASS), INVARIANTS, weights_per_lane=4)
    a100 = decode_ceiling(loop, rates.architectures[80], rates)
    h200 = decode_ceiling(loop, rates.architectures[90], rates)
    assert a100.per_weight["half"] == 0.5
    assert h200.per_weight["fma_heavy"] == 0.0
    assert h200.per_weight["fma"] == 0.5


def test_share_of_dram_by_hand():
    rates = load_rates()
    loop = find_decode_loop(parse(SASS), INVARIANTS, weights_per_lane=4)
    ceiling = decode_ceiling(loop, rates.architectures[86], rates)
    # A6000: 768e9 / (84 x 1.8e9) = 5.079 bytes per SM-cycle = 10.16 four-bit weights
    assert dram_share(ceiling, rates.devices["a6000"], 4) == pytest.approx(32 / 10.1587, rel=1e-4)


@pytest.mark.parametrize(
    ("device", "weights"), [("a6000", 10.16), ("h200", 36.73), ("a100", 26.78), ("a5000", 14.16)]
)
def test_four_bit_demand_of_the_devices(device, weights):
    found = load_rates().devices[device].weights_per_sm_cycle(4)
    assert found == pytest.approx(weights, rel=1e-3)


def test_no_rate_claims_a_measurement_and_all_name_a_source():
    rates = load_rates()
    assert set(rates.architectures) == {80, 86, 89, 90, 100, 120}
    for architecture in rates.architectures.values():
        assert architecture.source
        assert architecture.measured_on is None
    assert all(device.source for device in rates.devices.values())


def test_an_opcode_in_two_classes_is_refused(tmp_path: Path):
    file = tmp_path / "rates.yaml"
    file.write_text(RATES_FILE.read_text().replace("half: [HFMA2", "half: [PRMT, HFMA2"))
    with pytest.raises(ValueError, match="PRMT is in alu and in half"):
        load_rates(file)


def test_a_limit_on_an_unknown_class_is_refused(tmp_path: Path):
    file = tmp_path / "rates.yaml"
    file.write_text(RATES_FILE.read_text().replace("classes: [alu]}", "classes: [alus]}", 1))
    with pytest.raises(ValueError, match="limit alu names unknown classes"):
        load_rates(file)


def test_device_numbers_equal_those_of_the_hardware_files():
    yaml = pytest.importorskip("yaml")
    folder = Path(__file__).parents[2] / "hardware"
    files = {p.stem: yaml.safe_load(p.read_text()) for p in sorted(folder.glob("*.yaml"))}
    shared = sorted(set(files) & set(load_rates().devices))
    if not shared:
        pytest.skip("hardware/ has no YAML file of these devices in this checkout")
    for name in shared:
        device, file = load_rates().devices[name], files[name]
        assert device.sm_count == file["sm_count"], name
        assert device.clock_hz == file["boost_clock_mhz"] * 1e6, name
        assert device.dram_bytes_per_s == file["memory"]["bandwidth_gb_per_s"] * 1e9, name
        assert str(device.architecture) == str(file["compute_capability"]).replace(".", ""), name
