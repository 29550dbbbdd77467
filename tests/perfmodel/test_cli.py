"""The command line as its users and other programs see it."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from perfmodel.cli import main

ROOT = Path(__file__).parents[2]
PREDICT_KEYS = {
    *("schema", "device", "overrides", "model", "phase", "batch", "context", "prompt", "new"),
    *("tensor_parallel", "accounting", "kv_bits", "stack", "results"),
}
RESULT_KEYS = {
    *("weights", "bits_per_weight", "time_s", "time_per_token_s", "tokens_per_s", "interval_s"),
    *("basis", "speedup", "bound", "flops", "bytes", "weight_bytes", "kv_bytes"),
    *("activation_bytes", "intensity_flop_per_byte", "prefill_time_s", "memory", "ops"),
}
MEMORY_KEYS = {
    *("weights_bytes", "kv_cache_bytes", "activation_bytes", "total_bytes", "capacity_bytes"),
    *("fits", "largest_context", "largest_batch"),
}
OP_KEYS = {
    *("name", "kind", "count", "flops", "bytes", "weight_bytes", "kv_bytes", "activation_bytes"),
    *("send_bytes", "intensity_flop_per_byte", "time_s", "bound", "share", "merged"),
    "compute_bound_batch",
}


@pytest.fixture
def run(capsys):
    """Run a command line in this process; standard output."""

    def run_line(line: str) -> str:
        assert main(line.split()) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return run_line


def predict_json(run, line):
    return json.loads(run(f"predict {line} --json"))


def test_predict_json_is_the_contract(run):
    document = predict_json(run, "--gpu a6000 --bits 16,4")
    assert document["schema"] == "perfmodel.predict/1"
    assert set(document) == PREDICT_KEYS
    result = document["results"][1]
    assert set(result) == RESULT_KEYS
    assert set(result["memory"]) == MEMORY_KEYS
    assert all(set(op) == OP_KEYS for op in result["ops"])


def test_totals_in_the_json_are_sums_of_its_ops(run):
    for result in predict_json(run, "--gpu a6000 --bits 16,3")["results"]:
        for key in ("flops", "bytes", "weight_bytes", "kv_bytes", "activation_bytes"):
            assert result[key] == sum(op[key] for op in result["ops"])
        assert result["time_s"] == pytest.approx(sum(op["time_s"] for op in result["ops"]))
        assert sum(op["share"] for op in result["ops"]) == pytest.approx(1)


def test_fp16_decoding_on_an_a6000_and_weights_of_three_bits(run):
    line = "--gpu a6000 --model llama-7b --bits 16,8,4,3,2 --context 128"
    results = {r["weights"]: r for r in predict_json(run, line)["results"]}
    assert list(results) == ["fp16", "w8", "w4", "w3", "w2"]
    assert results["fp16"]["time_s"] == pytest.approx(17.29e-3, rel=0.005)
    assert results["fp16"]["speedup"] == 1
    fp16, w3 = ({op["name"]: op for op in results[n]["ops"]} for n in ("fp16", "w3"))
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        assert 16 * w3[name]["weight_bytes"] == 3 * fp16[name]["weight_bytes"]
    assert w3["lm_head"]["weight_bytes"] == fp16["lm_head"]["weight_bytes"]


@pytest.mark.parametrize(("new", "percent"), [(128, 99.665), (2048, 95.837)])
def test_share_of_weight_traffic_from_the_command_line(run, new, percent):
    line = (
        "--gpu a5000 --model llama-7b --weights fp16 --phase generate --prompt 0 "
        f"--new {new} --accounting paper"
    )
    result = predict_json(run, line)["results"][0]
    assert 100 * result["weight_bytes"] / result["bytes"] == pytest.approx(percent, abs=0.01)


def test_speedup_is_against_fp16_even_when_it_is_not_shown(run):
    alone = predict_json(run, "--gpu a6000 --bits 3")["results"][0]
    beside = predict_json(run, "--gpu a6000 --bits 16,3")["results"][1]
    assert alone["speedup"] == beside["speedup"] > 4


def test_a_quantized_head_is_faster(run):
    slow = predict_json(run, "--gpu a6000 --weights w3")["results"][0]
    fast = predict_json(run, "--gpu a6000 --weights w3 --lm-head w4")["results"][0]
    assert slow["weight_bytes"] - fast["weight_bytes"] == 32000 * 4096 * 3 // 2


def test_one_tensor_may_have_its_own_format(run):
    result = predict_json(run, "--gpu a6000 --weights w3 --tensor down_proj=w4")["results"][0]
    down = next(op for op in result["ops"] if op["name"] == "down_proj")
    assert down["weight_bytes"] == 32 * 4096 * 11008 // 2


def test_what_if_replaces_a_field_of_the_device(run):
    usual = predict_json(run, "--gpu a6000 --bits 16")["results"][0]
    faster = predict_json(run, "--gpu a6000 --bits 16 --set memory.bandwidth_gb_per_s=1536")
    assert faster["results"][0]["time_s"] == pytest.approx(usual["time_s"] / 2)
    assert faster["overrides"] == ["memory.bandwidth_gb_per_s=1536"]


def test_what_if_is_said_beside_the_numbers(run):
    text = run("predict --gpu a6000 --bits 3 --set memory.bandwidth_gb_per_s=1000")
    assert "what if memory.bandwidth_gb_per_s=1000" in text


def test_oom_is_said_and_still_predicted(run):
    text = run("predict --gpu a6000 --model llama-30b --weights fp16")
    assert "OOM" in text
    result = predict_json(run, "--gpu a6000 --model llama-30b --weights fp16")["results"][0]
    assert result["memory"]["fits"] is False
    assert result["time_s"] > 0


def test_the_table_shows_device_formats_and_where_time_goes(run):
    text = run("predict --gpu a6000")
    for part in ("768 GB/s", "ridge 202 FLOP/B", "fp16", "squeezellm-w3-s0.45", "17.30", "1.00x"):
        assert part in text
    assert "where the time goes (fp16): linear layers 97.5 %" in text


def test_ops_lists_every_operation(run):
    text = run("predict --gpu a6000 --bits 3 --ops")
    for name in ("embedding", "norm", "q_proj + rope", "qk_matmul + softmax", "lm_head"):
        assert name in text


def test_csv_has_full_precision_and_units_in_its_header(run):
    rows = list(csv.DictReader(io.StringIO(run("predict --gpu a6000 --bits 16,3 --csv"))))
    exact = predict_json(run, "--gpu a6000 --bits 16,3")["results"]
    assert [float(row["time_s"]) for row in rows] == [result["time_s"] for result in exact]


def test_csv_of_ops_has_a_row_per_operation(run):
    rows = list(csv.DictReader(io.StringIO(run("predict --gpu a6000 --bits 16,3 --ops --csv"))))
    assert [row["weights"] for row in rows[:2]] == ["fp16", "fp16"]
    assert len(rows) == 2 * 12


def test_markdown_is_a_table(run):
    lines = run("predict --gpu a6000 --bits 16,3 --markdown").splitlines()
    assert sum(line.startswith("|") for line in lines) == 4


@pytest.mark.parametrize("suffix", ["json", "csv", "md"])
def test_the_suffix_of_the_output_file_decides(run, tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    flag = {"json": "--json", "csv": "--csv", "md": "--markdown"}[suffix]
    assert run(f"predict --gpu a6000 -o {path}") == ""
    assert path.read_text() == run(f"predict --gpu a6000 {flag}")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["devices", "models", "formats", "stacks"])
def test_catalogues_list_everything_in_four_renderings(run, kind):
    document = json.loads(run(f"{kind} --json"))
    assert document["schema"] == f"perfmodel.{kind}/1"
    count = len(document["results"])
    assert len(run(f"{kind} --csv").splitlines()) == count + 1
    assert run(f"{kind} --markdown").count("\n|") >= count + 1
    assert len(run(kind).splitlines()) > count


def test_there_are_38_devices_each_with_sources(run):
    devices = json.loads(run("devices --json"))["results"]
    assert len(devices) == 38
    assert all(source["source"] for d in devices for source in d["sources"].values())
    assert [d["device"] for d in devices[:2]] == ["a6000", "a5000"]


def test_items_of_every_format_add_up(run):
    for row in json.loads(run("formats --json"))["results"]:
        items = [v for k, v in row.items() if k not in ("weights", "bits_per_weight")]
        assert row["bits_per_weight"] == pytest.approx(sum(items) - row["paper_bits_per_weight"])


def test_sweep_writes_one_row_per_combination(run):
    line = "sweep --gpu a5000,a6000 --bits 16,4,3 --batch 1,8 --context 128,2048"
    rows = list(csv.DictReader(io.StringIO(run(line))))
    assert len(rows) == 2 * 3 * 2 * 2
    assert {row["device"] for row in rows} == {"a5000", "a6000"}


def test_sweep_over_all_devices_and_models_in_json(run):
    document = json.loads(run("sweep --gpu all --model all --bits 4 --json"))
    assert len(document["results"]) == 38 * 24


def test_sweep_writes_parquet(run, tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "sweep.parquet"
    run(f"sweep --gpu a6000 --bits 16,3 --batch 1,2 -o {path}")
    assert len(pandas.read_parquet(path)) == 4


def test_check_accepts_what_ships(run):
    files = [*sorted((ROOT / "hardware").glob("*.yaml")), ROOT / "perfmodel/presets/llama-7b.json"]
    text = run("check " + " ".join(map(str, files)))
    assert text.count(" ok\n") == 39
    assert "ok" in run(f"check --kind stack {ROOT / 'perfmodel/stacks/ideal.yaml'}")


@pytest.mark.parametrize("command", ["", "predict", "sweep", "plot", "plot roofline", "formats"])
def test_help_says_what_it_is(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert "usage: perfmodel" in capsys.readouterr().out


def test_predict_loads_no_heavy_module():
    code = (
        "import sys; from perfmodel.cli import main; main(['predict', '--gpu', 'a6000']);"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'triton'};"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.endswith("heavy: []\n")


def test_it_runs_from_any_folder(tmp_path):
    command = [sys.executable, "-m", "perfmodel", "predict", "--gpu", "RTX A6000", "--csv"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("weights,bits_per_weight,time_s")
