"""What `prune` and `compare` have in common: their options, and the experiment that these describe."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunus.cli.networks import Built
from prunus.core.errors import SpecError

if TYPE_CHECKING:
    from prunus.core.budget import Budget
    from prunus.core.recipe import Recipe
    from prunus.engine.session import Session
    from prunus.lab.data import Dataset
    from prunus.lab.experiment import Setup

Data = Annotated[
    str | None,
    typer.Option("--data", "-d", help="digits, fashion-mnist, mnist, cifar10, svhn, ... or a path (images, text)."),
]
Root = Annotated[Path | None, typer.Option("--root", help="Folder to look for the data in.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch the data if it is not on this machine.")]
Pattern = Annotated[str, typer.Option("--pattern", help="Files of a folder of text.")]
Length = Annotated[
    int | None, typer.Option("--length", min=1, help="Tokens in a block of text; default: the network's own, or 128.")
]
Steps = Annotated[int, typer.Option("--steps", min=0, help="Optimizer steps: the schedule's training or fine-tuning.")]
Rate = Annotated[float, typer.Option("--lr", help="Largest learning rate of a one-cycle schedule (SGD, momentum 0.9).")]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Training examples per step.")]

UNTRAINED = "No checkpoint was given, so pruning starts from untrained weights: the dense accuracy is that of chance."


def setup_from(
    network: str,
    checkpoint: Path | None,
    options: dict[str, Any],
    data: str | None,
    root: Path | None,
    *,
    download: bool,
    pattern: str,
    length: int | None,
    batch_size: int,
    lr: float,
    seed: int,
) -> Setup:
    """The experiment that the options describe, with everything checked that can be without pruning.

    Errors: `SpecError` for options, networks and data that do not go together; `DataError` for data that is not there.
    """
    from prunus.lab.experiment import Setup

    if not 0 < lr < float("inf"):
        raise SpecError(f"--lr {lr}: the learning rate must be above 0")
    if data is None:
        raise SpecError("pruning is judged on data: --data digits (or fashion-mnist, cifar10, a folder of images, ...)")
    built = Built(network, options, checkpoint=checkpoint, seed=seed)
    if built.compacted:
        raise SpecError(
            f"{built.saved} holds a network that was made physically smaller; what is pruned again must be built in "
            f"that shape. Put `def small(): return prunus.load({str(built.saved)!r}, dense_factory)` into a module of "
            f"yours and give module:small as the network; or start from the checkpoint that it was pruned from"
        )
    dataset = data_for(built, data, root, download=download, pattern=pattern, length=length)
    for key, value in fitting(built.name, dataset).items():
        built.options.setdefault(key, value)
    model = built.model()
    trained = built.checkpoint is not None
    setup = Setup(
        dataset=dataset,
        network=built.name,
        options=built.options,
        build=built.dense,
        trained=model,
        initial=None if trained else {n: t.clone() for n, t in model.state_dict().items()},
        batch_size=min(batch_size, len(dataset.train)),
        lr=lr,
        seed=seed,
    )
    _check_fit(setup)
    return setup


def session_of(setup: Setup, recipe: Recipe, budget: Budget, steps: int) -> Session:
    """A session on a fresh copy of the network; making one checks weights, structure, budget, and what is read."""
    from prunus.engine.session import Session

    return Session(setup.source(recipe), recipe, setup.task(budget), budget, steps=steps, seed=setup.seed)


def data_for(
    built: Built, data: str, root: Path | None, *, download: bool, pattern: str, length: int | None
) -> Dataset:
    """The data set, of the kind that a network takes."""
    from prunus.lab import data as sets
    from prunus.lab import zoo

    spec = None if ":" in built.name else zoo.spec(built.name)
    if length is None:
        length = spec.size if spec is not None and spec.kind == "tokens" else 128
    dataset = sets.load(data, root, download=download, pattern=pattern, length=length)
    if spec is not None and spec.kind != dataset.kind:
        wants = {"image": "images", "tokens": "text"}
        raise SpecError(
            f"{built.name} takes {wants[spec.kind]}, and {dataset.name} is {wants[dataset.kind]}: choose other data "
            f"(--data) or another network"
        )
    return dataset


def fitting(name: str, dataset: Dataset) -> dict[str, Any]:
    """The options by which a network is fitted to a data set, as far as it has them."""
    from prunus.lab import zoo

    if dataset.kind != "image":
        return {"num_classes": dataset.num_classes}
    found: dict[str, Any] = {"num_classes": dataset.num_classes, "in_channels": dataset.in_channels}
    if ":" not in name:
        spec = zoo.spec(name)
        if "size" in inspect.signature(getattr(importlib.import_module(spec.module), spec.factory)).parameters:
            found["size"] = dataset.size
    return found


def _check_fit(setup: Setup) -> None:
    """Refuse a network that does not take this data, before anything is done."""
    import torch

    from prunus.lab.experiment import logits_of

    assert setup.trained is not None
    try:
        with torch.no_grad():
            logits = logits_of(setup.trained(*setup.example))
    except (RuntimeError, IndexError, TypeError) as error:
        shape = tuple(setup.example[0].shape)
        raise SpecError(f"{setup.network} does not take inputs of {setup.dataset.name} {shape}: {error}") from error
    expected = (1, setup.dataset.num_classes) if setup.dataset.kind == "image" else (1, setup.dataset.size)
    if logits.ndim != len(expected) + (setup.dataset.kind == "tokens") or logits.shape[-1] < setup.dataset.num_classes:
        raise SpecError(
            f"{setup.network} returns {tuple(logits.shape)} for one example; {setup.dataset.name} has "
            f"{setup.dataset.num_classes} classes"
        )
