"""What one process of a distributed run does; the tests read what it wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import prunus
from prunus.core.errors import PrunusError
from prunus.engine.apply_ import digest
from prunus.parts.schedule import PruneAndGrow
from tests.integration import toys

STEPS = 8
WORLD = 2
AGREE = ("magnitude", "snip", "rigl", "random", "network_slimming", "supermask", "continuous_sparsification")


def work(rank: int, folder: str) -> None:
    """Every case of `AGREE` and `DISAGREE`, one after another in one process group."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    found = {name: agree(rank, name) for name in AGREE}
    errors = {
        "seed": attached(rank, "random", seed=rank),
        "seed of a method without chance": attached(rank, "magnitude", seed=rank),
        "weights": attached(rank, "magnitude", weights=rank),
        "steps": attached(rank, "rigl", steps=STEPS + 4 * rank),
        "budget": attached(rank, "magnitude", density=0.5 + 0.1 * rank),
        "recipe": attached(rank, ("magnitude", "lamp")[rank]),
        "masks": drifting(rank),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps({"agree": found, "errors": errors}))
    dist.destroy_process_group()


def task(rank: int) -> prunus.Task:
    """Calibration batches that no other rank sees."""
    return prunus.Task(loss=toys.loss_of, calib=[toys.batch_at(-10 - rank), toys.batch_at(-20 - rank)])


def agree(rank: int, name: str) -> dict[str, Any]:
    """Train as a user would, on this rank's share of the data."""
    model = nn.parallel.DistributedDataParallel(toys.network(seed=rank))  # it sends rank 0's weights to all
    optimizer = toys.sgd(model.parameters())
    recipe = prunus.methods.get(name)
    if name == "rigl":
        recipe = replace(recipe, schedule=PruneAndGrow(every=2))
    session = prunus.Session(model, recipe, task(rank), prunus.Budget(0.4), steps=STEPS).attach(optimizer)
    digests = [digest(session.masks)]
    for step in range(STEPS):
        optimizer.zero_grad()
        toys.loss_of(model, toys.batch_at(100 * rank + step)).backward()
        optimizer.step()
        digests.append(digest(session.masks))
    toys.zeros_hold(session)
    weights = {n: p.detach() for n, p in session.parameters.items()}
    alone = prunus.score(toys.network(), prunus.Task(loss=toys.loss_of, calib=[toys.batch_at(-10 - rank)]), "snip")
    return {
        "digests": digests,
        "weights": digest({n: p.flatten().view(torch.uint8).bool() for n, p in weights.items()}),
        "sum": float(sum(p.double().abs().sum() for p in weights.values())),
        "kept": sum(toys.kept(session).values()),
        "step": session.step,
        "score": float(sum(s.double().sum() for s in alone.values())),
    }


def attached(
    rank: int, name: str, *, seed: int = 0, weights: int = 0, steps: int = STEPS, density: float = 0.5
) -> list[Any]:
    """The error of a session that differs from the other rank's, and whether it left the model as it was."""
    model = toys.network(seed=weights)
    before = toys.state_of(model)
    optimizer = toys.sgd(model.parameters())
    session = prunus.Session(model, name, task(rank), prunus.Budget(density), steps=steps, seed=seed)
    try:
        session.attach(optimizer)
    except PrunusError as error:
        return [str(error), toys.same(before, toys.state_of(model)) and not optimizer._optimizer_step_pre_hooks]
    return ["no error", False]


def drifting(rank: int) -> list[Any]:
    """Gradients that nobody averages: the ranks part, and the first event that would part the masks says so."""
    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    recipe = replace(prunus.methods.get("rigl"), schedule=PruneAndGrow(every=2))
    session = prunus.Session(model, recipe, task(rank), prunus.Budget(0.4), steps=STEPS).attach(optimizer)
    try:
        for step in range(STEPS):
            optimizer.zero_grad()
            toys.loss_of(model, toys.batch_at(100 * rank + step)).backward()
            optimizer.step()
    except PrunusError as error:
        return [str(error), session.fired == 1]
    return ["no error", False]
