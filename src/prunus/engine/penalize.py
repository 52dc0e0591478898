"""Penalties: the gradient of a term of the loss that only a recipe knows about."""

import torch

from prunus.core.errors import SpecError
from prunus.core.evidence import Sources
from prunus.core.part import Penalty
from prunus.engine.hooks import Hooks


@torch.enable_grad()
def add_penalty(penalty: Penalty, sources: Sources, hooks: Hooks) -> None:
    """Add the penalty's gradient, summed over groups, to `.grad` of what this optimizer trains.

    Called once per optimizer step, so the strength does not depend on how many backward passes a step takes.
    Cost: one forward and backward of the penalty. Errors: `SpecError` where it is defined on none of the groups.
    """
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
    asked = {m.param for g in sources.groups for e in evidence.values() for m in g.with_role(*e.roles)}
    # Only what this optimizer trains: nothing would ever clear the gradient of anything else.
    names = [n for n in live if n in asked and n in hooks.names]
    if not names:
        return
    found = torch.autograd.grad(torch.stack(terms).sum(), [live[n] for n in names], allow_unused=True)
    # A fused optimizer under GradScaler unscales inside its step: the penalty must be scaled like the rest.
    scale = getattr(hooks.optimizer, "grad_scale", None)
    with torch.no_grad():
        for name, extra in zip(names, found, strict=True):
            grad = live[name].grad
            if extra is None:
                continue
            extra = extra if scale is None else extra * scale
            if grad is None:
                live[name].grad = extra
            else:
                grad.add_(extra)  # in place: it may be a view of a bucket
