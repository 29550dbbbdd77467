"""The command line: what it prints, its exit codes, one line for every error."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from quantizer import commands
from quantizer.cli import main
from quantizer.run.pipeline import Hooks
from tests.quantizer.models import BLOCKS, write_model

ROOT = Path(__file__).parents[2]


def run(capsys, *arguments) -> tuple[int, str, str]:
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture(scope="module")
def quantized(llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "out"
    arguments = ["quantize", llama, "--method", "kmeans", "--bits", "4", "--out", out]
    assert main([str(a) for a in [*arguments, "--executor", "serial"]]) == 0
    return out


def test_quantize_says_what_it_will_take_before_it_starts(llama, tmp_path, capsys):
    arguments = ["quantize", llama, "--format", "rtn-w4-g32", "--out", tmp_path / "out"]
    code, out, err = run(capsys, *arguments, "--dry-run")
    assert (code, err) == (0, "")
    assert "21 layers at" in out
    assert all(word in out for word in ("output", "free", "about", "of memory"))
    assert not (tmp_path / "out").exists()
    code, out, _ = run(capsys, *arguments, "--executor", "serial")
    assert code == 0
    assert f"{BLOCKS + 1} blocks made, 0 were done" in out


def test_evaluate_prints_the_protocol_with_the_number(quantized, llama, text_ids, capsys):
    code, out, _ = run(capsys, "evaluate", quantized, "--text", text_ids, "--limit", 3)
    assert code == 0
    assert "perplexity per token" in out
    assert "3 windows of 16 tokens, as the file has them (papers: 2048); only the first 3" in out
    code, out, _ = run(capsys, "evaluate", llama, "--text", text_ids, "--json")
    result = json.loads(out)
    assert result["predictions"] == 6 * 15
    assert 30 < result["value"] < 300


def test_inspect_and_verify(quantized, capsys):
    code, out, _ = run(capsys, "inspect", quantized)
    assert code == 0
    assert out.count("kmeans-w4") == 7 * BLOCKS
    assert run(capsys, "verify", quantized)[0] == 0
    shard = quantized / "block-00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, out, err = run(capsys, "verify", quantized)
    shard.write_bytes(content)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "block-00001.safetensors: SHA-256 is" in err


def test_compare_prints_one_line_per_format(llama, ids, text_ids, capsys, tmp_path):
    formats = "rtn-w4,squeezellm-w4-s0.45,gptq-w4,awq-w4-g128"
    code, out, err = run(
        capsys, "compare", llama, "--calibration", ids, "--text", text_ids, "--formats", formats,
        "--executor", "serial", "--work", tmp_path / "new",
    )  # fmt: skip
    assert (code, err) == (0, "")
    table = [line.split() for line in out.splitlines()[2:7]]
    assert [row[0] for row in table] == ["f16", *formats.split(",")]
    for row in table[1:]:
        measured, forecast = float(row[2]), float(row[3])
        assert abs(forecast / measured - 1) < 0.05
        assert float(row[4]) == pytest.approx(
            1e3 * math.log(measured / float(table[0][2])), abs=0.1
        )
    assert "rise: of the loss over f16, in thousandths of a nat" in out


def test_compare_gives_every_method_the_same_true_bits(llama, ids, text_ids, capsys):
    code, out, _ = run(
        capsys, "compare", llama, "--calibration", ids, "--text", text_ids, "--json",
        "--methods", "rtn,kmeans", "--bits-per-weight", 17, "--executor", "serial",
    )  # fmt: skip
    assert code == 0
    lines = json.loads(out)["results"][1:]
    assert [line["format"].split("-")[0] for line in lines] == ["rtn", "kmeans"]
    assert all(line["bits_per_weight"] <= 17.1 for line in lines)


def test_a_plan_of_allocate_is_what_quantize_takes(llama, ids, capsys, tmp_path):
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    formats = "rtn-w2,rtn-w3,rtn-w4"
    code, text, _ = run(
        capsys, "allocate", llama, "--calibration", ids, "--formats", formats,
        "--bits-per-weight", 13, "-o", plan,
    )  # fmt: skip
    assert code == 0
    assert "layers and formats" in text
    assert "the least measured one is the plan" in text
    budget = json.loads(plan.read_text())
    measured = [float(line.split()[-2]) for line in text.splitlines()[2:] if " x rtn-" in line]
    assert len(measured) > 2
    assert measured[0] == min(measured) == pytest.approx(1e3 * budget["measured_loss"], abs=0.06)
    assert budget["bits_per_weight"] <= 13
    assert any(line.count(" x rtn-") > 1 for line in text.splitlines())
    code, text, _ = run(
        capsys, "quantize", llama, "--formats", plan, "--out", out, "--executor", "serial"
    )
    assert code == 0
    assert f"{budget['bits_per_weight']:.4f} bits per weight" in text


def test_sensitivity_forecasts_per_layer(llama, ids, capsys):
    code, out, _ = run(
        capsys, "sensitivity", llama, "--calibration", ids, "--forecast", "rtn-w4,rtn-w3", "--json"
    )
    rows = json.loads(out)
    assert code == 0
    assert len(rows) == 7 * BLOCKS
    assert sum(row["fisher_share"] for row in rows) == pytest.approx(1)
    assert all(row["losses"]["rtn-w3"] > row["losses"]["rtn-w4"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["quantize", "MODEL", "--out", "OUT"], 2, "give one of --method with --bits"),
        (["quantize", "MODEL", "--out", "OUT", "--method", "rtn"], 2, "--method needs --bits"),
        (["quantize", "MODEL", "--out", "OUT", "--format", "spqr-w3-g32"], 2, "kernels read"),
        (["quantize", "MODEL", "--out", "OUT", "--format", "w4"], 2, "no method 'w4'"),
        (["quantize", "MODEL", "--out", "OUT", "--format", "squeezlm-w3"], 2, "did you mean"),
        (["quantize", "MODEL", "--out", "OUT", "--method", "awq", "--bits", "4"], 2,
         "awq needs calibration text"),
        (["quantize", "MODEL", "--out", "OUT", "--format", "rtn-w4", "--executor", "x"], 2,
         "no executor 'x'"),
        (["quantize", "MODEL", "--ot", "OUT"], 2, "--out"),
        (["quantize", "NONE", "--out", "OUT", "--format", "rtn-w4"], 3, "is no folder"),
        (["quantize", "MODEL", "--out", "OUT", "--format", "gptq-w4", "--calibration", "NONE.txt"],
         3, "cannot be read"),
        (["quantize", "MODEL", "--out", "OUT", "--format", "gptq-w4", "--calibration", "x.pdf"],
         2, "expected a file of text or tokens"),
        (["evaluate", "MODEL", "--text", "NONE.npy"], 3, "cannot be read"),
        (["inspect", "MODEL"], 3, "quantization_config"),
        (["verify", "MODEL"], 3, "no ledger"),
        (["sensitivity", "MODEL"], 2, "give --calibration FILE"),
        (["compare", "MODEL", "--text", "IDS", "--methods", "rtn", "--bits-per-weight", "2"], 2,
         "rtn takes"),
    ],
)  # fmt: skip
def test_errors_take_one_line(llama, text_ids, capsys, tmp_path, arguments, code, message):
    places = {"MODEL": llama, "OUT": tmp_path / "out", "IDS": text_ids, "NONE": tmp_path / "none"}
    found, out, err = run(capsys, *(places.get(word, word) for word in arguments))
    assert (found, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_kernels_without_a_gpu_say_what_they_need(quantized, text_ids, capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = ["evaluate", quantized, "--text", text_ids, "--linear", "kernels"]
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "need Triton and a GPU" in err


def test_evaluation_on_calibration_text_warns(llama, ids, capsys, tmp_path):
    arguments = ["quantize", llama, "--format", "gptq-w4", "--calibration", ids, "--out", tmp_path]
    assert run(capsys, *arguments)[0] == 0
    _, _, err = run(capsys, "evaluate", tmp_path, "--text", ids)
    assert "warning: in-domain: ids.npy is the calibration file itself" in err


def test_ctrl_c_finishes_the_block_and_says_how_to_go_on(tmp_path):
    source = write_model(tmp_path / "model", num_hidden_layers=200)
    command = [sys.executable, "-m", "quantizer", "quantize", str(source), "--format", "rtn-w4"]
    command += ["--out", str(tmp_path / "out"), "--executor", "serial"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/ledger/*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "finishing the block in work" in err
    assert "run the same command to go on" in err
    assert not list(tmp_path.glob("out/ledger/*.lease"))


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("compare", ["--formats", "rtn-w4", "--text", "TEXT", "--executor", "serial"]),
        ("sensitivity", []),
        ("allocate", ["--formats", "rtn-w4,rtn-w8", "--bits-per-weight", 30, "-o", "PLAN"]),
    ],
)
def test_a_stop_says_what_is_kept(
    llama, ids, text_ids, capsys, tmp_path, monkeypatch, command, options
):
    monkeypatch.setattr(commands, "stoppable", lambda: nullcontext(Hooks(stopping=lambda: True)))
    paths = {"TEXT": text_ids, "PLAN": tmp_path / "plan.json"}
    words = [command, llama, "--calibration", ids, *(paths.get(word, word) for word in options)]
    code, _, err = run(capsys, *words)
    assert code == 75
    assert err.endswith("quantizer: error: stopped; nothing is kept without --work DIR\n")
    code, _, err = run(capsys, *words, "--work", tmp_path / "work")
    assert code == 75
    assert "run the same command to go on" in err
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("wrong", ["rtn-w9", "rtn-w5-g32", "plan.json"])
@pytest.mark.parametrize(
    ("command", "options"),
    [("sensitivity", ["--forecast"]), ("allocate", ["--bits-per-weight", 9, "--formats"])],
)
def test_a_wrong_format_is_said_before_the_others_are_tried(
    llama, ids, capsys, tmp_path, command, options, wrong
):
    words = ["--calibration", ids, "--work", tmp_path / "work", *options, f"rtn-w4,{wrong}"]
    words += ["-o", tmp_path / "plan.json"] if command == "allocate" else []
    code, _, err = run(capsys, command, llama, *words)
    assert code == 2
    assert wrong in err
    assert not list(tmp_path.rglob("rtn-w4"))
