"""D-Pruner: the paper's regularized loss differentiated sample by sample, and its score."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import Task, methods
from prunus.core.errors import SpecError
from prunus.parts.criteria import DualImportance

Batch = tuple[Tensor, Tensor]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False)).double()


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def text(seed: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(5, 6, generator=generator).double(), torch.randint(3, (5,), generator=generator)) for _ in range(2)
    ]


def slopes(net: nn.Module, p: Tensor, batches: list[Batch]) -> list[Tensor]:
    """The gradient of the loss on every sample by itself."""
    each = [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x))]
    return [torch.autograd.grad(loss(net, one), p)[0] for one in each]


@pytest.mark.parametrize(("strength", "step"), [(0.0, 1.0), (50.0, 1.0), (200.0, 0.3)])
def test_scores_as_the_paper_derives_them(strength: float, step: float) -> None:
    net, domain, general = network(), text(1), text(2)
    criterion = DualImportance(strength=strength, step=step)
    recipe = replace(methods.d_pruner, criterion=criterion)
    found = prunus.score(net, Task(loss=loss, calib=domain, general=general), recipe)
    for name, p in net.named_parameters():
        w, own = p.detach(), slopes(net, p, domain)
        importance = 0.5 * torch.stack([g.square() for g in slopes(net, p, general)]).mean(0) * w.square()
        hessian = torch.stack([g.square() for g in own]).mean(0)
        # d/dw of strength * G (w_1 - w)^2 with w_1 - w = -step g: twice the product of the rest and dg/dw.
        refined = [g + 2 * strength * step**2 * importance * g * hessian for g in own]
        first = torch.stack(refined).mean(0) * w
        second = 0.5 * torch.stack([(g * w).square() for g in refined]).mean(0)
        torch.testing.assert_close(found[name], (first - second).abs(), rtol=1e-9, atol=1e-14)
    if strength:
        without = replace(recipe, criterion=DualImportance(strength=0.0))
        plain = prunus.score(net, Task(loss=loss, calib=domain, general=general), without)
        assert not torch.allclose(plain["0.weight"], found["0.weight"])


def test_general_text_counts_and_has_to_be_there() -> None:
    net, recipe = network(), replace(methods.d_pruner, criterion=DualImportance(strength=1e6))
    task = Task(loss=loss, calib=text(1), general=text(2))
    one = prunus.prune(net, task, recipe, sparsity=0.5)
    other = prunus.prune(net, replace(task, general=text(3)), recipe, sparsity=0.5)
    assert any(not torch.equal(m, other.masks[n]) for n, m in one.masks.items())
    with pytest.raises(SpecError, match=r"Task\(general=batches\)"):
        prunus.prune(net, replace(task, general=None), recipe, sparsity=0.5)
    with pytest.raises(SpecError):
        DualImportance(strength=-1.0)
