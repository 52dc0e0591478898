"""LayerNorm and GroupNorm over pruned axes: only where asked for, and equal but for the statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.core.errors import VerificationError
from prunus.graph import compact, trace, verify
from prunus.graph.verify import masked_, precise, reference
from prunus.parts.granularity import Channel, Coupled, Width
from tests.graph.proof import producers, prove, some


class Stream(nn.Module):
    """A residual stream of width 10 with LayerNorm, read by a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.last = nn.Embedding(11, 10), nn.LayerNorm(10), nn.LayerNorm(10, bias=False)
        self.up, self.down, self.head = nn.Linear(10, 16), nn.Linear(16, 10), nn.Linear(10, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(self.last(x + self.down(self.up(self.norm(x)).relu())))


class TwoStreams(nn.Module):
    """One normalization over two widths side by side: its weight belongs to two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.head = nn.Linear(4, 6), nn.Linear(4, 8), nn.LayerNorm(14), nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat([self.a(x).relu(), self.b(x).tanh()], -1)))


class Functional(nn.Module):
    """The same through the function, with weights that are plain parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.gain, self.offset, self.width = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8)), 8

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.layer_norm(self.a(x).relu(), (self.width,), self.gain, self.offset))


def images(parts: int, last: bool = False) -> nn.Module:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.GroupNorm(parts, 12), nn.ReLU(), nn.Conv2d(12, 5, 3), *pool, nn.Linear(5, 2)
    )


IDS = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))
NETS = {
    "stream": (Stream, IDS, {"embed.weight", "down.weight", "up.weight"}),
    "two streams": (TwoStreams, torch.randn(2, 4), {"a.weight", "b.weight"}),
    "functional": (Functional, torch.randn(2, 4), {"a.weight"}),
    "one part": (lambda: images(1), torch.randn(2, 3, 8, 8), {"0.weight", "3.weight"}),
    "parts of three": (lambda: images(4), torch.randn(2, 3, 8, 8), {"0.weight", "3.weight"}),
}


@pytest.mark.parametrize("name", NETS)
def test_equal_but_for_the_statistics(name: str) -> None:
    make, x, weights = NETS[name]
    torch.manual_seed(0)
    model = make()
    structure, small = prove(model, x, exact=False)
    assert weights <= producers(structure)
    assert any(group.statistics for group in structure.groups)
    small.train()(x).sum().backward()


@pytest.mark.parametrize("name", [n for n in NETS if n != "parts of three"])
def test_whole_unless_asked_for(name: str) -> None:
    make, x, _ = NETS[name]
    structure = trace(make(), x)
    assert not any(group.statistics for group in structure.groups)
    assert any("its statistics run over this axis" in why for why in structure.frozen.values())


def test_groups_of_channels_stay_equally_large() -> None:
    group = next(g for g in trace(images(4), torch.randn(1, 3, 8, 8), exact=False).groups if g.statistics)
    assert group.units == 3 and group.members[0].positions(3).tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    whole = next(g for g in trace(images(4), torch.randn(1, 3, 8, 8)).groups if g.members[0].param == "0.weight")
    assert whole.units == 4 and not whole.statistics


def test_against_the_formula() -> None:
    """Mean and variance over the kept positions, by hand."""
    torch.manual_seed(0)
    model, x = Functional().double(), torch.randn(3, 4).double()
    structure = trace(model, x, exact=False)
    keep = torch.tensor([True, False, True, True, False, False, True, True])
    small, _ = compact(model, structure.groups, {structure.groups[0].name: keep}, x)
    hidden = model.a(x).relu()[:, keep]
    mean = hidden.mean(-1, keepdim=True)
    variance = ((hidden - mean) ** 2).mean(-1, keepdim=True)
    normal = (hidden - mean) / (variance + 1e-5).sqrt() * model.gain[keep] + model.offset[keep]
    expected = normal @ model.b.weight[:, keep].T + model.b.bias
    assert torch.allclose(small(x), expected, rtol=1e-12)


def test_zeros_are_not_enough() -> None:
    """The masked model as it is differs, and what is proved of the groups does not hide another mistake."""
    torch.manual_seed(0)
    model = precise(Stream()).eval()
    structure = trace(model, IDS, exact=False)
    masks = some(structure, 0.4)
    small, _ = compact(model, structure.groups, masks, IDS)
    masked = masked_(precise(model), structure.groups, masks)
    with pytest.raises(VerificationError):
        verify(masked, small, IDS)
    compared = reference(masked, structure.groups, masks)
    assert verify(compared, small, IDS) < 1e-12
    small.up.bias.data[0] += 1e-3
    with pytest.raises(VerificationError):
        verify(compared, small, IDS)


@pytest.mark.parametrize("granularity", [Width(exact=False), Coupled(exact=False)])
def test_pruned_saved_and_loaded(granularity: Channel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Stream()
    recipe = replace(prunus.methods.l1_filter, granularity=granularity)
    result = prunus.prune(model, prunus.Task(example=(IDS,)), recipe, sparsity=0.5)
    small = result.compact()
    assert small.norm.normalized_shape == (5,) and small.down.out_features == 5
    assert result.verified_error is not None and result.verified_error < 1e-9
    assert result.statistics_error is not None and result.statistics_error > 1e-3
    prunus.save(result, tmp_path / "small")
    again = prunus.load(tmp_path / "small", Stream)
    assert torch.equal(again(IDS), small(IDS))


def test_exact_results_have_no_statistics_error() -> None:
    model, x = images(12), torch.randn(2, 3, 8, 8)
    result = prunus.prune(model, prunus.Task(example=(x,)), "l1_filter", sparsity=0.5)
    result.compact()
    assert result.statistics_error is None


def test_transformers_and_convnext() -> None:
    """Widths of networks that nobody here wrote."""
    import torchvision
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    bert = transformers.BertForSequenceClassification(config).eval()
    structure, _ = prove(bert, {"input_ids": torch.randint(0, 50, (1, 7))}, exact=False)
    assert {"width", "head", "neuron"} <= {group.kind for group in structure.groups}
    assert sum(bool(group.statistics) for group in structure.groups) == 1
    setting = torchvision.models.convnext.CNBlockConfig
    net = torchvision.models.ConvNeXt([setting(8, 16, 1), setting(16, None, 1)], 0.0, num_classes=3)
    structure, _ = prove(net, torch.randn(1, 3, 32, 32), exact=False)
    assert [group.units for group in structure.groups if group.kind == "width"] == [8, 16]
