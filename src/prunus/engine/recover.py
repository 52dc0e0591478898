"""Recovery: what a recipe does to bring a pruned model back."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunus.core.errors import PrunusWarning
from prunus.core.layer import Site
from prunus.core.part import Recovery
from prunus.core.recipe import Recipe
from prunus.core.task import Batch
from prunus.engine.apply_ import apply_
from prunus.engine.cost import Cost, cost_of
from prunus.graph.duplicate import duplicate

if TYPE_CHECKING:
    from prunus.engine.session import Session


def teacher_of(model: nn.Module, recipe: Recipe) -> nn.Module | None:
    """A copy of the dense model in evaluation mode, where the recovery learns from it."""
    if recipe.recover is None or not recipe.recover.teacher:
        return None

    return duplicate(model).eval().requires_grad_(False)


def site_of(session: "Session", masks: Mapping[str, Tensor]) -> Site:
    """Where a recovery works, with what its loss remembers of earlier steps."""
    memory = session.running.setdefault("recovery", {})
    return Site(session.model, session.task, session.groups, masks, session.generator, session.teacher, memory)


def loss_now(session: "Session", batch: Batch) -> Tensor:
    """The loss to train the coming step with: that of the recipe's recovery, where it has one by now (after the last
    event, or `throughout`), or the task's own. As a method of a session, `session.loss(batch)`, for loops of one's own.

    The model is run unwrapped, so that DistributedDataParallel would not average its gradients. Cost: see the recovery.
    """
    recover, found = session.recipe.recover, None
    if recover is not None and (recover.throughout or session.recovering is not None):
        session.taught = True
        found = recover.loss(site_of(session, session.applied), batch)
    return session.task.loss_of(session.model, batch) if found is None else found


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
    if recover.throughout and session.step and not session.taught:
        why = f"{session.recipe.name!r} trains with a loss of its own throughout ({type(recover).__name__})"
        warnings.warn(PrunusWarning(f"{why}, which no step asked for: call session.loss(batch) for it"), stacklevel=2)
    site = site_of(session, masks)
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
