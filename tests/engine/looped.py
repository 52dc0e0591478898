"""A model, its optimizer and a session, in the plainest loop."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

import prunus
from tests.integration import toys


class Looped:
    """Half of what there is stays, unless the recipe brings a density of its own (`budget=None`)."""

    def __init__(
        self, recipe: prunus.Recipe, steps: int, seed: int = 0, budget: prunus.Budget | None = prunus.Budget(0.5)
    ) -> None:
        self.model = toys.network(seed).double()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02, weight_decay=0.05)
        self.session = prunus.Session(self.model, recipe, task(), budget, steps=steps)

    def attach(self) -> Self:
        self.session.attach(self.optimizer)
        return self

    def train(self, last: int) -> Self:
        for step in range(self.session.step, last):
            self.optimizer.zero_grad()
            toys.loss_of(self.model.train(), batch(step)).backward()
            self.optimizer.step()
        return self


def batch(step: int) -> tuple[Tensor, Tensor]:
    x, y = toys.batch_at(step)
    return x.double(), y


def task() -> prunus.Task:
    return prunus.Task(loss=toys.loss_of, train=[batch(i) for i in range(4)], example=(batch(0)[0],))
