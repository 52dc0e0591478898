"""What a recipe adds to every training step: evidence that is gathered, penalties, and proximal maps."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.evidence import Sources
from prunus.core.part import Part, Penalty, Prox
from prunus.engine.apply_ import is_wrapped
from prunus.engine.decide import sources_of, watched
from prunus.engine.gated import spread
from prunus.engine.hooks import Hooks
from prunus.engine.shards import gathered, laid_like, local, part, whole

if TYPE_CHECKING:
    from prunus.engine.session import Session


def watch(session: "Session", hooks: Hooks) -> None:
    """Let the evidence that is gathered step by step see the gradients of the step at hand."""
    for key, (evidence, settings) in watched(session.recipe).items():
        live = gathered({n: p for n, p in hooks.names.items() if p.grad is not None}, session.groups)
        gradients = {n: whole(p.grad) for n, p in hooks.names.items() if p.grad is not None}
        store = session.running[key]
        evidence.step(store, session.groups, live, gradients, settings)
        sources = sources_of(session, session.recipe.criterion, gradients)
        sources.settings, sources.rate = settings, float(hooks.optimizer.param_groups[0]["lr"])
        evidence.renew(store, sources)


def told(session: "Session", part: Part, hooks: Hooks) -> Sources:
    """What evidence of a part that acts at every step may be collected from."""
    asked = any(e.reads == "labels" for e in part.asks().values())
    found = {n: whole(p.grad) for n, p in hooks.names.items() if p.grad is not None} if asked else None
    sources = sources_of(session, part, found)
    sources.rate = float(hooks.optimizer.param_groups[0]["lr"])
    return sources


@torch.enable_grad()
def add_penalty(session: "Session", penalty: Penalty, hooks: Hooks) -> None:
    """Add the penalty's gradient, summed over groups, to `.grad` of what this optimizer trains.

    Called once per optimizer step, so the strength does not depend on how many backward passes a step takes.
    Cost: one forward and backward of the penalty. Errors: `SpecError` where it is defined on none of the groups.
    """
    sources = told(session, penalty, hooks)
    evidence = penalty.asks()
    live = {n: p for n, p in sources.parameters.items() if p.requires_grad}
    views = {name: e.by_group(sources, live) for name, e in evidence.items()}
    terms = [
        penalty(**{name: v[g.name] for name, v in views.items()})
        for g in sources.groups
        if all(g.name in v for v in views.values())
    ]
    if not terms:
        raise SpecError(f"{type(penalty).__name__} is defined on none of the model's groups: it would do nothing")
    total = torch.stack(terms).sum()
    # Only what this optimizer trains: nothing would ever clear the gradient of anything else.
    names = [n for n in live if n in hooks.names]
    if not names or not total.requires_grad:
        return
    found = torch.autograd.grad(total, [live[n] for n in names], allow_unused=True)
    # A fused optimizer under GradScaler unscales inside its step: the penalty must be scaled like the rest.
    scale = getattr(hooks.optimizer, "grad_scale", None)
    with torch.no_grad():
        for name, extra in zip(names, found, strict=True):
            own = hooks.names[name]
            if extra is None:
                continue
            extra = extra if scale is None else extra * scale
            if own.grad is None:
                own.grad = laid_like(extra, own)
            else:
                local(own.grad).add_(part(extra, own))  # in place: it may be a view of a bucket


@torch.no_grad()
def scale_(session: "Session", prox: Prox, hooks: Hooks) -> None:
    """Multiply the units of what this optimizer trains (or their gradients) by the factors of a proximal map.

    Cost: that of its evidence, and one pass over what it scales. Errors: `SpecError` where it is defined on no group.
    """
    sources = told(session, prox, hooks)
    collected = {name: next(iter(e.collect(sources))) for name, e in prox.asks().items()}
    targets: Mapping[str, Tensor] = hooks.names
    if prox.on == "gradients":
        targets = {n: p.grad for n, p in hooks.names.items() if p.grad is not None}
    reached = False
    for group in session.groups:
        if not all(group.name in found for found in collected.values()):
            continue
        factor = prox(**{name: found[group.name] for name, found in collected.items()})
        reached = True
        for member in group.with_role(*prox.roles):
            if member.param in targets and (member.dim is None or not is_wrapped(local(targets[member.param]))):
                target = targets[member.param]
                local(target).mul_(part(spread(group, member, factor.reshape(group.shape), target), target))
    if not reached:
        raise SpecError(f"{type(prox).__name__} is defined on none of the model's groups: it would do nothing")
    if prox.freezes:
        hooks.withhold(lambda grad: not bool(local(grad).any()))
