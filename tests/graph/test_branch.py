"""Single branches: which can be removed, and that the model without them is the one with them at zero."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from prunus.core.errors import SpecError, StructureError
from prunus.deploy.manifest import NothingRecord
from prunus.graph import Blocks, Edit, Nothing, branches, compact, masked_, replay_, trace, verify
from prunus.parts.granularity import Branch
from tests.graph.depth_nets import removed
from tests.graph.nets import Net
from tests.graph.proof import disturb, some


class Attention(nn.Module):
    """Returns a tuple, takes keywords, and nothing but its first tensor is read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor, None]:
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = (q @ k.transpose(1, 2)).softmax(-1)
        return self.out(weights @ v), weights, None


class Layer(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), mask=None)[0]
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, layers: int = 4, layer: Callable[[], nn.Module] = Layer, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.layers = nn.ModuleList(layer() for _ in range(layers))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


EXAMPLE = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


def proved(
    model: nn.Module, example: Any = EXAMPLE, others: tuple[Any, ...] = (torch.ones(3, 9, 6),)
) -> tuple[Blocks, nn.Module]:
    """Find branches, remove half, and hold what is promised: equal also on other sizes, counted, replayed, trained."""
    model = disturb(model).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = branches(model, example)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and not model.training
    masks = removed(found)
    small, edits = compact(model, found.groups, masks, example)
    masked = masked_(copy.deepcopy(model), found.groups, masks)
    for inputs in (example, *others):
        assert verify(masked, small, inputs) <= 1e-9
    gone = {m.param for g in found.groups for m in g.members if not bool(masks[g.name][m.unit]) and m.param in before}
    assert gone and set(small.state_dict()) == set(before) - gone
    plain = json.loads(json.dumps([edit.to_dict() for edit in edits]))
    fresh = replay_(copy.deepcopy(model), [Edit.from_dict(p) for p in plain]).eval()
    fresh.load_state_dict(small.state_dict())
    assert verify(small, fresh, example) == 0
    return found, small


def where(found: Blocks) -> dict[str, int]:
    return {group.name: group.units for group in found.groups}


def test_attention_and_feed_forward_of_a_layer() -> None:
    found, small = proved(Model())
    assert where(found) == {"layers.*.attn": 4, "layers.*.mlp": 4} and not found.refused
    assert [g.at_least for g in found.groups] == [1, 1] and found.groups[0].names[1] == "layers.1.attn"
    # The norm that fed nothing else goes with it.
    members = {m.param for m in found.groups[1].members if m.unit == 2}
    assert {"layers.2.norm2.weight", "layers.2.norm2.bias", "layers.2.mlp.0.weight"} < members
    gone = next(layer for layer in small.layers if type(layer.attn) is Nothing)
    assert type(gone.norm1) is nn.Identity and not list(gone.attn.parameters())
    out = gone.attn(torch.ones(3, 2, 8), mask=None)
    assert out[0].shape == (3, 2, 8) and not out[0].any() and out[1] is None and out[2] is None
    small.train()
    small(EXAMPLE).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_what_the_small_model_is_used_with(tmp_path: Path) -> None:
    _, small = proved(Model(2))
    other = torch.randn(4, 7, 6)
    expected = small(other)
    assert torch.equal(copy.deepcopy(small)(other), expected)
    torch.save(small, tmp_path / "whole.pt")
    assert torch.equal(torch.load(tmp_path / "whole.pt", weights_only=False)(other), expected)
    batch = torch.export.Dim("batch", min=2, max=64)
    graph = torch.export.export(small, (EXAMPLE,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(graph(other[:, :5]), small(other[:, :5]))
    compiled = torch.compile(small, backend="eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(other), expected)
    half = copy.deepcopy(small).bfloat16()
    assert half(other.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(small(other).float(), expected, atol=0.2, rtol=0.2)
    assert small.to("meta")(other.to("meta")).shape == (4, 7, 3)


class Post(nn.Module):
    """What BERT looks like: the sum lies inside of a module that owns the last linear layer and the norm."""

    class Out(nn.Module):
        def __init__(self, inner: int) -> None:
            super().__init__()
            self.dense, self.norm = nn.Linear(inner, 8), nn.LayerNorm(8)

        def forward(self, x: Tensor, around: Tensor) -> Tensor:
            return self.norm(self.dense(x) + around)

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.attn_out = Attention(8), self.Out(8)
        self.up, self.mlp_out = nn.Sequential(nn.Linear(8, 12), nn.GELU()), self.Out(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn_out(self.attn(x)[0], x)
        return self.mlp_out(self.up(x), x)


def test_a_norm_after_the_sum() -> None:
    found, small = proved(Model(layer=Post))
    assert where(found) == {"layers.*.attn": 4, "layers.*.up": 4}
    gone = next(layer for layer in small.layers if type(layer.up) is Nothing)
    # The inner width is no size of the input, so it is a number; the length follows the input.
    assert gone.up.sizes == (12,) and gone.up(torch.ones(3, 4, 8)).shape == (3, 4, 12)
    assert type(gone.mlp_out.dense) is Nothing and isinstance(gone.mlp_out.norm, nn.LayerNorm)


class Parallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(8), Attention(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.attn(y)[0] + self.mlp(y) + x


class Scaled(nn.Module):
    """A norm after the branch that is no zero of its own, a scale, and data movements before the sum."""

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)

    def __init__(self) -> None:
        super().__init__()
        self.before, self.linear, self.after = nn.LayerNorm(8), nn.Linear(8, 8), self.Norm()
        self.mlp, self.gamma, self.scale = nn.Linear(8, 8), nn.Parameter(torch.randn(8)), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.linear(self.before(x))) + x
        y = F.dropout(self.scale(self.mlp(x)), 0.1, self.training).roll(1, 1) * self.gamma
        return torch.add(x, y, alpha=0.5)


def test_the_way_from_a_branch_to_its_sum() -> None:
    found, _ = proved(Model(layer=Parallel))
    assert where(found) == {"layers.*.attn": 4, "layers.*.mlp": 4}
    assert not any("norm" in m.param for g in found.groups for m in g.members)  # it feeds both
    found, _ = proved(Model(layer=Scaled))
    assert where(found) == {"layers.*.linear": 4, "layers.*.mlp": 4}
    assert {m.param for m in found.groups[1].members if m.unit == 0} == {
        f"layers.0.{n}" for n in ("mlp.weight", "mlp.bias", "scale.weight", "scale.bias")
    }
    assert "its output is not zero" in found.refused["layers.0.after"]


class Odd(nn.Module):
    """What is no branch of a residual sum, or cannot be replaced."""

    class Hidden(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return {1: super().forward(x)}

    class Told(nn.Linear):
        size = 8

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.side, self.way, self.main = (nn.Linear(8, 8) for _ in range(4))
        self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 4)
        self.hidden, self.told, self.lower = self.Hidden(8, 8), self.Told(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + x * self.gate(x).sigmoid()
        x = self.way(x) + self.main(x)
        x = x + torch.cat([self.first(x), self.second(x)], -1)
        x = x + self.hidden(x)[1]
        x = x + self.told(x)[..., : self.told.size]
        y = self.lower(x)
        return x + y + y.exp() + self.side(x)


def test_what_is_no_branch() -> None:
    found = branches(disturb(Model(2, Odd)), EXAMPLE)
    assert where(found) == {"layers.*.side": 2}
    reasons = {n.removeprefix("layers.0."): why for n, why in found.refused.items() if n.startswith("layers.0.")}
    assert "cannot be replaced: it returns a dict" in reasons["hidden"]
    assert "does not run" in reasons["told"] and "'size'" in reasons["told"]
    assert "does not only join a sum" in reasons["lower"]
    assert not {"gate", "way", "main", "first", "second"} & set(reasons)  # added to nothing that they came from
    with pytest.raises(StructureError, match="is added to what it was computed from"):
        Branch()(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)), (torch.randn(2, 6),))
    alone = branches(Net(lambda s, x: x + s.f(x), f=nn.Linear(6, 6)), torch.randn(2, 6))
    assert not alone.groups and "at least 1 stay" in alone.refused["f"]


def test_sizes_that_follow_another_argument() -> None:
    class Cross(nn.Module):
        """Takes its rows from one input and their number from another; a table gives a mask."""

        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(8, 8)

        def forward(self, memory: Tensor, size: Tensor) -> list[Tensor]:
            return [self.f(memory).mean(1, keepdim=True).expand(-1, size.shape[1], -1), size]

    net = Net(lambda s, x: sum(s.run(x, f) for f in s.fs), fs=nn.ModuleList(Cross() for _ in range(3)))
    net.run = lambda x, f: x + f(torch.cat([x, x, x], 1), x)[0]
    found, small = proved(net, torch.randn(2, 5, 8), (torch.randn(3, 7, 8),))
    assert where(found) == {"fs.*": 3}
    gone = next(f for f in small.fs if type(f) is Nothing)
    assert gone.returns == ("list", (("zeros", (1,)), ("given", (1,))))

    class Cut(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, ::2]

    def forward(s: Any, x: Tensor) -> Tensor:
        for f in s.fs:
            x = x[:, ::2] + f(x)
        return x

    found = branches(Net(forward, fs=nn.ModuleList(Cut(8, 8) for _ in range(2))), torch.randn(2, 9, 8))
    assert not found.groups and "axis 1 of what it returns follows from no axis" in found.refused["fs.0"]


def test_what_gradients_cannot_do_without() -> None:
    class Both(torch.autograd.Function):
        """As in reversible layers, the gradient runs the branch again."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, f: nn.Module) -> Tensor:
            ctx.f = f
            ctx.save_for_backward(x)
            return x + f(x)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                torch.autograd.backward(ctx.f(x.detach()), grads[0])
            return grads[0], None

    net = Net(
        lambda s, x: Both.apply(Both.apply(s.stem(x), s.fs[0]), s.fs[1]),
        fs=nn.ModuleList(nn.Linear(6, 6) for _ in range(2)), stem=nn.Linear(6, 6),
    )  # fmt: skip
    found = branches(net, torch.randn(2, 6))
    assert not found.groups and "cannot be trained" in found.refused["fs.0"]


def test_what_is_changed_in_place_is_not_what_goes_around() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.f = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = x.square()  # not negative: a ReLU changes nothing of it
            return x * x + self.f(F.relu_(self.norm(x))) + x

    found, small = proved(Model(layer=InPlace))
    assert where(found) == {"layers.*.f": 4}
    assert all(isinstance(layer.norm, nn.LayerNorm | Nothing) for layer in small.layers)
    small.train()(EXAMPLE).sum().backward()  # an identity would let the ReLU write to x, which is needed here


def test_convolutions() -> None:
    class Block(nn.Module):
        def __init__(self, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(4, 6, 3, stride, 1), nn.BatchNorm2d(6)
            self.conv2, self.bn2 = nn.Conv2d(6, 4, 3, 1, 1), nn.BatchNorm2d(4)
            self.pool = nn.AvgPool2d(stride, stride) if stride > 1 else nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu_(self.bn1(self.conv1(x)))
            y = self.bn2(self.conv2(y))
            y += self.pool(x)
            return y.relu()

    net = Net(
        lambda s, x: s.stage3(s.stage2(s.stage1(s.stage0(s.stem(x))))), stem=nn.Conv2d(3, 4, 3), stage0=Block(1),
        stage1=Block(2), stage2=Block(1), stage3=nn.Flatten(2),
    )  # fmt: skip
    found, small = proved(net, torch.randn(2, 3, 14, 14), (torch.randn(1, 3, 18, 10),))
    # The shape of a branch that makes the image smaller follows from nothing.
    assert where(found) == {"stage*.conv1": 2} and "cannot be replaced" in found.refused["stage1.bn2"]
    assert any(m.param == "stage0.bn2.running_mean" and m.buffer for m in found.groups[0].members)
    assert sum(type(m) is Nothing for m in small.modules()) >= 1


def test_channels_of_what_is_left() -> None:
    _, small = proved(Model())
    structure = trace(small, EXAMPLE)
    assert any("mlp.0" in group.name for group in structure.groups)
    smaller, _ = compact(small, structure.groups, some(structure, 0.5), EXAMPLE)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in small.parameters())


def test_nothing_takes_no_other_description() -> None:
    for wrong in (
        "zeros", ("zeros",), ("zeros", ()), ("zeros", (-1,)), ("zeros", (0,), (2**40,)), ("zeros", (0,), ((0, 1),)),
        ("run", (0,)), ("given", (0,), (1,)), ("tuple", "ab"), ("dict", ((1, None),)), ("zeros", (True,)),
    ):  # fmt: skip
        with pytest.raises(SpecError, match="not a description"):
            Nothing(wrong)
    made = Nothing(["dict", [["a", ["zeros", [0], [[["y"], 1], 4]]], ["b", ["given", ["y"]]], ["c", None]]])
    y = torch.ones(2, 3)
    out = made(torch.ones(1, dtype=torch.float64), y=y)
    assert out["a"].shape == (3, 4) and out["a"].dtype == torch.float64 and out["b"] is y and out["c"] is None


def test_a_file_says_nothing_else() -> None:
    plain = {"target": "layers.2.attn.*", "dim": 0, "size": 2, "keep": [], "new": ["zeros", [0]]}
    assert NothingRecord.model_validate(plain).new == ("zeros", [0])
    for change in ({"new": ["os.system", [0]]}, {"new": None}, {"keep": [[0, 1]]}, {"dim": 1}, {"old": 3}):
        with pytest.raises(ValidationError):
            NothingRecord.model_validate({**plain, **change})


def test_granularity_arguments() -> None:
    model = disturb(Model())
    assert [g.units for g in Branch(exclude=("layers.1",))(model, (EXAMPLE,))] == [3, 3]
    assert [g.units for g in Branch(exclude=("layers.1.norm1",))(model, (EXAMPLE,))] == [3, 4]
    assert Branch(at_least=3)(model, (EXAMPLE,))[0].at_least == 3
    with pytest.raises(SpecError, match="example"):
        Branch()(model, None)
    with pytest.raises(StructureError, match="no values"):
        branches(Model().to("meta"), EXAMPLE)
    assert Branch.from_dict(Branch(exclude=("a",)).to_dict()) == Branch(exclude=("a",))


def test_what_feeds_a_branch_stays_where_its_attributes_are_read() -> None:
    class Typed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.f = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.f(self.norm(x.to(self.norm.weight.dtype)))

    found, small = proved(Model(layer=Typed))
    assert where(found) == {"layers.*.f": 4} and not found.refused
    assert {m.param for m in found.groups[0].members if m.unit == 0} == {"layers.0.f.weight", "layers.0.f.bias"}
    assert all(isinstance(layer.norm, nn.LayerNorm) for layer in small.layers)
