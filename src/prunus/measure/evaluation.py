"""The language model evaluation harness, on a model that is in memory."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.core.errors import DataError, SpecError, listed, require


@dataclass(frozen=True)
class TaskScore:
    """One number of one task.

    Attributes:
        task: its name in the harness.
        metric: the harness's name of the number (`acc_norm`, `word_perplexity`, ...).
        filter: what was done with the answers before they were counted; mostly `none`.
        value: the number.
        error: its standard error, as the harness works it out; None where it does not.
        higher_is_better: None where the harness does not say.
        shots: examples in the prompt.
        samples: how many questions were asked; 0 for a number that sums up several tasks.
        version: the task's, as the harness counts them.
    """

    task: str
    metric: str
    filter: str
    value: float
    error: float | None
    higher_is_better: bool | None
    shots: int
    samples: int
    version: str


@dataclass(frozen=True)
class Harness:
    """What the harness measured.

    Attributes:
        scores: in the order of the harness: groups of tasks and their members, every metric.
        library: the harness's version; numbers of different versions are not always the same measurement.
        limit: of questions per task; None: all.
        parts: group of tasks -> what it sums up.
    """

    scores: tuple[TaskScore, ...]
    library: str
    limit: int | None
    parts: Mapping[str, tuple[str, ...]]

    def value(self, task: str, metric: str, filter: str | None = None) -> float:  # noqa: A002
        """One number. Errors: `SpecError` where there is none, or several filters have one."""
        found = [s for s in self.scores if (s.task, s.metric) == (task, metric) and filter in (None, s.filter)]
        if len(found) != 1:
            there = [f"{s.task} {s.metric} ({s.filter})" for s in self.scores]
            raise SpecError(f"{len(found)} numbers are called {task} {metric}; there are {listed(there, 12)}")
        return found[0].value

    def __str__(self) -> str:
        return "\n".join(
            f"{s.task} {s.metric}{'' if s.filter == 'none' else f' ({s.filter})'}: {s.value:.4f}"
            f"{'' if s.error is None else f' (standard error {s.error:.4f})'}, {s.samples:,} questions, {s.shots} shots"
            for s in self.scores
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"library": self.library, "limit": self.limit, "scores": [asdict(s) for s in self.scores]}


def harness(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    include: str | Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    batch: int = 8,
    seed: int = 0,
) -> Harness:
    """Tasks of the language model evaluation harness (EleutherAI, `lm_eval`) on a language model as it is in memory:
    masked, compact, on whatever device; nothing is saved or loaded for it.

    Args:
        model: a transformers model that predicts tokens. Weights that its configuration ties are tied, as it does.
        tokenizer: its tokenizer, a transformers object.
        tasks: names of tasks or of groups of tasks, as the harness knows them.
        include: a folder with further tasks (YAML files), which may name Python code that the harness then runs.
        shots: examples in the prompt; None: what each task says.
        limit: only so many questions of each task: quick, and no result to report.
        batch: questions at a time.
        seed: of what the harness draws (examples in prompts).

    Returns: every number that it reports. Cost: the harness's: one forward or more per question and answer. Most tasks
        read their questions over the network at first use.
    Errors: `MissingExtraError` without lm_eval; `SpecError` for a model that is not of transformers, or tasks that the
        harness does not know; `DataError` where a task's questions cannot be read.
    """
    require("lm_eval", extra="evaluate")
    lm_eval = require("lm_eval.evaluator", extra="evaluate")
    transformers = require("transformers", extra="evaluate")
    if not isinstance(model, transformers.PreTrainedModel):
        raise SpecError(f"the harness asks language models of transformers, this is a {type(model).__name__}")
    if not tasks:
        raise SpecError("name at least one task of the harness, such as 'hellaswag'")
    manager, unknown = _known(tasks, include)
    if unknown:
        raise SpecError(f"the harness has no task {listed(unknown)}: `lm-eval ls tasks` prints those it has")
    hflm = require("lm_eval.models.huggingface", extra="evaluate").HFLM
    with as_it_was(model):
        try:
            asked = hflm(pretrained=model, tokenizer=tokenizer, batch_size=batch)
            found = lm_eval.simple_evaluate(
                model=asked, tasks=list(tasks), num_fewshot=shots, limit=limit, task_manager=manager,
                log_samples=False, random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed,
                fewshot_random_seed=seed, bootstrap_iters=1000,
            )  # fmt: skip
        except (OSError, ConnectionError) as error:
            raise DataError(
                f"the questions of {listed(list(tasks))} cannot be read: {error}. They come over the network at first "
                f"use; a copy in the cache of `datasets`, or a folder of local tasks (include=), does without"
            ) from error
    return Harness(tuple(scores_in(found)), _version(), limit, _parts(found))


def _known(tasks: Sequence[str], include: str | Path | None) -> tuple[Any, list[str]]:
    """What knows the tasks, and those that it does not know. The harness's own, thousands of files that take long to
    read, are left out where the folder has all that are asked for.
    """
    kind = require("lm_eval.tasks", extra="evaluate").TaskManager
    for defaults in (False, True) if include is not None else (True,):
        manager = kind(include_path=None if include is None else str(include), include_defaults=defaults)
        if not (unknown := [t for t in tasks if not manager.match_tasks([t])]):
            break
    return manager, unknown


def scores_in(found: Mapping[str, Any]) -> Iterator[TaskScore]:
    """The numbers in what `simple_evaluate` returns."""
    for task, numbers in found["results"].items():
        for key, value in numbers.items():
            metric, _, kind = key.partition(",")
            if metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float) or not kind:
                continue
            error = numbers.get(f"{metric}_stderr,{kind}")
            yield TaskScore(
                task=task,
                metric=metric,
                filter=kind,
                value=float(value),
                error=float(error) if isinstance(error, int | float) else None,
                higher_is_better=found.get("higher_is_better", {}).get(task, {}).get(metric),
                shots=int(found.get("n-shot", {}).get(task) or 0),
                samples=int(found.get("n-samples", {}).get(task, {}).get("effective", 0)),
                version=str(found.get("versions", {}).get(task, "")),
            )


def _parts(found: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {g: tuple(members) for g, members in found.get("group_subtasks", {}).items() if members}


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Modes and global generators, which the harness sets, put back afterwards; the model is in evaluation mode."""
    modes = {m: m.training for m in model.modules()}
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            model.eval()
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
        for module, mode in modes.items():
            module.training = mode
