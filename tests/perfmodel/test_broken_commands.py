"""Broken command lines: exit code 2, one line that says what to type, no output, no traceback."""

import re
import shlex
from pathlib import Path

import pytest

from perfmodel.cli import main

P = "predict --gpu a6000 "
S = "sweep --gpu a6000 "
DID_YOU_MEAN = "did you mean "
LONG = "x" * 5000
DIGITS = "9" * 5000

WORDS = {
    "no-command": ("", "the following arguments are required: COMMAND; see perfmodel --help"),
    "unknown-command": ("frobnicate", "invalid choice: 'frobnicate'"),
    "mistyped-command": ("predcit --gpu a6000", f"{DID_YOU_MEAN}predict?"),
    "no-figure": (
        "plot",
        "the following arguments are required: FIGURE; see perfmodel plot --help",
    ),
    "mistyped-figure": ("plot rofline --gpu a6000 -o x.png", f"{DID_YOU_MEAN}roofline?"),
    "mistyped-option": (P + "--modle llama-7b", f"--modle; {DID_YOU_MEAN}--model"),
    "mistyped-option-of-sweep": (S + "--bitts 4", f"--bitts; {DID_YOU_MEAN}--bits"),
    "mistyped-option-of-models": ("models --jsn", f"--jsn; {DID_YOU_MEAN}--json"),
    "shortened-option": (P + "--mod llama-7b", f"--mod; {DID_YOU_MEAN}--model"),
    "option-of-another-command": ("devices --gpu a6000", "unknown argument: --gpu"),
    "unknown-word": (P + "please", "unknown argument: please"),
    "no-gpu": ("predict", "the following arguments are required: --gpu"),
    "gpu-without-name": ("predict --gpu", "argument --gpu: expected one argument"),
    "no-file-to-check": ("check", "the following arguments are required: FILE"),
    "mistyped-kind": ("check --kind modle x.json", f"{DID_YOU_MEAN}model?"),
}
NAMES = {
    "mistyped-device": ("predict --gpu a600", f"no device 'a600'; {DID_YOU_MEAN}a6000"),
    "unknown-device": ("predict --gpu zzzzzz", "no device 'zzzzzz'; have: a10, "),
    "empty-device": ("predict --gpu ''", "no device ''"),
    "empty-model": (P + "--model ''", "no model ''"),
    "second-device-of-sweep": ("sweep --gpu a6000,zzzzzz", "no device 'zzzzzz'; have: "),
    "mistyped-model": (P + "--model lama-7b", f"no model 'lama-7b'; {DID_YOU_MEAN}llama-7b"),
    "endless-model": (P + f"--model {LONG}", "no model 'xxx"),
    "mistyped-stack": (P + "--stack idael", f"no stack 'idael'; {DID_YOU_MEAN}ideal?"),
    "mistyped-phase": (P + "--phase decod", f"{DID_YOU_MEAN}decode?"),
    "mistyped-accounting": (P + "--accounting fussed", f"{DID_YOU_MEAN}fused?"),
    "mistyped-accounting-of-sweep": (
        S + "--accounting fussed",
        "found 'fussed', expected one of fused, eager, paper",
    ),
}
NUMBERS = {
    "batch-zero": (P + "--batch 0", "--batch: found 0, expected a whole number from 1 on"),
    "batch-negative": (P + "--batch -1", "--batch: found '-1', expected a whole number from 1 on"),
    "batch-fraction": (P + "--batch 1.5", "--batch: found '1.5', expected a whole number from 1"),
    "batch-exponent": (P + "--batch 1e3", "--batch: found '1e3', expected a whole number from 1"),
    "batch-text": (P + "--batch many", "--batch: found 'many', expected a whole number from 1"),
    "batch-empty": (P + "--batch ''", "--batch: found '', expected a whole number from 1 on"),
    "batch-other-digits": (P + "--batch \u0663", "--batch: found '\u0663', expected a whole"),
    "batch-above-bound": (P + "--batch 1000001", "batch is 1000001, expected 1..1000000"),
    "batch-of-5000-digits": (P + f"--batch {DIGITS}", "--batch: found "),
    "context-negative": (P + "--context -1", "found '-1', expected a whole number from 0 on"),
    "context-huge": (P + "--context 99999999999", "context is 99999999999, expected 0..10000000"),
    "new-zero": (P + "--phase generate --new 0", "--new: found 0, expected a whole number from 1"),
    "kv-bits-zero": (P + "--kv-bits 0", "--kv-bits: found 0, expected a whole number from 1 on"),
    "kv-bits-64": (P + "--kv-bits 64", "kv-bits is 64, expected 1..32"),
    "lengths-zero": ("plot runtime --gpu a6000 --lengths 0 -o x.png", "--lengths: found 0, expect"),
    "empty-batch-of-sweep": (S + "--batch 1,,2", "--batch: found '', expected a whole number"),
    "zero-batch-of-sweep": (S + "--batch 1,0", "--batch: found 0, expected a whole number from 1"),
}
LISTS = {
    "weights-and-bits": (
        P + "--weights w4 --bits 4",
        "--bits: not allowed with argument --weights",
    ),
    "json-and-csv": (P + "--json --csv", "--csv: not allowed with argument --json"),
    "empty-weights": (P + "--weights fp16,,w4", "--weights 'fp16,,w4': found an empty entry"),
    "no-weights": (P + "--weights ''", "--weights '': found an empty entry, expected names"),
    "empty-bits": (P + "--bits 4,,3", "--bits '4,,3': found an empty entry, expected names"),
    "empty-device-of-sweep": ("sweep --gpu a6000,", "--gpu 'a6000,': found an empty entry"),
    "empty-model-of-sweep": (S + "--model ,", "--model ',': found an empty entry"),
}
FORMATS = {
    "mistyped-format": (P + "--weights squeezelm-w4", f"{DID_YOU_MEAN}squeezellm-w4"),
    "unknown-format": (
        P + "--weights zzz",
        "no weight format 'zzz'; have: fp16, bf16, fp32, w<bits>",
    ),
    "w0": (P + "--weights w0", "'w0': bits must be above 0 and at most 32"),
    "w99": (P + "--weights w99", "'w99': bits must be above 0 and at most 32"),
    "bits-zero": (P + "--bits 0", "bits must be above 0 and at most 32"),
    "bits-negative": (P + "--bits -4", "'-4'"),
    "bits-text": (P + "--bits four", "'four'"),
    "unknown-word-in-format": (P + "--weights gptq-w4-foo", "'gptq-w4-foo': unknown word 'foo'"),
    "word-given-twice": (P + "--weights gptq-w4-w3", "'w3' is a second bits, expected one"),
    "missing-group": (P + "--weights awq-w4", "group is missing, as in awq-w4-g128"),
    "group-zero": (P + "--weights gptq-w4-g0", "found group size 0, expected at least 1"),
    "foreign-word": (P + "--weights fp16-w4", "fp16 takes no bits"),
    "width-not-made": (P + "--weights kmeans-w16", "found 16 bits, expected one of 2, 3, 4, 5"),
    "all-weights-sparse": (P + "--weights squeezellm-w3-s100", "must be above 0 and below 100"),
    "unknown-count-of-bits": (P + "--weights w4@foo", "unknown accounting 'foo'; have: paper"),
    "endless-bits": (P + f"--weights w{DIGITS}", "weight format"),
    "endless-fraction": (P + f"--weights w4.{DIGITS}", "weight format"),
    "endless-group": (P + f"--weights gptq-w4-g{DIGITS}", "weight format"),
    "unknown-lm-head": (P + "--lm-head q4", "no weight format 'q4'"),
    "tensor-without-format": (P + "--tensor down_proj", "expected TENSOR=FORMAT"),
    "tensor-of-no-block": (P + "--tensor lm_head=w4", "with one of q_proj, k_proj, v_proj"),
    "tensor-with-wrong-format": (P + "--tensor down_proj=zz", "no weight format 'zz'"),
}
BANDWIDTH = P + "--set memory.bandwidth_gb_per_s"
SETTINGS = {
    "set-without-equals": (BANDWIDTH, "expected FIELD=VALUE"),
    "set-mistyped-field": (P + "--set memory.l2_mb=6", f"{DID_YOU_MEAN}memory.l2_mib"),
    "set-field-without-group": (P + "--set l2_mib=6", f"{DID_YOU_MEAN}memory.l2_mib?"),
    "set-no-field": (P + "--set =6", "no field '' in a device file; fields: "),
    "set-group": (P + "--set memory=6", "no field 'memory' in a device file"),
    "set-text": (BANDWIDTH + "=fast", 'memory.bandwidth_gb_per_s: found "fast", expected'),
    "set-nothing": (BANDWIDTH + "=", "memory.bandwidth_gb_per_s: found nothing (null), expected"),
    "set-exponent": (BANDWIDTH + "=1e3", "found 1e3, which YAML readers take differently; expect"),
    "set-negative": (BANDWIDTH + "=-5", "memory.bandwidth_gb_per_s: found -5, expected"),
    "set-bytes": (BANDWIDTH + "=768000000000", "memory.bandwidth_gb_per_s: found 768000000000"),
    "set-sparse-below-dense": (
        P + "--set compute.fp16_tensor_sparse_tflops=1",
        "compute.fp16_tensor_sparse_tflops: found 1, expected at least the dense peak, 154.8",
    ),
}
PHASES = {
    "context-of-generate": (P + "--context 5 --phase generate", "which takes --prompt and --new"),
    "new-of-decode": (P + "--new 5", "--new does not belong to --phase decode, which takes --con"),
    "prompt-of-decode": (P + "--prompt 5", "--prompt does not belong to --phase decode"),
    "new-of-prefill": (P + "--phase prefill --new 3", "--new does not belong to --phase prefill"),
    "prefill-of-nothing": (P + "--phase prefill --prompt 0", "prompt is 0, expected 1..10000000"),
    "context-of-generate-sweep": (S + "--phase generate --context 5", "which takes --prompt and"),
    "tp-zero": (P + "--tp 0", "--tp: found 0, expected a whole number from 1 on"),
    "tp-that-does-not-divide": (
        P + "--tp 3",
        "tp is 3, expected a divisor of llama-7b's heads, 32",
    ),
    "tp-later-in-a-sweep": (S + "--tp 1,3", "tp is 3, expected a divisor of llama-7b's heads, 32"),
    "tp-without-interconnect": (
        "predict --gpu orin --tp 2",
        "orin: interconnect.gb_per_s is unknown (null), needed for tensor parallelism; "
        "give it with --set interconnect.gb_per_s=VALUE",
    ),
}
OUTPUTS = {
    "into-no-folder": (P + "-o none/x.json", "none/x.json: cannot be written: No such file"),
    "into-no-folder-of-sweep": (S + "-o none/x.csv", "none/x.csv: cannot be written: No such file"),
    "onto-a-folder": (P + "-o folder", "folder: is a folder, expected a file to write"),
    "onto-a-folder-of-sweep": (S + "-o folder", "folder: is a folder, expected a file to write"),
    "endless-file-name": (P + f"-o {LONG}.json", "cannot be written: File name too long"),
    "parquet-of-predict": (P + "-o x.parquet", "only sweep writes Parquet; use .json, .csv or .md"),
    "plot-without-file": ("plot roofline --gpu a6000", "are required: -o"),
    "plot-with-wrong-suffix": ("plot roofline --gpu a6000 -o x.txt", "ending in .png, .svg, .pdf"),
    "plot-without-suffix": ("plot roofline --gpu a6000 -o x", "-o x: expected a name ending in"),
    "plot-without-axis": ("plot sweep --gpu a6000 -o x.png", "needs two values of --context, "),
    "plot-of-532-lines": (
        "plot sweep --gpu all --bits 2,3,4,5,6,7,8,9,10,11,12,13,14,15 --batch 1,2 -o x.png",
        "lines are too many for one figure, expected at most 16",
    ),
}
# Quoted or escaped: whatever was typed, the message stays one line.
LINE_BREAKS = {
    "line-break-in-option": (P + "'--a\nb'", "unknown argument: "),
    "line-break-in-set": (P + "--set 'a\nb=1'", "no field "),
    "line-break-in-tensor": (P + "--tensor 'a\nb'", "expected TENSOR=FORMAT"),
    "line-break-in-device": ("predict --gpu 'a\nb'", "no device "),
    "line-break-in-output": (P + "-o 'a\nb/x.csv'", "cannot be written"),
}
COMMANDS = WORDS | NAMES | NUMBERS | LISTS | FORMATS | SETTINGS | PHASES | OUTPUTS | LINE_BREAKS


def refusal(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The one line that a refused command leaves; argparse leaves by SystemExit."""
    try:
        code = main(argv)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert re.match(r"perfmodel( [a-z]+)*: error: ", err)
    assert err.removesuffix("\n").isprintable()
    return err


@pytest.mark.parametrize(("typed", "words"), COMMANDS.values(), ids=COMMANDS)
def test_a_broken_command_says_what_is_wrong(typed, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    assert words in refusal(capsys, shlex.split(typed))
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]  # nothing was written


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_device_is_named(capsys):
    said = refusal(capsys, [*P.split(), "-o", "/dev/full"])
    assert "/dev/full: cannot be written: No space left on device" in said


def test_a_number_of_30_digits_is_not_cut_to_another(capsys):
    assert f" {'9' * 20}," not in refusal(capsys, [*P.split(), "--batch", "9" * 30])


def test_a_mistyped_option_gets_no_hint_far_from_it(capsys):
    assert "did you mean" not in refusal(capsys, [*P.split(), "--zzzzz"])


def test_set_without_equals_does_not_ask_for_the_same_field(capsys):
    assert "did you mean" not in refusal(capsys, BANDWIDTH.split())


def test_set_names_a_file_whose_path_has_a_colon(tmp_path, capsys):
    source = Path(__file__).parents[2] / "hardware" / "a6000.yaml"
    file = tmp_path / "my: gpu.yaml"
    file.write_bytes(source.read_bytes())
    said = refusal(capsys, ["predict", "--gpu", str(file), "--set", "memory.l2_mib=-1"])
    assert "--set: memory.l2_mib: found -1, expected" in said


def test_an_output_without_permission_is_named(tmp_path, capsys, monkeypatch):
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)  # chmod does not stop root
    file = tmp_path / "x.json"
    said = refusal(capsys, [*P.split(), "-o", str(file)])
    assert said == f"perfmodel: error: {file}: cannot be written: Permission denied\n"
