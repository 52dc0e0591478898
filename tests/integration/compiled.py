"""Sessions on compiled models, in a process of its own: the tests' check of shapes is nothing that can be compiled."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from torch._dynamo.testing import CompileCounter

import prunus
from prunus.parts.schedule import PruneAndGrow
from tests.integration import kinds, toys

RECIPES = {
    "rigl": replace(prunus.methods.get("rigl"), schedule=PruneAndGrow(every=2)),
    "lth": prunus.methods.get("lth"),
    "penalty": kinds.KINDS["penalty"],
    "marks and a gate": kinds.KINDS["marks and a gate"],
    "continuous_sparsification": prunus.methods.get("continuous_sparsification"),
    "l0": prunus.methods.get("l0"),
}


def train(recipe: prunus.Recipe, backend: Any, attach_first: bool = False) -> prunus.Session:
    torch._dynamo.reset()
    model = toys.network()
    net: Any = model if backend is None or attach_first else torch.compile(model, backend=backend)
    if not attach_first:
        toys.loss_of(net, toys.batch_at(0)).backward()  # compiled before anything is pruned
        model.zero_grad()
    optimizer = toys.sgd(net.parameters())
    session = prunus.Session(net, recipe, toys.task(), prunus.Budget(0.5), steps=12).attach(optimizer)
    if attach_first and backend is not None:
        net = torch.compile(model, backend=backend)
    for step in range(12):
        optimizer.zero_grad()
        toys.loss_of(net, toys.batch_at(step)).backward()
        optimizer.step()
    toys.zeros_hold(session)
    return session


def compare(recipe: prunus.Recipe) -> dict[str, Any]:
    counter = CompileCounter()
    same, compiled = [], []
    for attach_first in (False, True):
        ones = [train(recipe, backend, attach_first) for backend in (None, counter)]
        same.append(toys.same(*(toys.state_of(s.model) | s.masks for s in ones)))
        compiled.append(counter.frame_count - sum(compiled))
    return {"same": same, "compiled": compiled, "gated": recipe.gate is not None}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: compare(recipe) for name, recipe in RECIPES.items()}))
