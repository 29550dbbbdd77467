"""Scores of tasks such as MMLU by the lm-evaluation-harness, from files of this machine alone.

Task files of the harness may name Python functions, which it then runs: use only those you trust.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import msgspec

from perfmodel.errors import missing_package
from quantizer.errors import CheckpointError, UsageError

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
BATCH = 8  # questions at once
NOT_METRICS = ("alias", "name", "sample_len", "sample_count")


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one task, or of a group of tasks."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    samples: int | None  # None: a group
    shots: int | None


class Tasks(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. Without a folder: the library's own task files, data from its local cache."""

    names: Sequence[str]
    folder: Path | None = None
    shots: int | None = None  # examples in the prompt; None: as the task says
    limit: int | None = None  # questions per task


def evaluate_tasks(model: Any, model_folder: Path, tasks: Tasks) -> list[Score]:
    """Scores of a causal language model whose tokenizer is in `model_folder`.

    Raises: UsageError if the library or a task is missing, CheckpointError if a task's files or
    data cannot be read.
    """
    if tasks.folder is not None and not tasks.folder.is_dir():
        raise CheckpointError(f"{tasks.folder}: is no folder of task files")
    go_offline()
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
        from transformers import AutoTokenizer
    except ImportError as error:
        raise missing_package(error, "harness") from None
    with _quiet():
        manager = TaskManager(include_path=tasks.folder, include_defaults=tasks.folder is None)
        loaded = [part for name in tasks.names for part in _load(manager, name, tasks.folder)]
        tokenizer = AutoTokenizer.from_pretrained(model_folder, local_files_only=True)
        found = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH),
            tasks=loaded,
            num_fewshot=tasks.shots,
            limit=tasks.limit,
            task_manager=manager,
            log_samples=False,
        )
    return scores_of(found)


def go_offline() -> None:
    """No request leaves this process; to be called before the libraries are imported."""
    os.environ |= dict.fromkeys(OFFLINE, "1")


@contextmanager
def _quiet() -> Iterator[None]:
    """Progress bars on a terminal alone, and no remarks of the harness."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if sys.stderr.isatty():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        yield


def scores_of(found: dict[str, Any]) -> list[Score]:
    """The harness's results as records, tasks and groups in its order.

    Its keys are "metric,filter", and "metric_stderr,filter" for the standard error.
    """
    scores = []
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if metric in NOT_METRICS or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{chosen}")
            scores.append(
                Score(
                    task=task,
                    metric=metric if chosen == "none" else f"{metric} ({chosen})",
                    value=float(value),
                    standard_error=error if isinstance(error, float) else None,
                    samples=found.get("n-samples", {}).get(task, {}).get("effective"),
                    shots=found.get("n-shot", {}).get(task),
                )
            )
    return scores


def _load(manager: Any, name: str, folder: Path | None) -> list[Any]:
    """A task, a group, or all tasks of a tag, with their data.

    Raises: UsageError, CheckpointError.
    """
    if name not in manager.all_tasks:
        have = ", ".join(manager.all_tasks) if folder else "what `lm_eval ls tasks` prints"
        where = folder or "the lm-evaluation-harness"
        raise UsageError(f"no task {name!r} in {where}; have: {have or 'none'}")
    try:
        loaded = manager.load([name])
    except Exception as error:  # of many libraries, most of them plain
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"task {name}: its files or data are not on this machine, and nothing is downloaded: "
            f"{reason}"
        ) from None
    return [loaded["groups"][name]] if name in loaded["groups"] else [*loaded["tasks"].values()]
