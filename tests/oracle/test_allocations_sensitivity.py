"""Sensitivities of weights and channels, by loops over samples, neurons and terms; and one error for all layers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.core.evidence import Sources
from prunus.core.groups import Group, Member
from prunus.parts.allocation import ErrorGuarantee
from prunus.parts.evidence.relative import ReaderPatchesEvidence, RelativeChannelEvidence, RelativeWeightEvidence
from prunus.parts.granularity import Channel, Element


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Conv2d(3, 4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.gelu(self.b(F.gelu(self.a(x)))).mean((2, 3)))  # gelu: inputs of both signs


@pytest.fixture
def sources() -> Sources:
    torch.manual_seed(2)
    model = Net().double()
    batches = [torch.randn(3, 2, 6, 6, dtype=torch.float64) for _ in range(2)]
    task = prunus.Task(calib=batches)
    return Sources(model, task, (), dict(model.named_parameters()), torch.Generator().manual_seed(0))


def inputs(model: Net, x: Tensor) -> dict[str, list[Tensor]]:
    """The patches that each layer multiplies, one flat vector each, cut out by hand."""
    found: dict[str, list[Tensor]] = {"a": [], "b": [], "c": []}
    padded = F.pad(x, (1, 1, 1, 1))
    hidden = F.gelu(model.a(x))
    for n in range(len(x)):
        for i in range(0, 6, 2):
            for j in range(0, 6, 2):
                found["a"].append(padded[n, :, i : i + 3, j : j + 3].flatten())
        for i in range(2):
            for j in range(2):
                found["b"].append(hidden[n, :, i : i + 2, j : j + 2].flatten())
        found["c"].append(F.gelu(model.b(hidden)).mean((2, 3))[n])
    return found


def by_loops(model: Net, batches: list[Tensor]) -> dict[str, Tensor]:
    """The definition: each term over the sum of the terms of its own sign of weight and of input."""
    found = {n: torch.zeros_like(getattr(model, n).weight).flatten(1).tolist() for n in "abc"}
    with torch.no_grad():
        for x in batches:
            for name, vectors in inputs(model, x).items():
                w = getattr(model, name).weight.flatten(1).tolist()
                for v in (v.tolist() for v in vectors):
                    for i, row in enumerate(w):
                        for signs in itertools.product((1, -1), repeat=2):
                            terms = {
                                k: abs(row[k] * v[k]) for k in range(len(v)) if row[k] * signs[0] > 0 < v[k] * signs[1]
                            }
                            for k, term in terms.items():
                                found[name][i][k] = max(found[name][i][k], term / sum(terms.values()))
    return {n: torch.tensor(rows, dtype=torch.float64) for n, rows in found.items()}


def test_a_weights_sensitivity_is_its_largest_share(sources: Sources) -> None:
    sources.groups = Element()(sources.model, None)
    theirs = by_loops(sources.model, list(sources.task.calib))
    ours = next(iter(RelativeWeightEvidence().collect(sources)))
    for name, s in theirs.items():
        torch.testing.assert_close(ours[f"{name}.weight"].squeeze(-1), s, rtol=1e-10, atol=1e-12)


def test_a_channels_sensitivity_is_the_largest_of_what_reads_it(sources: Sources) -> None:
    sources.groups = Channel()(sources.model, (sources.task.calib[0],))
    theirs = by_loops(sources.model, list(sources.task.calib))
    ours = next(iter(RelativeChannelEvidence().collect(sources)))
    torch.testing.assert_close(ours["a"].squeeze(-1), theirs["b"].reshape(4, 3, 4).amax((0, 2)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours["b"].squeeze(-1), theirs["c"].amax(0), rtol=1e-10, atol=1e-12)
    patches = next(iter(ReaderPatchesEvidence().collect(sources)))
    assert float(patches["a"]) == pytest.approx(math.log(8 * (4 + 1) * 4))
    assert float(patches["b"]) == pytest.approx(math.log(8 * (1 + 1)))


def test_the_error_is_the_same_in_every_layer() -> None:
    """The expected number of distinct draws, by simulation, and one eps that explains all counts."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"l0": 60, "l1": 90, "l2": 40}
    space = {n: Group(n, (u,), (Member(n, 0),), weight=(u, 3, 3, 3), at_least=1) for n, u in shapes.items()}
    scores = {n: torch.rand(u, generator=generator, dtype=torch.float64) ** 4 for n, u in shapes.items()}
    patches = {"l0": torch.tensor([9.0]), "l1": torch.tensor([7.0]), "l2": torch.tensor([5.0])}
    part = ErrorGuarantee()
    for density in (0.2, 0.5, 0.8):
        masks = part(scores, density, space, patches=patches)
        kept = {n: int(m.sum()) for n, m in masks.items()}
        assert sum(kept.values()) == round(190 * density)
        fits = []
        for exponent in range(0, 4000, 4):
            eps = math.exp(exponent / 500)
            needed = {n: part.needed(scores[n], float(patches[n]) - math.log(1e-16), eps) for n in shapes}
            if all(abs(needed[n] - kept[n]) <= 1.0 for n in shapes):
                fits.append(eps)
        assert fits, kept
        for n, m in masks.items():
            assert kept[n] == shapes[n] or scores[n][m].min() >= scores[n][~m].max()
    s = scores["l2"]
    draws = 25
    seen = [len(set(torch.multinomial(s, draws, replacement=True, generator=generator).tolist())) for _ in range(4000)]
    eps = next(e / 1000 for e in range(1, 10**7) if 18 * (6 + 2 * e / 1000) / (e / 1000) ** 2 * float(s.sum()) <= draws)
    assert part.needed(s, 1.0, eps) == pytest.approx(sum(seen) / len(seen), rel=0.01)


def test_the_smallest_sensitivities_go_and_the_bound_holds(sources: Sources) -> None:
    """SiPP's promise on the inputs seen: what a neuron loses of one sign is at most the sensitivities dropped."""
    model, batches = sources.model, list(sources.task.calib)
    result = prunus.prune(model, sources.task, "sipp", sparsity=0.4)
    s = by_loops(model, batches)
    mask = {n: result.masks[f"{n}.weight"].flatten(1) for n in s}
    assert max(float(s[n][~mask[n]].max()) for n in s) <= min(float(s[n][mask[n]].min()) for n in s)
    with torch.no_grad():
        for x in batches:
            for v in inputs(model, x)["b"]:
                products = model.b.weight.flatten(1) * v
                for sign in (1, -1):
                    part = (products * sign).clamp(min=0) * (model.b.weight.flatten(1) > 0)
                    lost = (part * ~mask["b"]).sum(1)
                    assert (lost <= part.sum(1) * (s["b"] * ~mask["b"]).sum(1) + 1e-12).all()
