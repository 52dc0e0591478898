"""Wanda, RIA and DSnoT against their formulas, written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts.granularity import Channel
from prunus.parts.reconstruct import ExpectedErrorSwaps
from tests.oracle.linear import inputs, layer_of, run


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


@pytest.fixture
def setting() -> tuple[nn.Module, prunus.Task, Tensor]:
    torch.manual_seed(1)
    model, x = Net().double(), torch.randn(20, 2, 5, 5, dtype=torch.float64)
    return model, prunus.Task(calib=[(x[:12],), (x[12:],)], example=(x[:1],)), x


def sizes(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Root mean squares of every input of every weight, over all samples and places."""
    first = F.relu(model.a(x)).detach()
    halves = [F.unfold(h, 3).transpose(1, 2).reshape(-1, 18) for h in first.split(2, dim=1)]
    pooled = F.relu(model.b(first)).mean((2, 3)).detach()
    a = F.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 18)
    b = torch.stack([halves[row // 2].square().mean(0).sqrt() for row in range(4)])
    return {
        "a.weight": a.square().mean(0).sqrt().expand(4, -1),
        "b.weight": b,
        "c.weight": pooled.square().mean(0).sqrt().expand(3, -1),
    }


def test_wanda_is_magnitude_times_the_size_of_the_input(setting: tuple[nn.Module, prunus.Task, Tensor]) -> None:
    model, task, x = setting
    scores = prunus.score(model, task, "wanda")
    for name, size in sizes(model, x).items():
        w = dict(model.named_parameters())[name].detach()
        assert torch.allclose(scores[name], w.abs() * size.reshape(w.shape))
    masks = prunus.prune(model, task, "wanda", sparsity=0.5).unit_masks
    assert all((m.sum(1) == (m.shape[1] + 1) // 2).all() for m in masks.values())


def test_ria_adds_the_share_of_the_column_and_of_the_row(setting: tuple[nn.Module, prunus.Task, Tensor]) -> None:
    model, task, x = setting
    scores = prunus.score(model, task, "ria")
    for name, size in sizes(model, x).items():
        p = dict(model.named_parameters())[name]
        w = p.detach().abs().flatten(1)
        for i in range(len(w)):
            for j in range(w.shape[1]):
                share = w[i, j] / w[:, j].sum() + w[i, j] / w[i].sum()
                assert torch.allclose(scores[name].flatten(1)[i, j], share * size[i, j].sqrt())
    with pytest.raises(SpecError, match="single weights"):
        prunus.prune(model, task, replace(methods.ria, granularity=Channel()), sparsity=0.5)


def test_swaps_by_hand() -> None:
    """e = 3 + 1 = 4 over the pruned. The one of mean 3 comes back; of the kept with w E[x] < 0 the one of least
    |w| ||x|| goes.
    """
    mean = torch.tensor([3.0, 1.0, -1.0, -2.0, 5.0], dtype=torch.float64)
    layer = layer_of(inputs(50, 5), 1, torch.tensor([[False, False, True, True, True]]))
    layer = replace(layer, w=torch.ones(1, 5).double(), mean=mean, gram=torch.diag(mean**2 + 1))
    update = run(ExpectedErrorSwaps(cycles=1), layer)
    # e = 4 - 3 - 1 = 0 would not keep its sign: nothing is swapped.
    assert torch.equal(update.keep, layer.keep)
    layer = replace(layer, mean=mean * torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0]))
    update = run(ExpectedErrorSwaps(cycles=1), layer)
    assert update.keep.tolist() == [[True, False, False, True, True]]
    assert torch.equal(update.w, update.keep.double())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_swaps_lower_the_expected_error_of_every_row_and_keep_its_sign(seed: int) -> None:
    x = inputs(80, 16, seed) + 1
    layer = layer_of(x, 12, torch.rand(12, 16, generator=torch.Generator().manual_seed(seed)) > 0.5, seed=seed)
    expected = layer.w * layer.mean
    before = expected.masked_fill(layer.keep, 0.0).sum(1)
    swapped = 0
    for cycles in (1, 2, 50):
        update = run(ExpectedErrorSwaps(cycles=cycles), layer)
        after = expected.masked_fill(update.keep, 0.0).sum(1)
        assert torch.equal(update.keep.sum(1), layer.keep.sum(1))
        assert torch.equal(update.w, layer.w * update.keep)
        assert (after.abs() <= before.abs() + 1e-12).all() and (after.sign() == before.sign()).all()
        assert int((update.keep != layer.keep).sum()) >= swapped
        swapped = int((update.keep != layer.keep).sum())
    assert swapped > 0
    assert torch.equal(run(ExpectedErrorSwaps(threshold=1e9), layer).keep, layer.keep)
