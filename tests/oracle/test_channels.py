"""Structured methods against their papers and codes: filter norms, geometric median, network slimming, Taylor.

On VGG every convolution is followed by its own normalization and nothing is coupled, which is what the codes assume:
there the masks are compared entry by entry, consumers included. On ResNet-20 the channels inside a block are as free.
"""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus import methods
from prunus.core.errors import PrunusWarning
from prunus.lab import zoo
from prunus.parts.criteria import TaylorGate
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot
from tests.oracle.conftest import cross_entropy, unsettled
from tests.oracle.rules import above_threshold, differences, lowest_rows_removed

INNER = [f"stages.{s}.{b}" for s, b in itertools.product(range(3), range(3))]


@pytest.fixture
def vgg() -> nn.Module:
    torch.manual_seed(11)
    return unsettled(zoo.build("vgg11", width=0.125), 12).double().eval()


@pytest.fixture
def wide() -> prunus.Task:
    """Two batches for the VGG, which wants images of 16 pixels or more."""
    generator = torch.Generator().manual_seed(13)
    x = torch.randn(12, 3, 16, 16, generator=generator, dtype=torch.float64)
    y = torch.randint(10, (12,), generator=generator)
    return prunus.Task(loss=cross_entropy, calib=[(x[:6], y[:6]), (x[6:], y[6:])], example=x[:1])


def layers(vgg: nn.Module) -> list[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    named = list(vgg.get_submodule("features").named_children())
    return [
        (f"features.{n}", m, named[i + 1][1])  # type: ignore[misc]
        for i, (n, m) in enumerate(named)
        if isinstance(m, nn.Conv2d)
    ]


def whole_masks(vgg: nn.Module, keep: dict[str, Tensor]) -> dict[str, Tensor]:
    """What goes with a filter: its slice of the convolution and normalization, and the inputs it feeds in the next
    layer.
    """
    found: dict[str, Tensor] = {}
    before = torch.ones(3, dtype=torch.bool)
    parameters = dict(vgg.named_parameters())
    names = {id(p): n for n, p in parameters.items()}
    for name, conv, norm in layers(vgg):
        found[f"{name}.weight"] = (keep[name][:, None] & before[None])[:, :, None, None].expand(conv.weight.shape)
        found[names[id(norm.weight)]] = found[names[id(norm.bias)]] = keep[name]
        before = keep[name]
    found["classifier.weight"] = before[None].expand(parameters["classifier.weight"].shape)
    return found


# By norm and by distance, a layer at a time


@pytest.mark.parametrize("sparsity", [0.25, 0.7])
def test_l1_filter_on_vgg_entry_by_entry(vgg: nn.Module, wide: prunus.Task, sparsity: float) -> None:
    """Li et al. 2017: the m filters of least sum |w| of each layer, with their feature maps in the next."""
    keep = {
        name: lowest_rows_removed(conv.weight.detach().abs().sum((1, 2, 3)), math.floor(sparsity * conv.out_channels))
        for name, conv, _ in layers(vgg)
    }
    assert differences(prunus.prune(vgg, wide, "l1_filter", sparsity=sparsity).masks, whole_masks(vgg, keep)) == {}


def euclidean_sums(weight: Tensor) -> Tensor:
    """FPGM eq. 8: each filter's distances to all others, by a double loop."""
    rows = weight.detach().double().flatten(1)
    return torch.stack([torch.stack([(a - b).square().sum().sqrt() for b in rows]).sum() for a in rows])


@pytest.mark.parametrize("method", ["fpgm", "sfp"])
def test_filters_inside_blocks_by_distance_and_by_l2(net: nn.Module, task: prunus.Task, method: str) -> None:
    """filter-pruning-geometric-median and soft-filter-pruning: int(rate * filters) of each convolution, by the sum of
    Euclidean distances and by the L2 norm."""
    result = prunus.prune(net, task, replace(getattr(methods, method), schedule=OneShot()), sparsity=0.4)
    for block in INNER:
        w = net.get_parameter(f"{block}.conv1.weight")
        worth = euclidean_sums(w) if method == "fpgm" else w.detach().double().square().sum((1, 2, 3)).sqrt()
        assert torch.equal(result.unit_masks[f"{block}.conv1"], lowest_rows_removed(worth, int(len(w) * 0.4))), block


def test_coupled_filters_are_worth_the_sum_of_their_norms() -> None:
    """A filter that is added to others through a shortcut goes with them, so their norms are added (card of
    l1_filter).
    """
    torch.manual_seed(7)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head((x + self.branch(x).relu()).mean((2, 3)))

    model = Block()
    (scores,) = prunus.score(model, prunus.Task(example=torch.randn(1, 3, 6, 6)), "l1_filter").values()
    norms = [c.weight.detach().abs().sum((1, 2, 3)) for c in (model.stem, model.branch)]
    torch.testing.assert_close(scores, norms[0] + norms[1])


# Network slimming


def test_network_slimming_keeps_one_channel_more_than_the_official_code(vgg: nn.Module, wide: prunus.Task) -> None:
    """The official code sorts all |gamma|, takes entry int(n p) as the threshold and keeps what is larger: int(n p) + 1
    go. The recipe removes int(n p); the one it keeps is the one on the threshold."""
    gammas = {name: norm.weight.detach().abs() for name, _, norm in layers(vgg)}
    removed = int(0.5 * sum(len(g) for g in gammas.values()))
    recipe = replace(methods.network_slimming, schedule=OneShot())
    keep = above_threshold(gammas, removed)
    ours = prunus.prune(vgg, wide, recipe, sparsity=0.5)
    assert differences(ours.masks, whole_masks(vgg, keep)) == {}
    official = above_threshold(gammas, removed + 1)
    assert sum(int((official[n] != keep[n]).sum()) for n in keep) == 1


def test_network_slimming_adds_the_subgradient_of_the_penalty(vgg: nn.Module, wide: prunus.Task) -> None:
    """Official training: gamma.grad += s sign(gamma) before every step; here two steps of plain descent by hand."""
    batch = next(iter(wide.calibration()))
    task = replace(wide, train=[batch])
    recipe = replace(methods.network_slimming, schedule=OneShot(at=1.0))
    model = prunus.prune(vgg, task, recipe, sparsity=0.01, steps=2, optimizer=lambda p: torch.optim.SGD(p, 0.1)).model
    by_hand = unsettled(zoo.build("vgg11", width=0.125), 12).double()
    by_hand.load_state_dict(vgg.state_dict())
    by_hand.train()
    gammas = {id(norm.weight) for _, _, norm in layers(by_hand)}
    for _ in range(2):
        grads = torch.autograd.grad(cross_entropy(by_hand, batch), list(by_hand.parameters()))
        with torch.no_grad():
            for p, g in zip(by_hand.parameters(), grads, strict=True):
                p -= 0.1 * (g + 1e-4 * p.sign() if id(p) in gammas else g)
    for (name, ours), theirs in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        kept = ours != 0
        torch.testing.assert_close(ours[kept], theirs[kept], rtol=1e-12, atol=1e-14, msg=name)


# Taylor


def test_taylor_on_weights_filter_by_filter(vgg: nn.Module, wide: prunus.Task) -> None:
    """(sum of g w over a filter)^2, averaged over batches, ranked over the network (Molchanov et al. 2019, eq. 8 and
    its sum over a filter). The official code's method 0 sums squares, sum (g w)^2: another score, compared below."""
    total = {name: torch.zeros(conv.out_channels, dtype=torch.float64) for name, conv, _ in layers(vgg)}
    squares = {name: t.clone() for name, t in total.items()}
    for batch in wide.calibration():
        for name, conv, _ in layers(vgg):
            (g,) = torch.autograd.grad(cross_entropy(vgg, batch), conv.weight)
            for f in range(conv.out_channels):
                total[name][f] += (g[f] * conv.weight[f].detach()).sum() ** 2 / 2
                squares[name][f] += (g[f] * conv.weight[f].detach()).square().sum() / 2
    recipe = replace(methods.taylor_fo, schedule=OneShot())
    ours = prunus.score(vgg, wide, recipe)
    for name, theirs in total.items():
        torch.testing.assert_close(ours[name], theirs, rtol=1e-9, atol=0.0)
    # One unit per layer is kept whatever it is worth: the largest of each layer ranks first.
    guarded = {n: t.masked_fill(t == t.max(), torch.inf) for n, t in total.items()}
    keep = above_threshold(guarded, int(0.3 * sum(len(t) for t in total.values())))
    assert differences(prunus.prune(vgg, wide, recipe, sparsity=0.3).masks, whole_masks(vgg, keep)) == {}
    assert any(not torch.equal(total[n].argsort(), squares[n].argsort()) for n in total)


def test_taylor_on_gates_is_the_gradient_of_a_real_gate(vgg: nn.Module, wide: prunus.Task) -> None:
    """A gate z = 1 behind the normalization: (dL/dz)^2 per batch. No gate exists in the model; the criterion reads it
    off gamma and beta, since dL/dz = gamma dL/dgamma + beta dL/dbeta."""
    gates = {name: torch.ones(norm.num_features, dtype=torch.float64) for name, _, norm in layers(vgg)}
    expected = {name: torch.zeros_like(z) for name, z in gates.items()}
    for batch in wide.calibration():
        open_ = {name: z.clone().requires_grad_() for name, z in gates.items()}
        handles = [
            norm.register_forward_hook(lambda _m, _i, out, z=open_[name]: out * z[:, None, None])
            for name, _, norm in layers(vgg)
        ]
        found = torch.autograd.grad(F.cross_entropy(vgg(batch[0]), batch[1]), list(open_.values()))
        for handle in handles:
            handle.remove()
        for name, g in zip(open_, found, strict=True):
            expected[name] += g.square() / 2
    ours = prunus.score(vgg, wide, replace(methods.taylor_fo, criterion=TaylorGate()))
    for name, theirs in expected.items():
        torch.testing.assert_close(ours[name], theirs, rtol=1e-8, atol=0.0)


# The same words, structured


@pytest.mark.parametrize("method", ["snip", "grasp", "magnitude"])
def test_structured_scores_are_sums_over_the_filter(vgg: nn.Module, wide: prunus.Task, method: str) -> None:
    """`replace(recipe, granularity=Channel())`: a channel is worth the sum of what its weights are worth."""
    single = prunus.score(vgg, wide, method)
    whole = prunus.score(vgg, wide, replace(getattr(methods, method), granularity=Channel()))
    for name, conv, _ in layers(vgg):
        assert whole[name].shape == (conv.out_channels,)
        torch.testing.assert_close(whole[name], single[f"{name}.weight"].sum((1, 2, 3)), rtol=1e-9, atol=1e-15)


def test_methods_that_train_say_so_when_they_are_not_given_steps(vgg: nn.Module, wide: prunus.Task) -> None:
    with pytest.warns(PrunusWarning, match="steps=0"):
        trained = prunus.prune(vgg, wide, "sfp", sparsity=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        at_once = prunus.prune(vgg, wide, replace(methods.sfp, schedule=OneShot()), sparsity=0.5)
    assert differences(trained.masks, at_once.masks) == {}
