"""Perplexity per token with the protocol of the papers.

The whole text is tokenized at once (one BOS at its start, if the tokenizer adds one), cut into
windows of 2048 tokens without overlap, the rest dropped; every window is scored from an empty
context, so a window of T tokens has T - 1 predictions. The value is exp of the mean over all
predictions. It is per token: not comparable across tokenizers, nor with the per-word numbers that
lm-evaluation-harness prints for WikiText.
Source: SqueezeLLM llama.py and GPTQ, evaluation loop; block size 2048.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from quantizer.errors import CheckpointError
from quantizer.evaluation.calibration import is_ids, load_tokenizer, read_ids, read_text

PAPER_WINDOW = 2048


class EvaluationText(msgspec.Struct, frozen=True, kw_only=True):
    """Windows to score and how they were made."""

    ids: Tensor  # (windows, tokens) int64
    label: str


class Perplexity(msgspec.Struct, frozen=True, kw_only=True):
    """Perplexity per token."""

    value: float
    nll_per_token: float
    predictions: int
    windows: int
    window_tokens: int
    label: str


class Protocol(msgspec.Struct, frozen=True, kw_only=True):
    """How to cut a text; anything but the default is said in the label."""

    window: int = PAPER_WINDOW
    bos: int | None = None  # this token first in every window
    limit: int | None = None  # only so many windows


def load_evaluation(
    path: Path, tokenizer_folder: Path, protocol: Protocol, *, longest: int, vocabulary: int
) -> EvaluationText:
    """Windows of a text or token file; longest: context of the model, in tokens.

    Raises: CheckpointError, UsageError.
    """
    bos, limit = protocol.bos, protocol.limit
    tokens = min(protocol.window, longest)
    body = tokens - (bos is not None)
    ids = read_ids(path, vocabulary) if is_ids(path) else _tokens_of(path, tokenizer_folder)
    made = "as the file has them"
    if ids.dim() == 1:
        count = len(ids) // body
        ids = ids[: count * body].reshape(count, body)
        made = "joined text cut without overlap"
        if bos is not None:
            ids = torch.cat((torch.full((count, 1), bos), ids), dim=1)
            made += f", token {bos} put first in each"
    ids = ids[:limit, :longest]
    if ids.numel() == 0 or ids.shape[1] < 2:
        raise CheckpointError(f"{path}: holds fewer than one window of {tokens} tokens")
    label = f"{path.name}: {len(ids)} windows of {ids.shape[1]} tokens, {made}"
    if ids.shape[1] != PAPER_WINDOW:
        label += f" (papers: {PAPER_WINDOW})"
    if limit is not None:
        label += f"; only the first {len(ids)} windows"
    return EvaluationText(ids=ids, label=label)


def perplexity(
    model: Any, text: EvaluationText, *, progress: Callable[[int, int], None] | None = None
) -> Perplexity:
    """Score every window from an empty context; as `window_losses`."""
    return perplexity_of(window_losses(model, text, progress=progress), text)


def window_losses(
    model: Any, text: EvaluationText, *, progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """(windows,) float64: mean loss of each window from an empty context, in nats per token.

    In the model's own number format. Short windows go through the model together. progress hears
    of windows done, and of how many.
    """
    windows, tokens = text.ids.shape
    at_once = max(1, PAPER_WINDOW // tokens)
    losses, done = [], 0
    with torch.inference_mode():
        for part in text.ids.split(at_once):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
            nll = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none"
            )
            losses.append(nll.double().view(len(part), tokens - 1).mean(dim=1))
            done += len(part)
            if progress is not None:
                progress(done, windows)
    return torch.cat(losses)


def perplexity_of(losses: Tensor, text: EvaluationText) -> Perplexity:
    """The perplexity of all windows together, from their losses."""
    windows, tokens = text.ids.shape
    mean = float(losses.mean())
    return Perplexity(
        value=math.exp(mean) if mean < 700 else math.inf,
        nll_per_token=mean,
        predictions=windows * (tokens - 1),
        windows=windows,
        window_tokens=tokens,
        label=text.label,
    )


class Rise(NamedTuple):
    """How much more a model loses than another on the same windows, in nats per token."""

    mean: float
    error: float | None  # standard error of the mean over the windows; None for one window


def rise(losses: Tensor, base: Tensor) -> Rise:
    """Paired: the windows' own difficulty, which is far larger, drops out."""
    difference = losses - base
    count = len(difference)
    error = float(difference.std()) / math.sqrt(count) if count > 1 else None
    return Rise(mean=float(difference.mean()), error=error)


def _tokens_of(path: Path, tokenizer_folder: Path) -> Tensor:
    return torch.tensor(load_tokenizer(tokenizer_folder)(read_text(path)), dtype=torch.int64)
