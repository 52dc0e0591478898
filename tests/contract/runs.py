"""Cached runs: one prune, and one training run, per recipe and network; the checks all look at these."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import prunus
from prunus import Event, Recipe, Result
from prunus.core.gate import Gate
from prunus.core.part import Granularity
from prunus.parts.gate import Arm, HardConcrete
from prunus.parts.schedule import Iterative
from tests.contract.models import CASES, Case
from tests.shapes import shapes

NAMES = prunus.methods.names()
SPARSITY = 0.6
STEPS = 24
HYPER = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}

# Evidence that a network has not: no normalization goes with any channel of it, and the recipe has to say so.
NO_NORM = ("network_slimming", "chex", "morphnet", "morphnet_size", "peel", "early_bird")
NOTHING_TO_READ = {(recipe, name) for recipe in NO_NORM for name in ("mlp", "vit", "decoder", "moe")}
NOTHING_TO_READ |= {("synaptic_strength", name) for name in ("mlp", "vit", "decoder", "moe")}
# Kernels of 3x3 are what these are about, and a network without any is refused.
NO_KERNELS = {
    (recipe, name)
    for recipe in ("krp", "pattern_library", "pattern_library_admm", "pconv", "pconv_admm")
    for name in ("mlp", "vit", "decoder", "moe")
}

NOTHING_TO_READ |= {("fsm", name) for name in ("mlp", "vit", "decoder", "moe")}
# Two-dimensional convolutions that read maps; units that a network has not.
NOTHING_TO_READ |= {("gate_decorator", name) for name in ("mlp", "vit", "decoder", "moe")}
NOTHING_TO_READ |= {("hrank", name) for name in ("mlp", "vit", "decoder", "moe")}
# Structures that a network has not, or (blocks) too few of: of one block three fifths are none. Deeper networks are
# pruned in the oracles.
NO_UNITS = {"Head": ("mlp", "cnn"), "Width": ("mlp", "cnn"), "Block": tuple(CASES), "Branch": tuple(CASES)}
NO_UNITS["Expert"] = tuple(CASES)  # of three experts two are chosen at once
NO_UNITS["Head, Branch"] = NO_UNITS["Head"]


def units_of(granularity: Granularity) -> str:
    """The name of a granularity, or of those inside of it."""
    inside = getattr(granularity, "of", granularity)
    return ", ".join(type(g).__name__ for g in (inside if isinstance(inside, tuple) else (inside,)))


NO_STRUCTURE = {(r, m) for r in NAMES for m in NO_UNITS.get(units_of(prunus.methods.get(r).granularity), ())}

PAIRS = [(r, m) for r in NAMES for m in CASES if (r, m) not in NOTHING_TO_READ | NO_KERNELS | NO_STRUCTURE]
STRUCTURED = [(r, m) for r, m in PAIRS if prunus.methods.get(r).structure == "structured"]


def recipe(name: str) -> Recipe:
    """The published recipe, with the hundred rounds of iterative ones cut to eight to save time."""
    found = prunus.methods.get(name)
    rounds = 2 if name in ("bonsai", "car") else 8  # which run the network hundreds of times in every round
    if name == "bonsai":
        found = replace(found, criterion=replace(found.criterion, samples=16))
    return (
        replace(found, schedule=replace(found.schedule, rounds=rounds))
        if isinstance(found.schedule, Iterative)
        else found
    )


def asked(found: Recipe, sparsity: float = SPARSITY) -> dict[str, Any]:
    """The budget: patterns of one density bring their own."""
    return {} if fixed(found) else {"sparsity": sparsity}


def fixed(found: Recipe) -> bool:
    """Whether the allocation has one density only."""
    return getattr(found.allocate, "density", None) is not None


def revives(events: tuple[Event, ...]) -> bool:
    return any(e.revive or e.regrow for e in events)


def rewrites(found: Recipe) -> bool:
    """Whether kept weights may take other values even without training: by a recovery, or in a gate that binarizes or
    begins with a probability.
    """
    gate = found.gate is not None and type(found.gate).weight is not Gate.weight
    gate = gate or isinstance(found.gate, HardConcrete | Arm)
    return gate or found.recover is not None or found.reconstruct is not None


def random_parts(found: Recipe) -> bool:
    """Whether masks may depend on the seed where nothing is trained (and so nothing regrown)."""
    parts = [p for p in (found.criterion, found.start, found.allocate, found.gate) if p is not None]
    return any(e.random for p in parts for e in p.asks().values())


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that small networks at high sparsity are bound to cause."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pruned(found: Recipe, case: Case, task: prunus.Task | None = None, **changes: Any) -> Result:
    """One prune without training."""
    dtype = changes.pop("dtype", torch.float64)
    model = changes.pop("model", None) or case.model(dtype)
    with quiet():
        return prunus.prune(model, task or case.task(dtype), found, **(asked(found) | changes))


def dense(name: str, case: Case, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network as the recipe finds it: with its modules written anew, where it does that first."""
    return ready(recipe(name), case.model(dtype), case)


def ready(found: Recipe, model: nn.Module, case: Case) -> nn.Module:
    """The same network, prepared in place if the recipe prepares: an optimizer must hold what will be pruned."""
    if found.prepare is not None:
        task = case.task(next(model.parameters()).dtype)
        found.prepare(model, task.example, task)
    return model


@cache
def one_shot(name: str, network: str) -> Result:
    """The recipe's events all at once. Shared between checks: look, do not touch."""
    with shapes(True):
        return pruned(recipe(name), CASES[network])


@dataclass
class Trained:
    """What was seen in a training run with a session attached."""

    session: prunus.Session
    masks: list[dict[str, Tensor]]  # unit masks after attaching, and after every step
    escaped: list[int]  # pruned entries that were not zero, likewise
    holding: list[bool]
    marking: bool = False
    gone: dict[str, Tensor] = field(default_factory=dict)  # the entries that are pruned now


@cache
def trained(name: str, network: str, optimizer: str = "sgd") -> Trained:
    """The recipe laid over a short training run."""
    case = CASES[network]
    found, model = recipe(name), training_model(case)
    with quiet(), shapes(optimizer == "sgd"):
        session = prunus.Session(model, found, case.task(), **asked(found), steps=STEPS)
        opt = make_optimizer(optimizer, model)
        run = Trained(session, [], [], [])
        session.attach(opt)
        note(run)
        for step in range(STEPS):
            train_step(case, model, opt, step)
            note(run)
        session.detach()
    return run


def training_model(case: Case) -> nn.Module:
    """Without dropout, whose draws from the global generator are the training loop's to save, not ours."""
    model = case.model()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def train_step(case: Case, model: nn.Module, opt: torch.optim.Optimizer, step: int) -> None:
    batches = training_batches(case.name)
    opt.zero_grad(set_to_none=True)
    case.loss(model, batches[step % len(batches)]).backward()
    opt.step()


@cache
def training_batches(network: str) -> list[Any]:
    return CASES[network].batches(4)


def make_optimizer(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), **HYPER),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1),
    }
    return makers[kind]()


def note(run: Trained) -> None:
    session = run.session
    run.masks.append({n: m.clone() for n, m in session.masks.items()})
    run.holding.append(session.holding)
    named = dict(session.model.named_parameters())
    # Laid out entry by entry, which takes longer than a step.
    if len(run.masks) == 1 or not same(*run.masks[-2:]) or run.marking != session.marking:
        run.marking = session.marking
        run.gone = {n: ~m for n, m in parameter_masks_of(session).items()}
    run.escaped.append(sum(int(named[n][m].count_nonzero()) for n, m in run.gone.items()))


def parameter_masks_of(session: prunus.Session) -> dict[str, Tensor]:
    """Which entries the unit masks take away, worked out member by member."""
    named = dict(session.model.named_parameters())
    out: dict[str, Tensor] = {}
    for group in session.groups:
        lying = session.laid if session.marking else session.masks  # what is only marked lies nowhere
        keep = lying.get(group.name, torch.ones(group.shape, dtype=torch.bool))
        gone = (~keep).reshape(-1).nonzero().squeeze(1).tolist()
        for member in group.members:
            if member.buffer:
                continue
            mask = out.setdefault(member.param, torch.ones(named[member.param].shape, dtype=torch.bool))
            if member.tile is not None:
                counts = [n // t for n, t in zip(mask.shape, member.tile, strict=True)]
                for unit in gone:
                    first = [int(i) * t for i, t in zip(np.unravel_index(unit, counts), member.tile, strict=True)]
                    mask[tuple(slice(i, i + t) for i, t in zip(first, member.tile, strict=True))] = False
            elif member.dim is None:
                mask.view(-1)[gone] = False
            else:
                positions = member.positions(group.units)
                for unit in gone:
                    mask.index_fill_(member.dim, positions[unit], False)
    return out


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)


def state(model: nn.Module) -> dict[str, Any]:
    """All that a recipe might leave behind in a model, as values that compare."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_buffers", "_modules")
    return {
        "state": copy.deepcopy(model.state_dict()),
        "training": {n: m.training for n, m in model.named_modules()},
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "grad": {n: None if p.grad is None else (id(p.grad), p.grad.clone()) for n, p in model.named_parameters()},
        "identity": {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)},
        "hooks": {(n, k): list(getattr(m, k)) for n, m in model.named_modules() for k in kinds},
        "parameters": {n: (type(p), p._backward_hooks) for n, p in model.named_parameters()},
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
    }


def difference(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The keys of `state` under which two differ."""
    return [k for k in a if not _equal(a[k], b[k])]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def disturbed(case: Case) -> nn.Module:
    """A model whose flags, modes and gradients are not the defaults."""
    model = case.model()
    case.loss(model.eval(), case.batches(1)[0]).backward()  # in evaluation mode: the statistics stay as they are
    for i, module in enumerate(model.modules()):
        module.training = i % 2 == 0
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 3 != 1)
        if i % 4 == 2:
            p.grad = None
    return model


def rng() -> tuple[bytes, bytes]:
    """The global generators, to compare before and after. (Python's own is drawn from by the type checker of the
    tests.)
    """
    return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes()  # noqa: NPY002
