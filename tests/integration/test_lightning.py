"""Lightning's Trainer: automatic optimization steps through closures, and checkpoints carry the session."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from tests.integration import kinds, toys

lightning = pytest.importorskip("lightning")
STEPS = 12


class Module(lightning.LightningModule):
    """What a user writes; the session is the only addition."""

    def __init__(self, name: str | prunus.Recipe, where: str) -> None:
        super().__init__()
        self.net, self.where = toys.network(), where
        self.session = prunus.Session(self.net, name, toys.task(), prunus.Budget(0.5), steps=STEPS)
        self.seen: list[int] = []

    def training_step(self, batch: Any, index: int) -> Any:
        # By the step: Lightning does not bring a plain DataLoader back to where it was.
        return toys.loss_of(self.net, toys.batch_at(self.session.step))

    def configure_optimizers(self) -> Any:
        optimizer = toys.sgd(self.parameters())
        if self.where == "configure_optimizers":
            self.session.attach(optimizer)
        return optimizer

    def on_fit_start(self) -> None:
        if self.where == "on_fit_start":
            self.session.attach(self.optimizers())

    def on_train_batch_end(self, *args: Any) -> None:
        self.seen.append(self.session.step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["session"] = self.session.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.session.load_state_dict(checkpoint["session"])


def fit(module: Module, folder: Path, steps: int, resume: Path | None = None, **options: Any) -> Any:
    data = [torch.zeros(1)] * (2 * STEPS)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers
        trainer.fit(module, torch.utils.data.DataLoader(data), ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("where", ["configure_optimizers", "on_fit_start"])
@pytest.mark.parametrize("name", ["rigl", "gradual_magnitude", *kinds.KINDS])
def test_trainer_equals_the_bare_loop(name: str, where: str, tmp_path: Path) -> None:
    name = kinds.KINDS.get(name, name)
    module = Module(name, where)
    fit(module, tmp_path, STEPS)
    assert module.seen == list(range(1, STEPS + 1))

    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    session = prunus.Session(model, name, toys.task(), prunus.Budget(0.5), steps=STEPS).attach(optimizer)
    toys.train(session, optimizer, 0, STEPS)
    assert module.session.history == session.history
    assert toys.same(module.session.masks, session.masks)
    assert toys.same(toys.state_of(module.net), toys.state_of(model))


def test_accumulation_and_mixed_precision(tmp_path: Path) -> None:
    module = Module("gradual_magnitude", "on_fit_start")
    trainer = fit(
        module, tmp_path, STEPS // 2, accumulate_grad_batches=2, precision="bf16-mixed", gradient_clip_val=1.0
    )
    assert trainer.global_step == module.session.step == STEPS // 2
    toys.zeros_hold(module.session)


@pytest.mark.parametrize("where", ["configure_optimizers", "on_fit_start"])
@pytest.mark.parametrize("name", ["rigl", "lth"])
def test_checkpoint_goes_on_bit_identically(name: str, where: str, tmp_path: Path) -> None:
    whole = Module(name, where)
    fit(whole, tmp_path, STEPS)

    first = Module(name, where)
    trainer = fit(first, tmp_path, 5)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second = Module(name, where)
    fit(second, tmp_path, STEPS, resume=tmp_path / "half.ckpt")

    assert second.seen == list(range(6, STEPS + 1))
    assert json.dumps(second.session.history) == json.dumps(whole.session.history)
    assert toys.same(second.session.masks, whole.session.masks)
    assert toys.same(toys.state_of(second.net), toys.state_of(whole.net))
