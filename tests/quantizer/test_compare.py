"""Comparing formats: a request to stop is heard between windows and between sequences."""

import math

import pytest
import torch

from quantizer.checkpoints.checkpoint import open_checkpoint
from quantizer.errors import StoppedError, UsageError
from quantizer.evaluation.calibration import load_calibration
from quantizer.evaluation.compare import compare
from quantizer.evaluation.evaluate import Protocol, load_evaluation, rise
from quantizer.methods.matrix import Settings
from quantizer.run.pipeline import Hooks
from quantizer.run.trial import Trial
from tests.quantizer.models import CONTEXT, VOCABULARY

WINDOWS = 6  # of the text, and sequences of the calibration


class AskedAfter:
    """`stopping` hook: false so many times, then true; counts how often it was asked."""

    def __init__(self, times: int) -> None:
        self.times, self.asked = times, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked > self.times


ROOM = {"longest": CONTEXT, "vocabulary": VOCABULARY}


@pytest.fixture
def trial(llama, ids, tmp_path):
    return Trial(
        checkpoint=open_checkpoint(llama),
        calibration=load_calibration(ids, llama, "c4-100x512", **ROOM),
        work=tmp_path / "work",
        options=Settings(format="rtn-w4"),
    )


@pytest.fixture
def text(llama, text_ids):
    return load_evaluation(text_ids, llama, Protocol(), **ROOM)


def test_a_stop_ends_the_evaluation_at_the_next_window(trial, text, monkeypatch):
    monkeypatch.setattr("quantizer.evaluation.evaluate.PAPER_WINDOW", 16)  # one window at once
    asked = AskedAfter(2)
    with pytest.raises(StoppedError, match="run the same command to go on"):
        compare(trial, text, ["rtn-w4"], Hooks(stopping=asked))
    assert asked.asked == 3
    assert not trial.work.exists()


def test_a_stop_ends_the_fisher_pass_at_the_next_sequence_and_leaves_no_file(trial, text):
    passes = []
    hooks = Hooks(
        stopping=lambda: len(passes) == 2, on_fisher=lambda done, _total: passes.append(done)
    )
    with pytest.raises(StoppedError):
        compare(trial, text, ["squeezellm-w4"], hooks)
    assert passes == [1, 2]
    assert [path for path in trial.work.rglob("*") if path.is_file()] == []


def test_a_stop_after_the_last_sequence_keeps_the_pass(trial, text):
    passes = []
    hooks = Hooks(
        stopping=lambda: len(passes) == WINDOWS, on_fisher=lambda done, _total: passes.append(done)
    )
    with pytest.raises(StoppedError):
        compare(trial, text, ["squeezellm-w4"], hooks)
    assert [path.name for path in trial.work.glob("*.safetensors")] == ["fisher.safetensors"]


def test_rises_are_counted_from_the_model_or_from_one_of_the_formats(trial, text):
    formats = ["rtn-w3", "awq-w4-g128"]
    lines = compare(trial, text, formats, Hooks())
    again = compare(trial, text, formats, Hooks(), base="rtn-w3")
    assert lines[0].rise == 0.0
    for line, other in zip(lines, again, strict=True):
        due = math.log(line.perplexity / lines[0].perplexity)
        assert line.rise == pytest.approx(due, abs=1e-9)
        assert other.rise == pytest.approx(line.rise - lines[1].rise, abs=1e-9)
    assert lines[1].rise_error > 0.0
    assert again[1].rise_error == 0.0
    with pytest.raises(UsageError, match="no format 'rtn-w4' to count from"):
        compare(trial, text, formats, Hooks(), base="rtn-w4")


def test_the_error_of_a_rise_is_that_of_the_mean_of_the_differences():
    base = torch.tensor([1.0, 5.0, 3.0], dtype=torch.float64)
    found = rise(base + torch.tensor([0.1, 0.2, 0.3]), base)
    assert found.mean == pytest.approx(0.2)
    assert found.error == pytest.approx(0.1 / math.sqrt(3))
    assert rise(base[:1], base[:1]) == (0.0, None)
