"""Recovery: what a recipe does to bring a pruned model back."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunus.core.layer import Site
from prunus.core.part import Recovery
from prunus.core.recipe import Recipe
from prunus.core.task import Batch
from prunus.engine.apply_ import apply_
from prunus.engine.cost import Cost, cost_of

if TYPE_CHECKING:
    from prunus.engine.session import Session


def teacher_of(model: nn.Module, recipe: Recipe) -> nn.Module | None:
    """A copy of the dense model in evaluation mode, where the recovery learns from it."""
    if recipe.recover is None or not recipe.recover.teacher:
        return None
    from prunus.graph.running import computed

    return copy.deepcopy(model, computed(model)).eval().requires_grad_(False)


@dataclass(eq=False)
class Recovering:
    """The training after the last event, as a recovery wants it.

    Attributes:
        part: the recovery.
        site: where it works.
        began: the step at which it began.
        last: the step at which it ends.
        macs_ratio: dense over pruned multiply-accumulates. Cost: one trace of the example.
    """

    part: Recovery
    site: Site
    began: int
    last: int
    macs_ratio: Callable[[], float]

    def steps(self, steps: int) -> int:
        """How many steps it takes where `steps` were asked for."""
        return self.part.steps(steps, self.macs_ratio)

    def rate(self, step: int) -> float | None:
        """The learning-rate factor of the coming step; None leaves it to the caller."""
        return self.part.rate((step - self.began) / max(1, self.last - self.began))

    def loss(self, batch: Batch) -> Tensor | None:
        """The loss to train with; None for the task's own."""
        return self.part.loss(self.site, batch)


def recovered(
    session: "Session", masks: Mapping[str, Tensor], optimizers: Iterable[torch.optim.Optimizer]
) -> Recovering:
    """Run the recovery in place; what it wrote into pruned weights is zeroed again."""
    recover = session.recipe.recover
    assert recover is not None
    site = Site(session.model, session.task, session.groups, masks, session.generator, session.teacher)
    recover(site)
    apply_(session.parameters, masks)
    if recover.restarts:
        for optimizer in optimizers:
            optimizer.state.clear()
    unit_masks, groups = dict(session.masks), session.groups

    def ratio() -> float:
        cost = cost_of(session.model, session.task, "macs")
        assert isinstance(cost, Cost)
        return 1.0 / max(cost.fraction(groups, unit_masks), 1e-9)

    return Recovering(recover, site, session.step, max(session.steps, session.step), ratio)
