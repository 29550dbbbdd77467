"""Tasks of the lm-evaluation-harness from local files; its parts that need the library are skipped
where it is not installed."""

import json
import sys
from importlib.util import find_spec

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from quantizer.cli import main
from quantizer.evaluation.harness import scores_of
from tests.quantizer.models import VOCABULARY, write_model

needs_library = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm_eval is not installed: pip install -e '.[harness]'"
)
QUESTIONS = [
    {"text": "a b c", "answers": ["a", "b", "c"], "right": number % 3} for number in range(9)
]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{answers}}}}"
doc_to_target: right
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_scores_are_read_from_the_keys_of_the_harness():
    found = {
        "results": {
            "anatomy": {
                "name": "anatomy",
                "alias": " - anatomy",
                "sample_len": 135,
                "acc,none": 0.5,
                "acc_stderr,none": 0.25,
            },
            "all": {"alias": "all", "exact_match,strict": 0.75, "exact_match_stderr,strict": "N/A"},
        },
        "n-samples": {"anatomy": {"original": 135, "effective": 10}},
        "n-shot": {"anatomy": 5},
    }
    anatomy, group = scores_of(found)
    assert (anatomy.metric, anatomy.value, anatomy.standard_error) == ("acc", 0.5, 0.25)
    assert (anatomy.samples, anatomy.shots) == (10, 5)
    assert (group.task, group.metric) == ("all", "exact_match (strict)")
    assert (group.standard_error, group.samples) == (None, None)


def test_without_the_library_evaluate_says_what_to_install(llama, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["evaluate", str(llama), "--tasks", "mmlu"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "lm_eval is not installed; in the checkout: pip install -e '.[harness]'" in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--text", "x.npy", "--tasks", "mmlu"]])
def test_evaluate_takes_a_text_or_tasks(llama, capsys, arguments):
    assert main(["evaluate", str(llama), *arguments]) == 2
    assert "give one of --text FILE and --tasks NAMES" in capsys.readouterr().err


def test_the_folder_of_tasks_must_exist(llama, tmp_path, capsys):
    arguments = ["--tasks", "mmlu", "--tasks-dir", str(tmp_path / "none")]
    assert main(["evaluate", str(llama), *arguments]) == 3
    assert "none: is no folder of task files" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model whose tokenizer knows single letters."""
    folder = write_model(tmp_path_factory.mktemp("harness") / "model")
    words = {chr(ord("a") + number % 26) + "'" * (number // 26): number for number in range(60)}
    tokenizer = Tokenizer(models.WordLevel({**words, "<unk>": 60, "<s>": 61}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    settings |= {"bos_token": "<s>", "eos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert len(words) + 2 <= VOCABULARY
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Two tasks: one with its questions, one whose questions are not there."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (folder / "letters.yaml").write_text(TASK.format(name="letters", data=data))
    (folder / "lost.yaml").write_text(TASK.format(name="lost", data=folder / "none.jsonl"))
    return folder


@needs_library
@pytest.mark.filterwarnings("ignore")  # of the libraries below it, which are not ours to mend
def test_a_local_task_is_scored(model, tasks, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    arguments = ["evaluate", str(model), "--tasks", "letters", "--tasks-dir", str(tasks), "--json"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    score = json.loads(printed.out)[0]
    assert (score["task"], score["metric"], score["samples"]) == ("letters", "acc", len(QUESTIONS))
    assert score["value"] == pytest.approx(1 / 3)  # the model always says the same
    assert score["shots"] == 0


@needs_library
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("leters", 2, "no task 'leters'"),
        ("lost", 3, "task lost: its files or data are not on this machine"),
    ],
)
def test_a_task_that_is_not_there_takes_one_line(model, tasks, capsys, name, code, message):
    assert main(["evaluate", str(model), "--tasks", name, "--tasks-dir", str(tasks)]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
