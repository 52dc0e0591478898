"""Whole blocks and single branches of the networks: what of their depth can be removed."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import DataError, StructureError, VerificationError
from prunus.graph import Blocks, Edit, blocks, branches, compact, masked_, replay_, verify
from prunus.graph.running import computed, mapped
from prunus.graph.verify import outputs
from tests.graph.networks import page
from tests.graph.networks.entry import Network
from tests.graph.networks.judge import OUTCOMES, line, spent, trained
from tests.graph.networks.kind import Kind, Outcome
from tests.graph.proof import disturb, tolerance


@dataclass
class DepthVerdict(Outcome):
    """What came of one network.

    Attributes:
        units: how many blocks and how many branches can be removed.
        gone: the share of the parameters that is gone with half of the blocks, and with half of the branches.
        example: one reason why something cannot be removed.
    """

    units: dict[str, int] = field(default_factory=dict)
    gone: dict[str, float] = field(default_factory=dict)
    example: str = ""

    @property
    def kinds(self) -> dict[str, int]:
        """What the runner prints."""
        return self.units

    @property
    def removed(self) -> float:
        """The larger of the two shares."""
        return max(self.gone.values(), default=0.0)


def judge(network: Network) -> DepthVerdict:
    """Remove half of the blocks, and half of the branches of a second copy, at random."""
    start = time.process_time()
    torch.manual_seed(0)
    model = disturb(network.build()).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    example = network.example()
    verdict = DepthVerdict("unchanged")
    for kind, find in (("block", blocks), ("branch", branches)):
        try:
            found = find(model, example)
            problem = removed(model, found, example, network, verdict, kind) if found.groups else ""
        except (VerificationError, AssertionError) as error:
            return DepthVerdict("wrong", f"{kind}: {line(error)}", spent(start))
        except (StructureError, DataError) as error:
            return DepthVerdict("crash", f"{kind}: {line(error)}", spent(start))
        if problem:
            return DepthVerdict("crash", f"{kind}: {problem}", spent(start))
        for name, why in found.refused.items() if not verdict.example else ():
            verdict.example = f"{kind} {name}: {why}"[:300]
    verdict.outcome = "equal" if verdict.units else "unchanged"
    verdict.seconds = spent(start)
    return verdict


def removed(model: nn.Module, found: Blocks, example: Any, network: Network, verdict: DepthVerdict, kind: str) -> str:
    """Remove half of them: equal on the example, on noise, on another batch and on other sizes; replayed; trained."""
    masks = half(found)
    small, edits = compact(model, found.groups, masks, example)
    masked, tol = masked_(copy.deepcopy(model, computed(model)), found.groups, masks), tolerance(model, example)
    twice = mapped(example, lambda t: torch.cat([t, t]) if t.dim() else t)
    for other in (twice, *([network.other()] if network.other is not None else [])):
        if runs(model, other):
            verify(masked, small, other, tol)
    plain = json.loads(json.dumps([edit.to_dict() for edit in edits]))
    fresh = replay_(network.build(), [Edit.from_dict(edit) for edit in plain]).eval()
    fresh.load_state_dict(small.state_dict())
    verify(small, fresh, example, tol)
    verdict.units[kind] = sum(group.units for group in found.groups)
    left, before = (sum(p.numel() for p in m.parameters()) for m in (small, model))
    verdict.gone[kind] = round(1 - left / before, 3)
    return trained(small, example)


def runs(model: nn.Module, inputs: Any) -> bool:
    try:
        outputs(model, inputs)
    except DataError:
        return False
    return True


def half(found: Blocks) -> dict[str, Tensor]:
    """Masks that take half of every group away, at random, and never too many."""
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for group in found.groups:
        count = max(1, min((group.units + 1) // 2, group.units - group.at_least))
        keep = torch.ones(group.units, dtype=torch.bool)
        keep[torch.randperm(group.units, generator=generator)[:count]] = False
        masks[group.name] = keep
    return masks


def asked(networks: Sequence[Network]) -> list[Network]:
    """All that are small and every third of the others."""
    large = [n for n in networks if n.family in ("timm", "torchvision")]
    return [n for n in networks if n not in large] + large[::3]


OPENING = """\
## Depth

Half of what `Block` finds is removed at random from a network, and from a second copy half of what `Branch` finds. The
compact model must compute what the masked one computes, on the example, on noise, on a batch of twice the size and on
inputs of another size where the network takes them; the edits must lead there from a fresh instance; one training step
must run. `python -m tests.graph.sweep --depth` repeats it.
"""


def section(networks: Sequence[Network], results: Mapping[str, DepthVerdict]) -> str:
    """The counts, and one row for each network that was tried."""
    rows, summary = [], []
    for family in dict.fromkeys(network.family for network in networks):
        own = [n for n in asked(networks) if n.family == family]
        found = [results[n.name] for n in own if n.name in results]
        names = ("equal", "unchanged", "wrong", "crash", "timeout", "too large")
        counts = [str(sum(v.outcome == name for v in found)) for name in names]
        kinds = [str(sum(kind in v.units for v in found)) for kind in ("block", "branch")]
        if own:
            summary.append([page.TITLES[family], str(len(own)), *counts, str(len(own) - len(found)), *kinds])
        for network in (n for n in own if n.name in results):
            verdict = results[network.name]
            cells = [amount(verdict, kind) for kind in ("block", "branch")]
            remark = verdict.reason or ("" if verdict.units else verdict.example)
            rows.append([f"`{network.name}`", verdict.outcome, *cells, page.escaped(remark)])
    head = ["part of the list", "tried", "equal", "nothing to remove", "wrong", "crash", "timeout", "too large"]
    first = page.table([*head, "not run", "with blocks", "with branches"], summary)
    second = page.table(["network", "outcome", "blocks", "branches", "remark"], rows)
    return f"{OPENING}\n{first}\n\n{second}\n"


def amount(verdict: DepthVerdict, kind: str) -> str:
    return f"{verdict.units[kind]} ({verdict.gone[kind]:.0%} gone)" if kind in verdict.units else ""


KIND = Kind(
    help="remove whole blocks and single branches",
    judge=judge,
    verdict=DepthVerdict,
    results=Path(__file__).parent / "results_depth.json",
    asked=asked,
    section=section,
    outcomes=OUTCOMES,
)
