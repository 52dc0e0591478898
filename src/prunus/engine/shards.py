"""Parameters of which every process holds only a part (FSDP2, tensor parallelism): gathered where they are scored.

Scores, masks and allocations see whole tensors, the same on every process; only what is multiplied at every step
(weights, gradients, the optimizer's memory) is cut into the parts that a process holds. Gathering is a collective, so
everything here runs on all processes alike.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from prunus.core.budget import Budget
from prunus.core.errors import Problems, SpecError
from prunus.core.events import Event
from prunus.core.evidence import Evidence, RunningEvidence
from prunus.core.groups import Group
from prunus.core.recipe import Recipe


def sharded(t: Tensor) -> bool:
    """Whether a process holds only a part of this tensor."""
    return type(t).__name__ == "DTensor"


def whole(t: Tensor) -> Tensor:
    """The whole tensor, gathered where it is sharded; itself where it is not."""
    found: Tensor = t.detach().full_tensor() if sharded(t) else t  # type: ignore[attr-defined]
    return found


def local(t: Tensor) -> Tensor:
    """The part of a tensor that lies here, sharing its memory; itself where it is not sharded."""
    found: Tensor = t.detach().to_local() if sharded(t) else t  # type: ignore[attr-defined]
    return found


def laid_like(t: Tensor, like: Any) -> Tensor:
    """A whole tensor, the same on all processes, sharded as `like` is. Nothing is sent."""
    if not sharded(like):
        return t
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    copies = DTensor.from_local(t.expand(like.shape), mesh, [Replicate()] * mesh.ndim, run_check=False)
    return copies.redistribute(placements=like.placements)


def part(t: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor that lies over `like`, what falls on the part of `like` that lies here."""
    return local(laid_like(t, like)) if sharded(like) else t


class Whole(Mapping[str, nn.Parameter]):
    """Parameters by name, all gathered when the first is asked for: whoever reads them may do so in any order."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = parameters
        self.found: dict[str, nn.Parameter] = {}

    def __getitem__(self, name: str) -> nn.Parameter:
        if not self.found:
            self.found = {n: nn.Parameter(whole(p), p.requires_grad) for n, p in self.parameters.items()}
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)


def gathered(parameters: Mapping[str, Any], groups: Iterable[Group]) -> Mapping[str, Any]:
    """Parameters by name as scoring may see them: those that groups touch are gathered, where any is sharded."""
    if not any(map(sharded, parameters.values())):
        return parameters
    touched = {m.param for g in groups for m in g.members}
    return Whole({n: p for n, p in parameters.items() if n in touched})


def resharded(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's parameters by name, those that a forward has left gathered (FSDP2) given back."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise SpecError(
                "FullyShardedDataParallel lays all weights end to end, where no mask fits: shard with "
                "torch.distributed.fsdp.fully_shard(model) instead, or train with DistributedDataParallel"
            )
        if fsdp is not None and isinstance(module, getattr(fsdp, "FSDPModule", ())):
            module.reshard()  # type: ignore[operator]
    return dict(model.named_parameters())


def refuse_sharded(recipe: Recipe, events: Iterable[Event], parameters: Mapping[str, Tensor]) -> None:
    """Refuse recipes that run the model at an event, or put something into it, where weights are sharded.

    Errors: `SpecError` naming every part and why.
    """
    bad = [n for n, p in parameters.items() if sharded(p)]
    if not bad:
        return
    problems = Problems(
        f"{recipe.name!r} cannot run on weights that are sharded over processes ({bad[0]!r} is): prune before "
        f"fully_shard(model), or train with DistributedDataParallel"
    )
    for slot in ("gate", "reconstruct", "recover"):
        if (inside := getattr(recipe, slot)) is not None:
            problems.add(f"{type(inside).__name__} ({slot}) works inside the model, which holds no whole weight")
    first = [e.regrow > 0 or e.grow for e in events if e.step == 0]
    scored = first.count(False) - (recipe.start is not None)
    for slot in ("criterion", "start", "grow", "redistribute", "allocate", "penalty", "prox"):
        asking = getattr(recipe, slot)
        for evidence in () if asking is None else asking.asks().values():
            early = any(first) if slot in ("grow", "redistribute") else slot != "criterion" or scored > 0 or any(first)
            if why := _runs(slot, evidence, early=bool(first) and early):
                problems.add(f"{type(asking).__name__} ({slot}) asks for {type(evidence).__name__}: {why}")
    problems.raise_if_any(SpecError)


def _runs(slot: str, evidence: Evidence, *, early: bool) -> str:
    """Why evidence would have to run the model; nothing where it need not. `early`: it is asked for before step 1."""
    if evidence.passes == "none" or (isinstance(evidence, RunningEvidence) and slot in ("penalty", "prox")):
        return ""
    if isinstance(evidence, RunningEvidence) or (evidence.in_training and slot in ("grow", "redistribute")):
        return "at step 0 no step was made that it could be gathered from" if early else ""
    return f"it runs the model outside of training ({evidence.passes})"


def refuse_tracing(recipe: Recipe, budget: Budget, parameters: Mapping[str, Tensor]) -> None:
    """Refuse what a session would have to run the model for when it is made, where weights are sharded.

    Errors: `SpecError` that says to make the session first.
    """
    what = [type(recipe.granularity).__name__] if recipe.granularity.structure == "structured" else []
    what += [] if recipe.prepare is None else [type(recipe.prepare).__name__]
    what += [f"a budget in {budget.currency}"] if budget.currency in ("macs", "latency") else []
    if what and any(map(sharded, parameters.values())):
        raise SpecError(
            f"{', '.join(what)} needs a run of the whole model, and this one is sharded over processes: make the "
            f"session before fully_shard(model), and attach it to the optimizer afterwards"
        )
