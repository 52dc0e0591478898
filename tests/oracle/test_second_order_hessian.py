"""Hessians by `torch.func`, quadratic losses by brute force, Kronecker factors by loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.core.errors import SpecError
from prunus.parts.criteria import DiagonalHessian, KroneckerFilter, SecondOrderProduct
from prunus.parts.granularity import Channel, Element
from tests.oracle.second_order_nets import batches, build, flat, hessian, sample_gradients, samples, scores, task_of
from tests.oracle.second_order_nets import gradients as of_weights
from tests.oracle.second_order_nets import weights as weights_of

NETS = ["mlp", "tokens"]


# Diagonal


def test_hutchinson_is_right_within_its_own_spread() -> None:
    """Its variance with random signs is the sum of the squares off the diagonal, over the number of probes."""
    model, data = build("mlp"), batches("mlp", 1)
    matrix = hessian(model, data).detach()
    half = 0.5 * flat(weights_of(model)).square()
    spread = half * (matrix - matrix.diagonal().diag()).square().sum(1).sqrt() / 100**0.5
    ours = flat(scores(model, task_of(data), DiagonalHessian(probes=100), Element()))
    off = (ours - half * matrix.diagonal()) / spread
    assert float(off.abs().max()) < 4.5 and 0.5 < float(off.square().mean()) < 2.0


def test_obd_is_the_rise_of_a_separable_quadratic_loss() -> None:
    """Where the Hessian is diagonal one probe is exact, and the score is the loss that removing the weight costs."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    centre, curvature = model.weight.detach().clone(), torch.rand(3, 4, dtype=torch.float64)

    def loss(m: nn.Module, _: object) -> Tensor:
        return 0.5 * (curvature * (m.get_parameter("weight") - centre).square()).sum()

    task = prunus.Task(loss=loss, calib=[torch.zeros(1)])
    ours = scores(model, task, DiagonalHessian(probes=1), Element())["weight"]
    for i in range(3):
        for j in range(4):
            changed = nn.Linear(4, 3, bias=False).double()
            changed.weight = nn.Parameter(centre.clone())
            with torch.no_grad():
                changed.weight[i, j] = 0.0
            torch.testing.assert_close(ours[i, j], loss(changed, None).detach())


def test_the_diagonal_depends_on_the_seed_alone() -> None:
    model, data = build("mlp"), batches("mlp")
    one, same, other = (
        flat(scores(model, task_of(data), DiagonalHessian(probes=2), Element(), seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_diagonal_without_probes_is_refused() -> None:
    with pytest.raises(SpecError, match="probes"):
        DiagonalHessian(probes=0)


# SOSP-H


@pytest.mark.parametrize("name", NETS)
def test_sosp_h_takes_one_product_with_the_weights_of_all_units(name: str) -> None:
    model, data = build(name), batches(name, size=3)
    groups = Channel()(model, (data[0][0],))
    matrix = hessian(model, data)
    mean = torch.stack([flat(g) for g in sample_gradients(model, data)]).mean(0)
    vectors = []
    for group in groups:
        for unit in range(group.units):
            theta = {n: torch.zeros_like(w) for n, w in weights_of(model).items()}
            for member in group.with_role("out"):
                for row in member.positions(group.units)[unit]:
                    theta[member.param][row] = weights_of(model)[member.param][row]
            vectors.append(flat(theta))
    every = torch.stack(vectors).sum(0)
    theirs = torch.stack([(v @ mean).abs() + 0.5 * (v @ matrix @ every).abs() for v in vectors])
    ours = scores(model, task_of(data), SecondOrderProduct(), Channel())
    torch.testing.assert_close(torch.cat([ours[g.name] for g in groups]), theirs, rtol=1e-8, atol=1e-12)


def test_sosp_h_adds_up_to_the_rise_of_a_quadratic_loss() -> None:
    """Of a quadratic loss the removal of all units costs 1/2 theta^T H theta - g^T theta: with the terms of one sign,
    the scores add up to it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    target = torch.randn(4, 3, dtype=torch.float64)
    with torch.no_grad():
        target.copy_(2 * model[0].weight)  # the gradient pulls every weight away from zero

    def loss(m: nn.Module, _: object) -> Tensor:
        return 0.5 * (m.get_submodule("0").get_parameter("weight") - target).square().sum()

    task = prunus.Task(loss=loss, calib=[(torch.ones(1, 3, dtype=torch.float64),)])
    (ours,) = scores(model, task, SecondOrderProduct(), Channel()).values()
    before = loss(model, None).detach()
    with torch.no_grad():
        model[0].weight.zero_()
    rise = loss(model, task.calib[0]).detach() - before  # type: ignore[index]
    torch.testing.assert_close(ours.sum(), rise)


# Kronecker factors


def test_a_fully_connected_layers_factors_are_means_of_outer_products() -> None:
    """With the empirical Fisher information, from single samples; then both filter scores, filter by filter."""
    model, data = build("mlp"), batches("mlp")
    inputs, slopes = [], []
    for x, y in samples(data):
        h = model[:2](x)
        pre = model[2](h).detach().requires_grad_(True)
        F.cross_entropy(model[4](torch.tanh(pre)), y).backward()
        assert pre.grad is not None
        inputs.append(h[0].detach())
        slopes.append(pre.grad[0])
    a = torch.stack([torch.outer(v, v) for v in inputs]).mean(0)
    g = torch.stack([torch.outer(v, v) for v in slopes]).mean(0)
    w = model[2].weight.detach()
    plain = torch.stack([0.5 * g[i, i] * w[i] @ a @ w[i] for i in range(4)])
    inverse = torch.linalg.inv(g + 1e-2 * g.diagonal().mean() * torch.eye(4, dtype=torch.float64))
    surgeon = torch.stack([0.5 * w[i] @ a @ w[i] / inverse[i, i] for i in range(4)])
    for compensated, theirs in ((False, plain), (True, surgeon)):
        criterion = KroneckerFilter(compensated=compensated, damp=1e-2, fisher="empirical")
        ours = scores(model, task_of(data), criterion, Channel())
        torch.testing.assert_close(next(s for n, s in ours.items() if n.startswith("2")), theirs)


def test_a_linear_layer_under_a_squared_loss_has_exactly_these_factors() -> None:
    """G is then the identity and A (x) G the whole Hessian, so C-OBD is the rise of the loss when a filter goes."""
    torch.manual_seed(0)

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.head = nn.Linear(3, 4, bias=False), nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inside(x))

    model = Pair().double()
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(4))
    x = torch.randn(20, 3, dtype=torch.float64)
    y = model(x).detach()

    def loss(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 0.5 * (m(batch[0]) - batch[1]).square().sum(1).mean()

    (ours,) = scores(model, task_of([(x, y)], loss), KroneckerFilter(compensated=False), Channel()).values()
    for i in range(4):
        with torch.no_grad():
            kept = model.inside.weight[i].clone()
            model.inside.weight[i] = 0.0
        torch.testing.assert_close(ours[i], loss(model, (x, y)).detach())
        with torch.no_grad():
            model.inside.weight[i] = kept


def test_a_convolutions_factors_are_means_over_patches() -> None:
    """Grosse & Martens 2016: sums over places of patches, means over places of gradients."""
    model, data = build("conv"), batches("conv", 1, 3)
    first = model.get_submodule("first")
    a, g = torch.zeros(18, 18, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    for x, y in samples(data):
        pre = first(x).detach().requires_grad_(True)
        h = F.relu(model.get_submodule("norm")(pre))
        out = model.get_submodule("head")(torch.tanh(model.get_submodule("second")(h)).mean((2, 3)))
        F.cross_entropy(out, y).backward()
        assert pre.grad is not None
        padded = F.pad(x, (1, 1, 1, 1))
        for i in range(7):
            for j in range(7):
                patch = padded[0, :, i : i + 3, j : j + 3].flatten()
                a += torch.outer(patch, patch) / 3
                g += torch.outer(pre.grad[0, :, i, j], pre.grad[0, :, i, j]) / 3 / 49
    w = weights_of(model)["first.weight"].flatten(1)
    theirs = torch.stack([0.5 * g[i, i] * w[i] @ a @ w[i] for i in range(4)])
    criterion = KroneckerFilter(compensated=False, fisher="empirical")
    groups = [g for g in Channel()(model, (data[0][0],)) if [m.param for m in g.with_role("out")] == ["first.weight"]]
    ours = scores(model, task_of(data), criterion, Channel())
    for group in groups:  # a grouped reader ties channels in pairs
        at = group.members[0].positions(group.units)
        if at.shape[1] == 1:
            torch.testing.assert_close(ours[group.name], theirs[at[:, 0]])


def test_all_outputs_give_the_fisher_of_the_models_own_labels() -> None:
    """G of the Gauss-Newton matrix is E over labels drawn from the model of g g^T."""
    model, data = build("mlp"), batches("mlp", 1, 4)
    total = torch.zeros(4, dtype=torch.float64)
    w = model[2].weight.detach()
    x = data[0][0]
    hidden = model[:2](x).detach()
    a = hidden.T @ hidden / 4
    for n in range(4):
        for label in range(3):
            pre = model[2](hidden[n : n + 1]).detach().requires_grad_(True)
            out = model[4](torch.tanh(pre))
            F.cross_entropy(out, torch.tensor([label])).backward()
            assert pre.grad is not None
            total += out.detach().softmax(1)[0, label] * pre.grad[0].square() / 4
    theirs = torch.stack([0.5 * total[i] * w[i] @ a @ w[i] for i in range(4)])
    ours = scores(model, task_of(data), KroneckerFilter(compensated=False), Channel())
    torch.testing.assert_close(next(s for n, s in ours.items() if n.startswith("2")), theirs)


def test_gradients_of_the_oracle_are_those_of_autograd() -> None:
    model, data = build("mlp"), batches("mlp", 1)
    mean = torch.stack([flat(g) for g in sample_gradients(model, data)]).mean(0)
    torch.testing.assert_close(mean, flat(of_weights(model, F.cross_entropy(model(data[0][0]), data[0][1]))))
