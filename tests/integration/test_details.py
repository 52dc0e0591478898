"""What decides results beside the masks: decay, statistics, averages, clipping, compiled models, mixed-up data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.core.errors import SpecError
from prunus.parts.schedule import Gradual
from tests.integration import kinds, toys

ROOT = Path(__file__).parents[2]
HALF = prunus.Budget(0.5)
DECAYS: dict[str, toys.MakeOptimizer] = {
    "coupled": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "coupled, adaptive": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "decoupled": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "decoupled, fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
}


def gradual() -> prunus.Recipe:
    return replace(prunus.methods.get("gradual_magnitude"), schedule=Gradual(every=2, end=1.0))


@pytest.mark.parametrize("kind", DECAYS)
def test_masked_training_is_what_one_would_write_by_hand(kind: str) -> None:
    """Weights, momentum and statistics to the bit: w m, g m, a step of the optimizer, w m."""
    model, byhand = toys.network(), toys.network()
    optimizer, other = DECAYS[kind](model.parameters()), DECAYS[kind](byhand.parameters())
    session = prunus.Session(model, "magnitude", budget=HALF).attach(optimizer)
    masks = {n: m.reshape(model.get_parameter(n).shape).float() for n, m in session.masks.items()}
    for n, m in masks.items():
        byhand.get_parameter(n).data.mul_(m)
    toys.train(session, optimizer, 0, 5)
    for step in range(5):
        other.zero_grad()
        toys.loss_of(byhand, toys.batch_at(step)).backward()
        for n, m in masks.items():
            byhand.get_parameter(n).grad.mul_(m)
        other.step()
        for n, m in masks.items():
            byhand.get_parameter(n).data.mul_(m)
    assert toys.same(toys.state_of(model), toys.state_of(byhand))
    for p, q in zip(model.parameters(), byhand.parameters(), strict=True):
        mine, theirs = optimizer.state[p], other.state[q]
        assert toys.same(
            {k: torch.as_tensor(v) for k, v in mine.items()}, {k: torch.as_tensor(theirs[k]) for k in mine}
        )


AVERAGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch": lambda m: torch.optim.swa_utils.AveragedModel(
        m, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    ),
    "torch, of a wrapped model": lambda m: torch.optim.swa_utils.AveragedModel(nn.DataParallel(m), use_buffers=True),
    "timm": lambda m: pytest.importorskip("timm.utils").ModelEmaV3(m, decay=0.9),
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_a_moving_average_is_masked_on_request(kind: str) -> None:
    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    ema = AVERAGES[kind](model)
    update = getattr(ema, "update_parameters", None) or ema.update
    session = prunus.Session(model, gradual(), budget=HALF, steps=6).attach(optimizer)
    for step in range(6):
        toys.train(session, optimizer, step, step + 1)
        update(nn.DataParallel(model) if "wrapped" in kind else model)
    gone = ~session.masks["inner.weight"].reshape(model.inner.weight.shape)
    average = next(p for n, p in ema.named_parameters() if n.endswith("inner.weight")).detach()
    assert average[gone].any()  # it remembers what was there
    session.mask_(ema)
    assert not average[gone].any() and average[~gone].all()
    with pytest.raises(SpecError, match="no copy"):
        session.mask_(toys.network(kind=toys.mlp))


@pytest.mark.parametrize("norm_type", [2.0, float("inf")])
def test_clipping_by_the_norm_of_what_is_kept(norm_type: float) -> None:
    """As torch's on gradients that are masked already; those of pruned weights stay, for RigL to grow by."""
    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    session = prunus.Session(model, "rigl", toys.task(), prunus.Budget(0.2), steps=8).attach(optimizer)
    toys.loss_of(model, toys.batch_at(0)).backward()
    dense = {n: p.grad.clone() for n, p in model.named_parameters()}
    masks = {n: m.reshape(dense[n].shape) for n, m in session.masks.items()}
    copies = [nn.Parameter(p.detach()) for p in dense.values()]
    for (n, g), copy in zip(dense.items(), copies, strict=True):
        copy.grad = g * masks[n] if n in masks else g.clone()
    most = nn.utils.get_total_norm(copies, norm_type)
    limit = 0.5 * float(nn.utils.clip_grad_norm_(copies, float("inf"), norm_type))
    norm = session.clip_grad_norm_(limit, norm_type)
    assert norm == nn.utils.clip_grad_norm_(copies, limit, norm_type) and most > 0
    for (n, p), copy in zip(model.named_parameters(), copies, strict=True):
        torch.testing.assert_close(p.grad, dense[n] * (limit / (norm + 1e-6)))
        torch.testing.assert_close(p.grad * masks[n] if n in masks else p.grad, copy.grad)
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    assert session.clip_grad_norm_(1e9, norm_type) < norm  # what is small enough is left as it is
    assert all(torch.equal(p.grad, before[n]) for n, p in model.named_parameters())


def test_a_compiled_model_trains_as_one_that_is_not() -> None:
    """Masks that change compile nothing anew; gates do when they come and go, not at every step."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.integration.compiled"]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    for name, found in json.loads(done.stdout).items():
        assert all(found["same"]), name
        assert max(found["compiled"]) <= (5 if found["gated"] else 1), name


@pytest.mark.parametrize("name", ["rigl", *kinds.KINDS])
def test_a_loop_as_timm_writes_it(name: str) -> None:
    """Mixed-up batches with soft labels, accumulation, clipping, a schedule and an average of the weights."""
    pytest.importorskip("timm")
    from timm.data import Mixup
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import ModelEmaV3, dispatch_clip_grad

    model = toys.network()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=0.01, weight_decay=0.05)
    scheduler = CosineLRScheduler(optimizer, t_initial=8, warmup_t=2)
    ema, loss_of, mix = ModelEmaV3(model, decay=0.9), SoftTargetCrossEntropy(), Mixup(cutmix_alpha=1.0, num_classes=3)
    recipe = kinds.KINDS.get(name) or prunus.methods.get(name)
    session = prunus.Session(model, recipe, toys.task(), HALF, steps=8).attach(optimizer)
    for step in range(16):
        x, y = mix(*toys.batch_at(step))
        (loss_of(model(x), y) / 2).backward()
        if step % 2:
            dispatch_clip_grad(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(model)
            scheduler.step(step // 2 + 1)
    session.mask_(ema)
    assert session.step == 8 and session.fired == len(session.events)
    toys.zeros_hold(session)
    total = sum(m.numel() for m in session.masks.values())
    assert sum(toys.kept(session).values()) == pytest.approx(0.5 * total, abs=len(session.masks))
    for n, m in session.masks.items():
        assert not ema.module.get_parameter(n).detach()[~m.reshape(model.get_parameter(n).shape)].any()
