"""One protocol for every method: same network, same weights, same data, same fine-tuning, same measurements.

Used by `prunus quickstart`, `prunus prune` and `prunus compare`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus import measure
from prunus.core.budget import Budget, Clock
from prunus.core.procedure import Procedure
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.deploy.files import WEIGHTS, save, stored_bytes
from prunus.engine.result import Result
from prunus.lab.data import Augment, Dataset, Loader
from prunus.report.records import Curve, Latency, LayerDensity, MethodRecord, Point, Ratio

OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Setup:
    """What all methods of an experiment share.

    Attributes:
        dataset: train / valid / test.
        network: the network's name.
        build: makes a fresh network of the dense architecture.
        options: what `zoo.build` was told beside the name; saved with the models, so that they can be built again.
        trained: the trained dense network, in evaluation mode; None where there is none.
        initial: the weights it was trained from; None where they are not known.
        batch_size, lr, momentum, weight_decay: training and fine-tuning (SGD with Nesterov momentum).
        augment: of training images.
        amp: train in bfloat16 autocast.
        calib_batches: batches of `batch_size` training images that are scored with.
        latency_batch: inputs per timed inference.
        seed: of data order and of every session.
        clock: what a budget in latency is measured by, in place of eager PyTorch.
    """

    dataset: Dataset
    network: str
    build: Callable[[], nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    trained: nn.Module | None
    initial: Mapping[str, Tensor] | None = None
    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: Augment | None = None
    amp: bool = False
    calib_batches: int = 4
    latency_batch: int = 128
    seed: int = 0
    clock: Clock | None = None
    cache: dict[str, float] = field(default_factory=dict)

    @property
    def example(self) -> tuple[Tensor, ...]:
        """One test input, as the network takes it."""
        return (self.dataset.test.inputs(self.dataset.test.x[:1]),)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Cross-entropy of a batch, over classes or next tokens."""
        inputs, targets = batch
        with torch.autocast("cpu", torch.bfloat16) if self.amp else nullcontext():
            logits = logits_of(model(inputs))
        return nn.functional.cross_entropy(logits.float().flatten(0, -2), targets.flatten())

    def loader(self) -> Loader:
        """Shuffled, augmented training batches."""
        return Loader(
            self.dataset.train, self.batch_size, seed=self.seed, shuffle=True, augment=self.augment, drop_last=True
        )

    @property
    def timed_inputs(self) -> tuple[Tensor, ...]:
        """The batch that latency is measured with."""
        return (self.dataset.test.inputs(self.dataset.test.x[: self.latency_batch]),)

    def task(self, budget: Budget | None = None) -> Task:
        """The problem, as recipes see it; a budget in latency is met with the batch that the report times."""
        in_time = budget is not None and budget.currency == "latency"
        example = self.timed_inputs if in_time else self.example
        calib = Loader(self.dataset.train, self.batch_size, seed=self.seed + 1, shuffle=True)
        batches = [b for _, b in zip(range(self.calib_batches), calib.batches(0), strict=False)]
        return Task(
            loss=self.loss,
            train=self.loader(),
            calib=batches,
            metric=self.test_accuracy,
            example=example,
            clock=self.clock,
        )

    def test_accuracy(self, model: nn.Module) -> float:
        """Fraction of test examples classified right, in float32."""
        return measure.accuracy(model, Loader(self.dataset.test, 500))

    def notes(self, accuracy: float) -> dict[str, Any]:
        """What travels with a saved model: how to build its network, what it was tested on, and how well it did."""
        return {
            "network": self.network,
            "options": dict(self.options),
            "input": list(self.example[0].shape),
            "test_accuracy": accuracy,
            "dataset": self.dataset.name,
            "data": self.dataset.digest,
        }

    def dense_accuracy(self) -> float | None:
        """Test accuracy of the trained network, measured once."""
        if self.trained is None:
            return None
        if "accuracy" not in self.cache:
            self.cache["accuracy"] = self.test_accuracy(self.trained)
        return self.cache["accuracy"]

    def valid_accuracy(self, model: nn.Module, examples: int) -> float:
        """The same on the first held-out training examples, which is what choices and curves are made with."""
        return measure.accuracy(model, Loader(self.dataset.valid.head(examples), 500))

    def source(self, recipe: Recipe | Procedure) -> nn.Module:
        """A model with the weights that the recipe starts from: trained ones or those before training."""
        model = self.build()
        if recipe.on == "pretrained" and self.trained is not None:
            model.load_state_dict(self.trained.state_dict())
        elif recipe.on == "initialized" and self.initial is not None:
            model.load_state_dict(dict(self.initial))
        elif self.trained is not None:
            model.load_state_dict(self.trained.state_dict())
        return model

    def optimizer(self, lr: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
        """SGD with Nesterov momentum at this setup's settings."""
        return lambda parameters: torch.optim.SGD(
            parameters, lr=lr, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=self.momentum > 0
        )


@dataclass(frozen=True, eq=False)
class Trial:
    """One method on one setup: the result (None where it was read back), what would be deployed, and its record."""

    result: Result | None
    deployed: nn.Module
    record: MethodRecord


def one_cycle(progress: float) -> float:
    """Learning-rate factor: up in the first fifth, then down to zero along a cosine."""
    return progress / 0.2 if progress < 0.2 else 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8))


def run(
    setup: Setup,
    recipe: Recipe | Procedure,
    budget: Budget,
    *,
    steps: int,
    lr: float | None = None,
    folder: Path | None = None,
    on_step: OnStep | None = None,
) -> Trial:
    """Prune by one method, fine-tune, compact, check, save, and describe; latency is added by `timed`.

    steps: optimizer steps the recipe may use, fine-tuning included.
    folder: where the pruned model goes; None to keep it in memory only.
    """
    began = time.perf_counter()
    # An edited recipe keeps its name, but the card's words are about the unedited one.
    names = (*prunus.methods.names(), *prunus.methods.procedures())
    known = recipe.name in names and prunus.methods.find(recipe.name) == recipe
    card = prunus.methods.card(recipe.name) if known else None
    source, task = setup.source(recipe), setup.task(budget)
    notes: list[str] = []
    untrained: float | None = None
    # What a procedure is worth before its training only the procedure knows.
    at_once = isinstance(recipe, Recipe) and all(e.step == 0 for e in recipe.schedule(budget.keep, steps))
    if steps and at_once and recipe.on == "pretrained":
        untrained = setup.test_accuracy(prunus.prune(source, task, recipe, budget=budget, seed=setup.seed).model)
    result = prunus.prune(
        source,
        task,
        recipe,
        budget=budget,
        steps=steps,
        optimizer=setup.optimizer(lr or setup.lr),
        rate=one_cycle,
        seed=setup.seed,
        on_step=on_step,
    )
    structured = recipe.structure == "structured"
    deployed = result.compact(verify=True) if structured else copy.deepcopy(result.model)
    deployed.eval()
    accuracy = setup.test_accuracy(deployed)
    if not steps:
        untrained = accuracy
    if not structured:
        notes.append("Same shapes, zeros stored and multiplied like any number: a dense kernel runs no faster.")
    if result.skipped:
        notes.append(f"Left dense: {', '.join(result.skipped)} ({next(iter(result.skipped.values()))}).")
    if result.statistics_error is not None:
        notes.append(
            "LayerNorm and GroupNorm take the mean and variance of what is left: the outputs differ by "
            f"{result.statistics_error:.1%} from the masked network's on the example (relative to the largest)."
        )
    if "latency" in (last := result.history[-1]):
        low, high = last["latency_quartiles"]
        notes.append(
            f"Chosen by measuring {last['timed']} candidates at batch {len(setup.timed_inputs[0])}: this one took "
            f"{last['latency']:.4g} of the dense latency (quartiles {low:.4g} to {high:.4g})"
            f"{'' if setup.clock is None else f', by {setup.clock}'}."
        )
    if result.collapsed:
        notes.append(f"Layer collapse: nothing is left of {', '.join(result.collapsed)}.")
    dense = setup.build()
    dense_params, dense_macs = measure.params(dense), measure.macs(dense, setup.example)
    kept, macs = measure.params(deployed), measure.macs(deployed, setup.example)
    dense_bytes = bytes_of(dense, setup.cache)
    if folder is not None:
        save(result, folder, notes=setup.notes(accuracy))
        size = (folder / WEIGHTS).stat().st_size
    else:
        size = bytes_of(deployed)
    record = MethodRecord(
        name=recipe.name,
        title=card.title if card else recipe.name,
        source=recipe.source,
        taxonomy=recipe.taxonomy(),
        use_when=card.use_when if card else "",
        avoid_when=card.avoid_when if card else "",
        deviations=card.deviations if card else "",
        budget=describe(recipe, budget),
        accuracy_before=setup.dense_accuracy(),
        accuracy_pruned=untrained,
        accuracy_after=accuracy,
        steps=steps,
        params_dense=dense_params.total,
        params_kept=kept.nonzero,
        macs_dense=dense_macs.total,
        macs_kept=macs.total,
        macs_nonzero=macs.effective,
        bytes_dense=dense_bytes,
        bytes_kept=size,
        latency_dense=None,
        latency=None,
        latency_ratio=None,
        layers=layer_densities(result),
        compacted=structured,
        verified_error=result.verified_error if structured else None,
        seconds=time.perf_counter() - began,
        notes=notes,
    )
    return Trial(result, deployed, record)


def timed(setup: Setup, trials: list[Trial], *, runs: int = 60) -> list[MethodRecord]:
    """The trials' records with latency, dense and pruned models run in turn so that drift hits all alike."""
    dense = (setup.trained if setup.trained is not None else setup.build()).eval()
    models = {"dense": dense} | {str(i): t.deployed for i, t in enumerate(trials)}
    comparison = measure.compare(models, setup.timed_inputs, runs=runs)
    base = _latency(comparison.latency["dense"])
    records = []
    for i, trial in enumerate(trials):
        ratio = comparison.latency_ratio[str(i)]
        update = {
            "latency_dense": base,
            "latency": _latency(comparison.latency[str(i)]),
            "latency_ratio": Ratio(median=ratio.median, q25=ratio.q25, q75=ratio.q75, verdict=ratio.verdict),
        }
        records.append(trial.record.model_copy(update=update))
    return records


def curve(
    setup: Setup, recipe: Recipe, sparsities: tuple[float, ...], *, examples: int = 2000, name: str = ""
) -> Curve:
    """Accuracy against the share of all parameters removed, right after pruning, on held-out images."""
    task, points = setup.task(), []
    source = setup.source(replace(recipe, on="pretrained"))
    for sparsity in sparsities:
        result = prunus.prune(source, task, recipe, sparsity=sparsity, seed=setup.seed)
        accuracy = setup.valid_accuracy(result.model, examples)
        points.append(Point(sparsity=result.weight_sparsity, accuracy=accuracy))
    return Curve(
        name=name or recipe.name, points=points, note=f"no training after pruning, {examples} held-out examples"
    )


def describe(recipe: Recipe | Procedure, budget: Budget) -> str:
    """The budget in words, with its denominator."""
    unit = {"structured": "channels"}.get(recipe.structure, "weights")
    if budget.currency == "units":
        return f"{1 - budget.keep:.4g} of the ranked {unit} removed"
    what = {"macs": "MACs", "params": "parameters", "bytes": "bytes", "latency": "median latency"}[budget.currency]
    return f"at most {budget.keep:.4g} of the dense {what} kept"


def layer_densities(result: Result) -> list[LayerDensity]:
    """Weights kept per prunable weight tensor, in the network's order."""
    shapes = {n: p for n, p in result.model.named_parameters() if p.ndim >= 2}
    found = []
    for name, p in shapes.items():
        mask = result.masks.get(name)
        kept = p.numel() if mask is None else int(mask.sum())
        kind = "convolution" if p.ndim > 2 else "linear"
        found.append(LayerDensity(layer=name.removesuffix(".weight"), weights=p.numel(), kept=kept, kind=kind))
    return found


def bytes_of(model: nn.Module, cache: dict[str, float] | None = None) -> int:
    """Bytes of the model's state as one safetensors file, measured once where a cache is given."""
    if cache is None:
        return stored_bytes(model)
    if "bytes" not in cache:
        cache["bytes"] = float(stored_bytes(model))
    return int(cache["bytes"])


def logits_of(output: Any) -> Tensor:
    """The logits in whatever a network returns."""
    found = getattr(output, "logits", output)
    if isinstance(found, tuple | list):
        found = found[0]
    if not isinstance(found, Tensor):
        raise prunus.core.errors.DataError(f"the network returns {type(output).__name__}, not logits")
    return found


def _latency(value: measure.Latency) -> Latency:
    return Latency(
        median_ms=value.median_ms,
        q25_ms=value.q25_ms,
        q75_ms=value.q75_ms,
        runs=value.runs,
        threads=value.threads,
        batch=value.batch or 0,
        device=value.device,
    )
