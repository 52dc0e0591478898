"""The rules by which published codes turn scores into masks, in their slowest form, and how masks are compared."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """What all of the codes prune: the weights of convolutions and linear layers, in the order of the modules."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return {f"{n}.weight": m.weight for n, m in layers.items()}


def joined(scores: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([s.flatten() for s in scores.values()])


def above_threshold(scores: Mapping[str, Tensor], removed: int) -> dict[str, Tensor]:
    """Synaptic-Flow: what does not exceed the `removed`-th smallest score of the network goes; ties go with it."""
    if removed < 1:
        return {n: torch.ones_like(s, dtype=torch.bool) for n, s in scores.items()}
    threshold = joined(scores).sort().values[removed - 1]
    return {n: s > threshold for n, s in scores.items()}


def first_k(scores: Mapping[str, Tensor], kept: int) -> dict[str, Tensor]:
    """SNIP's own code: exactly the `kept` largest of the joined vector, the earlier of two equals."""
    flat = joined(scores)
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[flat.argsort(descending=True, stable=True)[:kept]] = True
    parts = mask.split([s.numel() for s in scores.values()])
    return {n: part.reshape(s.shape) for part, (n, s) in zip(parts, scores.items(), strict=True)}


def lowest_rows_removed(scores: Tensor, removed: int) -> Tensor:
    """Filter pruning: of one layer, the `removed` filters of least worth go."""
    order = sorted(range(len(scores)), key=lambda i: float(scores[i]))
    keep = torch.ones(len(scores), dtype=torch.bool)
    keep[order[:removed]] = False
    return keep


def count(masks: Mapping[str, Tensor]) -> int:
    return sum(int(m.sum()) for m in masks.values())


def differences(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, int]:
    """Layer -> number of entries in which two sets of masks differ; layers that only one of them has count whole."""
    found = {}
    for name in dict.fromkeys([*ours, *theirs]):
        if name not in ours or name not in theirs:
            found[name] = (ours.get(name, theirs.get(name))).numel()
        elif wrong := int((ours[name] != theirs[name]).sum()):
            found[name] = wrong
    return found
