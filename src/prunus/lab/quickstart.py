"""The quickstart: a real network, trained, pruned four ways, compacted, timed and explained."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus import __version__, measure, methods
from prunus.core.budget import Budget
from prunus.core.errors import SpecError
from prunus.deploy.atomic import write_bytes, write_text
from prunus.deploy.files import serialize
from prunus.lab import data, trainer, zoo
from prunus.lab.data import Dataset, Loader
from prunus.lab.experiment import Setup, curve
from prunus.lab.facts import dataset_facts, environment, now
from prunus.lab.presets import QUICKSTART, Preset
from prunus.lab.series import Entry, kept_curve, run_series
from prunus.lab.trainer_progress import shown
from prunus.report.records import Curve, Report

FINE_TUNE = 0.3
"""Steps of fine-tuning after pruning a trained network, over the steps that trained it."""

DENSE = Path("models", "dense.safetensors")
"""The trained network's weights, in the output folder."""

Say = Callable[[str], None]
ProgressOf = Callable[[int, str], AbstractContextManager[Callable[[int, float], None]]]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a quickstart will do on this machine."""

    dataset: Dataset
    reason: str
    preset: Preset
    entries: tuple[Entry, ...]
    seed: int

    @property
    def dense_steps(self) -> int:
        """Optimizer steps of the dense training."""
        return self.preset.epochs * (len(self.dataset.train) // self.preset.batch_size)

    @property
    def options(self) -> dict[str, Any]:
        """What `zoo.build` is told beside the network's name."""
        return {
            "num_classes": self.dataset.num_classes,
            "in_channels": self.dataset.in_channels,
            **self.preset.options,
        }

    def build(self) -> nn.Module:
        """The network with its initial weights, which follow from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return zoo.build(self.preset.network, **self.options)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON, for `--dry-run`."""
        return {
            "data": str(self.dataset),
            "reason": self.reason,
            "network": self.preset.network,
            "options": dict(self.preset.options),
            "dense_steps": self.dense_steps,
            "expected_accuracy": list(self.preset.expected),
            "methods": [{"name": e.recipe.name, "budget": str(e.budget), "steps": e.steps} for e in self.entries],
            "seed": self.seed,
        }


def plan(name: str | None = None, root: Path | None = None, *, download: bool = False, seed: int = 0) -> Plan:
    """Choose data and network: Fashion-MNIST where it lies, else scikit-learn's digits."""
    if name is None:
        dataset, reason = data.default(root, download=download, seed=seed)
    else:
        dataset, reason = data.load(name, root, download=download, seed=seed), f"{name}, as asked."
    if dataset.name not in QUICKSTART:
        raise SpecError(f"the quickstart knows {', '.join(QUICKSTART)}; for {dataset.name} use `prunus compare`")
    preset = QUICKSTART[dataset.name]
    whole = preset.epochs * (len(dataset.train) // preset.batch_size)
    tuning = max(1, round(whole * FINE_TUNE))
    entries = (
        Entry(methods.get("magnitude"), Budget(density=0.1), tuning, preset.lr / 4),
        Entry(methods.get("n_of_m"), Budget(density=0.5), tuning, preset.lr / 4),
        Entry(methods.get("l1_filter"), Budget(macs=0.5), tuning, preset.lr / 4),
        Entry(methods.get("snip"), Budget(density=0.1), whole, preset.lr),
    )
    return Plan(dataset, reason, preset, entries, seed)


def run(plan: Plan, out: Path, *, progress: ProgressOf, say: Say) -> Report:
    """Carry out a plan, keeping every finished part in `out`; returns the report, which is also written there."""
    trained, initial, seconds = _trained(plan, out, say)
    preset = plan.preset
    setup = Setup(
        dataset=plan.dataset,
        network=preset.network,
        build=plan.build,
        options=plan.options,
        trained=trained,
        initial=initial,
        batch_size=preset.batch_size,
        lr=preset.lr,
        weight_decay=preset.weight_decay,
        seed=plan.seed,
    )
    write_bytes(out / DENSE, serialize(trained))
    records = run_series(setup, list(plan.entries), out / "models", progress=progress, say=say)
    say("accuracy against sparsity, without training")
    curves = _curves(setup, out)
    facts = {
        "name": preset.network,
        **{k: v for k, v in preset.options.items() if isinstance(v, str | int | float)},
        "parameters": records[0].params_dense,
        "MACs per image": records[0].macs_dense or 0,
        "test accuracy": records[0].accuracy_before or 0.0,
        "training steps": plan.dense_steps,
        "training seconds": round(seconds, 1),
    }
    report = Report(
        title="Prunus quickstart",
        subtitle=f"{preset.network} on {plan.dataset.name}, pruned four ways",
        dataset=dataset_facts(plan.dataset),
        network=facts,
        environment=environment(),
        methods=records,
        curves=curves,
        commands=["prunus quickstart"],
        notes=[
            plan.reason,
            "One seed: differences of half a point of accuracy say nothing.",
            (
                f"Fine-tuning: {plan.entries[0].steps} steps after magnitude, 2:4 and channel pruning; SNIP trains "
                f"from its initial weights for the {plan.dense_steps} steps that the dense network had."
            ),
            "The curves are accuracies right after pruning the trained network, on held-out training images.",
        ],
        version=__version__,
        created=now(),
        seed=plan.seed,
    )
    report.write(out)
    return report


def _trained(plan: Plan, out: Path, say: Say) -> tuple[nn.Module, dict[str, Tensor], float]:
    """The dense network: from a verified checkpoint if this training was done before, else trained (or resumed)."""
    model = plan.build()
    initial = {n: t.clone() for n, t in model.state_dict().items()}
    preset = plan.preset
    loader = Loader(plan.dataset.train, preset.batch_size, seed=plan.seed, shuffle=True, drop_last=True)
    with shown(f"training {preset.network}", sys.stderr) as bar:
        history = trainer.train(
            model,
            loader,
            epochs=preset.epochs,
            optimizer=trainer.sgd(model, preset.lr, weight_decay=preset.weight_decay),
            lr_schedule=preset.lr_schedule,
            progress=bar,
            checkpoint=out / "training",
            seed=plan.seed,
        )
    log = out / "training" / "seconds.json"
    earlier = json.loads(log.read_text()) if log.is_file() and history.resumed_at else 0.0
    seconds = float(earlier) + (history.seconds if history.resumed_at < preset.epochs else 0.0)
    write_text(log, json.dumps(seconds))
    accuracy = measure.accuracy(model, Loader(plan.dataset.test, 500))
    how = (
        "verified checkpoint of an earlier run"
        if history.resumed_at >= preset.epochs
        else f"{seconds:.0f} s of training"
    )
    say(f"dense {preset.network}: {accuracy:.2%} on {len(plan.dataset.test):,} test images ({how})")
    return model.eval(), initial, seconds


def _curves(setup: Setup, out: Path) -> list[Curve]:
    grid = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
    channels = methods.get("l1_filter")
    asked = (
        (methods.get("magnitude"), grid, "magnitude"),
        (methods.get("random"), grid, "random"),
        (methods.get("n_of_m"), (0.5,), "n_of_m"),
        (channels, (0.1, 0.2, 0.3, 0.5, 0.7), "l1_filter"),
        (
            replace(methods.get("random"), granularity=channels.granularity, allocate=channels.allocate),
            (0.1, 0.2, 0.3, 0.5, 0.7),
            "random channels",
        ),
    )
    return [
        kept_curve(
            setup,
            out / "curves",
            {"curve": name, "recipe": recipe.to_dict(), "grid": points},
            partial(curve, setup, recipe, points, examples=1000, name=name),
        )
        for recipe, points, name in asked
    ]
