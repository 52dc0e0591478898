"""What fine-tuning added to a model, as a model: pruned like any other, amplified, and added to the base again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from prunus.core.errors import Problems, SpecError
from prunus.engine.prepare import unwrap
from prunus.graph.duplicate import duplicate


def difference(tuned: nn.Module, base: nn.Module) -> nn.Module:
    """A copy of `tuned` whose weights are what it has beyond `base`: what DPPA and other mergers prune.

    Floating tensors of the state are subtracted in their own type; others stay as `tuned` has them. As a network it
    computes nothing of use; recipes that read weights alone prune it as they prune any.
    Cost: a copy. Errors: `SpecError` naming every tensor that the two do not share, or not in one shape.
    """
    made = duplicate(unwrap(tuned))
    theirs = _shared(made, unwrap(base))
    with torch.no_grad():
        for name, own in made.state_dict().items():
            if own.is_floating_point():
                own.sub_(theirs[name].to(own.device, own.dtype))
    return made


def merged(base: nn.Module, *deltas: nn.Module, weights: Sequence[float] | None = None) -> nn.Module:
    """A copy of `base` with deltas added, each times its weight (1): a fine-tuned model again, or several in one.

    Cost: a copy. Errors: as of `difference`, and for another number of weights than of deltas.
    """
    factors = [1.0] * len(deltas) if weights is None else list(weights)
    if len(factors) != len(deltas):
        raise SpecError(f"{len(factors)} weights for {len(deltas)} deltas: pass one for each")
    made = duplicate(unwrap(base))
    found = [_shared(made, unwrap(d)) for d in deltas]
    with torch.no_grad():
        for name, own in made.state_dict().items():
            for factor, theirs in zip(factors, found, strict=True):
                if own.is_floating_point():
                    own.add_(theirs[name].to(own.device, own.dtype), alpha=factor)
    return made


def amplified(
    deltas: Sequence[nn.Module],
    score: Callable[[nn.Module], float],
    *,
    start: float = 1.0,
    step: float = 0.1,
    most: float = 5.0,
) -> tuple[nn.Module, tuple[float, ...]]:
    """One delta pruned to several sparsities, put together with a factor for each, found by trying (DPPA's Dynamically
    Partition Amplification: Zhu et al. 2024, arXiv:2403.02799, and its official code).

    The first delta's factor rises from `start` by `step` as long as the score rises, then the second's with the first
    one fixed, and so on; one that does not help at `start` is left out (0). Where several hold a weight, the largest of
    their products with it is taken, as in the code.

    Args:
        deltas: of one model, the one that keeps fewest weights first (90 %, then 80 % pruned).
        score: `(delta) -> float`, higher is better: of `merged(base, delta)` on what it was tuned for.
        most: the largest factor that is tried.

    Returns: the delta, and the factors. Cost: a run of `score` and two copies of the model per trial.
    Errors: `SpecError` for no deltas, or a step that is not above 0.
    Differs: the code leaves a factor at 1 where that was no better than 0, and has no upper end.
    """
    if not deltas or step <= 0 or start <= 0:
        raise SpecError("amplified() wants one delta or more, and a start and a step above 0")
    factors, best = [0.0] * len(deltas), -float("inf")
    for i in range(len(deltas)):
        for turn in range(1 + int((most - start) / step + 1e-9)):
            trial = [*factors[:i], round(start + turn * step, 9), *factors[i + 1 :]]
            value = float(score(_together(deltas, trial)))
            if not value > best:
                break
            factors, best = trial, value
    return _together(deltas, factors), tuple(factors)


def _together(deltas: Sequence[nn.Module], factors: Sequence[float]) -> nn.Module:
    made = duplicate(unwrap(deltas[0]))
    states = [_shared(made, unwrap(d)) for d in deltas]
    with torch.no_grad():
        for name, own in made.state_dict().items():
            if own.is_floating_point():
                total = torch.zeros_like(own)
                for factor, state in zip(factors, states, strict=True):
                    value = state[name].to(own.device, own.dtype) * factor
                    total = torch.where(value.abs() > total.abs(), value, total)
                own.copy_(total)
    return made


def _shared(one: nn.Module, other: nn.Module) -> dict[str, Tensor]:
    """The state of `other`, which has all that `one` has, in the same shapes."""
    ours, theirs = one.state_dict(), dict(other.state_dict())
    problems = Problems("these models are no versions of one")
    for name in sorted(ours.keys() ^ theirs.keys()):
        problems.add(f"only one of them has {name}")
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name].shape != theirs[name].shape:
            what = f"{name} is {tuple(ours[name].shape)} and {tuple(theirs[name].shape)}"
            problems.add(f"{what} (tokens that were added? resize the other one's table first)")
    problems.raise_if_any(SpecError)
    return theirs
