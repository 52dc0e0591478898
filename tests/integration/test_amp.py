"""Mixed precision on the CPU: autocast, and a gradient scaler that skips steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from prunus.parts.schedule import Gradual
from tests.integration import toys

HALF = prunus.Budget(0.5)


def optimizers(fused: bool) -> toys.MakeOptimizer:
    return lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, fused=fused)


def scaled_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, step: int, bad: bool = False
) -> None:
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = toys.loss_of(model, toys.batch_at(step))
    if bad:
        loss = loss * float("inf")
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["gradual_magnitude", "rigl"])
def test_a_skipped_step_is_not_counted(name: str, fused: bool) -> None:
    """Infinite gradients at three steps: nothing is counted, revived or pruned at them, and the run ends as without."""

    def run(bad_at: tuple[int, ...]) -> prunus.Session:
        model = toys.network()
        optimizer = optimizers(fused)(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=10**6)
        recipe = prunus.methods.get(name)
        if name == "gradual_magnitude":
            recipe = replace(recipe, schedule=Gradual(every=2, end=1.0))
        session = prunus.Session(model, recipe, toys.task(), HALF, steps=8).attach(optimizer)
        model.train()
        for step in range(8):
            if step in bad_at:
                weights = {n: p.detach().clone() for n, p in model.named_parameters()}
                masks, history = dict(session.masks), list(session.history)
                buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
                scaled_step(model, optimizer, scaler, step, bad=True)
                for n, b in model.named_buffers():
                    b.copy_(buffers[n])
                assert session.step == step and session.history == history and toys.same(masks, session.masks)
                assert toys.same(weights, {n: p.detach() for n, p in model.named_parameters()})
            scaled_step(model, optimizer, scaler, step)
            assert session.step == step + 1
            if session.holding:
                toys.zeros_hold(session)
        return session

    clean, stumbling = run(()), run((0, 3, 7))
    assert clean.history == stumbling.history
    # The scale is halved at each skipped step: a power of two, which changes no bit of what it multiplies and divides.
    assert toys.same(clean.masks, stumbling.masks)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_penalty_is_not_scaled(fused: bool, unscale: bool) -> None:
    """The weights move as far as without a scaler, also where a fused optimizer unscales inside its step."""

    def run(scale: float | None) -> torch.Tensor:
        model = toys.network()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=fused)
        recipe = replace(prunus.methods.get("network_slimming"), penalty=prunus.parts.penalty.ScaleL1(strength=0.25))
        prunus.Session(model, recipe, toys.task(), HALF, steps=4).attach(optimizer)
        model.eval()
        loss = toys.loss_of(model, toys.batch_at(0))
        before = model.norm.weight.detach().clone()
        if scale is None:
            loss.backward()
            optimizer.step()
        else:
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
        return before - model.norm.weight.detach()

    plain = run(None)
    assert plain.abs().max() > 0.2  # the penalty is most of it
    assert torch.allclose(plain, run(2.0**10), rtol=0, atol=1e-6)


def test_bfloat16_weights_stay_bfloat16() -> None:
    model = toys.network(kind=toys.mlp).bfloat16()
    optimizer = toys.sgd(model.parameters())
    session = prunus.Session(model, "magnitude", budget=HALF).attach(optimizer)
    for step in range(3):
        x, y = toys.batch_at(step, (6,))
        toys.loss_of(model, (x.bfloat16(), y)).backward()
        optimizer.step()
        toys.zeros_hold(session)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
