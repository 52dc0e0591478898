"""Models that are wrapped, compiled, of another type or without values, and libraries that compute sizes themselves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import prunus
from prunus.core.errors import StructureError
from prunus.graph import blocks, compact, trace
from prunus.lab import zoo
from tests.graph.proof import prove, some

EXAMPLE = torch.randn(1, 3, 32, 32)


def expected() -> list[tuple[str, int]]:
    return [(g.name, g.units) for g in trace(zoo.build("resnet20"), EXAMPLE).groups]


def test_meta_and_fake_models_have_the_same_structure() -> None:
    with torch.device("meta"):
        model, example = zoo.build("resnet20"), torch.empty(EXAMPLE.shape)
    structure = trace(model, example)
    assert [(g.name, g.units) for g in structure.groups] == expected()
    small, _ = compact(model, structure.groups, some(structure, 0.5))
    assert all(p.is_meta for p in small.parameters())
    with FakeTensorMode():
        model, example = zoo.build("resnet20"), torch.randn(EXAMPLE.shape)
        assert [(g.name, g.units) for g in trace(model, example).groups] == expected()
    assert [(g.name, g.units) for g in trace(model, example).groups] == expected()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    model = zoo.build("resnet20").to(dtype)
    structure = trace(model, EXAMPLE.to(dtype))
    assert [(g.name, g.units) for g in structure.groups] == expected()
    small, _ = compact(model, structure.groups, some(structure, 0.5), EXAMPLE.to(dtype))
    assert {p.dtype for p in small.parameters()} == {dtype}


def test_compiled_and_wrapped_models() -> None:
    for wrapped in (torch.compile(zoo.build("resnet20")), nn.DataParallel(zoo.build("resnet20"))):
        assert isinstance(wrapped, nn.Module)
        assert [(g.name, g.units) for g in trace(wrapped, EXAMPLE).groups] == expected()


class Mish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(F.softplus(x))


def test_modules_of_torchscript() -> None:
    """One without parameters is an operation like others; what one holds keeps its shape."""
    x = torch.randn(2, 3, 8, 8)
    compiled: list[nn.Module] = [torch.jit.script(Mish()), torch.jit.script(nn.Conv2d(8, 8, 3))]  # type: ignore[no-untyped-call]
    for layer, free in zip(compiled, (True, False), strict=True):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
        structure = trace(model, x)
        compact(model, structure.groups, some(structure, 0.5), x)
        assert [g.name for g in structure.groups] == (["0", "2"] if free else ["2"])
        assert free or "TorchScript" in structure.frozen["1.weight"]
        assert prunus.measure.macs(model, x).total > 0
    with pytest.raises(StructureError, match="TorchScript"):
        blocks(torch.jit.trace(model, x), x)  # type: ignore[no-untyped-call]


def test_auxiliary_classifiers_run_only_in_training() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)
            self.bn, self.side = nn.BatchNorm2d(8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = self.bn(self.a(x)).relu()
            y = self.c(self.b(x).mean((2, 3)))
            return (y, self.side(x.mean((2, 3)))) if self.training else y

    torch.manual_seed(0)
    model = Auxiliary()
    before = model.bn.running_mean.clone()
    trace(model, torch.randn(2, 3, 8, 8))
    assert torch.equal(model.bn.running_mean, before)
    assert not model.bn.num_batches_tracked
    structure, small = prove(model, torch.randn(2, 3, 8, 8))
    assert "side.weight" in {m.param for g in structure.groups for m in g.members}
    small.train()
    main, side = small(torch.randn(2, 3, 8, 8))
    (main.sum() + side.sum()).backward()


def test_einops() -> None:
    einops = pytest.importorskip("einops")

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.qkv, self.o = 4, nn.Linear(16, 96), nn.Linear(32, 16)

        def forward(self, x: Tensor) -> Tensor:
            parts = self.qkv(x).chunk(3, -1)
            q, k, v = (einops.rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in parts)
            return self.o(einops.rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))

    torch.manual_seed(0)
    # Twice the same sizes: einops remembers sizes by value, and must not hand on where they came from.
    structure, small = prove(nn.Sequential(Attention(), Attention()), torch.randn(2, 7, 16))
    assert [(g.kind, g.units) for g in structure.groups if g.kind == "head"] == [("head", 4), ("head", 4)]
    assert small[0].heads == small[1].heads == 2


def test_weights_that_a_hook_computes_can_be_pruned_by_a_recipe() -> None:
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        first = nn.utils.weight_norm(nn.Linear(8, 12))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(12, 3))
    x = torch.randn(2, 8)
    result = prunus.prune(model, prunus.Task(example=(x,)), "l1_filter", sparsity=0.5)
    small = result.compact()
    assert small[2].weight.shape == (3, 6)
    assert first.weight_v.shape == (12, 8)
