"""Products that are not computed: where numbers do not matter, and where they do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.graph import structure
from prunus.graph.flow import Flow
from prunus.graph.hollow import _SHAPES, Dependent, Hollow
from tests.graph.constructs import CASES
from tests.graph.nets import Case


class Two(nn.Module):
    """What is between two layers decides."""

    def __init__(self, between: Callable[["Two", Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(6, 8), nn.Linear(8, 3), between
        self.register_buffer("seen", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.a(x)))


def run(model: nn.Module, x: Tensor) -> Tensor:
    flow = Flow(model, hollow=Hollow(model))
    with torch.no_grad(), flow, structure.Watch(flow):
        out: Tensor = model(x)
    return out


FREE: dict[str, Callable[[Two, Tensor], Tensor]] = {
    "activation": lambda _, h: h.relu(),
    "its shape": lambda _, h: h * h.shape[0],
    "a mask of its shape": lambda _, h: h.masked_fill(h.new_zeros(h.shape) == 0, 2.0),
    "comparison that nobody reads": lambda _, h: ((h > 0), h)[1],
    "pooling with indices": lambda _, h: F.max_pool2d(h[None, None], 1)[0, 0],
}
BOUND: dict[str, Callable[[Two, Tensor], Tensor]] = {
    "if": lambda _, h: h if h.sum() > 1e9 else h.relu(),
    "item": lambda _, h: h * h.max().item(),
    "where": lambda _, h: torch.where(h > 0, h, -h),
    "topk": lambda _, h: h * h.gather(1, h.topk(2).indices).sum(),
    "nonzero": lambda _, h: h * h.nonzero().shape[0],
    "equal": lambda _, h: h if torch.equal(h, h + 1) else -h,
    "boolean index": lambda _, h: h + h[h > 0].sum(),
    "tolist": lambda _, h: h * float(h.tolist()[0][0]),
    "numpy": lambda _, h: h * float(h.numpy()[0, 0]),
    "written into a buffer": lambda s, h: s.seen.copy_(h[0]) * h,
}


@pytest.mark.parametrize("name", FREE)
def test_numbers_do_not_matter(name: str) -> None:
    model, x = Two(FREE[name]), torch.randn(2, 6)
    assert not run(model, x).any()


@pytest.mark.parametrize("name", BOUND)
def test_given_up_where_they_do(name: str) -> None:
    model, x = Two(BOUND[name]), torch.randn(2, 6)
    with pytest.raises(Dependent):
        run(model, x)
    assert bool((model.seen == 1).all())
    structure.trace(model, x)


@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: case.name)
def test_the_same_structure(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups, reasons and counts of a hollow run are those of a full one."""
    torch.manual_seed(0)
    model, x = case.build().eval(), case.example()
    hollow = structure.trace(model, x, probe=False)
    monkeypatch.setattr(structure, "Hollow", lambda model: None)
    full = structure.trace(model, x, probe=False)
    assert hollow.macs == full.macs and hollow.fixed_macs == full.fixed_macs
    assert hollow.frozen == full.frozen and hollow.links == full.links
    assert [(g.name, g.units, g.kind) for g in hollow.groups] == [(g.name, g.units, g.kind) for g in full.groups]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_shapes_of_convolutions(dims: int, transposed: bool) -> None:
    x, weight = torch.randn(2, 6, *(9, 10, 11)[:dims]), torch.randn(6, 3, *(3, 2, 4)[:dims])
    strides: list[int] = [2, 1, 3]
    for args in (
        (strides[:dims], [1, 0, 2][:dims], [1, 2, 1][:dims], transposed, [0] * dims, 2),
        ([2], [1], [1], transposed, [1 if transposed else 0], 2),
    ):
        found = torch.ops.aten.convolution(x, weight, None, *args)
        assert _SHAPES["convolution"](x, weight, None, *args) == tuple(found.shape)
