"""Single weights."""

import fnmatch
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

from torch import nn
from torch.nn.modules.conv import _ConvNd

from prunus.core.groups import Group, Member
from prunus.core.part import Granularity, Reduce


@dataclass(frozen=True)
class Element(Granularity):
    """Every weight of every linear map and convolution on its own.

    Prunable are the weights of linear layers and convolutions, and whatever else has two axes longer than one and is
    named `weight`, `*_weight`, `weight_*` or `*proj*` (recurrent, fused-attention and fused-expert weights) and is no
    embedding table; biases, normalizations,
    tables and tokens are not (neither are they in SNIP's re-implementations, GraSP or SynFlow; SNIP's first code also
    pruned biases). A tied weight is one weight. The unit space is `[out, everything else]`, except for stacked 3-D
    expert tensors, whose rows are `[experts * out]`.

    Attributes:
        exclude: parameter or module names, with shell wildcards, that stay dense.
        skip_last: leave the last weight (the classifier) dense.
    """

    exclude: tuple[str, ...] = ()
    skip_last: bool = False
    structure: ClassVar[Literal["unstructured", "semi-structured", "structured"]] = "unstructured"
    reduce: Reduce = "sum"

    def __call__(self, model: nn.Module, example: object = None) -> tuple[Group, ...]:
        found: list[Group] = []
        for name, p in matrices(model, self.exclude, skip_last=self.skip_last):
            columns = p.shape[2] if is_stack(name, p) else prod(p.shape[1:])
            shape = (p.numel() // columns, columns)
            found.append(Group(name, shape, (Member(name),), weight=tuple(p.shape), kind="weight"))
        return tuple(found)


def matrices(model: nn.Module, exclude: tuple[str, ...], *, skip_last: bool) -> list[tuple[str, nn.Parameter]]:
    """The prunable weights of a model, by name, in the order in which it declares them; see `Element`."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    maps = {id(m._parameters.get("weight")) for m in model.modules() if isinstance(m, nn.Linear | _ConvNd)}
    found: list[tuple[str, nn.Parameter]] = []
    for name, p in model.named_parameters():
        if id(p) in tables or not p.is_floating_point() or not p.numel():
            continue
        if id(p) not in maps and not _is_matrix(name, tuple(p.shape)):
            continue
        if any(fnmatch.fnmatch(name, e) or fnmatch.fnmatch(name.rpartition(".")[0], e) for e in exclude):
            continue
        found.append((name, p))
    return found[:-1] if skip_last else found


def is_stack(name: str, p: nn.Parameter) -> bool:
    """Whether a parameter is a stack of matrices, one per expert."""
    return p.ndim == 3 and "weight" not in name.rpartition(".")[2]


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    own = name.rpartition(".")[2]
    named = own == "weight" or own.endswith("_weight") or own.startswith("weight_") or "proj" in own
    if not named or own.endswith("bias"):  # experts have a matrix of biases
        return False
    # A vector in disguise ([C, 1, 1] layer scales) has one long axis; a depthwise kernel [C, 1, k, k] has several.
    return len(shape) == 2 or (len(shape) > 2 and sum(n > 1 for n in shape) >= 2)
