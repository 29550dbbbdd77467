"""Bits of every setting of GPTVQ's main table, and the four rows that its formula does not give."""

import csv
from pathlib import Path

import pytest

from perfmodel.format_names import parse_format

PATH = Path(__file__).parents[1] / "data" / "gptvq_settings.csv"
ROWS = list(csv.DictReader(PATH.read_text().splitlines()))
SIZE = 65536  # every group divides a matrix of so many rows and columns


def bits(row, group, accounting):
    name = f"gptvq-{row['dim']}d-w{row['bits']}-g{group}{accounting}"
    return parse_format(name).bits_per_weight(SIZE, SIZE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['dim']}d-{row['printed_bits']}")
def test_our_count_is_the_papers_formula(row):
    """b + 8 2^(b d) d / l; stored, an FP16 scale per codebook more, which the paper leaves out."""
    group = int(row["printed_group"])
    assert bits(row, group, "@paper") == pytest.approx(float(row["count"]), abs=1e-9)
    assert bits(row, group, "") == pytest.approx(float(row["count"]) + 16 / group, abs=1e-9)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['dim']}d-{row['printed_bits']}")
def test_the_printed_bits_are_those_of_the_released_groups(row):
    """Four groups are misprinted: with those of the authors' scripts all bits come out."""
    printed = float(row["printed_bits"])
    group = int(row["released_group"] or row["printed_group"])
    assert bits(row, group, "@paper") == pytest.approx(printed, abs=1e-9)
    assert (float(row["count"]) != printed) == bool(row["released_group"])
