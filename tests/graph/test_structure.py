"""What `trace` reports, and that it leaves no trace of itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.core.errors import DataError, StructureError
from prunus.graph import trace
from prunus.graph.atoms import Atoms
from tests.graph.nets import Net, conv, head, image
from tests.graph.proof import producers, prove


def residual() -> Net:
    return Net(
        lambda s, x: head(s, (y := s.n(s.a(x))) + s.c(F.relu(s.b(y)))),
        a=conv(3, 8), n=nn.BatchNorm2d(8), b=conv(8, 6), c=conv(6, 8), fc=nn.Linear(8, 4),
    )  # fmt: skip


def test_groups_of_a_residual_block() -> None:
    structure = trace(residual(), image()())
    stream, inner = structure.groups
    assert (stream.name, stream.units, stream.kind, stream.weight, stream.at_least) == (
        "a",
        8,
        "channel",
        (8, 3, 3, 3),
        1,
    )
    found = {(m.param, m.dim): (m.role, m.buffer) for m in stream.members}
    assert found == {
        ("a.weight", 0): ("out", False),
        ("a.bias", 0): ("bias", False),
        ("n.weight", 0): ("scale", False),
        ("n.bias", 0): ("shift", False),
        ("n.running_mean", 0): ("other", True),
        ("n.running_var", 0): ("other", True),
        ("b.weight", 1): ("in", False),
        ("c.weight", 0): ("out", False),
        ("c.bias", 0): ("bias", False),
        ("fc.weight", 1): ("in", False),
    }
    assert (inner.name, inner.units) == ("b", 6)
    assert [(m.param, m.dim, m.role) for m in inner.members] == [
        ("b.weight", 0, "out"), ("b.bias", 0, "bias"), ("c.weight", 1, "in"),
    ]  # fmt: skip
    assert structure.frozen == {"fc.weight": "an output of the model"}


def test_flattened_channels_own_several_positions() -> None:
    net = Net(lambda s, x: s.fc(F.max_pool2d(s.a(x), 4).flatten(1)), a=conv(3, 8), fc=nn.Linear(32, 4))
    (group,) = trace(net, image()()).groups
    (entry,) = group.with_role("in")
    assert entry.index is not None
    assert torch.equal(entry.index, torch.arange(32).reshape(8, 4))


def test_macs_are_per_sample_and_sum_over_uses() -> None:
    net = Net(
        lambda s, x: head(s, s.b(s.b(s.a(x)))), a=conv(3, 8, groups=1), b=conv(8, 8, groups=2), fc=nn.Linear(8, 4)
    )
    structure = trace(net, torch.randn(5, 3, 6, 6))
    assert structure.macs == {"a.weight": 36 * 8 * 3 * 9, "b.weight": 2 * 36 * 8 * 4 * 9, "fc.weight": 32}
    assert structure.fixed_macs == 0


def test_transposed_and_attention_macs() -> None:
    net = Net(lambda s, x: head(s, s.b(x)), b=nn.ConvTranspose2d(3, 4, 2, 2), fc=nn.Linear(4, 4))
    assert trace(net, torch.randn(2, 3, 5, 5)).macs["b.weight"] == 25 * 3 * 4 * 4
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    structure = trace(Net(lambda s, x: s.a(x, x, x, need_weights=False)[0], a=attention), torch.randn(2, 5, 8))
    assert structure.macs == {"a.in_proj_weight": 5 * 8 * 24, "a.out_proj.weight": 5 * 8 * 8}
    assert structure.fixed_macs == 2 * 5 * 5 * 8


def test_frozen_reasons_name_operation_and_module() -> None:
    net = Net(lambda s, x: head(s, s.n(s.a(x))), a=conv(3, 8), n=nn.Softmax(1), fc=nn.Linear(8, 4))
    assert "softmax" in (reason := trace(net, image()()).frozen["a.weight"]) and " n:" in reason
    net = Net(lambda s, x: head(s, torch.linalg.inv(s.a(x))), a=conv(3, 8), fc=nn.Linear(8, 4))
    assert "no rule" in trace(net, image()()).frozen["a.weight"]


def test_sizes_in_code_are_named() -> None:
    net = Net(lambda s, x: head(s, s.b(s.a(x).view(-1, 8, 8, 8))), a=conv(3, 8), b=conv(8, 6), fc=nn.Linear(6, 4))
    for probe in (True, False):
        structure = trace(net, image()(), probe=probe)
        assert producers(structure) == {"b.weight"}
        assert "the code says 8" in structure.frozen["a.weight"]


def test_what_no_rule_sees_is_found_by_trying() -> None:
    net = Net(
        lambda s, x: head(s, s.b((y := s.a(x)) * (1 + len(y[0])))), a=conv(3, 8), b=conv(8, 6), fc=nn.Linear(6, 4)
    )
    structure = trace(net, image()())
    assert producers(structure) == {"b.weight"}
    assert structure.frozen["a.weight"].startswith("tried and found not removable")
    assert "a.weight" in producers(trace(net, image()(), probe=False))


def test_names_are_unique_and_partly_frozen_axes_say_so() -> None:
    net = Net(
        lambda s, x: head(s, torch.cat([(y := s.a(x))[:, :4].flip(1), y[:, 4:] * 2], 1) + F.pad(x, (0, 0, 0, 0, 0, 5))),
        a=conv(3, 8), fc=nn.Linear(8, 4),
    )  # fmt: skip
    structure = trace(net, image()())
    assert len({g.name for g in structure.groups}) == len(structure.groups)
    assert "a.weight" in structure.frozen


def test_unusual_calls() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, *, scale: dict[str, Tensor]) -> dict[str, Any]:
            return {"y": (self.b(F.relu(self.a(x * scale["s"]))), [x])}

    example = {"x": torch.randn(2, 4), "scale": {"s": torch.rand(2, 1)}}
    assert producers(trace(Two(), example)) == {"a.weight"}
    pair = Net(lambda s, x: s.b(s.a(x)), a=nn.Linear(4, 8), b=nn.Linear(8, 3))
    assert producers(trace(pair, (torch.randn(2, 4),))) == {"a.weight"}
    assert producers(trace(nn.DataParallel(pair), (torch.randn(2, 4),))) == {"a.weight"}


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_restored(fails: bool) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = head(s, s.n(s.a(x))) + torch.rand(())
        if fails:
            raise RuntimeError("on purpose")
        return y  # type: ignore[no-any-return]

    net = Net(forward, a=conv(3, 8), n=nn.BatchNorm2d(8), fc=nn.Linear(8, 4)).train()
    net.n.eval()
    net.a.weight.requires_grad_(False)
    example = image()()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(DataError, match="on purpose"):
            trace(net, example)
    else:
        trace(net, example)
    assert net.training and net.a.training and not net.n.training
    assert not net.a.weight.requires_grad and net.fc.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    assert not nn.modules.module._global_forward_pre_hooks and not nn.modules.module._global_forward_hooks


def test_bad_examples_name_module_and_shapes() -> None:
    with pytest.raises(DataError, match=r"\(2, 5, 8, 8\).*in a:"):
        trace(residual(), torch.randn(2, 5, 8, 8))
    with pytest.raises(StructureError, match="has no shape yet"):
        trace(nn.Sequential(nn.LazyLinear(4)), torch.randn(2, 3))


def test_meta_weights_can_be_traced() -> None:
    with torch.device("meta"):
        net = residual()
    assert producers(trace(net, image()().to("meta"))) == {"a.weight", "b.weight", "c.weight"}


def test_components_against_a_slow_reference() -> None:
    generator = torch.Generator().manual_seed(3)
    atoms = Atoms()
    ids = atoms.axis("w", 0, 400)
    pairs = ids[torch.randint(0, 400, (260, 2), generator=generator)]
    frozen = ids[torch.randint(0, 400, (9,), generator=generator)]
    atoms.tie(pairs[:130, 0], pairs[:130, 1], "r")
    atoms.tie(pairs[130:, 0], pairs[130:, 1], "r")
    atoms.freeze(frozen, "f")
    labels, removable = atoms.solve()
    expected = list(range(401))
    for _ in range(401):
        for a, b in pairs.tolist():
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert labels.tolist() == expected
    stuck = {expected[i] for i in frozen.tolist()}
    assert removable.tolist() == [i > 0 and expected[i] not in stuck for i in range(401)]


def test_views_made_before_the_run_freeze_their_parameter() -> None:
    net = Net(lambda s, x: s.b(F.relu(x @ s.early + s.a(x))), a=nn.Linear(8, 8), b=nn.Linear(8, 3))
    net.early = net.a.weight.detach().t()
    structure = trace(net, torch.randn(2, 8), probe=False)
    assert structure.frozen["a.weight"] == "a view of a.weight that was made before the run"
    net.early = net.a.weight.detach()
    assert "a.weight" in trace(net, torch.randn(2, 8), probe=False).frozen  # its rows and columns are one


def test_constant_weights_hide_nothing_from_the_trial() -> None:
    net = Net(lambda s, x: head(s, s.a(x) + s.n(s.b(x).softmax(1).roll(1, 1))), a=conv(3, 8), b=conv(3, 8),
              n=nn.BatchNorm2d(8), fc=nn.Linear(8, 4))  # fmt: skip
    nn.init.zeros_(net.n.weight)  # the branch contributes nothing yet
    assert not producers(trace(net, image()())) & {"b.weight"}


def test_caches_that_a_forward_fills_are_left_as_they_were() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
            self.scale = nn.Parameter(torch.rand(8))
            self.cache: dict[str, Tensor] = {}
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            if self.calls == 0:  # hooks come and go together with what says that they are there
                self.register_forward_hook(lambda module, args, out: out * 2)
            self.calls += 1
            self.last = x
            if "scale" not in self.cache:
                self.cache["scale"] = self.scale * 2
            return self.b(self.a(x) * self.cache["scale"])

    model = Cached()
    structure, _ = prove(model, torch.randn(2, 4))
    assert producers(structure) == {"a.weight"}
    assert (model.cache, model.calls, hasattr(model, "last"), len(model._forward_hooks)) == ({}, 0, False, 0)


@torch.library.custom_op("prunus_tests::linear", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    """Not what `aten::linear` is, whatever its name."""
    return x + x.flip(-1)


def test_an_operation_of_ones_own_is_not_taken_for_another() -> None:
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return doubled(x)

    net = nn.Sequential(nn.Linear(4, 8), Doubled(), nn.Linear(8, 2))
    structure = trace(net, torch.randn(1, 4), probe=False)
    assert not structure.groups
    why = "prunus_tests::linear in 1: no rule for this operation (prunus.graph.rule registers one)"
    assert structure.frozen["0.weight"] == why
