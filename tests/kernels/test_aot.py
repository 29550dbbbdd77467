"""The ahead-of-time report: its table, its checks, and two kernels compiled for real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import aot
from kernels.case import KernelCase
from kernels.compile_report import CompileError, Report, parse_resources

ROOT = Path(__file__).parents[2]


def a_case(**changes) -> KernelCase:
    fields = {
        "name": "toy",
        "module": "nowhere",
        "function": "toy_gemv",
        "weight_bits": 4,
        "weights_per_iteration": 4096,
        "signature": {},
        "constexprs": {},
        "least_share": {"a6000": 1.0},
    }
    return KernelCase(**fields | changes)


def a_report(**changes) -> Report:
    fields = {
        "case": "toy",
        "target": "sm_86",
        "registers": 80,
        "spilled_bytes": 0,
        "spill_instructions": 0,
        "shared_bytes": 0,
        "warps": 1,
        "per_weight": {"issue": 3.5, "alu": 2.64},
        "weights_per_sm_cycle": 24.24,
        "bound": "alu",
        "dram_share": {"a5000": 1.7, "a6000": 2.39},
    }
    return Report(**fields | changes)


def failures(report: Report | str, case: KernelCase | None = None) -> list[str]:
    target = report.target if isinstance(report, Report) else "sm_86"
    return aot.failures([(case or a_case(), target)], [report])


def test_a_report_that_meets_its_targets_passes():
    assert failures(a_report()) == []


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (a_report(spilled_bytes=16), "toy on sm_86: spills 16 bytes per thread, 0 accesses"),
        (a_report(spill_instructions=2), "toy on sm_86: spills 0 bytes per thread, 2 accesses"),
        (a_report(dram_share={"a6000": 0.9}), "0.90 of a6000's bandwidth, needs 1.00"),
        (a_report(dram_share=None, problem="no loop has PRMT 2.000"), "no loop has PRMT"),
        ("toy on sm_86: no tool", "toy on sm_86: no tool"),
    ],
)
def test_what_fails_the_check(report, message):
    assert len(failures(report)) == 1
    assert message in failures(report)[0]


def test_spills_on_architectures_without_a_promise_pass():
    assert failures(a_report(target="sm_120", spilled_bytes=16, dram_share={})) == []


def test_table_has_a_row_per_report_and_says_what_is_missing():
    lines = [
        a_report(unknown_opcodes=("XYZZY",)),
        a_report(case="other", per_weight=None, weights_per_sm_cycle=None, bound=None,
                 dram_share=None, problem="no loop"),
        "third on gfx942: the kernel holds inline PTX",
    ]  # fmt: skip
    table = aot.as_table(lines).splitlines()
    assert table[0].split()[:5] == ["kernel", "target", "regs", "spill", "B"]
    assert table[1].split()[:4] == ["toy", "sm_86", "80", "0"]
    assert table[1].endswith("24.2        alu    a5000=1.70 a6000=2.39")
    assert table[2].split()[-3:] == ["-", "-", "-"]
    assert table[3:] == [
        "no report: third on gfx942: the kernel holds inline PTX",
        "unknown opcodes: toy on sm_86: XYZZY",
        "no ceiling: other on sm_86: no loop",
    ]


def test_markdown_table_has_a_line_per_kernel_and_a_column_per_device():
    units = {"issue": 3.5, "alu": 2.64, "fma_heavy": 0.7, "memory": 0.25}
    hopper = a_report(target="sm_90", registers=96, per_weight=units, dram_share={"h200": 0.66})
    lines = aot.as_markdown([a_report(per_weight=units), hopper, "missing"]).splitlines()
    assert lines[0].split(" | ")[-3:] == ["a5000", "a6000", "h200 |"]
    assert len(lines) == 3
    assert lines[2].startswith(
        "| toy | 96 | 3.50 | 2.64 | 0.70 | 0.25 | 24.2 | alu | 1.70 | 2.39 |"
    )


def test_json_keeps_every_field():
    document = json.loads(aot.as_json([a_report(), "missing line"]))
    assert document["schema"] == "kernels.aot/1"
    assert document["reports"][0]["per_weight"] == {"issue": 3.5, "alu": 2.64}
    assert document["missing"] == ["missing line"]


def test_resource_usage_is_read_or_refused():
    text = " Function toy:\n  REG:80 STACK:16 SHARED:4 LOCAL:0 CONSTANT[0]:952 TEXTURE:0"
    assert parse_resources(text) == {"REG": 80, "STACK": 16, "SHARED": 4, "LOCAL": 0}
    with pytest.raises(CompileError, match="no resource usage"):
        parse_resources("nothing")


def run_aot(*arguments: str, interpret: bool = False) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "kernels.aot", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_under_the_interpreter_the_command_says_why_it_stops():
    run = run_aot(interpret=True)
    assert run.returncode == 2
    assert "TRITON_INTERPRET=1 is set" in run.stderr


def test_an_unknown_kernel_is_answered_with_the_known_ones():
    run = run_aot("lut9-fp16-exact")
    assert run.returncode == 2
    assert "no kernel lut9-fp16-exact; have: " in run.stderr
    assert "lut4-fp16-exact" in run.stderr


@pytest.fixture(scope="module")
def compiled():
    """Three kernels compiled for two architectures, in a process without the interpreter."""
    pytest.importorskip("triton")
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    if not (tools / "nvdisasm").exists():
        pytest.skip(f"this triton wheel has no nvdisasm in {tools}")
    names = ("lut4-fp16-exact", "lut3-fp16-exact", "lut4-u7-int")
    run = run_aot(*names, "--target", "sm_86", "sm_90", "--json", "--check", "--workers", "1")
    assert run.returncode == 0, run.stderr
    return {(r["case"], r["target"]): r for r in json.loads(run.stdout)["reports"]}


def test_real_kernels_do_not_spill_and_hold_no_unknown_opcode(compiled):
    assert len(compiled) == 6
    for report in compiled.values():
        assert (report["spilled_bytes"], report["spill_instructions"]) == (0, 0)
        assert report["unknown_opcodes"] == []
        assert report["unrolling"] == 1


@pytest.mark.parametrize("target", ["sm_86", "sm_90"])
@pytest.mark.parametrize(
    ("case", "least_alu", "most_alu"),
    # PRMT alone: 2.0, 1.0 and 0.5 per weight; the rest of the ALU work is masks and shifts
    [("lut4-fp16-exact", 2.0, 2.8), ("lut3-fp16-exact", 1.0, 1.5), ("lut4-u7-int", 0.5, 1.3)],
)
def test_alu_instructions_per_weight_of_real_kernels(compiled, case, target, least_alu, most_alu):
    assert least_alu < compiled[case, target]["per_weight"]["alu"] < most_alu


def test_decode_ceilings_on_a_hopper(compiled):
    share = {case: r["dram_share"]["h200"] for (case, t), r in compiled.items() if t == "sm_90"}
    assert share["lut3-fp16-exact"] >= 0.9
    assert share["lut4-fp16-exact"] >= 0.6
    assert share["lut4-u7-int"] >= 1.3


GEMM_LAYOUTS = """
import json, re
from kernels.cases import kernel_cases
from kernels.compile_report import compile_case
out = {}
for case in kernel_cases(90):
    if case.function == "lut_gemm_kernel":
        text = compile_case(case, "sm_90").asm["ttgir"]
        layouts = dict(re.findall(r"^(#\\w+) = (#ttg.blocked<.*>)$", text, re.MULTILINE))
        steps = [line for line in text.splitlines() if "elementwise_inline_asm" in line]
        used = {name for line in steps for name in re.findall(r"x[if]32, (#\\w+)>", line)}
        out[case.name] = sorted(layouts[name] for name in used)
print(json.dumps(out))
"""


def test_matrix_fragments_rest_on_the_layout_that_triton_chose():
    """The batched kernel's lanes hold the fragments of mma.m16n8k16 only in this layout."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", GEMM_LAYOUTS], cwd=ROOT, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found
    for case, layouts in found.items():
        assert layouts, case
        for layout in layouts:
            assert "sizePerThread = [4], threadsPerWarp = [32]" in layout, (case, layout)
