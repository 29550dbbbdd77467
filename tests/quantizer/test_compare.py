"""Comparing formats: a request to stop is heard between windows and between sequences."""

import pytest

from quantizer.checkpoints.checkpoint import open_checkpoint
from quantizer.errors import StoppedError
from quantizer.evaluation.calibration import load_calibration
from quantizer.evaluation.compare import Setting, compare
from quantizer.evaluation.evaluate import Protocol, load_evaluation
from quantizer.methods.matrix import Settings
from quantizer.run.pipeline import Hooks
from tests.quantizer.models import CONTEXT, VOCABULARY

WINDOWS = 6  # of the text, and sequences of the calibration


class AskedAfter:
    """`stopping` hook: false so many times, then true; counts how often it was asked."""

    def __init__(self, times: int) -> None:
        self.times, self.asked = times, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked > self.times


@pytest.fixture
def setting(llama, ids, text_ids, tmp_path):
    room = {"longest": CONTEXT, "vocabulary": VOCABULARY}
    return Setting(
        checkpoint=open_checkpoint(llama),
        calibration=load_calibration(ids, llama, "c4-100x512", **room),
        text=load_evaluation(text_ids, llama, Protocol(), **room),
        work=tmp_path / "work",
        options=Settings(format="rtn-w4"),
    )


def test_a_stop_ends_the_evaluation_at_the_next_window(setting, monkeypatch):
    monkeypatch.setattr("quantizer.evaluation.evaluate.PAPER_WINDOW", 16)  # one window at once
    asked = AskedAfter(2)
    with pytest.raises(StoppedError, match="run the same command to go on"):
        compare(setting, ["rtn-w4"], Hooks(stopping=asked))
    assert asked.asked == 3
    assert not setting.work.exists()


def test_a_stop_ends_the_fisher_pass_at_the_next_sequence_and_leaves_no_file(setting):
    passes = []
    hooks = Hooks(
        stopping=lambda: len(passes) == 2, on_fisher=lambda done, _total: passes.append(done)
    )
    with pytest.raises(StoppedError):
        compare(setting, ["squeezellm-w4"], hooks)
    assert passes == [1, 2]
    assert [path for path in setting.work.rglob("*") if path.is_file()] == []


def test_a_stop_after_the_last_sequence_keeps_the_pass(setting):
    passes = []
    hooks = Hooks(
        stopping=lambda: len(passes) == WINDOWS, on_fisher=lambda done, _total: passes.append(done)
    )
    with pytest.raises(StoppedError):
        compare(setting, ["squeezellm-w4"], hooks)
    assert [path.name for path in setting.work.glob("*.safetensors")] == ["fisher.safetensors"]
