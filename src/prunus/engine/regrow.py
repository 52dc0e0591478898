"""Prune-and-grow: drop a share of the kept units of every group and regrow as many elsewhere."""

import torch
from torch import Tensor

from prunus.core.counting import count
from prunus.core.part import Masks


def regrow(masks: Masks, worth: dict[str, Tensor], promise: dict[str, Tensor], share: float) -> Masks:
    """New masks with the same count in every group.

    The `floor(share * kept)` kept units of least worth are dropped; then as many of the units that are not kept,
    the just dropped among them, are taken by promise (RigL, arXiv:1911.11134, and its official code). Ties go to the
    earlier unit.
    """
    new: Masks = {}
    for name, mask in masks.items():
        flat = mask.reshape(-1)
        size = count(flat)
        n = min(int(share * size), flat.numel() - (size - int(share * size)))
        if name not in worth or name not in promise or n <= 0:
            new[name] = mask
            continue
        value = worth[name].reshape(-1).double().masked_fill(~flat, -torch.inf)
        survivors = torch.zeros_like(flat)
        survivors[value.argsort(descending=True, stable=True)[: size - n]] = True
        hope = promise[name].reshape(-1).double().masked_fill(survivors, -torch.inf)
        survivors[hope.argsort(descending=True, stable=True)[:n]] = True
        new[name] = survivors.reshape(mask.shape)
    return new
