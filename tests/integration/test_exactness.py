"""What a session promises to the unit and to the bit, step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.core.errors import SpecError
from prunus.parts.schedule import Gradual, PruneAndGrow, Repeated, Rounds
from tests.integration import toys

HALF = prunus.Budget(0.5)
OPTIMIZERS: dict[str, toys.MakeOptimizer] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": toys.sgd,
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, fused=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True, weight_decay=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, weight_decay=1e-2, initial_accumulator_value=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=1e-2),
}


def update(optimizer: torch.optim.Optimizer, model: nn.Module, step: int) -> None:
    optimizer.zero_grad()
    toys.loss_of(model, toys.batch_at(step)).backward()
    optimizer.step()


def laid_out(session: prunus.Session, model: nn.Module, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Masks of single weights in the shapes of their parameters."""
    return {n: m.reshape(model.get_parameter(n).shape) for n, m in masks.items()}


class Noisy(torch.optim.SGD):
    """Moves every weight whatever its gradient, as Langevin dynamics does."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(0.01)
        return result


OPTIMIZERS["noisy"] = lambda p: Noisy(p, lr=0.05, momentum=0.9)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["rigl", "set"])
def test_counts_zeros_and_optimizer_memory(name: str, kind: str) -> None:
    """Over prune-and-grow: counts conserved, zeros exact, and no memory of what is or was pruned."""
    model = toys.network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    session = prunus.Session(model, name, toys.task(), prunus.Budget(0.4), steps=16).attach(optimizer)
    counts = toys.kept(session)
    assert sum(counts.values()) == session.history[0]["kept"]
    regrown = 0
    for step in range(16):
        before = laid_out(session, model, session.masks)
        fired = session.fired
        update(optimizer, model, step)
        toys.zeros_hold(session)
        assert toys.kept(session) == counts
        after = laid_out(session, model, session.masks)
        for n, mask in after.items():
            new = mask & ~before[n]
            regrown += int(new.sum())
            p = model.get_parameter(n)
            assert not p.detach()[new].any()  # regrown weights start at zero
            untouched = ~mask | new
            for key, value in optimizer.state[p].items():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    assert not value[untouched].any(), f"{kind} remembers {key} of pruned weights of {n}"
        assert (session.fired > fired) == (session.events[fired].step == step + 1 if fired < len(session.events) else 0)
    assert regrown > 10 and session.fired == len(session.events)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_channels_stay_zero_with_everything_coupled(kind: str) -> None:
    model = toys.network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    recipe = replace(prunus.methods.get("l1_filter"), schedule=Gradual(every=2, end=0.75))
    session = prunus.Session(model, recipe, toys.task(), HALF, steps=8).attach(optimizer)
    for step in range(8):
        update(optimizer, model, step)
        if session.fired:
            toys.zeros_hold(session)
    assert all(int(m.sum()) == 4 for m in session.masks.values())


@pytest.mark.parametrize("kind", ["momentum", "adamw", "fused"])
def test_a_skipped_update_moves_nothing_but_masks(kind: str) -> None:
    """RigL's official code makes no gradient step at a mask update; the gradients are there again afterwards."""
    model = toys.network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    session = prunus.Session(model, "rigl", toys.task(), HALF, steps=16).attach(optimizer)
    updates = {e.step for e in session.events if e.skip}
    assert len(updates) == 2
    for step in range(16):
        weights = {n: p.detach().clone() for n, p in model.named_parameters()}
        memory = {
            (n, k): v.clone()
            for n, p in model.named_parameters()
            for k, v in optimizer.state[p].items()
            if isinstance(v, Tensor)
        }
        update(optimizer, model, step)
        assert all(p.grad is not None for p in model.parameters())
        if step + 1 not in updates:
            assert not torch.equal(model.norm.weight, weights["norm.weight"])
            continue
        masks = laid_out(session, model, session.masks)
        for n, p in model.named_parameters():
            assert torch.equal(p.detach(), weights[n] * masks.get(n, torch.ones_like(p)))
            for key, value in optimizer.state[p].items():
                if isinstance(value, Tensor):
                    same_shape = value.shape == p.shape and n in masks
                    assert torch.equal(value, memory[n, key] * masks[n] if same_shape else memory[n, key])


def test_growth_takes_the_dense_gradient_of_the_step() -> None:
    """RigL by hand: drop the smallest, grow where the gradient that the loop computed is largest."""
    model = toys.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    session = prunus.Session(model, "rigl", toys.task(), HALF, steps=8).attach(optimizer)
    for step in range(8):
        event = next((e for e in session.events if e.step == step + 1), None)
        before = {n: m.clone() for n, m in session.masks.items()}
        optimizer.zero_grad()
        toys.loss_of(model, toys.batch_at(step)).backward()
        dense = {n: model.get_parameter(n).grad.clone() for n in before}
        weights = {n: model.get_parameter(n).detach().clone() for n in before}
        optimizer.step()
        if event is None:
            continue
        for n, mask in before.items():
            flat, w, g = mask.flatten(), weights[n].flatten().abs(), dense[n].flatten().abs()
            count = int(flat.sum())
            drop = min(int(event.regrow * count), flat.numel() - count + int(event.regrow * count))
            alive = sorted(flat.nonzero().flatten().tolist(), key=lambda i: (-float(w[i]), i))[: count - drop]
            free = sorted(set(range(flat.numel())) - set(alive), key=lambda i: (-float(g[i]), i))[:drop]
            expected = torch.zeros_like(flat)
            expected[alive + free] = True
            assert torch.equal(session.masks[n].flatten(), expected)


def test_gradual_density_follows_the_cubic() -> None:
    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    recipe = replace(prunus.methods.get("gradual_magnitude"), schedule=Gradual(every=3, end=0.75))
    session = prunus.Session(model, recipe, budget=prunus.Budget(0.2), steps=20).attach(optimizer)
    last = session.masks
    for step in range(20):
        update(optimizer, model, step)
        t = min(step + 1, 15) // 3 * 3
        sparsity = 0.8 * (1 - (1 - t / 15) ** 3)
        for n, mask in session.masks.items():
            assert int((~mask).sum()) == int(round(sparsity * mask.numel(), 9)), (step, n)
            assert not (mask & ~last[n]).any()  # nothing comes back
        last = session.masks
    assert [h["step"] for h in session.history] == [3, 6, 9, 12, 15]


@pytest.mark.parametrize("strength", [1e-4, 0.25])
def test_penalty_is_strength_times_sign(strength: float) -> None:
    model = toys.network()
    with torch.no_grad():
        model.inner_norm.weight[::2] *= -1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    recipe = replace(prunus.methods.get("network_slimming"), penalty=prunus.parts.penalty.ScaleL1(strength=strength))
    session = prunus.Session(model, recipe, toys.task(), HALF, steps=4).attach(optimizer)
    plain = toys.network()
    plain.load_state_dict(model.state_dict())
    for step in range(2):
        optimizer.zero_grad()
        plain.zero_grad()
        toys.loss_of(model, toys.batch_at(step)).backward()
        toys.loss_of(plain, toys.batch_at(step)).backward()
        optimizer.step()
        prunable = {m.param for g in session.groups for m in g.members if m.role == "scale"}
        assert prunable == {"norm.weight", "inner_norm.weight"}
        for n, p in model.named_parameters():
            expected = plain.get_parameter(n).grad
            if n in prunable:
                expected = expected + strength * p.detach().sign()
            if session.step < 2:
                assert torch.equal(p.grad, expected), n
    assert session.fired == 1  # half of the channels are gone now, their scales with them
    toys.zeros_hold(session)


def test_soft_pruning_lets_filters_recover_and_ends_with_hold() -> None:
    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    recipe = replace(prunus.methods.get("sfp"), schedule=Repeated(times=4))
    session = prunus.Session(model, recipe, toys.task(), HALF, steps=16).attach(optimizer)
    recovered = 0
    for step in range(16):
        update(optimizer, model, step)
        filters = {"stem.weight", "inner.weight"} & {m.param for g in session.groups for m in g.with_role("out")}
        assert filters
        if 0 < session.fired < 4:
            group = session.groups[0]
            gone = ~session.masks[group.name]
            norms = torch.stack([group.view(m, p).norm(dim=-1) for m in group.with_role("out")
                                 for p in [session.parameters[m.param].detach()]]).amax(0)  # fmt: skip
            if (step + 1) % 4 == 0:
                assert not norms[gone].any() and norms[~gone].all()
            else:
                assert norms[gone].all()  # not held down: it trains on
                recovered += 1
        elif session.fired == 4:
            toys.zeros_hold(session)
    assert recovered == 9 and session.holding
    assert all(int(m.sum()) == m.numel() // 2 for m in session.masks.values())


def test_rewinding_is_exact() -> None:
    """Weights are those of step k times the mask, buffers those of step k, the optimizer knows nothing."""
    model = toys.network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    recipe = replace(prunus.methods.get("lth"), schedule=Rounds(per_round=0.5, rewind=0.4))
    session = prunus.Session(model, recipe, budget=prunus.Budget(0.25), steps=16).attach(optimizer)
    back, when = session.events[0].rewind, [e.step for e in session.events]
    assert back and back > 0 and len(when) == 2
    for step in range(16):
        update(optimizer, model, step)
        if step + 1 == back:
            early = toys.state_of(model)
        if step + 1 in when:
            masks = laid_out(session, model, session.masks)
            for n, t in model.state_dict().items():
                assert torch.equal(t, early[n] * masks[n] if n in masks else early[n]), n
            assert not optimizer.state
            assert session.clock == back
    assert session.history[-1]["rewind"] == back and sum(toys.kept(session).values()) == session.history[-1]["kept"]


SCHEDULERS: dict[str, Any] = {
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 9),
    "multistep": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 2, 5], gamma=0.5),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: 1 / (1 + s)),
    "onecycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=40),
    "sequential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.ConstantLR(o, 0.1, 3), torch.optim.lr_scheduler.ExponentialLR(o, 0.8)],
        milestones=[3],
    ),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("rewind", [0.0, 0.4])
@pytest.mark.parametrize("name", ["lth", "lr_rewinding"])
def test_learning_rates_are_replayed(name: str, rewind: float, kind: str) -> None:
    """Wherever the clock stands where it stood before, the step has the very same rate and momentum."""
    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    scheduler = SCHEDULERS[kind](optimizer)
    recipe = prunus.methods.get(name)
    recipe = replace(recipe, schedule=Rounds(per_round=0.5, rewind=rewind, what=recipe.schedule.what))
    session = prunus.Session(model, recipe, budget=prunus.Budget(0.25), steps=16).attach(optimizer, scheduler)
    used: list[tuple[float, float]] = []
    optimizer.register_step_pre_hook(
        lambda o, *_: used.append((o.param_groups[0]["lr"], o.param_groups[0]["momentum"]))
    )
    weights, clocks = [], []
    for step in range(16):
        clocks.append(session.clock)
        update(optimizer, model, step)
        scheduler.step()
        weights.append(toys.state_of(model))
    length, back = session.events[0].step, int(rewind * session.events[0].step)
    assert len(session.events) == 2 and clocks[: length + 1] == [*range(length), back]
    table: dict[int, tuple[float, float]] = {}
    for clock, rate in zip(clocks, used, strict=True):
        assert rate == table.setdefault(clock, rate)
    assert len(set(table.values())) > 1 and len(table) < 12
    if name == "lr_rewinding":  # and the weights go on
        assert not toys.same(weights[length], weights[back])


def test_prune_replays_its_rate() -> None:
    seen: list[float] = []
    data = [toys.batch_at(i) for i in range(16)]
    recipe = replace(prunus.methods.get("lth"), schedule=Rounds(per_round=0.5))

    def made(parameters: Any) -> torch.optim.Optimizer:
        optimizer = toys.sgd(parameters)
        optimizer.register_step_post_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
        return optimizer

    prunus.prune(
        toys.network(),
        prunus.Task(loss=toys.loss_of, train=data),
        recipe,
        sparsity=0.75,
        steps=15,
        optimizer=made,
        rate=lambda progress: 1 - progress,
    )
    assert seen[:5] == [0.05 * (1 - i / 5) for i in range(5)]
    assert seen[5:10] == seen[:5] and seen[10:] == seen[:5]


def test_a_scheduler_that_would_go_wrong_is_refused() -> None:
    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    session = prunus.Session(model, "lth", budget=HALF, steps=8)
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    with pytest.raises(SpecError, match=r"attach\(optimizer, scheduler\)"):
        session.attach(optimizer)
    with pytest.raises(SpecError, match="has none"):
        session.attach(optimizer, object())
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    prunus.Session(model, "magnitude", budget=HALF).attach(optimizer)  # nothing is rewound: no scheduler needed


class Odd(Gradual):
    """A schedule with a mistake that the test chooses."""

    events: tuple[prunus.Event, ...] = ()

    def __call__(self, density: float, steps: int) -> tuple[prunus.Event, ...]:
        return self.events


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ((), "no event"),
        ((prunus.Event(9, 0.5),), "after the last step"),
        ((prunus.Event(3, 0.5), prunus.Event(2, 0.4)), "comes after an event"),
        ((prunus.Event(3, 0.5, rewind=5),), "has not been yet"),
    ],
)
def test_a_timeline_that_cannot_end_is_refused(
    events: tuple[prunus.Event, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Odd, "events", events)
    recipe = replace(prunus.methods.get("gradual_magnitude"), schedule=Odd())
    with pytest.raises(SpecError, match=message):
        prunus.Session(toys.network(), recipe, budget=HALF, steps=8)


@pytest.mark.parametrize(
    ("recipe", "steps", "horizon"),
    [
        ("magnitude", 10, 10),
        (replace(prunus.methods.get("lth"), schedule=Rounds(per_round=0.5)), 15, 5),
        (replace(prunus.methods.get("lth"), schedule=Rounds(per_round=0.5)), 17, 7),  # what is left comes last
        (replace(prunus.methods.get("rigl"), schedule=PruneAndGrow(every=2)), 12, 12),
    ],
)
def test_horizon_is_how_far_the_clock_runs(recipe: Any, steps: int, horizon: int) -> None:
    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    session = prunus.Session(model, recipe, toys.task(), prunus.Budget(0.25), steps=steps).attach(optimizer)
    clocks = []
    for step in range(steps):
        clocks.append(session.clock)
        update(optimizer, model, step)
    assert session.horizon == horizon == max(clocks) + 1
