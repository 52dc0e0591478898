"""What is asked of one network of the list: equal or refused, the counts as predicted, and that it goes on training."""

from __future__ import annotations

import copy
import time
from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import DataError, StructureError, VerificationError
from prunus.core.task import as_call
from prunus.graph import Structure, compact, experts, masked_, trace, verify
from prunus.graph.flow import tensors_in
from prunus.graph.mixture.group import turns
from prunus.graph.running import computed
from prunus.graph.verify import reference
from tests.graph.networks.entry import Network
from tests.graph.networks.kind import Outcome
from tests.graph.proof import TIGHT, prove, some, tolerance, unrounded

FRACTION = 0.5
"""The share of the units of every group that is removed, at random."""

OUTCOMES = ("equal", "unchanged", "wrong", "crash", "timeout", "too large")


@dataclass
class Verdict(Outcome):
    """What came of pruning one network.

    Attributes:
        outcome: `equal`; `unchanged` (nothing can be removed: refused); `wrong` (another output or other counts than
            predicted); `crash`; `timeout`; `too large` for the memory allowed.
        reason: why it is not equal, in one line; for an equal one, the commonest reason for what stays whole.
        kinds: how many groups of which kind. Experts are removed by themselves; parameters and multiply-accumulates
            are those without the other units.
        units: how many units of which kind they have together.
        params: parameters before and after.
        macs: multiply-accumulates of one sample before and after, as measured.
        promised: those after as the groups predict them. Where a product has a prunable axis among its rows (attention,
            networks that mix tokens by a linear layer) fewer are measured; never more.
        frozen: how many producing weights stay whole, of how many there are.
        seconds: CPU time of trace, compaction, proof and training step.
    """

    kinds: dict[str, int] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    params: tuple[int, int] = (0, 0)
    macs: tuple[int, int] = (0, 0)
    promised: int = 0
    frozen: tuple[int, int] = (0, 0)

    @property
    def removed(self) -> float:
        """The share of the parameters that is gone."""
        return 1 - self.params[1] / self.params[0] if self.params[0] else 0.0


def judge(network: Network) -> Verdict:
    """Everything that the list claims of one network. Costs a few runs in float64 and one training step."""
    start = time.process_time()
    torch.manual_seed(0)
    model = network.build().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    before = sum(p.numel() for p in model.parameters())
    example = network.example()
    try:
        structure, small = prove(model, example, FRACTION)
    except (VerificationError, AssertionError) as error:
        return Verdict("wrong", line(error), seconds=spent(start))
    except (StructureError, DataError) as error:
        # Of the example a refusal says nothing: the network must be refused as it stands, with its reason.
        return Verdict("unchanged" if isinstance(error, StructureError) else "crash", line(error), seconds=spent(start))
    if network.other is not None and (problem := elsewhere(model, structure, small, network.other())):
        return Verdict("wrong", problem, seconds=spent(start))
    verdict = Verdict("equal", commonest(structure))
    verdict.kinds = dict(sorted(Counter(g.kind for g in structure.groups).items()))
    for group in structure.groups:
        verdict.units[group.kind] = verdict.units.get(group.kind, 0) + group.units
    verdict.params = before, sum(p.numel() for p in small.parameters())
    producing = {m.param for g in structure.groups for m in g.with_role("out")} | set(structure.frozen)
    verdict.frozen = len(structure.frozen), len(producing)
    if "expert" in network.prunes and (problem := without_experts(model, network, example, verdict)):
        return Verdict("wrong", problem, seconds=spent(start))
    if not structure.groups:
        verdict.outcome = "unchanged"
    elif problem := counted(model, structure, small, example, verdict) or trained(small, example):
        verdict.outcome, verdict.reason = ("wrong" if problem.startswith("count") else "crash"), problem
    verdict.seconds = spent(start)
    return verdict


def elsewhere(model: nn.Module, structure: Structure, small: nn.Module, example: Any) -> str:
    """What is wrong with the compact model on inputs that it was not traced with; empty where all is equal."""
    masks = some(structure, FRACTION)
    masked, tol = masked_(copy.deepcopy(model, computed(model)), structure.groups, masks), tolerance(model, example)
    exact = unrounded(model, structure, masks, small) if tol == TIGHT else small
    try:
        verify(masked, exact, example, tol)
    except (VerificationError, StructureError) as error:
        return f"on inputs of another size: {line(error)}"
    return ""


def without_experts(model: nn.Module, network: Network, example: Any, verdict: Verdict) -> str:
    """What is wrong with the model without half of the experts of every router; empty where all is equal."""
    groups = experts(model, example).groups
    for group in groups:
        verdict.kinds["expert"] = verdict.kinds.get("expert", 0) + 1
        verdict.units["expert"] = verdict.units.get("expert", 0) + group.units
    kept = {g.name: max(g.at_least, round((1 - FRACTION) * g.units / g.parts) * g.parts) for g in groups}
    masks = {g.name: turns(g, kept[g.name], torch.Generator().manual_seed(1))[0] for g in groups}
    masked = reference(masked_(copy.deepcopy(model, computed(model)), groups, masks), groups, masks)
    try:
        small, _ = compact(model, groups, masks, verify=False)
        for inputs in (example, *(() if network.other is None else (network.other(),))):
            verify(masked, small, inputs)
    except (VerificationError, StructureError, DataError) as error:
        return f"without experts: {line(error)}"
    return f"without experts: {problem}" if groups and (problem := trained(small, example)) else ""


def spent(start: float) -> float:
    return round(time.process_time() - start, 1)


def line(error: BaseException) -> str:
    """An exception in one line of bounded length."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 400 else text[:397] + "..."


def commonest(structure: Structure) -> str:
    """The reason that keeps most weights whole; that it is an output of the model only where there is no other."""
    reasons = Counter(structure.frozen.values())
    expected = reasons.pop("an output of the model", 0)
    if reasons:
        reason, times = reasons.most_common(1)[0]
        return " ".join(f"{reason} ({times} of {len(structure.frozen)} frozen)".split())[:300]
    return "an output of the model" if expected else ""


def predicted(model: nn.Module, structure: Structure) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter when the units are gone, from the groups alone."""
    masks = some(structure, FRACTION)
    shapes = {name: list(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    for group in structure.groups:
        keep = masks[group.name]
        for member in group.members:
            for name in structure.aliases[member.param] if member.param in shapes else ():
                assert member.dim is not None
                gone = member.positions(group.units)[~keep]
                shapes[name][member.dim] -= gone.numel()
    return {name: tuple(shape) for name, shape in shapes.items()}


def counted(model: nn.Module, structure: Structure, small: nn.Module, example: Any, verdict: Verdict) -> str:
    """What is wrong with the counts of the compact model: parameters and multiply-accumulates, to the unit."""
    shapes = predicted(model, structure)
    found = {name: tuple(p.shape) for name, p in small.named_parameters(remove_duplicate=False)}
    off = [name for name, shape in found.items() if shapes[name] != shape]
    if off:
        return f"count: {off[0]} has shape {found[off[0]]}, predicted {shapes[off[0]]} ({len(off)} such)"
    again = trace(small, example, probe=False)
    old = dict(model.named_parameters(remove_duplicate=False))
    promised = {n: macs * prod(found[n]) // prod(old[n].shape) for n, macs in structure.macs.items() if n in old}
    verdict.macs = sum(structure.macs.values()) + structure.fixed_macs, sum(again.macs.values()) + again.fixed_macs
    verdict.promised = sum(promised.values()) + structure.fixed_macs
    over = [name for name, macs in promised.items() if again.macs.get(name, 0) > macs]
    if over:
        return f"count: {over[0]} does {again.macs[over[0]]} multiply-accumulates, predicted {promised[over[0]]}"
    return ""


def trained(small: nn.Module, example: Any) -> str:
    """What goes wrong in one step of training of the compact model, on the sum of the squares of all its outputs."""
    args, kwargs = as_call(example)
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-6)
    try:
        outputs = [t for t in tensors_in(small.train()(*args, **kwargs)) if t.requires_grad]
        loss: Tensor = sum((t.float().square().mean() for t in outputs), torch.zeros(()))
        torch.autograd.backward(loss)
        optimizer.step()
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return f"training: {line(error)}"
    finally:
        small.eval()
    gradients = {name: p.grad for name, p in small.named_parameters() if p.grad is not None}
    if not gradients:
        return "training: no gradient reaches a parameter"
    bad = [name for name, g in gradients.items() if not bool(g.isfinite().all())]
    shape = [name for name, p in small.named_parameters() if p.grad is not None and p.grad.shape != p.shape]
    return f"training: the gradient of {(bad + shape)[0]} is not finite" if bad or shape else ""
