"""Analyses that prune or train, each against the same thing done by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import Budget, Task, methods
from prunus.core.errors import DataError, SpecError
from prunus.lab import analyses
from prunus.lab.data.dataset import images


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(6, 16, 6, generator=draw)
    return [(b, (b[:, 0] > 0).long() + (b[:, 1] > 1).long()) for b in x]


TASK = Task(loss=loss, train=batches(), calib=batches()[:1], example=(batches()[0][0][:1],))


def minus_loss(model: nn.Module) -> float:
    with torch.no_grad():
        return -sum(float(loss(model, b)) for b in batches())


def test_a_scan_zeroes_the_smallest_weights_of_one_layer_at_a_time() -> None:
    model, found = net(), []
    before = copy.deepcopy(model.state_dict())
    told: list[tuple[int, int]] = []
    whole, scans = analyses.sensitivity(
        model, TASK, "magnitude", (0.25, 0.8), minus_loss, told=lambda *a: told.append(a)
    )
    assert whole == minus_loss(model) and [s.group for s in scans] == ["0.weight", "2.weight", "4.weight"]
    for scan in scans:
        for sparsity in (0.25, 0.8):
            by_hand = copy.deepcopy(model)
            weight = dict(by_hand.named_parameters())[scan.group]
            gone = round(sparsity * weight.numel())
            with torch.no_grad():
                weight.view(-1)[weight.abs().flatten().argsort()[:gone]] = 0.0
            found.append(minus_loss(by_hand))
    assert [v for s in scans for v in s.scores] == pytest.approx(found)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()) and told[-1] == (3, 3)


def test_a_scan_of_channels_takes_their_biases_along() -> None:
    model = net()
    _, scans = analyses.sensitivity(model, TASK, "l1_filter", (0.5,), minus_loss)
    assert [(s.group, s.units) for s in scans] == [("0", 8), ("2", 8)]
    by_hand = copy.deepcopy(model)
    first = by_hand[0]
    assert isinstance(first, nn.Linear)
    weak = first.weight.abs().sum(1).argsort()[:4]
    with torch.no_grad():
        first.weight[weak], first.bias[weak] = 0.0, 0.0
    assert scans[0].scores[0] == pytest.approx(minus_loss(by_hand))
    with pytest.raises(SpecError, match=r"\[0, 1\)"):
        analyses.sensitivity(model, TASK, "magnitude", (1.0,), minus_loss)
    with pytest.raises(SpecError, match="does not score the network as it is"):
        analyses.sensitivity(model, TASK, "l0", (0.5,), minus_loss)


def test_what_leads_nowhere_is_not_reached() -> None:
    model = net()
    first, second, last = model[0], model[2], model[4]
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear) and isinstance(last, nn.Linear)
    with torch.no_grad():
        for layer in (first, second, last):
            layer.bias.zero_()
        first.weight[0] = 0.0  # nothing goes into unit 0: the 8 weights out of it are idle
        last.weight[:, 1] = 0.0  # nothing comes out of unit 1: the 8 weights into it are
    found = {r.name: r for r in analyses.effective_densities(model, (torch.ones(1, 6),))}
    assert (found["0.weight"].kept, found["0.weight"].reached) == (42, 42)
    assert (found["2.weight"].kept, found["2.weight"].reached) == (64, 64 - 8 - 7)
    assert (found["4.weight"].kept, found["4.weight"].reached) == (21, 21)


def test_instability_is_the_score_around_every_event_of_the_same_run() -> None:
    model, recipe = net(), methods.get("gradual_magnitude")
    made = lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.01)  # noqa: E731
    found = analyses.stability(
        model, TASK, recipe, Budget(0.2), minus_loss, steps=30, optimizer=made, rate=lambda p: 1 - p
    )
    events = [e.step for e in recipe.timeline(0.2, 30)]
    assert [d.step for d in found.drops] == events and found.drops[-1].density == pytest.approx(0.2, abs=0.01)
    # Watching changes nothing: the run ends where prune() does.
    plain = prunus.prune(
        model, TASK, recipe, budget=Budget(0.2), steps=30, optimizer=made, rate=lambda p: 1 - p, seed=0
    )  # fmt: skip
    assert found.final == pytest.approx(minus_loss(plain.model.eval()), abs=1e-5)
    assert found.mean == pytest.approx(sum(d.before - d.after for d in found.drops) / len(found.drops))
    # What is scored after an event is what the run has at that step.
    seen: dict[int, float] = {}
    session = prunus.Session(again := copy.deepcopy(model), recipe, TASK, Budget(0.2), steps=30, seed=0)
    opt = made(list(again.parameters()))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        session.attach(opt)
        for step in range(30):
            opt.param_groups[0]["lr"] = 0.1 * (1 - session.clock / session.horizon)
            opt.zero_grad()
            loss(again, batches()[step % 6]).backward()
            opt.step()
            seen[step + 1] = minus_loss(again)
    assert [d.after for d in found.drops] == pytest.approx([seen[e] for e in events], abs=1e-5)
    with pytest.raises(SpecError, match="trains in its own way"):
        analyses.stability(model, TASK, "l0", Budget(0.5), minus_loss, steps=5, optimizer=made)
    broken = replace(TASK, loss=lambda m, b: loss(m, b) * math.nan)
    with pytest.raises(DataError, match="the loss is nan"):
        analyses.stability(model, broken, recipe, Budget(0.2), minus_loss, steps=5, optimizer=made)


def test_a_curve_prunes_the_same_weights_again_and_again() -> None:
    model = net()
    initial = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    runs = analyses.pruned_curve(model, TASK, "magnitude", (0.0, 0.5), [minus_loss, lambda m: 7.0], initial=initial)
    assert runs[0].scores == (minus_loss(model), 7.0)
    half = prunus.prune(model, TASK, "magnitude", sparsity=0.5)
    assert runs[1].scores[0] == minus_loss(half.model)
    assert runs[1].distance == pytest.approx(
        math.sqrt(sum(float(p.detach().square().sum()) for p in half.model.parameters()))
    )
    trained = analyses.pruned_curve(
        model, TASK, "magnitude", (0.5,), [minus_loss], steps=10, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.05)
    )
    assert trained[0].scores[0] > runs[1].scores[0] and math.isnan(trained[0].distance)
    with pytest.raises(SpecError, match="growing"):
        analyses.pruned_curve(model, TASK, "magnitude", (0.5, 0.2), [minus_loss])


def test_noise_makes_exactly_so_many_labels_wrong() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randint(255, (400, 1, 4, 4), generator=draw).byte(), torch.arange(400) % 10
    digits = images("small", (x, y), (x[:20], y[:20]), where="here", seed=0)
    found = analyses.noisy(digits, 0.25, 1)
    wrong = found.train.y != digits.train.y
    assert int(wrong.sum()) == round(0.25 * len(digits.train)) and torch.equal(found.train.x, digits.train.x)
    # Every other class is as likely: (new - old) mod 10 lies in 1 ... 9.
    apart = (found.train.y - digits.train.y)[wrong] % 10
    assert set(apart.tolist()) == set(range(1, 10)) and torch.equal(found.test.y, digits.test.y)
    assert torch.equal(analyses.noisy(digits, 0.25, 1).train.y, found.train.y)
    with pytest.raises(SpecError, match="lies in"):
        analyses.noisy(digits, 1.5, 1)
    with pytest.raises(SpecError, match="no classes"):
        analyses.noisy(replace(digits, kind="tokens"), 0.1, 1)
