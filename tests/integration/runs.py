"""Runs that stop and go on: a checkpoint is model, optimizer and session, and the loop is a function of the step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

import prunus
from prunus.parts.schedule import Gradual, Repeated, Rounds
from tests.integration import toys

STEPS = 15
RECIPES = {
    "rigl": replace(prunus.methods.get("rigl"), schedule=prunus.parts.schedule.PruneAndGrow(every=3, skip_step=True)),
    "lth": replace(prunus.methods.get("lth"), schedule=Rounds(per_round=0.5, rewind=0.4)),
    "lr_rewinding": replace(prunus.methods.get("lr_rewinding"), schedule=Rounds(per_round=0.5, what="rate")),
    "gradual_magnitude": replace(prunus.methods.get("gradual_magnitude"), schedule=Gradual(every=3, end=0.9)),
    "sfp": replace(prunus.methods.get("sfp"), schedule=Repeated(times=4)),
    "network_slimming": prunus.methods.get("network_slimming"),
}


class Run:
    """Everything that a training script holds."""

    def __init__(self, name: str, seed: int = 0, recipe: prunus.Recipe | None = None) -> None:
        self.model: nn.Module = toys.network(seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02, weight_decay=0.05)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 4, 9], gamma=0.5)
        found = RECIPES[name] if recipe is None else recipe
        self.session = prunus.Session(self.model, found, toys.task(), prunus.Budget(0.4), steps=STEPS)

    def start(self) -> Run:
        self.session.attach(self.optimizer, self.scheduler)
        return self

    def train(self, last: int) -> Run:
        while self.session.step < last:
            toys.train(self.session, self.optimizer, self.session.step, self.session.step + 1)
            self.scheduler.step()
        return self

    def save(self) -> bytes:
        scheduler = {k: dict(v) if isinstance(v, dict) else v for k, v in self.scheduler.state_dict().items()}
        return toys.pack(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": scheduler,
                "session": self.session.state_dict(),
            }
        )

    def load(self, data: bytes) -> Run:
        state = toys.unpack(data)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.session.load_state_dict(state["session"])
        return self

    def outcome(self) -> dict[str, Any]:
        """All that must not depend on where a run was interrupted."""
        state = self.session.state_dict()
        del state["seconds"]
        return {"model": toys.state_of(self.model), "optimizer": self.optimizer.state_dict(), "session": state}
