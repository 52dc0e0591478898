"""Compaction, its record and its proof."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.core.errors import SpecError, StructureError, VerificationError
from prunus.core.groups import Group, Member
from prunus.graph import Edit, compact, masked_, replay_, trace, verify
from tests.graph.constructs import CASES
from tests.graph.nets import Case, Net, conv, head, image
from tests.graph.proof import disturb, some


def residual() -> Net:
    return Net(
        lambda s, x: head(s, (y := s.n(s.a(x))) + s.c(F.relu(s.b(y)))),
        a=conv(3, 8), n=nn.BatchNorm2d(8), b=conv(8, 6), c=conv(6, 8), fc=nn.Linear(8, 4),
    )  # fmt: skip


def keep(*kept: int, of: int) -> Tensor:
    mask = torch.zeros(of, dtype=torch.bool)
    mask[list(kept)] = True
    return mask


def test_shapes_values_and_attributes() -> None:
    net = residual()
    structure = trace(net, image()())
    masks = {"a": keep(0, 1, 5, of=8), "b": keep(2, 3, 4, 5, of=6)}
    before = {k: v.clone() for k, v in net.state_dict().items()}
    small, edits = compact(net, structure.groups, masks, image()())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(small.a.weight, net.a.weight[[0, 1, 5]])
    assert torch.equal(small.b.weight, net.b.weight[2:][:, [0, 1, 5]])
    assert torch.equal(small.n.running_var, net.n.running_var[[0, 1, 5]])
    assert (small.a.in_channels, small.a.out_channels, small.b.in_channels, small.b.out_channels) == (3, 3, 3, 4)
    assert (small.n.num_features, small.fc.in_features, small.fc.out_features) == (3, 3, 4)
    sliced = {(e.target, e.dim): e.keep for e in edits if e.dim is not None}
    assert sliced["a.weight", 0] == ((0, 2), (5, 6)) and sliced["b.weight", 0] == ((2, 6),)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_edits_survive_json_and_replay(case: Case) -> None:
    model, example = disturb(case.build()).eval(), case.example()
    structure = trace(model, example)
    small, edits = compact(model, structure.groups, some(structure, 0.4), example)
    plain = json.loads(json.dumps([edit.to_dict() for edit in edits]))
    again = tuple(Edit.from_dict(p) for p in plain)
    fresh = replay_(case.build(), again).eval()
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in small.state_dict().items()}
    fresh.load_state_dict(small.state_dict())
    with torch.no_grad():
        expected, found = small(example), fresh(example)
    # A plain tensor attribute is no part of a state dict: its values are those of the fresh instance.
    if case.name not in ("plain tensor attribute", "spectral norm"):
        torch.testing.assert_close(found, expected)


def test_ties_flags_types_and_devices_are_kept() -> None:
    net = Net(
        lambda s, x: s.c(F.relu(s.h1(F.relu(s.a(x)))) + F.relu(s.h2(F.relu(s.a(x))))),
        a=nn.Linear(8, 6), h1=nn.Linear(6, 10), h2=nn.Linear(6, 10), c=nn.Linear(10, 4),
    ).double()  # fmt: skip
    net.h2.weight = net.h1.weight
    net.a.weight.requires_grad_(False)
    example = torch.randn(3, 8, dtype=torch.float64)
    structure = trace(net, example)
    assert structure.aliases["h1.weight"] == ("h1.weight", "h2.weight")
    small, edits = compact(net, structure.groups, some(structure, 0.5), example)
    fresh = replay_(copy.deepcopy(net), edits)
    for model in (small, fresh):
        assert model.h1.weight is model.h2.weight and tuple(model.h1.weight.shape) == (5, 3)
        assert not model.a.weight.requires_grad and model.c.weight.requires_grad
        assert model.a.weight.dtype == torch.float64
    small.train()(example).sum().backward()
    assert small.h1.weight.grad is not None and small.a.weight.grad is None


def test_integers_that_hold_paddings_are_repaired() -> None:
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = 2, 2

        def forward(self, x: Tensor) -> Tensor:
            return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))

    def forward(s: Any, x: Tensor) -> Tensor:
        y = F.relu(s.a(x))
        return head(s, F.relu(s.s(y) + s.b(y)))

    net = Net(forward, a=conv(3, 8), s=Shortcut(), b=conv(8, 12, stride=2), fc=nn.Linear(12, 4))
    structure = trace(net, image()())
    assert structure.frozen == {"fc.weight": "an output of the model"}
    masks = {g.name: torch.ones(g.units, dtype=torch.bool) for g in structure.groups}
    for group in structure.groups:
        if group.units == 2:
            masks[group.name][0] = False
    small, edits = compact(net, structure.groups, masks, image()())
    assert (small.s.before, small.s.after, small.b.out_channels) == (1, 1, 10)
    fresh = replay_(copy.deepcopy(net), edits)
    assert (fresh.s.before, fresh.s.after) == (1, 1)


def test_the_proof_finds_a_wrong_structure() -> None:
    net = Net(lambda s, x: head(s, s.b(F.relu(s.a(x)))), a=conv(3, 8), b=conv(8, 6), fc=nn.Linear(6, 4))
    groups = trace(net, image()()).groups
    masks = {"a": keep(0, 1, 2, of=8)}
    shifted = Group(
        "a", (8,), (Member("a.weight", 0), Member("a.bias", 0, role="bias"),
                    Member("b.weight", 1, (torch.arange(8) + 1).remainder(8).unsqueeze(1), "in")),
    )  # fmt: skip
    with pytest.raises(VerificationError, match="differs"):
        compact(net, [shifted], masks, image()())
    with pytest.raises(StructureError, match=r"does not run.*in b"):
        compact(net, [Group("a", (8,), groups[0].members[:2])], masks, image()())


def test_verify_measures_differences() -> None:
    net = residual()
    other = copy.deepcopy(net)
    assert verify(net, other, image()()) == 0
    with torch.no_grad():
        other.fc.bias += 1e-6
    with pytest.raises(VerificationError):
        verify(net, other, image()())
    assert 0 < verify(net, other, image()(), tol=1e-3) < 1e-4
    with pytest.raises(VerificationError, match="shapes"):
        verify(net, Net(lambda s, x: s.f(x), f=nn.Flatten()), image()())


def test_masking_touches_parameters_only() -> None:
    net = disturb(residual())
    structure = trace(net, image()())
    masked = masked_(copy.deepcopy(net), structure.groups, {"b": keep(0, 1, 2, of=6)})
    assert torch.equal(masked.a.weight, net.a.weight) and torch.equal(masked.n.running_var, net.n.running_var)
    assert not masked.b.weight[3:].any() and not masked.b.bias[3:].any() and not masked.c.weight[:, 3:].any()
    assert torch.equal(masked.b.weight[:3], net.b.weight[:3]) and torch.equal(
        masked.c.weight[:, :3], net.c.weight[:, :3]
    )


def test_bad_masks_change_nothing() -> None:
    net = residual()
    groups = trace(net, image()()).groups
    with pytest.raises(SpecError, match="belongs to no group"):
        compact(net, groups, {"nothing": keep(0, of=3)})
    with pytest.raises(SpecError, match="not bool"):
        compact(net, groups, {"a": keep(0, of=3)})
    with pytest.raises(SpecError, match="keeps 0 of 8"):
        compact(net, groups, {"a": torch.zeros(8, dtype=torch.bool)})
    with pytest.raises(SpecError, match="single weights"):
        compact(net, [Group("e", (2, 2), (Member("a.weight"),))], {"e": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(StructureError, match="no axis"):
        compact(net, [Group("e", (8,), (Member("gone", 0),))], {"e": keep(0, of=8)})


def test_replay_checks_before_it_changes() -> None:
    net = residual()
    _, edits = compact(net, trace(net, image()()).groups, {"a": keep(0, 1, of=8)})
    other = residual()
    other.fc = nn.Linear(9, 4)
    before = {k: v.shape for k, v in other.state_dict().items()}
    with pytest.raises(StructureError, match=r"fc.weight has shape \(4, 9\)"):
        replay_(other, edits)
    assert {k: v.shape for k, v in other.state_dict().items()} == before
    with pytest.raises(SpecError, match="not an edit"):
        Edit.from_dict({"target": "a", "os.system": 1})


def test_numbers_are_not_equal_to_no_numbers() -> None:
    net = nn.Linear(3, 2)
    broken = copy.deepcopy(net)
    broken.bias.data.fill_(torch.nan)
    with pytest.raises(VerificationError):
        verify(net, broken, torch.randn(2, 3))


def test_a_model_that_runs_in_float32_only() -> None:
    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise RuntimeError("float32 only")
            return x

    net = Net(
        lambda s, x: head(s, s.b(F.relu(s.k(s.a(x))))), a=conv(3, 8), k=Narrow(), b=conv(8, 6), fc=nn.Linear(6, 4)
    )
    structure = trace(net, image()())
    assert {g.name for g in structure.groups} == {"a", "b"}
    compact(net, structure.groups, some(structure, 0.4), image()())
