"""Hybrid pruning: channels first, then weights of what is left."""

from dataclasses import replace
from typing import Any

from torch import nn

from prunus.core.budget import Budget
from prunus.core.card import Card
from prunus.core.procedure import procedure
from prunus.core.recipe import Recipe
from prunus.core.task import Task
from prunus.engine.prune import prune
from prunus.engine.result import Result
from prunus.methods.magnitude_uniform import magnitude_uniform
from prunus.methods.network_slimming import network_slimming


@procedure(source="Xu et al. 2018, arXiv:1811.00482", structure="unstructured", pace="iterative", scope="local")
def hybrid(
    model: nn.Module,
    task: Task,
    budget: Budget,
    *,
    steps: int = 0,
    seed: int = 0,
    optimizer: Any = None,
    channels: float = 0.3,
    first: Recipe = network_slimming,
    second: Recipe = magnitude_uniform,
) -> Result:
    """Remove the fraction `channels` by `first` and cut it out; prune what is left to the budget by `second`.

    Half of the steps go to each. The result, and the budget, are about the smaller network.
    """
    thin = prune(model, task, first, sparsity=channels, steps=steps // 2, seed=seed, optimizer=optimizer).compact()
    rest = steps - steps // 2
    return prune(thin, task, replace(second, name="hybrid"), budget=budget, steps=rest, seed=seed, optimizer=optimizer)


card = Card(
    title="Hybrid pruning",
    use_when="you want a network that is thinner in fact and sparse on top, for a runtime that has sparse kernels",
    avoid_when="zeros are of no use where it runs: then remove more channels instead",
    formula="channels by network slimming, then magnitude within each layer of the smaller network",
    deviations=(
        "The budget counts weights of the thinner network, so `channels` of them are saved on top. Every layer has the "
        "same density (the paper sets it by each layer's sensitivity). first= and second= take other recipes; networks "
        "without normalization need first=l1_filter."
    ),
    rows=(192,),
)
