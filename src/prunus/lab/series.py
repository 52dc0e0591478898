"""Several methods under one protocol; finished trials are kept: an interrupted series goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from prunus import __version__
from prunus.core.budget import Budget
from prunus.core.errors import PrunusError
from prunus.core.recipe import Recipe
from prunus.deploy.atomic import write_text
from prunus.deploy.files import load
from prunus.lab.experiment import OnStep, Setup, Trial, run, timed
from prunus.lab.facts import environment
from prunus.report.records import Curve, MethodRecord

TIMES = "times.json"
ProgressOf = Callable[[int, str], AbstractContextManager[Callable[[int, float], None]]]


@dataclass(frozen=True)
class Entry:
    """One trial of a series: a recipe at a budget, with its share of training."""

    recipe: Recipe
    budget: Budget
    steps: int
    lr: float | None = None

    @property
    def label(self) -> str:
        """A short name that tells trials of one recipe apart, fit for a folder."""
        return f"{self.recipe.name}-{self.budget.currency}-{self.budget.keep:.4g}".replace(".", "_")


def key_of(setup: Setup, what: dict[str, Any]) -> str:
    """A digest of everything a trial's outcome depends on: data, weights, recipe, budget, training, seed, version."""
    sha = hashlib.sha256()
    for state in (setup.trained.state_dict() if setup.trained is not None else {}, setup.initial or {}):
        for name, tensor in state.items():
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    settings = {
        k: getattr(setup, k)
        for k in ("network", "batch_size", "lr", "momentum", "weight_decay", "amp", "calib_batches", "seed")
    }
    settings |= {
        "options": dict(setup.options),
        "data": setup.dataset.digest,
        "augment": repr(setup.augment),
        "version": __version__,
    }
    sha.update(json.dumps({**settings, **what}, sort_keys=True, default=str).encode())
    return sha.hexdigest()


def run_series(
    setup: Setup,
    entries: list[Entry],
    folder: Path,
    *,
    progress: ProgressOf,
    say: Callable[[str], None],
    runs: int = 60,
) -> list[MethodRecord]:
    """Run every entry that has not been run yet, then time all of them in turn; records in the order of the entries.

    Each trial's model goes to `folder/<label>` and its record to `folder/<label>.json`. A trial is found again by the
    digest of everything it depends on, and its files are verified when they are read. Where nothing had to be run, the
    times of the last run on this machine with as many threads are kept too.
    """
    trials = []
    keys: list[str] = []
    for entry in entries:
        what = {"recipe": entry.recipe.to_dict(), "budget": str(entry.budget), "steps": entry.steps, "lr": entry.lr}
        key = key_of(setup, what)
        keys.append(key)
        trial = _kept(setup, folder, entry, key)
        if trial is None:
            with progress(max(1, entry.steps), entry.recipe.name) as advance:
                trial = run(
                    setup,
                    entry.recipe,
                    entry.budget,
                    steps=entry.steps,
                    lr=entry.lr,
                    folder=folder / entry.label,
                    on_step=_stepper(advance),
                )
            write_text(
                folder / f"{entry.label}.json", json.dumps({"key": key, "record": trial.record.model_dump(mode="json")})
            )
        else:
            say(f"{entry.recipe.name}: already done, kept from an earlier run")
        trials.append(trial)
    where = {k: str(v) for k, v in environment().items()} | {"batch": str(setup.latency_batch), "runs": str(runs)}
    key = hashlib.sha256(json.dumps([keys, where]).encode()).hexdigest()
    if all(t.result is None for t in trials) and (records := _kept_times(folder, key)) is not None:
        return records
    records = timed(setup, trials, runs=runs)
    write_text(folder / TIMES, json.dumps({"key": key, "records": [r.model_dump(mode="json") for r in records]}))
    return records


def kept_curve(setup: Setup, folder: Path, what: dict[str, Any], make: Callable[[], Curve]) -> Curve:
    """A curve from an earlier run if it is the same one, else made and kept."""
    key = key_of(setup, what)
    file = folder / f"curve-{key[:16]}.json"
    try:
        return Curve.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        found = make()
        write_text(file, found.model_dump_json())
        return found


def _kept(setup: Setup, folder: Path, entry: Entry, key: str) -> Trial | None:
    """A finished trial, if its record belongs to this key and its files are intact."""
    try:
        saved = json.loads((folder / f"{entry.label}.json").read_text(encoding="utf-8"))
        if saved["key"] != key:
            return None
        record = MethodRecord.model_validate(saved["record"])
        return Trial(None, load(folder / entry.label, setup.build), record)
    except (OSError, ValueError, KeyError, TypeError, ValidationError, PrunusError):
        # Whatever is wrong with what was kept (absent, cut off, of an older version), running the trial again mends it.
        return None


def _kept_times(folder: Path, key: str) -> list[MethodRecord] | None:
    """The timed records of an earlier run, if it timed these very trials under these conditions."""
    try:
        saved = json.loads((folder / TIMES).read_text(encoding="utf-8"))
        return [MethodRecord.model_validate(r) for r in saved["records"]] if saved["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stepper(advance: Callable[[int, float], None]) -> OnStep:
    return lambda done, _total, loss: advance(done, loss)
