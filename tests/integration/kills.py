"""Runs that are killed (SIGKILL) at chosen places, over and over, by a parent that has imported everything once.

`python -m tests.integration.kills FOLDER COUNT` forks one process for every life of a run. The parent itself never runs
a network: what is forked is a fresh interpreter with torch in it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import prunus
from prunus.parts.schedule import OneShot
from tests.integration import runs, toys

RECIPES = {name: runs.RECIPES[name] for name in ("rigl", "lth", "gradual_magnitude")} | {
    "l0": replace(prunus.methods.get("l0"), schedule=OneShot(at=0.8)),
    "continuous_sparsification": replace(prunus.methods.get("continuous_sparsification"), schedule=OneShot(at=0.8)),
}
PLACES = ("before backward", "after backward", "inside the step", "after the step", "writing", "written", "renamed")
WHENEVER = 2  # kills by the parent's clock, on top

Doom = tuple[int, str] | None


class Life(runs.Run):
    """A training script with a random generator of its own to save, and a place to die at."""

    def __init__(self, name: str, folder: Path, doom: Doom) -> None:
        super().__init__(name, recipe=RECIPES[name])
        self.folder, self.doom = folder, doom
        torch.manual_seed(7)
        self.optimizer.register_step_post_hook(lambda *_: self.reach("inside the step"))  # before the session's own

    def reach(self, place: str) -> None:
        if self.doom == (self.at, place):
            os.kill(os.getpid(), signal.SIGKILL)

    def live(self) -> None:
        """Train to the end, with a checkpoint after every step, from wherever the last life ended."""
        checkpoint, fresh = self.folder / "checkpoint", self.folder / "fresh"
        if checkpoint.exists():
            state = toys.unpack(checkpoint.read_bytes())
            torch.set_rng_state(state["rng"])
            self.load(state["run"].numpy().tobytes())
        self.start()
        while self.session.step < runs.STEPS:
            self.at = self.session.step + 1
            self.update()
            data = toys.pack({"run": torch.frombuffer(bytearray(self.save()), dtype=torch.uint8), "rng": rng()})
            with fresh.open("wb") as file:
                file.write(data[: len(data) // 2])
                file.flush()
                self.reach("writing")
                file.write(data[len(data) // 2 :])
            self.reach("written")
            os.replace(fresh, checkpoint)
            self.reach("renamed")
        (self.folder / "outcome").write_bytes(toys.pack(self.outcome() | {"rng": rng()}))

    def update(self) -> None:
        x, y = toys.batch_at(self.session.step)
        self.model.train()
        self.optimizer.zero_grad()
        loss = toys.loss_of(self.model, (x + 0.1 * torch.randn_like(x), y))
        self.reach("before backward")
        loss.backward()
        self.reach("after backward")
        self.optimizer.step()
        self.reach("after the step")
        self.scheduler.step()


def rng() -> Any:
    return torch.get_rng_state()


def fork(name: str, folder: Path, doom: Doom = None, after: float | None = None) -> int | None:
    """One life in a process of its own, killed by the parent `after` so many seconds; the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Life(name, folder, doom).live()
            code = 0
        finally:  # a child must not go on as a second parent, whatever happens
            if code:
                traceback.print_exc()
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"{name} failed by itself")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None


def kill(name: str, folder: Path, count: int) -> dict[str, Any]:
    """A run that is left alone, one that dies `count` times at seeded places, and some that die anywhere."""
    alone, haunted, *wild = (folder / name / str(i) for i in range(2 + WHENEVER))
    for one in (alone, haunted, *wild):
        one.mkdir(parents=True)
    began = time.perf_counter()
    assert fork(name, alone) is None
    took = time.perf_counter() - began
    source = random.Random(name)
    order = [(step, place) for step in range(1, runs.STEPS + 1) for place in range(len(PLACES))]
    dooms = sorted(source.sample(order, count))
    signals = [fork(name, haunted, (step, PLACES[place])) for step, place in dooms]
    for one in wild:
        fork(name, one, after=took * source.random())
    outcomes = set()
    for one in (alone, haunted, *wild):
        assert one == alone or fork(name, one) is None
        outcomes.add((one / "outcome").read_bytes())
    places = sorted({PLACES[place] for _, place in dooms})
    return {"outcomes": len(outcomes), "killed": signals.count(signal.SIGKILL), "places": places}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in RECIPES:
        Life(name, Path(sys.argv[1]), None)  # so that what is imported when first needed is there in every child
    print(json.dumps({name: kill(name, Path(sys.argv[1]), int(sys.argv[2])) for name in RECIPES}))
