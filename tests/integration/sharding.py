"""What one process does when the model is split over several (FSDP2) or copied to them (DDP); tests read its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import prunus
from prunus.core.errors import SpecError
from prunus.engine.shards import laid_like, whole
from prunus.parts import criteria, penalty, prox
from prunus.parts.schedule import Gradual, OneShot, PruneAndGrow, Rounds
from tests.integration import toys

STEPS, WORLD, BATCH = 12, 2, 8
HALFWAY = 7  # where runs are saved, to go on in another number of processes

named = prunus.methods.get
RECIPES: dict[str, prunus.Recipe] = {
    "gmp": replace(named("gradual_magnitude"), schedule=Gradual(every=3, end=0.9)),
    "rigl": replace(named("rigl"), schedule=PruneAndGrow(every=2, skip_step=True)),
    "set": replace(named("set"), schedule=PruneAndGrow(every=3)),
    "lth": replace(named("lth"), schedule=Rounds(per_round=0.5, rewind=0.5)),
    "movement": replace(named("gradual_magnitude"), criterion=criteria.MovementScore(), schedule=OneShot(at=0.5)),
    "two of four": replace(named("n_of_m"), schedule=OneShot(at=0.5)),
    "penalty": replace(
        named("gradual_magnitude"), schedule=OneShot(at=0.8), penalty=penalty.Anchored(every=2, rho=0.1)
    ),
    "prox": replace(named("gradual_magnitude"), schedule=OneShot(at=0.8), prox=prox.SoftThreshold(strength=0.02)),
    "channels": replace(named("l1_filter"), schedule=Gradual(every=3, end=0.9)),
}
WAYS = [("fsdp", n) for n in RECIPES] + [("ddp", n) for n in ("gmp", "rigl", "lth")] + [("hsdp", "rigl")]
REFUSED: dict[str, tuple[Callable[[], prunus.Recipe], str]] = {
    "criterion": (lambda: named("snip"), r"ConnectionSensitivity \(criterion\).*GradEvidence: it runs the model"),
    "data-free, but run": (lambda: named("synflow"), r"\(criterion\) asks for SynapticFlowEvidence: it runs the model"),
    "gate": (lambda: named("continuous_sparsification"), r"\(gate\) works inside the model"),
    "rebuilding": (lambda: named("sparsegpt"), r"\(reconstruct\) works inside the model"),
    "gathered before step 1": (
        lambda: replace(RECIPES["movement"], schedule=OneShot()),
        "at step 0 no step was made",
    ),
    "channels": (lambda: RECIPES["channels"], r"Channel needs a run of the whole model.*before fully_shard"),
    "macs": (lambda: RECIPES["gmp"], "a budget in macs needs a run of the whole model"),
}


class Net(nn.Module):
    """Layers of which two processes hold unequal parts, and one that has fewer rows than there are processes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(8, 13), nn.LayerNorm(13), nn.Linear(13, 12)
        self.third, self.last = nn.Linear(12, 3, bias=False), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        x = torch.tanh(self.third(x))
        return x * (1 + 0.1 * self.last(x))  # added alike to every class it would have no gradient


def batch_at(step: int, rank: int | None = None) -> toys.Batch:
    """Everything, or one rank's half of it."""
    x, y = toys.batch_at(step, (8,), BATCH)
    half = slice(None) if rank is None else slice(rank * BATCH // WORLD, (rank + 1) * BATCH // WORLD)
    return x.double()[half], y[half]


class Run:
    """A training script's things, with the model in the form that `way` says."""

    def __init__(self, name: str, way: str = "alone", saved: Any = None) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.rank = None if way == "alone" else dist.get_rank()
        model: nn.Module = toys.network(kind=Net).double()
        if saved is not None:
            model.load_state_dict(saved["model"])
        task = prunus.Task(loss=toys.loss_of, calib=[batch_at(-1)], example=(batch_at(0)[0],))
        budget = None if name == "two of four" else prunus.Budget(0.3)

        def session() -> prunus.Session:
            return prunus.Session(model, RECIPES[name], task, budget, steps=STEPS)

        early = session() if name == "channels" else None
        if way in ("fsdp", "hsdp"):
            shape, names = ((WORLD,), ("shard",)) if way == "fsdp" else ((WORLD, 1), ("copy", "shard"))
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
            for part in (model.first, model.second):
                fully_shard(part, mesh=mesh)
            fully_shard(model, mesh=mesh)
        self.model = nn.parallel.DistributedDataParallel(model) if way == "ddp" else model
        self.session = early or session()
        parameters = dict(model.named_parameters())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        if saved is not None:
            self.session.load_state_dict(saved["session"])
            for n, value in saved["momentum"].items():
                self.optimizer.state[parameters[n]]["momentum_buffer"] = laid_like(value, parameters[n])
        with torch.no_grad():
            model(batch_at(0)[0])  # which leaves the weights of the outermost part gathered (FSDP2)
        self.session.attach(self.optimizer)

    def train(self, last: int) -> Run:
        for step in range(self.session.step, last):
            self.optimizer.zero_grad()
            toys.loss_of(self.model, batch_at(step, self.rank)).backward()
            self.session.clip_grad_norm_(0.5)
            self.optimizer.step()
        return self

    def save(self) -> dict[str, Any]:
        """Whole tensors: what any number of processes can go on from."""
        return {
            "model": {n: whole(p.detach()).clone() for n, p in self.session.parameters.items()},
            "momentum": {n: whole(v).clone() for n, v in self.session.momenta().items()},
            "session": self.session.state_dict() | {"seconds": 0.0},
        }


def work(rank: int, folder: str) -> None:
    """Every case of `WAYS` and `REFUSED`, one after another in one process group."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    here = Path(folder, str(rank))
    here.mkdir()
    for way, name in WAYS:
        run = Run(name, way).train(HALFWAY)
        here.joinpath(f"{way} {name} half").write_bytes(toys.pack(run.save()))
        run.train(STEPS)
        here.joinpath(f"{way} {name}").write_bytes(toys.pack(run.save()))
    for name in ("rigl", "lth"):
        saved = toys.unpack(Path(folder, f"alone {name} half").read_bytes())
        here.joinpath(f"resumed {name}").write_bytes(toys.pack(Run(name, "fsdp", saved).train(STEPS).save()))
    here.joinpath("refused").write_text(json.dumps({case: refused(case) for case in REFUSED}))
    dist.destroy_process_group()


def refused(case: str) -> list[Any]:
    """What making the session said, and whether the model and its optimizer were left as they were."""
    from torch.distributed.fsdp import fully_shard

    model = toys.network(kind=Net).double()
    fully_shard(model)
    before = {n: whole(p.detach()).clone() for n, p in model.named_parameters()}
    budget = prunus.Budget(macs=0.5) if case == "macs" else prunus.Budget(0.3)
    task = prunus.Task(loss=toys.loss_of, calib=[batch_at(-1)], example=(batch_at(0)[0],))
    try:
        prunus.Session(model, REFUSED[case][0](), task, budget, steps=STEPS)
    except SpecError as error:
        return [str(error), toys.same(before, {n: whole(p.detach()) for n, p in model.named_parameters()})]
    return ["no error", False]
