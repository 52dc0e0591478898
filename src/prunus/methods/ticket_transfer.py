"""Tickets for another task or another depth."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunus.core.budget import Budget
from prunus.core.card import Card
from prunus.core.procedure import procedure
from prunus.core.task import Task
from prunus.engine.prune import prune
from prunus.engine.result import Result
from prunus.engine.transfer import Order, transfer
from prunus.methods.lth import lth
from prunus.methods.magnitude import magnitude
from prunus.parts.granularity import Element

SOURCE = "Morcos et al. 2019, arXiv:1906.02773; Mehta 2019, arXiv:1905.07785; depth: Chen et al. 2021, arXiv:2103.16547"


@procedure(source=SOURCE, structure="unstructured", pace="iterative", on="initialized")
def ticket_transfer(
    model: nn.Module,
    task: Task,
    budget: Budget,
    *,
    steps: int = 0,
    seed: int = 0,
    optimizer: Any = None,
    found_on: Task | None = None,
    found_in: nn.Module | None = None,
    new: tuple[str, ...] = (),
    order: Order = "append",
) -> Result:
    """A lottery ticket found in `found_in` on `found_on` (left out: here) is carried over to `model`, with the weights
    it began with, and trained on `task`; `new` names the head, `order` how blocks are repeated. Half of the steps
    find it, half train it.
    """
    first = model if found_in is None else found_in
    half = steps // 2
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):  # dropout draws from the global generators
        torch.manual_seed(seed)
        ticket = prune(first, found_on or task, lth, budget=budget, steps=half, seed=seed, optimizer=optimizer)
        carried = transfer(ticket, model, initial=first.state_dict(), new=new, order=order)
        # Zeros come first by magnitude: at the ticket's own density the mask stays what it is.
        dense = tuple(g.name for g in Element()(carried.model) if g.name not in carried.unit_masks)
        held = replace(magnitude, name="ticket_transfer", source=SOURCE, granularity=Element(exclude=dense))
        kept = Budget(density=1.0 - carried.sparsity)
        return prune(carried.model, task, held, budget=kept, steps=steps - half, seed=seed, optimizer=optimizer)


card = Card(
    title="Ticket transfer",
    use_when="you train one network on many tasks, or a family of depths, and want to search for a ticket once",
    avoid_when="the tasks have little in common, or you prune one network once",
    formula="mask and initial weights of a ticket, its blocks repeated or left out, with a head of its own",
    deviations=(
        "Rewinds to initialization: late resetting, which the papers need for large networks, is not part of it. Heads "
        "stay dense. Use prunus.transfer for tickets of other methods or with a mapping of blocks of your own."
    ),
    rows=(52, 53, 59),
)
