"""Prune, then distill: a sparse teacher for a narrow student."""

from dataclasses import replace
from typing import Any

from torch import nn

from prunus.core.budget import Budget
from prunus.core.card import Card
from prunus.core.errors import SpecError
from prunus.core.procedure import procedure
from prunus.core.task import Task
from prunus.engine.prune import prune
from prunus.engine.result import Result
from prunus.methods.l1_filter import l1_filter
from prunus.methods.lr_rewinding import lr_rewinding
from prunus.parts.recover import Chain, Distill, Scratch


@procedure(source="Park & No 2022, ECCV, arXiv:2109.14960", structure="structured", pace="iterative", scope="local")
def prune_then_distill(
    model: nn.Module,
    task: Task,
    budget: Budget,
    *,
    steps: int = 0,
    seed: int = 0,
    optimizer: Any = None,
    teacher: float = 0.59,
    distill: Distill = Distill(),
) -> Result:
    """A teacher of sparsity `teacher` by magnitude and learning-rate rewinding; a student of fewer channels learns from
    it, starting anew. Half of the steps go to each.
    """
    if steps < 2:
        raise SpecError(f"prune_then_distill trains a teacher and a student: steps={steps} is too few")
    taught = prune(model, task, lr_rewinding, sparsity=teacher, steps=steps // 2, seed=seed, optimizer=optimizer)
    student = replace(l1_filter, name="prune_then_distill", recover=Chain((Scratch(), distill)))
    rest = steps - steps // 2
    return prune(taught.model, task, student, budget=budget, steps=rest, seed=seed, optimizer=optimizer)


card = Card(
    title="Prune, then distill",
    use_when="you train a smaller classifier anyway, and the large one is there to be made a gentler teacher",
    avoid_when="there is no budget for training two networks",
    formula="student = argmin of (1 - a) L + a T^2 KL(sparse teacher || student), on fewer channels, from scratch",
    deviations=(
        "The student keeps the same share of channels in every layer; the paper gives each layer as many as make it as "
        "large as the teacher's layer has weights left."
    ),
    rows=(138,),
)
