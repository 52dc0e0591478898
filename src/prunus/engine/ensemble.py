"""Several pruned networks that answer as one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.core.groups import Group
from prunus.engine.result import Result


class Ensemble(nn.Module):
    """log of the mean of the members' softmax outputs, classes along the last axis.

    As the softmax of that is that mean, a cross entropy reads it like any network's scores.
    Errors: `SpecError` where a member puts out anything but one tensor.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        outputs = [member(*args, **kwargs) for member in self.members]
        if odd := [type(o).__name__ for o in outputs if not isinstance(o, Tensor)]:
            raise SpecError(f"an ensemble averages class scores, and the network puts out {odd[0]}: wrap it")
        mean: Tensor = torch.stack(outputs).log_softmax(-1).logsumexp(0)
        return mean - torch.log(torch.tensor(float(len(outputs)))).to(mean)


def together(results: Sequence[Result]) -> Result:
    """One result whose model is the ensemble of theirs; names of weights and groups begin with `members.<i>.`."""
    first = results[0]
    return replace(
        first,
        model=Ensemble([r.model for r in results]),
        masks=_named([r.masks for r in results]),
        unit_masks=_named([r.unit_masks for r in results]),
        groups=tuple(_renamed(g, f"members.{i}.") for i, r in enumerate(results) for g in r.groups),
        skipped=_named([r.skipped for r in results]),
        collapsed=tuple(f"members.{i}.{n}" for i, r in enumerate(results) for n in r.collapsed),
        history=[{**h, "member": i} for i, r in enumerate(results) for h in r.history],
        cost={k: sum(r.cost[k] for r in results) for k in first.cost},
    )


def _named(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {f"members.{i}.{n}": value for i, one in enumerate(each) for n, value in one.items()}


def _renamed(group: Group, prefix: str) -> Group:
    members = tuple(replace(m, param=prefix + m.param) for m in group.members)
    return replace(group, name=prefix + group.name, members=members)
