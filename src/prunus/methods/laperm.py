"""LaPerm: a network is trained by moving its initial weights, zeros among them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.budget import Budget
from prunus.core.card import Card
from prunus.core.errors import SpecError
from prunus.core.procedure import procedure
from prunus.core.task import Task
from prunus.engine.prune import prune
from prunus.engine.result import Result
from prunus.methods.magnitude import magnitude
from prunus.methods.random import random


@procedure(source="Qiu & Suda 2020, NeurIPS, arXiv:2003.02570", structure="unstructured", when="during", how="learned",
           on="initialized")  # fmt: skip
def laperm(
    model: nn.Module,
    task: Task,
    budget: Budget,
    *,
    steps: int = 0,
    seed: int = 0,
    optimizer: Any = None,
    every: int = 20,
) -> Result:
    """Random weights are zeroed; the network is trained freely, and every `every` steps each neuron's weights become
    its initial ones (zeros included) in the order of what they were trained to. So they do after the last step.
    """
    if steps < 1 or every < 1 or task.loss is None:
        raise SpecError(
            f"laperm trains: steps={steps} and every={every} are at least 1, with Task(loss=..., train=...)"
        )
    loss, trained = task.loss, model
    begun = prune(model, task, random, budget=budget, seed=seed)
    rows = {n: p.detach().flatten(1).sort(1).values for n, p in begun.model.named_parameters() if n in begun.masks}

    def watched(network: nn.Module, batch: Any) -> Tensor:
        nonlocal trained
        trained = network  # the copy that is being trained
        return loss(network, batch)

    @torch.no_grad()
    def reconnect(step: int, last: int, value: float) -> None:
        if step % every == 0 or step == last:
            for name, p in trained.named_parameters():
                if name in rows:
                    ranks = p.flatten(1).argsort(dim=1, stable=True).argsort(dim=1)
                    p.copy_(rows[name].gather(1, ranks).reshape(p.shape))

    free, told = replace(magnitude, name="laperm"), replace(task, loss=watched)
    with torch.random.fork_rng(devices=sorted({p.device.index for p in model.parameters() if p.is_cuda})):
        torch.manual_seed(seed)  # of dropout
        run = prune(
            begun.model, told, free, sparsity=0.0, steps=steps, seed=seed, optimizer=optimizer, on_step=reconnect
        )
    return prune(run.model, task, free, budget=budget, seed=seed)


card = Card(
    title="LaPerm (train by reconnecting)",
    use_when="you ask how far a network comes with the weights that it was initialized with, only in other places",
    avoid_when="you want the best accuracy: weights that may change do better",
    formula="w_t <- sort(w_0)[rank(w_t)] per neuron, every k steps; w_0 has random zeros",
    deviations=(
        "The optimizer is the caller's (the paper's is Adam), and `every` is the same throughout. Zeros are drawn over "
        "the whole network. Biases and normalizations train freely."
    ),
    rows=(61,),
)
