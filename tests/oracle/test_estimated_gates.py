"""Gates trained by losses, by relaxed draws and by candidates: expectations by enumeration, steps by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.core.gate import Moment
from prunus.core.groups import Group, Member
from prunus.parts.allocation import NofM
from prunus.parts.criteria import Magnitude
from prunus.parts.gate import Arm, Candidates, GivenCandidates, GumbelSubset, LogisticHeaviside, PolicyGradient
from prunus.parts.gate.candidates import patterns
from prunus.parts.gate.estimated import onto
from prunus.parts.granularity import Channel, Element
from prunus.parts.schedule import OneShot

CORNERS = list(itertools.product((0.0, 1.0), repeat=3))
LOSSES = dict(zip(CORNERS, (0.3, -1.2, 2.5, 0.9, -0.4, 1.7, 3.1, -2.2), strict=True))


def loss(values: Any) -> float:
    """Any function of three bits."""
    return LOSSES[tuple(torch.cat([values["a"], values["b"]]).tolist())]


def expected(p: Tensor) -> Tensor:
    """E f(z), by all eight corners."""
    terms = []
    for z in CORNERS:
        chance = torch.stack([p[i] if z[i] else 1 - p[i] for i in range(3)]).prod()
        terms.append(chance * LOSSES[z])
    return torch.stack(terms).sum()


def split(v: Tensor) -> dict[str, Tensor]:
    return {"a": v[:2], "b": v[2:]}


@pytest.mark.parametrize("single", [False, True])
def test_arm_is_unbiased(single: bool) -> None:
    """Integrated over u exactly: estimates are linear in u wherever no gate switches, so middles of such boxes do."""
    gate = Arm(slope=2.0, single=single)
    phi = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    (true,) = torch.autograd.grad(expected((2 * phi).sigmoid()), phi)
    at = phi.detach()
    cuts = []
    for t in at.tolist():
        p = 1 / (1 + math.exp(-2 * t))
        cuts.append(sorted({0.0, p, 1 - p, 1.0}))
    total = torch.zeros(3, dtype=torch.float64)
    for box in itertools.product(*(list(itertools.pairwise(c)) for c in cuts)):
        u = torch.tensor([(a + b) / 2 for a, b in box], dtype=torch.float64)
        moments = {n: Moment(0.0, 0.5, noise=v) for n, v in split(u).items()}
        found, duals = gate.estimated(loss, split(at), moments)
        assert duals is None
        total += math.prod(b - a for a, b in box) * torch.cat([found["a"], found["b"]])
    assert torch.allclose(total, true, atol=1e-12)


@pytest.mark.parametrize(("draws", "seen"), [(1, 3.0), (2, 3.0), (2, 0.0)])
def test_policy_gradients_are_unbiased(draws: int, seen: float) -> None:
    """By all draws of masks; in the first step, whose baseline is its own mean, but for the factor 1 - 1 / draws."""
    gate = PolicyGradient(draws=draws)
    s = torch.tensor([0.7, 0.2, 0.45], dtype=torch.float64, requires_grad=True)
    (true,) = torch.autograd.grad(expected(s), s)
    at, duals = s.detach(), torch.tensor([0.83, seen], dtype=torch.float64)
    total = torch.zeros(3, dtype=torch.float64)
    for masks in itertools.product(CORNERS, repeat=draws):
        chance = math.prod(float(at[i] if z[i] else 1 - at[i]) for z in masks for i in range(3))
        u = torch.tensor([[float(at[i]) / 2 if z[i] else (1 + float(at[i])) / 2 for i in range(3)] for z in masks])
        u = (u[0] if draws == 1 else u).double()
        moments = {n: Moment(0.0, 0.5, noise=v, duals=duals) for n, v in (("a", u[..., :2]), ("b", u[..., 2:]))}
        found, after = gate.estimated(loss, split(at), moments)
        mean = sum(LOSSES[z] for z in masks) / draws
        assert after is not None
        assert after.tolist() == pytest.approx([0.8 * (0.83 if seen else mean) + 0.2 * mean, seen + 1])
        total += chance * torch.cat([found["a"], found["b"]])
    assert torch.allclose(total, true * (1.0 if seen else 1 - 1 / draws), atol=1e-12)


def test_the_projection_is_the_nearest_point() -> None:
    """Against bisection over the multiplier of the sum, and the conditions of Karush, Kuhn and Tucker."""
    draw = torch.Generator().manual_seed(0)
    for count in range(60):
        z = torch.randn(7, generator=draw, dtype=torch.float64) * 2
        total = 0.3 + 5 * float(torch.rand((), generator=draw))
        x = onto(z, total)
        low, high = 0.0, 20.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if float((z - middle).clamp(0, 1).sum()) > total else (low, middle)
        v = 0.0 if float(z.clamp(0, 1).sum()) <= total else high
        assert torch.allclose(x, (z - v).clamp(0, 1), atol=1e-9), count
        assert float(x.sum()) <= total + 1e-9
    parts = PolicyGradient().confined({"a": torch.tensor([0.9, 0.8]), "b": torch.tensor([0.7])}, Moment(0.0, 0.5))
    assert torch.cat([parts["a"], parts["b"]]).tolist() == pytest.approx([0.6, 0.5, 0.4])


def test_policies_find_the_best_mask() -> None:
    """Three of the six neurons carry the outputs; forward passes alone find them, and no weight moves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        model[2].weight[:, 1::2] *= 0.01
    x = torch.randn(32, 4, dtype=torch.float64)
    target = model(x).detach()
    task = prunus.Task(loss=lambda m, b: 10 * (m(x) - target).square().mean(), train=[0], example=(x,))
    before = [p.detach().clone() for p in model.parameters()]
    found = replace(methods.reinforce_masks, granularity=Channel(), gate=PolicyGradient(lr=0.02, draws=2))
    result = prunus.prune(model, task, found, sparsity=0.5, steps=160)
    (mask,) = result.unit_masks.values()
    assert mask.tolist() == [True, False] * 3
    assert torch.equal(result.model[0].weight[mask], before[0][mask])


def relaxed(r: Tensor, count: int, tau: float) -> Tensor:
    """The published loop over draws, in plain numbers."""
    total = [0.0] * len(r)
    keys = r.tolist()
    for _ in range(count):
        top = max(keys)
        e = [math.exp((k - top) / tau) for k in keys]
        p = [a / sum(e) for a in e]
        total = [a + b for a, b in zip(total, p, strict=True)]
        keys = [k + math.log(max(1 - b, 1e-300)) for k, b in zip(keys, p, strict=True)]
    return torch.tensor(total, dtype=torch.float64)


def drawn(gate: GumbelSubset, theta: Tensor, u: Tensor, progress: float, count: int) -> Tensor:
    keep = torch.zeros(len(theta), dtype=torch.bool)
    keep[:count] = True
    moments = {
        n: Moment(progress, 0.5, k, noise=v) for (n, k), v in zip(split(keep).items(), (u[:2], u[2:]), strict=True)
    }
    values = gate.values(split(theta), moments)
    return torch.cat([values["a"], values["b"]])


def test_a_subset_has_its_size_at_every_temperature() -> None:
    theta = torch.tensor([0.3, -0.2, 0.8, 0.1, -0.5], dtype=torch.float64)
    u = torch.tensor([0.2, 0.9, 0.4, 0.6, 0.75], dtype=torch.float64)
    gate = GumbelSubset(hot=10.0, cold=1e-6, cool=0.5)
    for progress in (0.0, 0.2, 0.4, 0.5, 0.9):
        tau = 10.0 ** (1 - 7 * min(1.0, 2 * progress))
        assert gate.temperature(progress) == pytest.approx(tau)
        values = drawn(gate, theta, u, progress, 2)
        keys = theta - (-u.log()).log()
        assert torch.allclose(values, relaxed(keys, 2, tau), atol=1e-9)
        assert float(values.sum()) == pytest.approx(2.0, abs=1e-9)
    hard = torch.zeros(5, dtype=torch.float64).index_fill(0, keys.topk(2).indices, 1.0)
    assert torch.allclose(values, hard, atol=1e-6)


def test_subsets_are_drawn_as_without_replacement() -> None:
    """Frequencies of cold draws against the probabilities of all ordered pairs (Plackett and Luce)."""
    theta = torch.tensor([0.5, -0.4, 1.0, 0.0], dtype=torch.float64)
    weight = theta.exp().tolist()
    whole, inclusion = sum(weight), [0.0] * 4
    for i, j in itertools.permutations(range(4), 2):
        chance = weight[i] / whole * weight[j] / (whole - weight[i])
        inclusion[i] += chance
        inclusion[j] += chance
    source, count = torch.Generator().manual_seed(1), 1500
    found = torch.zeros(4, dtype=torch.float64)
    for _ in range(count):
        u = torch.rand(4, generator=source, dtype=torch.float64)
        found += drawn(GumbelSubset(cool=0.5), theta, u, 1.0, 2)
    assert (found / count).tolist() == pytest.approx(inclusion, abs=0.04)


def test_gradients_go_through_the_joint_draw() -> None:
    """Two backward passes in a step, several groups: the thetas get what plain autograd through one draw gives."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    task = prunus.Task(loss=lambda m, b: m(x).square().mean(), train=[0], example=(x,))
    gate = GumbelSubset(hot=1.0, cold=0.5, lr=0.1)
    found = replace(methods.subset_heads, granularity=Channel(), gate=gate, schedule=OneShot(at=1.0))
    session = prunus.Session(model, found, task, prunus.Budget(5 / 9), steps=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session.attach(optimizer)
    gating = session.gating
    names = list(gating.thetas)
    mine = [gating.thetas[n].detach().clone().requires_grad_() for n in names]
    adam = torch.optim.Adam(mine, lr=0.1)
    w = [p.detach().clone() for p in model.parameters()]
    for step in range(3):
        u = torch.cat([gating._moments[n].noise for n in names])
        r = torch.cat(mine) - (-u.log()).log()
        tau = gate.temperature(step / 4)
        z = torch.zeros_like(r)
        for _ in range(5):
            p = torch.softmax(r / tau, 0)
            z, r = z + p, r + torch.log(1 - p)
        h = torch.tanh(x @ w[0].T + w[1])
        h = torch.tanh((h * z[:4]) @ w[2].T + w[3])
        total = ((h * z[4:]) @ w[4].T + w[5]).square().mean()
        optimizer.zero_grad()
        for _ in range(2):
            ours = task.loss_of(model, 0)
            (ours / 2).backward()
        assert ours.item() == pytest.approx(total.item(), rel=1e-9)
        optimizer.step()
        adam.zero_grad()
        total.backward()
        adam.step()
        for n, t in zip(names, mine, strict=True):
            assert torch.allclose(gating.thetas[n], t, rtol=1e-8)


def test_chipnets_gates_are_the_published_ones() -> None:
    gate, theta = LogisticHeaviside(epochs=20), torch.tensor([-1.5, 0.0, 0.004, 2.0], dtype=torch.float64)
    for progress, epoch in ((0.0, 0), (0.05, 1), (0.62, 12), (0.999, 19)):
        beta, gamma, steep = min(6.0, 1 + 0.02 * epoch), min(256.0, 2 * 2 ** (epoch / 2)), min(60.0, 10 + 5 * epoch)
        x = [1 / (1 + math.exp(-beta * t)) for t in theta.tolist()]
        z = [1 - math.exp(-gamma * a) + a * math.exp(-gamma) for a in x]
        moment = Moment(progress, 0.25, sizes={"a": 3.0, "b": 1.0})
        assert gate.value(theta, moment).tolist() == pytest.approx(z)
        count = [1 / (1 + math.exp(-steep * (a - 0.5))) for a in z]
        crisp = sum((a - b) ** 2 for a, b in zip(z, x, strict=True)) / 4
        thetas = {"a": theta[:2], "b": theta[2:]}
        assert float(gate.penalty(thetas, moment)) == pytest.approx(30 * (sum(count) / 4 - 0.25) ** 2 + 10 * crisp)
        heavy = replace(gate, weighs="weights")
        share = (3 * sum(count[:2]) + sum(count[2:])) / 8
        assert float(heavy.penalty(thetas, moment)) == pytest.approx(30 * (share - 0.25) ** 2 + 10 * crisp)
        assert gate.open(theta, moment).tolist() == [a > 0.5 for a in z]
    assert gate.value(theta, Moment(1.0, 0.25)).tolist() == [1.0] * 4
    free = theta.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: gate.penalty({"a": t}, Moment(0.3, 0.25)), free)


def moments_of(thetas: dict[str, Tensor], progress: float, noise: bool, w: dict[str, Tensor]) -> dict[str, Moment]:
    source = torch.Generator().manual_seed(4)
    found: dict[str, Moment] = {}
    for n, t in thetas.items():
        u = torch.rand(t.shape, generator=source, dtype=torch.float64) if noise else None
        found[n] = Moment(progress, 0.5, noise=u, w=w[n].unsqueeze(-1), others=found)
    return found


def test_candidates_are_mixed_by_a_gumbel_softmax() -> None:
    torch.manual_seed(0)
    gate = Candidates()
    options = [(1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 0, 1, 1)]
    assert patterns(2, 4, torch.zeros(())).tolist() == [list(map(float, o)) for o in options]
    thetas = {
        "a": 0.01 * torch.randn(2, 3, 6, dtype=torch.float64),
        "b": 0.01 * torch.randn(1, 2, 6, dtype=torch.float64),
    }
    w = {"a": torch.randn(2, 12, dtype=torch.float64), "b": torch.randn(1, 8, dtype=torch.float64)}
    moments = moments_of(thetas, 0.4, noise=True, w=w)
    tau, scale, reg = 4 + 0.4 * (0.05 - 4), 100 + 0.4 * 400, 0.0
    for n, theta in thetas.items():
        found = gate.value(theta, moments[n])
        for row, block in itertools.product(*map(range, theta.shape[:2])):
            keys = [
                (scale * t - math.log(-math.log(u))) / tau
                for t, u in zip(theta[row, block].tolist(), moments[n].noise[row, block].tolist(), strict=True)
            ]
            e = [math.exp(k - max(keys)) for k in keys]
            for place in range(4):
                mixed = sum(a / sum(e) * o[place] for a, o in zip(e, options, strict=True))
                assert float(found[row, 4 * block + place]) == pytest.approx(mixed, abs=1e-9)
                reg += (mixed * float(w[n][row, 4 * block + place])) ** 2
    assert float(gate.penalty(thetas, moments["a"])) == pytest.approx(-1e-5 * 0.6 * reg)
    assert found.sum(-1).tolist() == pytest.approx([4.0])  # two of four, on average


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 6)])
def test_the_allocation_keeps_the_likeliest_candidates(n: int, m: int) -> None:
    torch.manual_seed(1)
    gate, count = Candidates(n=n, m=m), math.comb(m, n)
    theta = torch.randn(5, 4, count, dtype=torch.float64) * 0.003
    theta[0] = 0.0  # ties
    space = {"w": Group("w", (5, 4 * m), (Member("w"),), weight=(5, 4 * m))}
    masks = NofM(n, m)({"w": gate.worth(theta)}, n / m, space)
    best = patterns(n, m, theta)[theta.argmax(-1)].flatten(1)
    assert torch.equal(masks["w"], best > 0)
    assert torch.equal(gate.value(theta, Moment(1.0, n / m)), best)


def test_candidates_start_from_the_prior_mask() -> None:
    """The official prior: (shared weights - 1) * std * strength, of the two largest weights or of any criterion's."""
    w = torch.tensor([[0.1, -3.0, 2.0, 0.5]], dtype=torch.float64).unsqueeze(-1)
    expected = [0.0, 0.0, -0.03, 0.03, 0.0, 0.0]  # shared with 0110: 1100 -> 1, 1010 -> 1, 1001 -> 0, 0110 -> 2, ...
    assert Candidates()(w=w)[0, 0].tolist() == pytest.approx(expected)
    assert GivenCandidates(of=Magnitude())(w=w)[0, 0].tolist() == pytest.approx(expected)
    assert GivenCandidates(of=Magnitude()).asks().keys() == Magnitude().asks().keys()


def test_mask_llm_beats_its_prior_and_leaves_weights_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    x = torch.randn(64, 8, dtype=torch.float64)
    x[:, ::4] *= 3  # large inputs: the largest weights are not the ones that matter
    target = model(x).detach()
    task = prunus.Task(loss=lambda m, b: F.mse_loss(m(x), target), train=[0], example=(x,))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = replace(methods.mask_llm, gate=Candidates(lr=2e-3))
    result = prunus.prune(model, task, found, steps=250)
    prior = prunus.prune(model, task, methods.n_of_m)
    for name, mask in result.unit_masks.items():
        assert (mask.reshape(-1, 4).sum(1) == 2).all()
        assert torch.equal(dict(result.model.named_parameters())[name], before[name] * mask)
    assert float(task.loss_of(result.model, 0)) < 0.8 * float(task.loss_of(prior.model, 0))


def test_rows_that_do_not_divide_into_blocks_stay_dense() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    task = prunus.Task(loss=lambda m, b: m(x).square().mean(), train=[0], example=(x,))
    result = prunus.prune(model, task, methods.mask_llm, steps=4)
    assert set(result.skipped) == {"0.weight"} and result.unit_masks.keys() == {"2.weight"}
    assert (result.unit_masks["2.weight"].reshape(-1, 4).sum(1) == 2).all()


def test_arm_trains_gates_that_are_zeros_and_ones() -> None:
    """A neuron that only adds noise to the output is closed; the network computes with zeros and ones on the way."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(32, 4, dtype=torch.float64)
    with torch.no_grad():
        model[2].weight.fill_(1.0)
        model[2].weight[0, 2] = -4.0
    target = (torch.tanh(x @ model[0].weight.T + model[0].bias)[:, [0, 1, 3]]).sum(1, keepdim=True).detach()
    task = prunus.Task(loss=lambda m, b: F.mse_loss(m(x), target + m[2].bias), train=[0], example=(x,))
    found = replace(methods.l0_arm, gate=Arm(lr=0.02, strength=0.0), schedule=OneShot(at=1.0))
    session = prunus.Session(model, found, task, prunus.Budget(0.75), steps=150)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session.attach(optimizer)
    for _ in range(150):
        used = model[2].weight.detach() / model[2]._parameters["weight"].detach()
        assert set(used.flatten().tolist()) <= {0.0, 1.0}
        optimizer.zero_grad()
        task.loss_of(model, 0).backward()
        optimizer.step()
    (mask,) = session.masks.values()
    assert mask.tolist() == [True, True, False, True]
    assert session.history[-1]["open"] == 0.75


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Arm, {"slope": 0.0}),
        (PolicyGradient, {"draws": 0}),
        (PolicyGradient, {"start": 0.0}),
        (GumbelSubset, {"cold": 0.0}),
        (LogisticHeaviside, {"epochs": 0}),
        (Candidates, {"n": 4}),
        (Candidates, {"std": 0.0}),
    ],
)
def test_gates_that_make_no_sense_are_refused(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=kind.__name__):
        kind(**wrong)


def test_candidates_are_for_single_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    x = torch.randn(4, 4, dtype=torch.float64)
    task = prunus.Task(loss=lambda m, b: m(x).square().mean(), train=[0], example=(x,))
    with pytest.raises(SpecError):
        prunus.prune(model, task, replace(methods.mask_llm, granularity=Channel()), steps=2)
    assert prunus.prune(model, task, replace(methods.mask_llm, granularity=Element()), steps=2).sparsity == 0.5
