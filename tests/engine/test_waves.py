"""Groups that learn what feeds them from one pass, against a pass for each of them: every bit is the same."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.part import Reconstruction
from prunus.core.symmetric import Symmetric
from prunus.engine import waves
from prunus.lab import zoo
from prunus.parts.granularity import Channel, Element
from prunus.parts.reconstruct import BiasCompensation, LeastSquares, ObsUpdate

Net = tuple[nn.Module, prunus.Task]


def llama() -> Net:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    tokens = [torch.randint(50, (2, 9)) for _ in range(2)]
    return transformers.LlamaForCausalLM(config), prunus.Task(calib=tokens, example=(tokens[0],))


def from_zoo(name: str) -> Net:
    torch.manual_seed(0)
    found = zoo.spec(name)
    if found.kind == "tokens":
        x = [torch.randint(found.vocabulary, (2, 12)) for _ in range(2)]
    else:
        x = [torch.randn(2, found.channels, found.size, found.size) for _ in range(2)]
    return zoo.build(name), prunus.Task(calib=x, example=(x[0],))


def rebuilt(net: Net, part: Reconstruction, **changes: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The weights and masks, and what the session would draw next."""
    model, task = net
    recipe = replace(methods.magnitude_uniform, name="rebuilt", reconstruct=part, **changes)
    session = prunus.Session(copy.deepcopy(model), recipe, task, sparsity=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session.start()
    found = session.result()
    masks = {f"mask of {n}": m for n, m in found.masks.items()}
    return {**found.model.state_dict(), **masks}, session.generator.get_state()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How many groups every pass was meant for, and for how many it was good."""
    seen: list[tuple[int, int]] = []
    observed = waves.observed

    def noted(session: Any, groups: Any) -> Any:
        read, count = observed(session, groups)
        seen.append((len(groups), count))
        return read, count

    monkeypatch.setattr(waves, "observed", noted)
    return seen


def same_as_alone(monkeypatch: pytest.MonkeyPatch, net: Net, part: Reconstruction, **changes: Any) -> None:
    found, drawn = rebuilt(net, part, **changes)
    with monkeypatch.context() as patch:
        patch.setattr(waves, "together", lambda waiting, alike: 1)
        alone, drawn_alone = rebuilt(net, part, **changes)
    assert found.keys() == alone.keys() and torch.equal(drawn, drawn_alone)
    assert [n for n in found if not torch.equal(found[n], alone[n])] == []


@pytest.mark.parametrize(
    ("part", "sweep"),
    [
        (ObsUpdate(fed="pruned"), "blocks"),
        pytest.param(ObsUpdate(fed="pruned"), "model", marks=pytest.mark.slow),
        pytest.param(BiasCompensation(), "blocks", marks=pytest.mark.slow),
        pytest.param(BiasCompensation(), "model", marks=pytest.mark.slow),
    ],
)
def test_a_llama_block_needs_four_passes_for_its_seven_weights(
    part: Reconstruction, sweep: str, monkeypatch: pytest.MonkeyPatch, passes: list[tuple[int, int]]
) -> None:
    net = llama()
    rebuilt(net, part, sweep=sweep)
    assert passes == [(3, 3), (1, 1), (2, 2), (1, 1)] * 2 + [(1, 1)] * (sweep == "model")  # and the head
    same_as_alone(monkeypatch, net, part, sweep=sweep)


@pytest.mark.parametrize("name", ["gpt_tiny", pytest.param("moe_tiny", marks=pytest.mark.slow), "mlp"])
def test_the_zoos_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    same_as_alone(monkeypatch, from_zoo(name), BiasCompensation())


def test_units_come_one_by_one(passes: list[tuple[int, int]]) -> None:
    rebuilt(llama(), LeastSquares(), granularity=Channel())
    assert passes and set(passes) == {(1, 1)}


def test_a_shared_input_has_one_second_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches, eight distinct inputs (four in each block) and the head's."""
    found: list[int] = []
    moment = Symmetric.add_products_
    monkeypatch.setattr(Symmetric, "add_products_", lambda h, x: (found.append(len(x)), moment(h, x))[1])
    rebuilt(llama(), BiasCompensation())
    assert len(found) == 2 * (2 * 4 + 1)


class Kernels(nn.Module):
    """Convolutions of several kinds on one input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.c, self.d = nn.Conv2d(3, 6, 3, padding=2, dilation=2), nn.Conv2d(3, 6, 3, padding=1, groups=3)
        self.e = nn.Conv2d(3, 6, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        return F.relu(self.a(x)) + self.b(x) + self.c(x) * self.d(x) - self.e(x)


def test_convolutions_share_patches_of_one_geometry_only(
    monkeypatch: pytest.MonkeyPatch, passes: list[tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    x = [torch.randn(2, 3, 7, 7) for _ in range(2)]
    net = Kernels(), prunus.Task(calib=x, example=(x[0],))
    rebuilt(net, BiasCompensation())
    assert passes == [(5, 5)]
    found: list[int] = []
    moment = Symmetric.add_products_
    with monkeypatch.context() as patch:
        patch.setattr(Symmetric, "add_products_", lambda h, x: (found.append(x.shape[1]), moment(h, x))[1])
        rebuilt(net, BiasCompensation())
    assert sorted(found) == sorted(2 * [27, 3, 27, 9, 9, 9])  # a and e share theirs
    same_as_alone(monkeypatch, net, ObsUpdate())


class Heads(nn.Module):
    """One input for two maps, of which the first is also something else."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed, self.a, self.b = nn.Embedding(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self.a.weight) if self.kind == "tied" else self.embed(tokens) * 1.0
        if self.kind == "norm":
            x = x / self.a.weight.norm()
        if self.kind == "bias":
            x = x + self.a.bias
        if self.kind == "turned":
            return x @ self.a.weight.T + x @ self.b.weight.T
        one = self.a(x)
        if self.kind == "in place":
            x += one
        if self.kind == "twice":
            x, one = one + 1, self.a(self.b(x))
        if self.kind == "by batch" and len(tokens) > 2:
            x = x + one
        if self.kind == "view":
            x = x.view(-1, 8).view(*tokens.shape, 8)
        return one + self.b(x)


@pytest.mark.parametrize(
    ("kind", "good"),
    [
        ("plain", [(2, 2)]),
        ("view", [(2, 2)]),
        ("turned", [(2, 2)]),
        ("tied", [(2, 1), (1, 1)]),
        ("norm", [(2, 1), (1, 1)]),
        ("bias", [(2, 1), (1, 1)]),
        ("in place", [(2, 1), (1, 1)]),
        ("by batch", [(2, 1), (1, 1)]),
        ("twice", [(1, 1), (1, 1)]),
    ],
)
def test_what_depends_on_the_other_is_seen(
    kind: str, good: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, passes: list[tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    tokens = [torch.randint(8, (n, 6)) for n in (2, 3)]
    net = Heads(kind), prunus.Task(calib=tokens, example=(tokens[0],))
    part, where = BiasCompensation() if kind == "bias" else ObsUpdate(damp=0.1), Element(exclude=("embed",))
    rebuilt(net, part, granularity=where)
    assert passes == good
    same_as_alone(monkeypatch, net, part, granularity=where)
    if good[0] == (2, 1):  # and if it were not seen, it would show
        right = rebuilt(net, part, granularity=where)[0]
        with monkeypatch.context() as patch:
            patch.setattr(waves, "unchanged", lambda groups, uses, watch: len(groups))
            wrong = rebuilt(net, part, granularity=where)[0]
        assert any(not torch.equal(right[n], wrong[n]) for n in right)


def test_no_input_is_held_once_it_is_summed_up() -> None:
    model, task = llama()
    recipe = replace(methods.magnitude_uniform, name="rebuilt", reconstruct=BiasCompensation())
    session = prunus.Session(model, recipe, task, sparsity=0.5)
    for _, read in waves.waves(session, lambda g: True):
        assert all(use.x.device.type == "meta" for use in read.uses.values())


@pytest.mark.parametrize("fed", ["whole", "pruned"])
def test_what_the_layers_of_a_block_are_fed(fed: str) -> None:
    """Against the inputs that hooks see: of the block as it is, or with the layers before pruned and rebuilt."""
    model, task = llama()
    found, _ = rebuilt((model, task), ObsUpdate(fed=fed), sweep="blocks")

    now = copy.deepcopy(model).eval()
    names = [n for n, m in now.named_modules() if isinstance(m, nn.Linear) and "layers" in n]
    in_order = [[n for n in names if f".{i}." in n] for i in range(2)]
    for block in in_order:
        grams = inputs_of(now, task, block)
        for name in block:
            if fed == "pruned":
                grams |= inputs_of(now, task, [name])
            linear = now.get_submodule(name)
            mask = found[f"mask of {name}.weight"]
            linear.weight.data = swept(linear.weight.detach(), grams[name], mask)
    for name in names:
        torch.testing.assert_close(now.get_submodule(name).weight, found[f"{name}.weight"], rtol=1e-3, atol=1e-5)


@torch.no_grad()
def inputs_of(model: nn.Module, task: prunus.Task, names: list[str]) -> dict[str, Tensor]:
    """The mean of x x^T of linear layers."""
    sums, count = dict.fromkeys(names, torch.zeros(())), dict.fromkeys(names, 0)

    def hook(name: str) -> Any:
        def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].flatten(0, -2).double()
            sums[name], count[name] = sums[name] + x.T @ x, count[name] + len(x)

        return add

    handles = [model.get_submodule(n).register_forward_pre_hook(hook(n)) for n in names]
    for batch in task.calibration():
        model(batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return {n: sums[n] / count[n] for n in names}


def swept(w: Tensor, gram: Tensor, keep: Tensor) -> Tensor:
    """Column by column, what goes made up for by the columns behind it, with a mask that is there."""
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
    u = torch.linalg.cholesky(damped.inverse(), upper=True)
    new = w.double().clone()
    for j in range(new.shape[1]):
        gone = ~keep[:, j]
        off = torch.where(gone, new[:, j] / u[j, j], 0.0)
        new[:, j:] -= off[:, None] * u[j, j:]
        new[gone, j] = 0
    return new.to(w)
