"""Perplexity by weight format: published tables, or what `quantizer compare --json` measured."""

import csv
from pathlib import Path
from typing import Any, Literal

import msgspec

from perfmodel.errors import SpecError, UsageError
from perfmodel.format_names import parse_format
from perfmodel.strict_yaml import read_text

Metric = Literal["wikitext2", "c4"]
METRICS: tuple[Metric, ...] = ("wikitext2", "c4")
PERPLEXITIES = Path(__file__).parent / "published" / "perplexity.csv"
MAX_FILE_BYTES = 1024 * 1024
_LAYOUTS = ("balanced", "hybrid")  # how a sparse part is stored changes no value


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """Perplexities of one model, lower is better."""

    by_format: dict[str, float]
    what: str  # what was measured, and who says so

    def of(self, name: str) -> float | None:
        """Perplexity of a format, whatever layout its sparse part has; None if unknown."""
        return self.by_format.get(_plain(name))


def published(model: str, metric: Metric) -> Quality:
    """Perplexities of the papers for a built-in model; empty if there are none."""
    with PERPLEXITIES.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["model"] == model and row[metric]]
    papers = dict.fromkeys(row["source"].partition(",")[0] for row in rows)
    return Quality(
        by_format={row["weights"]: float(row[metric]) for row in rows},
        what=f"{metric} perplexity from {' and '.join(papers)}" if rows else "",
    )


def read_quality(path: Path) -> Quality:
    """Perplexities from the JSON of `quantizer compare --json`.

    Raises: SpecError.
    """
    text = read_text(path, max_bytes=MAX_FILE_BYTES)
    try:
        value: Any = msgspec.json.decode(text)
        found = {str(row["format"]): float(row["perplexity"]) for row in value["results"]}
        what = f"perplexity on {value['text']}"
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        expected = (
            "expected the output of `quantizer compare --json`: results of format, perplexity"
        )
        raise SpecError(f"{path}: {expected}") from None
    try:
        return Quality(by_format={_plain(name): value for name, value in found.items()}, what=what)
    except UsageError as error:
        raise SpecError(f"{path}: {error}") from None


def _plain(name: str) -> str:
    """The name without the layout of its sparse part and without accounting."""
    words = parse_format(name).name.partition("@")[0].split("-")
    return "-".join(word for word in words if word not in _LAYOUTS)
