"""SliceGPT: the rotated model computes the same; the sliced one what projections of the dense one's stream compute."""

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
from prunus.core.shortcut import Joining
from prunus.parts.criteria import SecondMoment
from prunus.parts.prepare import Rotate
from tests.oracle.language_nets import bert, gpt2, language_task, llama, logits, opt, tokens

ONE = replace(methods.slicegpt, name="one_rotation", prepare=Rotate(per="stream"), criterion=SecondMoment())
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


def root_mean_square(z: Tensor, norm: nn.Module) -> Tensor:
    """What the paper makes of a norm: z / sqrt(mean z^2 + eps), with the scale and the shift that it had."""
    eps = next(v for v in vars(norm).values() if isinstance(v, float))
    shift = getattr(norm, "bias", None)
    y: Tensor = z / (z.square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight
    return y if shift is None else y + shift


def at_places(model: nn.Module, name: str) -> list[Tensor]:
    """Q_l of every norm in turn: eigenvectors of C_l = sum over sequences of X^T X, X what the l-th norm puts out
    without its scale (equation 7 and the text below it), the largest eigenvalue first.
    """
    sums: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, _inputs: object, y: Tensor) -> None:
        shift = getattr(module, "bias", None)
        x = ((y - (0 if shift is None else shift)) / module.weight).flatten(0, -2)
        sums[module] = sums.get(module, torch.zeros(16, 16, dtype=torch.float64)) + x.T @ x

    with hooked(model, NORMS[name], note):
        for batch in tokens():
            logits(model, batch)
    turns = [torch.linalg.eigh(c).eigenvectors.flip(1) for c in sums.values()]
    return [q * q.gather(0, q.abs().argmax(0, keepdim=True)).sign() for q in turns]


@contextmanager
def sliced(model: nn.Module, name: str, turns: list[Tensor], keep: int) -> Iterator[None]:
    """The dense model as equations 8 to 10 change it, in the dense model's own coordinates, in which a slice of the
    stream at place l is a projection D_l = Q_l P P^T Q_l^T: the stream becomes z_0 = D_0 e and
    z_(l+1) = D_(l+1) (z_l + f_l(norm(z_l))), for Q_l^T Q_(l+1), cut on both sides, lies on the connection.
    """
    onto = [q[:, :keep] @ q[:, :keep].T for q in turns]
    z, at = torch.zeros(0), -1
    centred = name not in ("llama", "tied")

    def reach(norm: nn.Module, inputs: tuple[Tensor, ...], _y: Tensor) -> Tensor:
        nonlocal z, at
        z, at = inputs[0], (at + 1) % len(turns)
        return root_mean_square(z, norm)

    def write(_module: nn.Module, _inputs: object, y: Tensor) -> Tensor:
        y = y - y.mean(-1, keepdim=True) if centred else y  # LayerNorm's M goes into what writes
        start = at in (-1, len(turns) - 1)
        return y @ onto[0] if start else (z + y) @ onto[at + 1] - z

    with hooked(model, NORMS[name], reach), hooked(model, WRITERS[name], write):
        yield


EACH = [pytest.param(n, marks=() if n in ("llama", "gpt2") else pytest.mark.slow) for n in NETS]


@pytest.mark.parametrize("name", EACH)
def test_every_block_has_a_rotation_of_its_own(name: str) -> None:
    model = NETS[name]()
    turns = at_places(model, name)
    result = prunus.prune(NETS[name](), language_task(), "slicegpt", sparsity=0.4)
    (mask,) = result.unit_masks.values()
    assert mask.tolist() == [True] * 10 + [False] * 6  # round(0.6 * 16)
    batches = tokens(3, 11)
    with sliced(model, name, turns, 10):
        slow = [logits(model, batch) for batch in batches]
    small = result.compact()
    for batch, expected in zip(batches, slow, strict=True):
        masked = logits(result.model, batch)
        torch.testing.assert_close(masked, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logits(small, batch), masked, rtol=1e-10, atol=1e-11)
    joinings = {m.number: m for m in small.modules() if isinstance(m, Joining)}
    assert sorted(joinings) == list(range(len(turns) - 1))
    for k, joining in joinings.items():  # Q_in^T Q_out, cut on both sides
        beside = torch.eye(10).double() + joining.shortcut.weight.T
        torch.testing.assert_close(beside, (turns[k].T @ turns[k + 1])[:10, :10], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per", ["block", "stream"])
@pytest.mark.parametrize("name", EACH)
def test_the_rotated_model_is_the_same_function(name: str, per: str) -> None:
    model = NETS[name]()
    turned = Rotate(per=per)(copy.deepcopy(model), tokens()[0], language_task())
    twice = Rotate(per=per)(copy.deepcopy(turned), tokens()[0])
    assert turned.state_dict().keys() == twice.state_dict().keys()
    for batch in tokens(3, 11):
        torch.testing.assert_close(logits(turned, batch), logits(model, batch), rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(logits(twice, batch), logits(model, batch), rtol=1e-10, atol=1e-11)
    assert not torch.allclose(turned.get_input_embeddings().weight, model.get_input_embeddings().weight)


@pytest.mark.parametrize("name", ["llama", "gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("tied", "opt"))])
def test_slices_against_a_projection_of_every_write(name: str) -> None:
    """One rotation: with P = Q_k Q_k^T, whatever is added to the stream is multiplied by P, and that is all."""
    model = NETS[name]()
    values, vectors = eigen(model, NORMS[name])
    scores = prunus.score(model, language_task(), ONE)
    (found,) = scores.values()
    torch.testing.assert_close(found, values, rtol=1e-6, atol=1e-6)  # norms compute in float32
    result = prunus.prune(model, language_task(), ONE, sparsity=0.4)
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
    plain = replace(ONE, name="plain", prepare=None)
    batch = tokens()[0]
    apart = {
        r.name: float(
            (logits(prunus.prune(model, language_task(), r, sparsity=0.3).model, batch) - logits(model, batch)).norm()
        )
        for r in (ONE, plain)
    }
    assert apart["one_rotation"] < apart["plain"]


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        *(("llama", r) for r in (methods.slicegpt, ONE)),
        *(pytest.param(n, methods.slicegpt, marks=pytest.mark.slow) for n in NETS if n != "llama"),
        *(pytest.param(n, ONE, marks=pytest.mark.slow) for n in ("gpt2", "tied")),
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_saved_and_loaded(name: str, recipe: prunus.Recipe, tmp_path: Path) -> None:
    """Also where norms became others, a head got a bias and a table became two."""
    result = prunus.prune(NETS[name](), language_task(), recipe, sparsity=0.25)
    prunus.save(result, tmp_path / "small")
    again = prunus.load(tmp_path / "small", NETS[name])
    batch = tokens()[1]
    torch.testing.assert_close(logits(again, batch), logits(result.model, batch), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("per", ["block", "stream"])
def test_bfloat16_is_rounded_once(per: str) -> None:
    model = llama().bfloat16()
    turned = Rotate(per=per)(copy.deepcopy(model), tokens()[0])
    exact = Rotate(per=per)(copy.deepcopy(model).double(), tokens()[0])
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
    for per, why in (
        ("stream", "no weight reads what two puts out"),
        ("block", "nothing is seen to write to the .* up"),
    ):
        with pytest.raises(StructureError, match=why):
            Rotate(per=per)(model, example)
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
        Rotate(per="stream")(model, example)
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


class Parallel(nn.Module):
    """Blocks whose two branches start from the same place, as in GPT-NeoX; one's norm can be the other's."""

    def __init__(self, blocks: int = 2, *, shared: bool = False) -> None:
        super().__init__()
        self.up, self.last, self.head = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.norms = nn.ModuleList(nn.ModuleList(nn.LayerNorm(8) for _ in range(2)) for _ in range(blocks))
        self.maps = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Linear(8, 5), nn.GELU(), nn.Linear(5, 8)) for _ in range(2))
            for _ in range(blocks)
        )
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        for norms, maps in zip(self.norms, self.maps, strict=True):
            one = norms[0](x)
            x = x + maps[0](one) + maps[1](one if self.shared else norms[1](x))
        return self.head(self.last(x))


def test_parallel_branches_share_a_place() -> None:
    torch.manual_seed(0)
    model, example = Parallel().double(), (torch.randn(2, 5, 4).double(),)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    before = model(*example)
    result = prunus.prune(
        copy.deepcopy(model), prunus.Task(calib=[example], example=example), "slicegpt", sparsity=0.25
    )
    assert [n for n, m in result.model.named_modules() if isinstance(m, Joining)] == ["maps.0.1.2", "maps.1.1.2"]
    torch.testing.assert_close(result.compact()(*example), result.model(*example), rtol=1e-10, atol=1e-11)
    turned = Rotate()(model, example)
    torch.testing.assert_close(turned(*example), before, rtol=1e-10, atol=1e-11)
    turned(*example).square().sum().backward()
    assert all(m.shortcut.weight.grad is not None for m in turned.modules() if isinstance(m, Joining))
    twin = copy.deepcopy(turned)
    twin.maps[0][1][2].link.x = None
    with pytest.raises(StructureError, match="the norm before it was not run"):
        twin.maps[0][1][2](torch.randn(2, 5, 5).double())


def test_layers_that_run_twice_have_no_place() -> None:
    class Looped(Parallel):
        def forward(self, x: Tensor) -> Tensor:
            x = self.up(x)
            for _ in range(2):
                x = x + self.maps[0][0](self.norms[0][0](x)) + self.maps[0][1](self.norms[0][1](x))
            return self.head(self.last(x))

    model, example = Looped(1), (torch.randn(2, 5, 4),)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StructureError, match=r"maps\.0\.0\.2.*more than once"):
        Rotate()(model, example)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
