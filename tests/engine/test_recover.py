"""Recoveries: what they do at once, and how they shape the training after the last event."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import prunus
from prunus import Recipe, methods
from prunus.core.errors import SpecError
from prunus.core.part import Recovery
from prunus.parts.granularity import Channel
from prunus.parts.recover import BatchNormRecalibration, Chain, Distill, FineTune, Scratch
from prunus.parts.schedule import Gradual, OneShot


def digits(batches: int = 12) -> list[tuple[Tensor, Tensor]]:
    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(pixels)[order] / 16, torch.tensor(classes)[order]
    return [(x[i : i + 64], y[i : i + 64]) for i in range(0, 64 * batches, 64)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.Linear(32, 10)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.drop(F.relu(self.norm(self.a(x)))))


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = Net().double()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(8):
        for batch in digits():
            opt.zero_grad()
            cross_entropy(model, batch).backward()
            opt.step()
    return model


def task(**changes: object) -> prunus.Task:
    data = digits()
    return prunus.Task(
        **({"loss": cross_entropy, "train": data[:8], "calib": data[:4], "example": (data[0][0][:1],)} | changes)
    )


def with_(recover: Recovery, **changes: object) -> Recipe:
    return replace(methods.magnitude_uniform, name="recovered", recover=recover, **changes)


def accuracy(model: nn.Module) -> float:
    x, y = (torch.cat(t) for t in zip(*digits()[8:], strict=True))
    return float((model.eval()(x).argmax(1) == y).double().mean())


def test_recalibrated_statistics_are_plain_averages_over_the_batches(trained: nn.Module) -> None:
    plain = prunus.prune(trained, task(), with_(FineTune()), sparsity=0.7).model
    result = prunus.prune(trained, task(), with_(BatchNormRecalibration()), sparsity=0.7)
    hidden = [plain.a(x) for x, _ in digits()[:4]]
    mean = torch.stack([h.mean(0) for h in hidden]).mean(0)
    var = torch.stack([h.var(0, unbiased=True) for h in hidden]).mean(0)
    norm = result.model.norm
    assert torch.allclose(norm.running_mean, mean) and torch.allclose(norm.running_var, var)
    assert norm.momentum == 0.1 and int(norm.num_batches_tracked) == 4
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), plain.parameters(), strict=True))
    assert result.model.norm.training == trained.norm.training


def test_recalibration_helps_where_pruning_moved_the_statistics(trained: nn.Module) -> None:
    found = {
        r: prunus.prune(trained, task(), with_(r), sparsity=0.9).model for r in (FineTune(), BatchNormRecalibration())
    }
    assert accuracy(found[BatchNormRecalibration()]) > accuracy(found[FineTune()]) + 0.02


def test_recalibration_reads_inputs_only(trained: nn.Module) -> None:
    def forbidden(model: nn.Module, batch: object) -> Tensor:
        raise AssertionError("a loss was asked for")

    found = with_(BatchNormRecalibration())
    assert found.reads == "inputs" and found.scores_from == "nothing"
    prunus.prune(trained, task(loss=forbidden), found, sparsity=0.5)


POLICIES = {
    FineTune(): lambda p: 0.1,
    FineTune("cosine", peak=1.0, low=0.2): lambda p: 0.2 + 0.8 * (1 + math.cos(math.pi * p)) / 2,
    FineTune("step", peak=1.0): lambda p: 1.0 if p < 0.5 else 0.1 if p < 0.75 else 0.01,
    FineTune("step", peak=1.0, begin=0.5): lambda p: 0.1 if p < 0.5 else 0.01,
    FineTune("cyclic", peak=1.0, low=0.1, warm=0.25): lambda p: (
        0.1 + 0.9 * p / 0.25 if p < 0.25 else 0.1 + 0.9 * (1 + math.cos(math.pi * (p - 0.25) / 0.75)) / 2
    ),
}


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_learning_rate_follows_the_policy_after_the_last_event(policy: FineTune, trained: nn.Module) -> None:
    rates: list[float] = []

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made = torch.optim.SGD(parameters, lr=0.02)
        made.register_step_pre_hook(lambda opt, args, kwargs: rates.append(opt.param_groups[0]["lr"]))
        return made

    found = with_(policy, schedule=OneShot(at=0.25))
    prunus.prune(trained, task(), found, sparsity=0.5, steps=16, optimizer=optimizer)
    assert rates[:4] == [0.02] * 4
    assert rates[4:] == pytest.approx([0.02 * POLICIES[policy](i / 12) for i in range(12)])


def test_two_cycles_are_one_twice() -> None:
    one, two = FineTune("cyclic", peak=1.0), FineTune("cyclic", peak=1.0, cycles=2)
    assert all(two.rate(p / 20) == pytest.approx(one.rate(p / 10)) for p in range(10))
    assert two.rate(0.5) == pytest.approx(one.rate(0.0))


def test_scratch_draws_every_weight_anew_from_the_seed(trained: nn.Module) -> None:
    state = torch.get_rng_state()
    first, again = (prunus.prune(trained, task(), with_(Scratch()), sparsity=0.5, seed=3) for _ in range(2))
    other = prunus.prune(trained, task(), with_(Scratch()), sparsity=0.5, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    plain = prunus.prune(trained, task(), "magnitude_uniform", sparsity=0.5)
    for name, mask in plain.masks.items():
        assert torch.equal(first.masks[name], mask)
        w, same, fresh = (dict(r.model.named_parameters())[name].detach() for r in (first, again, other))
        assert torch.equal(w, same) and not torch.equal(w, fresh)
        assert (w[~mask] == 0).all() and (w[mask] != dict(trained.named_parameters())[name][mask]).all()
        bound = 1 / math.sqrt(w.shape[1])  # nn.Linear's own initialization
        assert float(w.abs().max()) <= bound and float(w.abs().max()) > 0.9 * bound
    assert float(first.model.norm.running_mean.abs().max()) == 0.0
    assert accuracy(first.model) < 0.4


@pytest.mark.parametrize(("kind", "steps"), [("E", 40), ("B", 60)])
def test_scratch_trains_as_long_or_with_as_many_operations(kind: str, steps: int, trained: nn.Module) -> None:
    """Of 32 channels a third is left: 2432 multiply-accumulates of 64 * 32 + 320, capped at 1.5 times the steps."""
    found = with_(Scratch(kind=kind, most=1.5), granularity=Channel())
    result = prunus.prune(
        trained, task(), found, sparsity=2 / 3, steps=40, optimizer=lambda p: torch.optim.SGD(p, lr=0.2)
    )
    assert result.cost["steps"] == steps
    assert accuracy(result.model) > 0.6
    mild = prunus.prune(trained, task(), found, sparsity=0.25, steps=40)
    assert mild.cost["steps"] == (40 if kind == "E" else round(40 / 0.75))


def test_scratch_makes_the_optimizer_forget(trained: nn.Module) -> None:
    """With momentum, the first step after a restart goes along that step's gradient alone."""
    seen: list[int] = []

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
        made.register_step_pre_hook(lambda opt, args, kwargs: seen.append(len(opt.state)))
        return made

    prunus.prune(
        trained, task(), with_(Scratch(), schedule=OneShot(at=0.5)), sparsity=0.5, steps=4, optimizer=optimizer
    )
    assert seen[0] == 0 and seen[1] > 0 and seen[2] == 0 and seen[3] > 0


def test_distillation_is_hintons_loss_against_the_dense_network(trained: nn.Module) -> None:
    found = with_(Distill(temperature=3.0, weight=0.7))
    session = prunus.Session(_copy(trained), found, task(), sparsity=0.8)
    session.start()
    batch = digits()[0]
    session.model.eval()  # without dropout, to compare
    value = session.recovering.loss(batch)
    with torch.no_grad():
        teacher, student = trained.eval()(batch[0]), session.model(batch[0])
        p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
        apart = (p * (p.log() - q.log())).sum(1).mean()
        expected = 0.3 * F.cross_entropy(student, batch[1]) + 0.7 * 9 * apart
    assert float(value) == pytest.approx(float(expected))
    assert not any(p.requires_grad for p in session.teacher.parameters())
    assert not session.model._forward_hooks and not session.teacher._forward_hooks


def test_hidden_layers_are_matched_too(trained: nn.Module) -> None:
    part = Distill(weight=1.0, layers=("a", "norm"), hidden=2.0)
    session = prunus.Session(_copy(trained), with_(part), task(), sparsity=0.8)
    session.start()
    batch = digits()[0]
    session.model.eval()
    trained.eval()
    bare = replace(part, layers=()).loss(session.recovering.site, batch)
    value = part.loss(session.recovering.site, batch)
    with torch.no_grad():
        ta, sa = trained.a(batch[0]), session.model.a(batch[0])
        tn, sn = trained.norm(ta), session.model.norm(sa)
        expected = (sa - ta).square().sum() / ta.square().sum() + (sn - tn).square().sum() / tn.square().sum()
    assert float(value - bare) == pytest.approx(float(expected))
    with pytest.raises(SpecError, match="no module 'c'"):
        replace(part, layers=("c",)).loss(session.recovering.site, batch)


def test_a_loss_that_does_not_call_the_model_once_still_distils(trained: nn.Module) -> None:
    twice = task(loss=lambda m, b: F.cross_entropy((m(b[0]) + m(b[0])) / 2, b[1]))
    session = prunus.Session(_copy(trained), with_(Distill()), twice, sparsity=0.8)
    session.start()
    assert torch.isfinite(session.recovering.loss(digits()[0]))


def test_distillation_comes_closer_to_the_teacher_than_the_labels_do(trained: nn.Module) -> None:
    x = digits()[9][0]
    goal = trained.eval()(x).log_softmax(1)

    def far(part: Recovery) -> float:
        made = prunus.prune(trained, task(), with_(part), sparsity=0.85, steps=80, seed=1)
        found = made.model.eval()(x).log_softmax(1)
        return float(F.kl_div(found, goal, log_target=True, reduction="batchmean"))

    assert far(Distill(weight=1.0)) < far(FineTune(peak=1.0))


def test_outputs_that_are_no_logits_are_refused(trained: nn.Module) -> None:
    class Odd(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"scores": super().forward(x)}

    odd = Odd().double()
    found = with_(Distill())
    data = task(loss=lambda m, b: F.cross_entropy(m(b[0])["scores"], b[1]))
    with pytest.raises(SpecError, match="needs logits"):
        prunus.prune(odd, data, found, sparsity=0.5, steps=1)


def test_a_chain_does_all_of_it_in_turn(trained: nn.Module) -> None:
    chain = Chain(
        (Scratch("B", most=1.25), FineTune("cosine", peak=2.0), Distill(weight=0.5), BatchNormRecalibration())
    )
    assert chain.restarts and chain.teacher and chain.reads == "labels"
    assert chain.rate(0.0) == 2.0 and chain.steps(40, lambda: 3.0) == 50
    found = with_(chain)
    assert Recipe.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    result = prunus.prune(trained, task(), found, sparsity=0.8, steps=8)
    assert result.cost["steps"] == 10
    assert all((dict(result.model.named_parameters())[n][~m] == 0).all() for n, m in result.masks.items())
    empty = Chain()
    assert (
        empty.reads == "nothing" and empty.rate(0.5) is None and not empty.teacher and empty.steps(7, lambda: 2.0) == 7
    )


def test_a_recovery_waits_for_the_last_event(trained: nn.Module) -> None:
    found = with_(Scratch(), schedule=Gradual(every=1, end=0.5))
    session = prunus.Session(_copy(trained), found, task(), sparsity=0.5, steps=8)
    opt = torch.optim.SGD(session.model.parameters(), lr=0.01)
    session.attach(opt)
    before = [p.detach().clone() for p in session.model.parameters()]
    for step in range(4):
        assert session.recovering is None
        opt.zero_grad()
        cross_entropy(session.model, digits()[step]).backward()
        opt.step()
    session.detach()
    assert session.recovering is not None and session.recovering.began == 4
    far = max(float((a - b).abs().max()) for a, b in zip(before, session.model.parameters(), strict=True))
    assert far > 0.3  # four steps at a small rate do not get that far; a new initialization does


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: FineTune(peak=0.1, low=0.2),
        lambda: FineTune("cyclic", warm=0.0),
        lambda: FineTune("step", begin=1.0),
        lambda: Scratch(most=0.5),
        lambda: Distill(temperature=0.0),
        lambda: Distill(weight=1.5),
        lambda: BatchNormRecalibration(passes=0),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: object) -> None:
    with pytest.raises(SpecError):
        wrong()  # type: ignore[operator]


def _copy(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model)
