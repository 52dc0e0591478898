"""Gates and criteria of variational inference, against numerical integrals, finite differences, and runs by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.core.gate import Moment
from prunus.parts.criteria import LearnedPosteriorDamage, ReducedEvidence, SignalToNoise
from prunus.parts.gate import Bottleneck, ConstrainedBottleneck, GaussianScale, WeightPosterior
from prunus.parts.gate.variational import normal
from prunus.parts.granularity import Channel
from prunus.parts.penalty import GaussianPrior, PriorDecay
from prunus.parts.schedule import OneShot

X = torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0], [-1.0, 0.4, 2.0]], dtype=torch.float64)
Y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, -0.5]], dtype=torch.float64)
LINE = torch.linspace(-12, 12, 20_001, dtype=torch.float64)


def net(seed: int = 0) -> nn.Sequential:
    """3 -> 4 -> 2, without biases."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()


def squared(model: nn.Module, batch: Any = None) -> Tensor:
    return (model(X) - Y).square().sum()


TASK = prunus.Task(loss=squared, train=[0], example=(X,))


def attached(found: prunus.Recipe, model: nn.Module, steps: int, density: float = 0.5) -> tuple[Any, Any]:
    session = prunus.Session(model, found, TASK, prunus.Budget(density), steps=steps)
    return session.attach(optimizer := torch.optim.SGD(model.parameters(), lr=0.05)), optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = squared(model)
    loss.backward()
    optimizer.step()
    return loss.item()


def density(x: Tensor, mean: float, deviation: float) -> Tensor:
    return (-0.5 * ((x - mean) / deviation) ** 2).exp() / (deviation * math.sqrt(2 * math.pi))


def divergence(mean: float, deviation: float, prior: float) -> float:
    """KL(N(mean, deviation^2) || N(0, prior^2)), integrated."""
    x = mean + deviation * LINE
    q = density(x, mean, deviation)
    log_ratio = -0.5 * LINE**2 - math.log(deviation) + 0.5 * (x / prior) ** 2 + math.log(prior)
    return float(torch.trapezoid(q * log_ratio, x))


def two(mean: float, deviation: float) -> Tensor:
    return torch.tensor([[mean, 2 * math.log(deviation)]], dtype=torch.float64)


# The numbers that are drawn


def test_uniform_numbers_become_normal_ones() -> None:
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    z = normal(u)
    assert float(z.mean()) == pytest.approx(0, abs=1e-9) and float(z.var()) == pytest.approx(1, abs=1e-3)
    for x in (-2.0, -0.5, 0.0, 1.3):
        assert float((z < x).double().mean()) == pytest.approx(0.5 * (1 + math.erf(x / math.sqrt(2))), abs=1e-5)
    assert torch.isfinite(normal(torch.tensor([0.0, 1 - 2**-24]))).all()


@pytest.mark.parametrize("gate", [GaussianScale(), Bottleneck()])
def test_a_factor_is_reparametrized(gate: Any) -> None:
    """z = mu + sigma eps, so dz/dmu = 1 and dz/dlog sigma^2 = sigma eps / 2; without noise it is the mean."""
    theta = torch.tensor([[0.7, -1.0], [-0.2, 0.5]], dtype=torch.float64, requires_grad=True)
    u = torch.tensor([[0.1, 0.0], [0.8, 0.0]], dtype=torch.float64)
    z = gate.value(theta, Moment(0.0, 0.5, noise=u))
    eps = torch.distributions.Normal(0.0, 1.0).icdf(u[:, 0])
    sigma = (theta[:, 1] / 2).exp()
    torch.testing.assert_close(z, theta[:, 0] + sigma * eps, rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(z.sum(), theta)
    torch.testing.assert_close(
        slope, torch.stack([torch.ones(2, dtype=torch.float64), sigma * eps / 2], 1).detach(), rtol=1e-6, atol=1e-6
    )
    assert torch.equal(gate.value(theta, Moment(1.0, 0.5)), theta[:, 0])


# Variational channel pruning


@pytest.mark.parametrize(("mean", "deviation"), [(0.3, 0.2), (-1.1, 0.7), (0.0, 1.5)])
def test_the_scales_penalty_is_the_divergence_from_the_prior(mean: float, deviation: float) -> None:
    gate = GaussianScale(prior=0.5, strength=3.0)
    ours = gate.penalty({"a": two(mean, deviation), "b": two(0.5, 0.5)}, Moment(0.0, 0.5))
    assert float(ours) == pytest.approx(3 * (divergence(mean, deviation, 0.5) + divergence(0.5, 0.5, 0.5)), rel=1e-6)


def test_a_channel_goes_first_where_both_its_mean_and_its_deviation_are_small() -> None:
    gate = GaussianScale(tau=0.02, spread=0.05)
    pairs = [(m, s) for m in (-0.1, 0.019, 0.02, 0.0) for s in (0.01, 0.049, 0.06)]
    theta = torch.cat([two(m, s) for m, s in pairs])
    open_ = gate.open(theta, Moment(0.0, 0.5))
    assert open_.tolist() == [not (abs(m) < 0.02 and s < 0.05) for m, s in pairs]
    assert float(gate.worth(theta)[~open_].max()) < 1 <= float(gate.worth(theta)[open_].min())


def test_vcp_trains_factors_by_the_evidence_bound() -> None:
    """A run by hand: shared draws, Adam on (mu, log sigma^2), SGD on the weights, and the means in the weights."""
    steps, gate = 4, GaussianScale(strength=1e-3, lr=0.05, prior=0.3)
    model, mine = net(), net()
    found = replace(methods.vcp, gate=gate, granularity=Channel())
    session, optimizer = attached(found, model, steps)
    (name,) = session.gating.thetas
    theta = two(1.0, 0.03).repeat(4, 1).requires_grad_()
    assert torch.equal(session.gating.thetas[name].detach(), theta.detach())
    slow = torch.optim.SGD(mine.parameters(), lr=0.05)
    slow_gates = torch.optim.Adam([theta], lr=0.05)
    for _ in range(steps):
        eps = torch.distributions.Normal(0.0, 1.0).icdf(session.gating._moments[name].noise[:, 0].double())
        slow.zero_grad(), slow_gates.zero_grad()
        z = theta[:, 0] + (theta[:, 1] / 2).exp() * eps
        loss = ((torch.tanh(X @ mine[0].weight.T) * z) @ mine[2].weight.T - Y).square().sum()
        variance = theta[:, 1].exp()
        kl = 0.5 * ((theta[:, 0] ** 2 + variance) / 0.09 - 1 - (variance / 0.09).log()).sum()
        (loss + 1e-3 * kl).backward()
        assert step(model, optimizer) == pytest.approx(loss.item(), rel=1e-6)
        slow.step(), slow_gates.step()
    worth = torch.maximum(theta[:, 0].abs() / 0.02, (theta[:, 1] / 2).exp() / 0.02)
    keep = torch.zeros(4, dtype=torch.bool)
    keep[worth.argsort(descending=True)[:2]] = True
    assert torch.equal(session.masks[name], keep)
    read = mine[2].weight * theta[:, 0] * keep
    torch.testing.assert_close(model[2].weight.detach(), read.detach(), rtol=1e-5, atol=1e-8)


# Information bottleneck


@pytest.mark.parametrize(("mean", "deviation"), [(1.0, 0.3), (-0.2, 0.9)])
def test_the_bottleneck_is_the_least_divergence_over_all_priors(mean: float, deviation: float) -> None:
    least = min(divergence(mean, deviation, float(s)) for s in torch.linspace(0.3, 3.0, 271))
    gate = Bottleneck(strength=2.0)
    assert float(gate.penalty({"a": two(mean, deviation)}, Moment(0.0, 0.5))) == pytest.approx(2 * least, rel=1e-3)


def test_a_unit_stays_by_itself_where_signal_exceeds_noise() -> None:
    gate = Bottleneck()
    theta = torch.cat([two(1.0, 0.5), two(0.5, 1.0), two(-1.0, 0.9), two(0.0, 0.1)])
    assert gate.open(theta, Moment(0.0, 0.5)).tolist() == [True, False, True, False]
    torch.testing.assert_close(
        gate.worth(theta)[:3], torch.tensor([4.0, 0.25, 1 / 0.81]).double().log(), rtol=1e-6, atol=1e-6
    )


def test_the_constraint_weighs_units_by_what_they_own_and_its_multipliers_rise() -> None:
    gate = ConstrainedBottleneck(strength=0.0, ascent=0.1)
    thetas = {"a": torch.cat([two(1.0, 0.5), two(0.2, 1.0)]).requires_grad_(), "b": two(0.4, 0.4).requires_grad_()}
    duals = torch.tensor([0.3, 2.0], dtype=torch.float64)
    moment = Moment(0.0, 0.25, duals=duals, sizes={"a": 10.0, "b": 30.0})
    expected = (10 * (1 / 1.25 + 0.04 / 1.04) + 30 * 0.5) / 50 - 0.25
    assert gate.excess(thetas, moment).item() == pytest.approx(expected)
    assert gate.penalty(thetas, moment).item() == pytest.approx(0.3 * expected + 2 * expected**2)
    risen = gate.ascended(duals, thetas, moment)
    assert risen.tolist() == pytest.approx([0.3 + 0.1 * expected, 2 + 0.1 * expected**2])
    assert gate.duals(2) == (0.0, 0.0)
    slopes = torch.autograd.grad(gate.penalty(thetas, moment), list(thetas.values()))
    h = 1e-6
    for n, slope in zip(thetas, slopes, strict=True):
        for i in range(slope.numel()):
            moved = []
            for sign in (1, -1):
                shifted = {k: t.detach().clone() for k, t in thetas.items()}
                shifted[n].view(-1)[i] += sign * h
                moved.append(float(gate.penalty(shifted, moment)))
            assert (moved[0] - moved[1]) / (2 * h) == pytest.approx(float(slope.flatten()[i]), rel=1e-5, abs=1e-9)


def test_the_constraint_draws_the_network_to_its_budget() -> None:
    model = net()
    gate = ConstrainedBottleneck(strength=0.0, lr=0.1, ascent=0.3)
    found = replace(methods.vtrans, gate=gate, granularity=Channel(), schedule=OneShot(at=1.0))
    session, optimizer = attached(found, model, 150)
    (name,) = session.gating.thetas
    for _ in range(149):
        step(model, optimizer)
    moment = session.gating._moments[name]
    assert float(moment.duals[0]) > 0
    assert abs(gate.excess(session.gating.thetas, moment).item()) < 0.2  # from 0.5 at the start


# Posteriors over weights


@pytest.mark.parametrize(("mean", "deviation"), [(0.4, 0.2), (-0.9, 0.6)])
def test_gate_and_penalty_are_together_the_divergence_of_the_posterior(mean: float, deviation: float) -> None:
    gate, penalty = WeightPosterior(prior=0.5, strength=1.5), GaussianPrior(prior=0.5, strength=1.5)
    theta = torch.tensor([2 * math.log(deviation)], dtype=torch.float64)
    part = float(gate.penalty({"a": theta}, Moment(0.0, 0.5)))
    whole = part + float(penalty(torch.tensor([[mean]], dtype=torch.float64)))
    assert whole == pytest.approx(1.5 * divergence(mean, deviation, 0.5), rel=1e-6)


@pytest.mark.parametrize(("mean", "deviation", "reduced"), [(0.3, 0.2, 0.4), (-0.8, 0.5, 0.1), (0.05, 0.3, 0.9)])
def test_model_reduction_is_the_integral(mean: float, deviation: float, reduced: float) -> None:
    """-log of the integral of q p' / p, over a line; as the new prior shrinks it goes to log p(0) / q(0)."""
    prior = 1.0
    x = 3 * LINE
    value = torch.trapezoid(density(x, mean, deviation) * density(x, 0, reduced) / density(x, 0, prior), x)
    w, worth = torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[-2 * math.log(deviation)]]).double()
    ours = ReducedEvidence(prior=prior, reduced=reduced)(w, worth)
    assert float(ours) == pytest.approx(-math.log(float(value)), rel=1e-6, abs=1e-9)
    zero = torch.zeros(1, dtype=torch.float64)
    ratio = density(zero, 0, prior) / density(zero, mean, deviation)
    assert float(ReducedEvidence(prior=prior)(w, worth)) == pytest.approx(float(ratio.log()))
    assert float(ReducedEvidence(prior=prior, reduced=1e-5)(w, worth)) == pytest.approx(float(ratio.log()), rel=1e-6)


def test_signal_to_noise_is_the_mean_over_the_deviation() -> None:
    w, worth = torch.tensor([[-0.6], [0.1]]), torch.tensor([[-2 * math.log(0.2)], [-2 * math.log(0.01)]])
    assert SignalToNoise()(w, worth).flatten().tolist() == pytest.approx([3.0, 10.0], rel=1e-5)


def test_variational_inference_and_reduction_are_the_papers() -> None:
    """A run by hand: w + sigma eps in the network, the divergence in the loss, weights of least evidence zero first."""
    steps = 6
    gate = WeightPosterior(prior=0.5, strength=0.01, start=0.2, lr=0.05)
    found = replace(
        methods.variational_model_reduction,
        gate=gate,
        penalty=GaussianPrior(prior=0.5, strength=0.01),
        criterion=ReducedEvidence(prior=0.5),
        schedule=OneShot(at=1.0),
    )
    model = net()
    session, optimizer = attached(found, model, steps)
    w = [net()[i].weight.detach().clone().requires_grad_() for i in (0, 2)]
    rho = [torch.full_like(p, 2 * math.log(0.2)).requires_grad_() for p in w]
    slow, slow_gates = torch.optim.SGD(w, lr=0.05), torch.optim.Adam(rho, lr=0.05)
    names = ("0.weight", "2.weight")
    for _ in range(steps):
        u = [session.gating._moments[n].noise.double() for n in names]
        z = [
            p + (r / 2).exp() * torch.distributions.Normal(0.0, 1.0).icdf(e) for p, r, e in zip(w, rho, u, strict=True)
        ]
        slow.zero_grad(), slow_gates.zero_grad()
        loss = (torch.tanh(X @ z[0].T) @ z[1].T - Y).square().sum()
        kl = sum(0.5 * ((p**2 + r.exp()) / 0.25 - 1 - r + math.log(0.25)).sum() for p, r in zip(w, rho, strict=True))
        (loss + 0.01 * kl).backward()
        assert step(model, optimizer) == pytest.approx(loss.item(), rel=1e-6)
        slow.step(), slow_gates.step()
    lost = [-(0.5 * (math.log(0.25) - r) - 0.5 * p**2 / r.exp()) for p, r in zip(w, rho, strict=True)]
    every = torch.cat([e.flatten() for e in lost])
    keep = torch.zeros(20, dtype=torch.bool)
    keep[every.argsort(descending=True)[:10]] = True
    for name, part, p, layer in zip(names, keep.split([12, 8]), w, (model[0], model[2]), strict=True):
        assert torch.equal(session.masks[name].flatten(), part)
        torch.testing.assert_close(layer.weight.detach(), (p * part.reshape(p.shape)).detach(), rtol=1e-6, atol=1e-9)


def test_a_pruned_weight_has_no_noise() -> None:
    model = net()
    session, optimizer = attached(methods.variational_model_reduction, model, 20)
    for _ in range(10):
        step(model, optimizer)
    gone = ~session.masks["0.weight"]
    assert session.gating is not None and bool(gone.any())
    assert torch.equal(model[0].weight[gone], torch.zeros(int(gone.sum()), dtype=torch.float64))
    drawn = model[0].weight.detach().clone()
    step(model, optimizer)
    assert bool((model[0].weight.detach()[~gone] != drawn[~gone]).all())


def test_a_posterior_over_weights_is_refused_on_channels() -> None:
    with pytest.raises(SpecError, match="granularity=Element"):
        attached(replace(methods.bayes_by_backprop, granularity=Channel()), net(), 4)


# Priors that are fitted while the network is trained

LABELS = torch.tensor([0, 1, 1])


def entropy(model: nn.Module, batch: Any = None) -> Tensor:
    return nn.functional.cross_entropy(model(X), LABELS)


CLASSES = prunus.Task(loss=lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), train=[(X, LABELS)], example=(X,))


def curvature(model: nn.Module) -> dict[str, Tensor]:
    """The diagonal of the mean over samples of J^T H J, H the Hessian of cross-entropy, from whole Jacobians."""
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    weights = {n: p.detach() for n, p in model.named_parameters()}
    for x in X:
        jacobians = torch.func.jacrev(lambda w, x=x: torch.func.functional_call(model, w, (x[None],))[0])(weights)
        p = model(x[None])[0].softmax(-1).detach()
        hessian = torch.diag(p) - torch.outer(p, p)
        for n, j in jacobians.items():
            rows = j.reshape(2, -1)
            total[n] += torch.einsum("ai,ab,bi->i", rows, hessian, rows).reshape(total[n].shape) / len(X)
    return total


def fitted(h: Tensor, w: Tensor, level: str, examples: float) -> Tensor:
    """The precision of highest evidence, by bisection of its slope over log delta."""
    rows = {"layer": (1, -1), "unit": (len(w), -1), "weight": (-1, 1)}[level]
    a, s = (examples * h).reshape(rows), (w**2).reshape(rows)
    low, high = torch.full((len(a), 1), -20.0).double(), torch.full((len(a), 1), 25.0).double()
    for _ in range(200):
        mid = (low + high) / 2
        slope = (1 - mid.exp() * s - mid.exp() / (a + mid.exp())).sum(1, keepdim=True)
        low, high = torch.where(slope > 0, mid, low), torch.where(slope > 0, high, mid)
    return low.exp().expand_as(a).reshape(w.shape)


@pytest.mark.parametrize("level", ["layer", "unit", "weight"])
def test_spam_trains_against_priors_of_highest_evidence(level: Any) -> None:
    steps = 5
    penalty = PriorDecay(level=level, every=2, rounds=40, examples=40)
    criterion = LearnedPosteriorDamage(level=level, rounds=40, examples=40)
    model, mine = net(), net()
    found = replace(methods.spam, penalty=penalty, criterion=criterion)
    session = prunus.Session(model, found, CLASSES, prunus.Budget(0.5), steps=steps)
    session.attach(optimizer := torch.optim.SGD(model.parameters(), lr=0.3))
    slow = torch.optim.SGD(mine.parameters(), lr=0.3)
    delta: dict[str, Tensor] = {}
    for t in range(steps):
        if t % 2 == 0:
            delta = {n: fitted(h, mine.get_parameter(n).detach(), level, 40) for n, h in curvature(mine).items()}
        for net_, stepper in ((model, optimizer), (mine, slow)):
            stepper.zero_grad()
            loss = entropy(net_)
            if net_ is mine:
                stiff = {n: (d / 40).clamp(max=1 / 0.3) for n, d in delta.items()}  # what a step can follow
                loss = loss + sum((stiff[n] * p**2).sum() for n, p in mine.named_parameters()) / 2
            loss.backward()
            stepper.step()
        for n, p in mine.named_parameters() if t < steps - 1 else ():
            torch.testing.assert_close(session.running["prior"][n].double(), delta[n], rtol=1e-4, atol=0.0)
            torch.testing.assert_close(model.get_parameter(n), p, rtol=1e-4, atol=1e-6)
    h = curvature(mine)
    damage = torch.cat([((40 * h[n] + delta[n]) * p.detach() ** 2).flatten() for n, p in mine.named_parameters()])
    keep = torch.zeros(20, dtype=torch.bool)
    keep[damage.argsort(descending=True)[:10]] = True
    assert torch.equal(torch.cat([session.masks[n].flatten() for n in ("0.weight", "2.weight")]), keep)


def test_without_training_priors_are_fitted_on_demand() -> None:
    model = net()
    found = replace(methods.spam, criterion=LearnedPosteriorDamage(level="layer", rounds=40, examples=7))
    ours = prunus.score(model, CLASSES, found)
    for n, h in curvature(model).items():
        w = model.get_parameter(n).detach()
        expected = (7 * h + fitted(h, w, "layer", 7)) * w**2
        torch.testing.assert_close(ours[n].double(), expected, rtol=1e-4, atol=0.0)
