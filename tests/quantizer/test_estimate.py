"""The estimate before a run: a sample of known cost must give the cost of the whole."""

import pytest
import torch

from quantizer.checkpoints.checkpoint import open_checkpoint
from quantizer.evaluation.calibration import Calibration, Source
from quantizer.methods.matrix import Settings
from quantizer.run import probe
from quantizer.run.estimate import estimate
from quantizer.sensitivity.choose import uniform_settings
from tests.quantizer.models import BLOCKS, HIDDEN, WIDE

CALL_S, ROW_S = 0.5, 0.003


@pytest.fixture
def spent(monkeypatch):
    """A clock that only the methods move: so much per call, so much per row."""
    seconds = [0.0]

    def quantize(weight, _statistics, _settings):
        seconds[0] += CALL_S + ROW_S * weight.shape[0]

    monkeypatch.setattr(probe, "quantize_matrix", quantize)
    monkeypatch.setattr(probe, "clock", lambda: seconds[0])
    monkeypatch.setattr(probe, "ROWS", 8)
    return seconds


def test_a_sample_of_some_rows_gives_the_time_of_all_rows(llama, spent):
    checkpoint = open_checkpoint(llama)
    settings = uniform_settings(checkpoint, Settings(format="kmeans-w3"))
    rows = BLOCKS * (2 * HIDDEN + 2 * HIDDEN // 2 + 2 * WIDE + HIDDEN)
    expected = 7 * BLOCKS * CALL_S + rows * ROW_S
    assert estimate(checkpoint, settings, None).time_s == pytest.approx((expected, expected))
    assert spent[0] < 30  # of the sample: 2 kinds, 2 layers each, 6 calls


@pytest.mark.usefixtures("spent")
def test_independent_layers_share_the_workers_and_gptq_does_not(llama):
    checkpoint = open_checkpoint(llama)
    times = {}
    for name in ("kmeans-w3", "gptq-w3"):
        settings = uniform_settings(checkpoint, Settings(format=name))
        one, four = (estimate(checkpoint, settings, None, workers=n).time_s.low for n in (1, 4))
        times[name] = one / four
    assert times == pytest.approx({"kmeans-w3": 4, "gptq-w3": 1})


@pytest.mark.usefixtures("spent")
def test_a_hessian_of_more_columns_than_the_sample_costs_their_cube(llama, monkeypatch):
    checkpoint = open_checkpoint(llama)
    settings = uniform_settings(checkpoint, Settings(format="gptq-w4"))
    whole = estimate(checkpoint, settings, None).time_s.low
    monkeypatch.setattr(probe, "HESSIAN_COLUMNS", HIDDEN // 2)
    wide = WIDE * 2 / HIDDEN  # growth of down_proj; 2 of the other six
    calls = BLOCKS * CALL_S * (6 * 2**3 + wide**3)
    rows = 2 * HIDDEN + 2 * HIDDEN // 2 + 2 * WIDE
    per_row = BLOCKS * ROW_S * (rows * 2**2 + HIDDEN * wide**2)
    assert estimate(checkpoint, settings, None).time_s.low == pytest.approx(calls + per_row)
    assert whole < calls


def test_passes_are_timed_for_every_sequence_and_both_kinds_of_statistics(llama):
    checkpoint = open_checkpoint(llama)
    source = Source(file="x", folder="", sha256="", wikitext=False)
    few, many = (
        Calibration(ids=torch.ones(count, 16, dtype=torch.int64), source=source)
        for count in (1, 1000)
    )
    for name in ("squeezellm-w3", "gptq-w3"):
        settings = uniform_settings(checkpoint, Settings(format=name))
        assert probe.passes_s(checkpoint, None, settings) == (0, 0)
        seconds = probe.passes_s(checkpoint, many, settings)
        assert seconds.high >= seconds.low > 20 * probe.passes_s(checkpoint, few, settings).low > 0
