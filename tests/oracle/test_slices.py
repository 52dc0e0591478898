"""SliceGPT: the rotated model computes the same; the sliced one what projecting every write to the stream computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError, StructureError
from prunus.parts.prepare import Rotate
from tests.oracle.language_nets import bert, gpt2, language_task, llama, logits, opt, tokens

NETS = {"llama": llama, "tied": lambda: llama(tie_word_embeddings=True), "gpt2": gpt2, "opt": opt}
NORMS = {"llama": ("norm",), "tied": ("norm",), "gpt2": ("ln_1", "ln_2", "ln_f"), "opt": ("layer_norm",)}
WRITERS = {
    "llama": ("embed_tokens", "o_proj", "down_proj"),
    "tied": ("embed_tokens", "o_proj", "down_proj"),
    "gpt2": ("wte", "wpe", "c_proj"),
    "opt": ("embed_tokens", "embed_positions", "out_proj", "fc2"),
}


@contextmanager
def hooked(model: nn.Module, ends: tuple[str, ...], hook: Callable[..., Tensor | None]) -> Iterator[None]:
    found = [m for n, m in model.named_modules() if n.endswith(ends)]
    handles = [m.register_forward_hook(hook) for m in found]
    assert found
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def eigen(model: nn.Module, ends: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, and eigenvectors of the sum over norms of E[u u^T], token by token."""
    sums: dict[nn.Module, list[Tensor]] = {}

    def note(module: nn.Module, _inputs: object, y: Tensor) -> None:
        shift = getattr(module, "bias", None)
        u = (y - (0 if shift is None else shift)) / module.weight
        sums.setdefault(module, []).extend(u.flatten(0, -2))

    with hooked(model, ends, note):
        for batch in tokens():
            logits(model, batch)
    total = torch.zeros(16, 16, dtype=torch.float64)
    for rows in sums.values():
        for u in rows:
            total += torch.outer(u, u) / len(rows)
    values, vectors = torch.linalg.eigh(total)
    return values.flip(0), vectors.flip(1)


@pytest.mark.parametrize("name", NETS)
def test_the_rotated_model_is_the_same_function(name: str) -> None:
    model = NETS[name]()
    turned = Rotate()(copy.deepcopy(model), tokens()[0], language_task())
    for batch in tokens(3, 11):
        torch.testing.assert_close(logits(turned, batch), logits(model, batch), rtol=1e-10, atol=1e-11)
    assert not torch.allclose(turned.get_input_embeddings().weight, model.get_input_embeddings().weight)


@pytest.mark.parametrize("name", ["llama", "gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("tied", "opt"))])
def test_slices_against_a_projection_of_every_write(name: str) -> None:
    """With P = Q_k Q_k^T, whatever is added to the stream is multiplied by P, and nothing else is changed."""
    model = NETS[name]()
    values, vectors = eigen(model, NORMS[name])
    scores = prunus.score(model, language_task(), "slicegpt")
    (found,) = scores.values()
    torch.testing.assert_close(found, values, rtol=1e-6, atol=1e-6)  # norms compute in float32
    result = prunus.prune(model, language_task(), "slicegpt", sparsity=0.4)
    (mask,) = result.unit_masks.values()
    assert mask.nonzero().flatten().tolist() == list(range(10))  # round(0.6 * 16), the largest eigenvalues
    onto = vectors[:, :10] @ vectors[:, :10].T
    with hooked(model, WRITERS[name], lambda _m, _i, y: y @ onto):
        slow = [logits(model, batch) for batch in tokens(3, 11)]
    small = result.compact()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in result.model.parameters())
    for batch, expected in zip(tokens(3, 11), slow, strict=True):
        masked = logits(result.model, batch)
        torch.testing.assert_close(masked, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logits(small, batch), masked, rtol=1e-10, atol=1e-11)


def test_principal_components_lose_less_than_the_dimensions_as_they_are() -> None:
    model = llama()
    plain = replace(methods.slicegpt, name="plain", prepare=None)
    batch = tokens()[0]
    apart = {
        r.name: float(
            (logits(prunus.prune(model, language_task(), r, sparsity=0.3).model, batch) - logits(model, batch)).norm()
        )
        for r in (methods.slicegpt, plain)
    }
    assert apart["slicegpt"] < apart["plain"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    """Also where norms became others, a head got a bias and a table became two."""
    result = prunus.prune(NETS[name](), language_task(), "slicegpt", sparsity=0.25)
    prunus.save(result, tmp_path / "small")
    again = prunus.load(tmp_path / "small", NETS[name])
    batch = tokens()[1]
    torch.testing.assert_close(logits(again, batch), logits(result.model, batch), rtol=1e-9, atol=1e-10)


def test_bfloat16_is_rounded_once() -> None:
    model = llama().bfloat16()
    turned = Rotate()(copy.deepcopy(model), tokens()[0])
    exact = Rotate()(copy.deepcopy(model).double(), tokens()[0])
    for (name, p), q in zip(turned.named_parameters(), exact.parameters(), strict=True):
        assert p.dtype == torch.bfloat16
        if "norm" in name:
            torch.testing.assert_close(p.double(), q)
    turned_logits, before = (m(**tokens()[0]).logits.float() for m in (turned, model))
    assert float((turned_logits - before).detach().norm() / before.detach().norm()) < 0.05


def test_what_cannot_be_turned_is_refused_and_left_alone() -> None:
    class Post(nn.Module):
        """A norm whose output is added to the stream."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.mix, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.one, self.two, self.last = nn.RMSNorm(6), nn.RMSNorm(6), nn.RMSNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.up(x)
            return self.head(self.last(x + self.two(self.mix(self.one(x)))))

    model, example = Post(), (torch.randn(2, 5, 4),)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StructureError, match="no weight reads what two puts out"):
        Rotate()(model, example)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(StructureError, match="changes the outputs"):
        Rotate()(bert(), tokens()[0])
    with pytest.raises(SpecError, match="found by a run"):
        Rotate()(model)


def test_a_map_of_single_dimensions_is_seen() -> None:
    class Squashed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.mix, self.head, self.norm = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3), nn.RMSNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.up(x)
            return self.head(self.norm(torch.tanh(x) + self.mix(self.norm(x))))

    model, example = Squashed(), (torch.randn(2, 5, 4),)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StructureError, match="changes the outputs"):
        Rotate()(model, example)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_expert_that_no_token_goes_to_is_refused() -> None:
    """Its scale could not be put where it belongs, and no run of this example would show it."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head, self.norm, self.last = nn.Linear(4, 6), nn.Linear(6, 3), nn.RMSNorm(6), nn.RMSNorm(6)
            self.router = nn.Linear(6, 4, bias=False)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.up(x)
            h = self.norm(x)
            share, chosen = self.router(h).softmax(-1).max(-1)
            out = torch.zeros_like(x)
            for i, expert in enumerate(self.experts):
                mine = chosen == i
                if mine.any():
                    out[mine] = share[mine].unsqueeze(-1) * expert(h[mine])
            return self.head(self.last(x + out))

    torch.manual_seed(0)
    model = Routed()
    with torch.no_grad():
        for norm in (model.norm, model.last):
            norm.weight.copy_(torch.rand(6) + 0.5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StructureError):
        Rotate()(model, (torch.randn(1, 2, 4),))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
