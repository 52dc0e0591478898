"""A model's own forward, stopped at every block, and recipes that go through a model that way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Task
from prunus.core.errors import DataError, SpecError, StructureError
from prunus.engine.walk import blocks_in, walk
from prunus.lab import zoo
from prunus.parts.allocation import GlobalRanking, NofM

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
}


def language_model(kind: str) -> nn.Module:
    """Layers that get different masks and tables (gemma3), an encoder and a decoder (t5), or neither."""
    torch.manual_seed(0)
    if kind == "gemma3":
        layers = ["sliding_attention", "full_attention", "sliding_attention"]
        config = transformers.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=4, layer_types=layers)
        model: nn.Module = transformers.Gemma3ForCausalLM(config)
    elif kind == "t5":
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=64, d_model=24, d_ff=40, num_layers=2, num_heads=4, d_kv=6)
        )
    elif kind == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_embd=24, n_layer=3, n_head=4))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    return model.eval()


def batches_for(kind: str) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = [{"input_ids": torch.randint(64, (2, 12), generator=generator)} for _ in range(3)]
    return [b | {"decoder_input_ids": b["input_ids"].flip(1)} for b in made] if kind == "t5" else made


KINDS = ("llama", "gemma3", "t5", "gpt2")


def inputs_of_blocks(model: nn.Module, blocks: dict[str, nn.Module], batch: Any) -> dict[str, Any]:
    """What each block is called with in one plain forward."""
    seen: dict[str, Any] = {}
    hooks = [
        m.register_forward_pre_hook(lambda _m, args, kwargs, n=n: seen.setdefault(n, (args, kwargs)), with_kwargs=True)
        for n, m in blocks.items()
    ]
    with torch.no_grad():
        model(**batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors(one)


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_gets_its_own_arguments(kind: str) -> None:
    model, batches = language_model(kind), batches_for(kind)
    task = Task(calib=batches)
    blocks = blocks_in(model, task)
    assert len(blocks) == (4 if kind == "t5" else 3)
    assert blocks.keys() == blocks_in(model).keys()
    expected = [inputs_of_blocks(model, blocks, b) for b in batches]
    order = []
    for visit in walk(model, task, blocks):
        order.append(visit.name)
        for call, own in zip(visit.calls, expected, strict=True):
            args, kwargs = own[visit.name]
            ours, theirs = list(tensors((call.args, call.kwargs))), list(tensors((args, kwargs)))
            assert len(ours) == len(theirs) > 0
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
            assert call.kwargs.keys() == kwargs.keys()
    assert order == list(expected[0])


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_is_the_models_own_forward_on_the_changed_blocks(kind: str) -> None:
    """A block that is changed at its visit gives the next one exactly what the changed model gives it."""
    model, batches = language_model(kind), batches_for(kind)
    blocks = blocks_in(model)
    for visit in walk(model, Task(calib=batches), blocks):
        expected = inputs_of_blocks(model, blocks, batches[1])[visit.name]
        ours = list(tensors((visit.calls[1].args, visit.calls[1].kwargs)))
        assert all(torch.equal(a, b) for a, b in zip(ours, tensors(expected), strict=True))
        for p in visit.block.parameters():
            p.data.mul_(0.9)


def wanda_by_hand(model: nn.Module, batches: list[dict[str, Tensor]], n_of_m: tuple[int, int] | None) -> None:
    """Wanda as published, written down slowly: for each block a whole forward of the model pruned so far, the norms of
    the inputs of its linear maps, and in each row (or run of m columns) the least of |w| ||x|| to zero.
    """
    blocks = blocks_in(model)
    for block in blocks.values():
        linear = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
        squares: dict[str, Tensor] = {}

        def note(name: str, x: Tensor, squares: dict[str, Tensor] = squares) -> None:
            flat = x.reshape(-1, x.shape[-1]).double()
            squares[name] = squares.get(name, torch.zeros(flat.shape[1], dtype=torch.float64)) + flat.square().sum(0)

        hooks = [
            m.register_forward_pre_hook(lambda _m, args, n=n, note=note: note(n, args[0])) for n, m in linear.items()
        ]
        with torch.no_grad():
            for batch in batches:
                model(**batch, use_cache=False)
        for hook in hooks:
            hook.remove()
        for name, m in linear.items():
            scores = m.weight.detach().double().abs() * squares[name].sqrt()
            width = scores.shape[1] if n_of_m is None else n_of_m[1]
            drop = round(width / 2) if n_of_m is None else n_of_m[1] - n_of_m[0]
            for row in range(len(scores)):
                for start in range(0, scores.shape[1], width):
                    part = scores[row, start : start + width]
                    gone = part.argsort(stable=True)[:drop] + start
                    m.weight.data[row, gone] = 0.0


@pytest.mark.parametrize("pattern", [None, (2, 4)])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "t5"])
def test_wanda_as_published(kind: str, pattern: tuple[int, int] | None) -> None:
    model, batches = language_model(kind), batches_for(kind)
    recipe = replace(prunus.methods.get("wanda"), sweep="blocks")
    if pattern is not None:
        recipe = replace(recipe, allocate=NofM(*pattern))
    result = prunus.prune(model, Task(calib=batches), recipe, sparsity=None if pattern else 0.5)
    wanda_by_hand(model, batches, pattern)
    ours, theirs = result.model.state_dict(), model.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    assert set(result.skipped) == ({"lm_head.weight"} if kind == "llama" else set())  # elsewhere it is the embedding


class Past:
    """Keys of every layer, each followed by what comes later."""

    def __init__(self) -> None:
        self.keys: list[list[Tensor]] = [[], []]


class Attends(nn.Module):
    def __init__(self, place: int) -> None:
        super().__init__()
        self.place, self.k, self.out = place, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        k = self.k(x)
        if past is not None:
            past.keys[self.place].append(k)
            k = torch.cat(past.keys[self.place], 1)
        return x + self.out((x @ k.mT).softmax(-1) @ k)


class Caching(nn.Module):
    """Keeps its keys in an object among the arguments of its layers, whether asked to or not."""

    def __init__(self, caches: bool) -> None:
        super().__init__()
        self.caches = caches
        self.layers = nn.ModuleList(Attends(i) for i in range(2))

    def forward(self, x: Tensor) -> Tensor:
        past = Past() if self.caches else None
        for layer in self.layers:
            x = layer(x, past)
        assert past is None or [len(k) for k in past.keys] == [1, 1]
        return x


def test_a_cache_among_the_arguments_is_as_it_was_whenever_a_block_is_tried() -> None:
    pruned = []
    for caches in (True, False):
        torch.manual_seed(0)
        model = Caching(caches)
        recipe = replace(prunus.methods.get("wanda"), sweep="blocks")
        pruned.append(prunus.prune(model, Task(calib=[torch.randn(2, 5, 8)] * 2), recipe, sparsity=0.5).model)
    one, other = (m.state_dict() for m in pruned)
    assert all(torch.equal(one[n], other[n]) for n in other)


def test_nothing_of_it_stays() -> None:
    model, batches = language_model("llama"), batches_for("llama")
    model.train()
    model.model.layers[1].eval()
    modes = {n: m.training for n, m in model.named_modules()}
    recipe = replace(prunus.methods.get("wanda"), sweep="blocks")
    session = prunus.Session(model, recipe, Task(calib=batches), sparsity=0.5)
    session.start()
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert model.config.use_cache is True
    assert not any("forward" in vars(m) for m in model.modules())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert not [t for t in threading.enumerate() if t.name == "prunus-walk"]
    assert all(p.requires_grad for p in model.parameters())


def test_an_error_in_the_forward_is_the_callers() -> None:
    model, batches = language_model("llama"), batches_for("llama")
    batches[1] = {"input_ids": torch.full((2, 12), 64)}  # beyond the vocabulary
    blocks = blocks_in(model)
    with pytest.raises(IndexError):
        list(walk(model, Task(calib=batches), blocks))
    stopped = walk(model, Task(calib=batches[:1]), blocks)
    next(stopped)
    stopped.close()
    assert not [t for t in threading.enumerate() if t.name == "prunus-walk"]
    assert not any("forward" in vars(m) for m in model.modules())
    with pytest.raises(DataError, match="no batch"):
        list(walk(model, Task(calib=[]), blocks))


class Fork(nn.Module):
    """Goes through its second block only where the first input is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](x)
        return self.blocks[1](x) if x.shape[0] > 1 else x


class Again(nn.Module):
    """Runs its blocks twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            for block in self.blocks:
                x = block(x)
        return x


class Crossed(nn.Module):
    """Batches of one row go through its blocks the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks if x.shape[0] > 1 else reversed(self.blocks):
            x = block(x)
        return x


def test_a_block_is_visited_with_the_batches_that_reach_it() -> None:
    model = Fork()
    long, short = torch.randn(2, 4), torch.randn(1, 4)
    visits = [(v.name, [c.args[0] for c in v.calls]) for v in walk(model, Task(calib=[long, short]), blocks_in(model))]
    assert [name for name, _ in visits] == ["blocks.0", "blocks.1"]
    with torch.no_grad():
        second = model.blocks[0](long)
    for (_, came), wanted in zip(visits, ([long, short], [second]), strict=True):
        assert len(came) == len(wanted) and all(torch.equal(a, b) for a, b in zip(came, wanted, strict=True))


def test_batches_that_cross_are_refused() -> None:
    model = Crossed()
    task = Task(calib=[torch.randn(2, 4), torch.randn(1, 4)])
    with pytest.raises(StructureError, match=r"by batches of another kind once it has been pruned"):
        list(walk(model, task, blocks_in(model)))
    for alone in task.calibration():
        assert len(list(walk(model, Task(calib=[alone]), blocks_in(model)))) == 2


def test_blocks_that_run_twice_are_no_blocks() -> None:
    model = Again()
    task = Task(calib=[torch.randn(3, 4)])
    assert blocks_in(model, task) == {"": model}
    with pytest.raises(StructureError, match="more than once"):
        list(walk(model, task, blocks_in(model), through=True))
    recipe = replace(prunus.methods.get("wanda"), sweep="blocks")
    whole = prunus.prune(model, task, prunus.methods.get("wanda"), sparsity=0.5)
    assert all(torch.equal(m, whole.masks[n]) for n, m in prunus.prune(model, task, recipe, sparsity=0.5).masks.items())


class Forgetful(nn.Module):
    """A block that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * self.calls


def test_a_block_that_keeps_state_is_refused() -> None:
    model = nn.Sequential(Forgetful(), Forgetful())
    recipe = replace(prunus.methods.get("wanda"), sweep="blocks")
    with pytest.raises(SpecError, match="something else when it runs again"):
        prunus.prune(model, Task(calib=[torch.randn(3, 4)]), recipe, sparsity=0.5)


def test_recipes_that_need_more_than_a_block_are_refused() -> None:
    for name, why in (("synflow", "compete"), ("rigl", "more than prune")):
        with pytest.raises(SpecError, match=why):
            replace(prunus.methods.get(name), sweep="blocks")
    with pytest.raises(SpecError, match="compete"):
        replace(prunus.methods.get("wanda"), allocate=GlobalRanking(), sweep="blocks")
    with pytest.raises(SpecError, match="behind the last block"):
        replace(prunus.methods.get("wanda"), criterion=prunus.methods.get("taylor_fo").criterion, sweep="blocks")


@pytest.mark.parametrize("budget", [prunus.Budget(params=0.85), prunus.Budget(macs=0.85)], ids=str)
def test_a_budget_of_the_whole_model_is_met_by_all_of_it(budget: prunus.Budget) -> None:
    model, task = language_model("llama"), Task(calib=batches_for("llama"))
    swept = prunus.prune(model, task, "wanda", budget=budget)
    whole = prunus.prune(model, task, replace(prunus.methods.get("wanda"), sweep="model"), budget=budget)
    assert all(torch.equal(m, whole.masks[n]) for n, m in swept.masks.items())


def test_networks_of_convolutions_have_blocks_too() -> None:
    model = zoo.build("resnet8", in_channels=1, width=0.5)
    task = Task(calib=[torch.randn(2, 1, 16, 16)])
    blocks = blocks_in(model, task)
    assert len(blocks) == 3
    recipe = replace(prunus.methods.get("sparsegpt"), sweep="blocks")
    result = prunus.prune(model, task, recipe, sparsity=0.5)
    assert result.sparsity == pytest.approx(0.5, abs=0.01)
    x = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        assert not torch.equal(model.eval()(x), result.model.eval()(x))
