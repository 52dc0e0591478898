"""Reconstructions in whole networks: which inputs they are fitted on, what is chosen, what is said."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import PrunusWarning, StructureError
from prunus.engine.carry import run_due
from prunus.parts.allocation import NofM, Rearranged, Uniform
from prunus.parts.criteria import Magnitude, ObsSaliency
from prunus.parts.granularity import Channel, Element
from prunus.parts.reconstruct import BiasCompensation, ExactObs, GroupObs, LeastSquares, Merge, ObsUpdate, Osscar
from prunus.parts.schedule import Gradual, OneShot


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class Conv(nn.Module):
    """A strided, a grouped and a padded convolution, and a flattening in front of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 4, 3, stride=2, groups=2)
        self.c = nn.Linear(4 * 2 * 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))).flatten(1))


class Addmm(nn.Module):
    """A weight `[in, out]`, as GPT-2 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.zeros(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(torch.addmm(self.bias, x, self.weight)))


def built(kind: type[nn.Module], shape: tuple[int, ...], samples: int = 64) -> tuple[nn.Module, prunus.Task, Tensor]:
    torch.manual_seed(3)
    model, x = kind().double(), torch.randn(samples, *shape, dtype=torch.float64)
    halves = [(x[: samples // 2],), (x[samples // 2 :],)]
    return model, prunus.Task(calib=halves, example=(x[:1],)), x


def recipe_of(part: object, **changes: object) -> prunus.Recipe:
    return replace(methods.magnitude_uniform, name="rebuilt", reconstruct=part, **changes)


def refit(x: Tensor, w: Tensor, keep: Tensor) -> Tensor:
    new = torch.zeros_like(w)
    for row in range(len(w)):
        s = keep[row].nonzero().squeeze(1)
        # gelsd copes with neurons that never fire
        new[row, s] = torch.linalg.lstsq(x[:, s], (x @ w[row]).unsqueeze(1), driver="gelsd").solution.squeeze(1)
    return new


def test_layers_are_fitted_in_turn_on_what_the_pruned_ones_before_give() -> None:
    model, task, x = built(Mlp, (6,))
    result = prunus.prune(model, task, recipe_of(LeastSquares(damp=0.0)), sparsity=0.5)
    new = result.model
    for name, read in (("a", x), ("b", F.relu(new.a(x))), ("c", F.relu(new.b(F.relu(new.a(x)))))):
        old, now = getattr(model, name), getattr(new, name)
        expected = refit(read.detach(), old.weight.detach(), result.masks[f"{name}.weight"])
        # A neuron that never fires leaves its weight undetermined, so what is compared is the output.
        assert torch.allclose(read @ now.weight.T, read @ expected.T, atol=1e-6), name
        assert torch.equal(now.bias, old.bias)
    assert torch.equal(
        result.masks["b.weight"], prunus.prune(model, task, "magnitude_uniform", sparsity=0.5).masks["b.weight"]
    )


def test_convolutions_are_maps_of_their_patches() -> None:
    model, task, x = built(Conv, (2, 6, 6))
    result = prunus.prune(model, task, recipe_of(LeastSquares(damp=0.0)), sparsity=0.4)
    new, keep = result.model, result.masks
    patches = F.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 18)
    expected = refit(patches, model.a.weight.detach().reshape(6, 18), keep["a.weight"].reshape(6, 18))
    assert torch.allclose(new.a.weight.reshape(6, 18), expected, atol=1e-8)
    for g in range(2):  # each group of a grouped convolution is a map of its own
        half = F.relu(new.a(x)).detach()[:, 3 * g : 3 * g + 3]
        rows = slice(2 * g, 2 * g + 2)
        patches = F.unfold(half, 3, stride=2).transpose(1, 2).reshape(-1, 27)
        old, kept = (t[rows].reshape(2, 27) for t in (model.b.weight.detach(), keep["b.weight"]))
        assert torch.allclose(new.b.weight[rows].reshape(2, 27), refit(patches, old, kept), atol=1e-8)


def test_a_weight_that_lies_the_other_way_round() -> None:
    model, task, x = built(Addmm, (6,))
    result = prunus.prune(model, task, recipe_of(LeastSquares(damp=0.0)), sparsity=0.5)
    expected = refit(x, model.weight.detach().T, result.masks["weight"].T)
    assert torch.allclose(result.model.weight.T, expected, atol=1e-8)


def test_channels_are_made_up_for_by_their_readers() -> None:
    model, task, x = built(Mlp, (6,))
    found = recipe_of(LeastSquares(damp=0.0), granularity=Channel())
    result = prunus.prune(model, task, found, sparsity=0.5)
    kept = result.masks["b.weight"][0]
    hidden = F.relu(model.a(x)).detach()  # whole still when its statistics are taken
    mask = torch.ones(7, 8, dtype=torch.bool) & result.unit_masks["a"]
    expected = refit(hidden, model.b.weight.detach(), mask)
    alive = result.unit_masks["b"]
    assert torch.allclose(result.model.b.weight[alive], expected[alive], atol=1e-8)
    assert torch.equal(kept, result.unit_masks["a"] & bool(alive[0]))
    assert torch.allclose(result.compact()(x), result.model(x))


def test_readers_after_a_flattening() -> None:
    model, task, x = built(Conv, (2, 6, 6))
    result = prunus.prune(model, task, recipe_of(LeastSquares(damp=0.0), granularity=Channel()), sparsity=0.5)
    small = result.compact()
    assert torch.allclose(small(x), result.model(x))
    plain = prunus.prune(model, task, recipe_of(None, granularity=Channel()), sparsity=0.5).model
    goal = model(x)
    assert (result.model(x) - goal).square().mean() < (plain(x) - goal).square().mean()


@pytest.mark.parametrize("part", [ObsUpdate(block=3), ExactObs(), LeastSquares(), BiasCompensation()])
def test_single_weights_stay_exactly_as_many(part: object) -> None:
    model, task, _ = built(Conv, (2, 6, 6))
    result = prunus.prune(model, task, recipe_of(part, criterion=ObsSaliency()), sparsity=0.5)
    for name, mask in result.unit_masks.items():
        assert int(mask.sum()) == mask.numel() // 2, name
    named = dict(result.model.named_parameters())
    assert all((named[n][~m] == 0).all() for n, m in result.masks.items())


@pytest.mark.parametrize("part", [ObsUpdate(), ExactObs()])
def test_patterns_stay_patterns(part: object) -> None:
    model, task, _ = built(Wide, (8,))
    result = prunus.prune(model, task, recipe_of(part, allocate=NofM(2, 4), criterion=ObsSaliency()))
    assert all((m.reshape(-1, 4).sum(1) == 2).all() for m in result.unit_masks.values())
    plain = prunus.prune(model, task, recipe_of(None, allocate=NofM(2, 4), criterion=ObsSaliency()))
    assert any(not torch.equal(result.unit_masks[n], plain.unit_masks[n]) for n in plain.unit_masks)


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x))).mean((2, 3))


def test_a_pattern_along_the_input_channels() -> None:
    model, task, _ = built(Images, (4, 7, 7), samples=16)
    found = recipe_of(ObsUpdate(), allocate=NofM(2, 4, along="input"), criterion=ObsSaliency())
    result = prunus.prune(model, task, found)
    for name, mask in result.masks.items():
        blocks = mask.movedim(1, -1).reshape(-1, 4)
        assert (blocks.sum(1) == 2).all(), name


@pytest.mark.parametrize("part", [ObsUpdate(), ExactObs()])
def test_a_pattern_across_the_inputs_is_kept_as_it_is(part: object) -> None:
    """A weight `[in, out]` has its blocks along the outputs, and columns cannot be chosen from."""
    model, task, _ = built(Addmm, (6,))
    changes = {"allocate": NofM(2, 4), "criterion": ObsSaliency(), "granularity": Element(exclude=("head",))}
    result, plain = (prunus.prune(model, task, recipe_of(p, **changes)) for p in (part, None))
    assert torch.equal(result.masks["weight"], plain.masks["weight"])
    assert (result.masks["weight"].reshape(-1, 4).sum(1) == 2).all()
    assert not torch.equal(result.model.weight, plain.model.weight)


@pytest.mark.parametrize("part", [GroupObs(), Osscar()])
def test_units_with_one_reader_are_chosen_anew(part: object) -> None:
    model, task, _ = built(Mlp, (6,))
    chosen = prunus.prune(model, task, recipe_of(part, granularity=Channel()), sparsity=0.5)
    plain = prunus.prune(model, task, recipe_of(None, granularity=Channel()), sparsity=0.5)
    assert {n: int(m.sum()) for n, m in chosen.unit_masks.items()} == {
        n: int(m.sum()) for n, m in plain.unit_masks.items()
    }
    assert any(not torch.equal(chosen.unit_masks[n], plain.unit_masks[n]) for n in plain.unit_masks)
    assert sum(p.numel() for p in chosen.compact().parameters()) == sum(p.numel() for p in plain.compact().parameters())


class Twice(nn.Module):
    """A hidden layer that two heads read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x))
        return self.b(hidden) + self.c(hidden).tanh()


def test_units_with_two_readers_are_the_criterions_and_both_are_fitted() -> None:
    model, task, x = built(Twice, (6,))
    plain = prunus.prune(model, task, recipe_of(None, granularity=Channel()), sparsity=0.5)
    for part in (GroupObs(damp=0.0), Osscar(damp=0.0), LeastSquares(damp=0.0)):
        result = prunus.prune(model, task, recipe_of(part, granularity=Channel()), sparsity=0.5)
        assert torch.equal(result.unit_masks["a"], plain.unit_masks["a"])
        hidden = F.relu(model.a(x)).detach()
        for name in ("b", "c"):
            old = getattr(model, name).weight.detach()
            expected = refit(hidden, old, torch.ones_like(old, dtype=torch.bool) & result.unit_masks["a"])
            assert torch.allclose(getattr(result.model, name).weight, expected, atol=1e-8)


def test_masks_only_shrink_when_layers_are_rebuilt_again_and_again() -> None:
    model, task, _ = built(Mlp, (6,))
    for part, granularity in ((ObsUpdate(block=4), Element()), (ExactObs(), Element()), (Osscar(), Channel())):
        found = recipe_of(part, granularity=granularity, criterion=Magnitude(), schedule=Gradual(every=1, end=1.0))
        session = prunus.Session(model, found, task, sparsity=0.7, steps=4)
        was = {n: m.clone() for n, m in session.masks.items()}
        while session.fired < len(session.events):
            session.step = session.events[session.fired].step
            run_due(session)
            assert all(not (session.masks[n] & ~was[n]).any() for n in was)
            was = {n: m.clone() for n, m in session.masks.items()}
        assert sum(int(m.sum()) for m in was.values()) < sum(m.numel() for m in was.values()) * 0.5
        model, task, _ = built(Mlp, (6,))


class Recurrent(nn.Module):
    def __init__(self, head: bool = True) -> None:
        super().__init__()
        self.a = nn.LSTM(6, 5, batch_first=True)
        self.b = nn.Linear(5, 2) if head else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)[0][:, -1])


def test_what_nothing_visible_reads_is_named() -> None:
    model, task, _ = built(Recurrent, (4, 6))
    with pytest.warns(PrunusWarning, match=r"without a reconstruction, as nothing visible reads them: a\.weight_ih_l0"):
        result = prunus.prune(model, task, recipe_of(LeastSquares()), sparsity=0.5)
    assert int(result.masks["a.weight_ih_l0"].sum()) == 60
    alone = Recurrent(head=False).double()
    with pytest.raises(StructureError, match="sees none"):
        prunus.prune(alone, task, recipe_of(LeastSquares()), sparsity=0.5)


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


def test_a_bias_that_is_not_there_is_named_once() -> None:
    model, task, _ = built(Bare, (6,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prunus.prune(model, task, recipe_of(BiasCompensation(), granularity=Channel()), sparsity=0.5)
    said = [str(w.message) for w in caught if "bias that is not there" in str(w.message)]
    assert len(said) == 1 and "b.weight" in said[0]


def test_bias_compensation_keeps_the_mean_of_every_layer() -> None:
    model, task, x = built(Mlp, (6,))
    result = prunus.prune(model, task, recipe_of(BiasCompensation(), granularity=Channel()), sparsity=0.5)
    hidden = F.relu(model.a(x))
    alive = result.unit_masks["b"]
    now = F.relu(result.model.a(x)) @ result.model.b.weight.T + result.model.b.bias
    assert torch.allclose(now.mean(0)[alive], model.b(hidden).mean(0)[alive])


def test_merging_twins_changes_no_output() -> None:
    model, task, x = built(Mlp, (6,))
    with torch.no_grad():
        for layer, (one, other) in ((model.a, (1, 5)), (model.a, (2, 6)), (model.b, (0, 3))):
            layer.weight[other], layer.bias[other] = layer.weight[one], layer.bias[one]
        # The first of each pair is what stays, and the twins are the shortest.
        model.a.weight[[5, 6]] *= 1 - 1e-9
        model.b.weight[3] *= 1 - 1e-9
    keep = {"a": [5, 6], "b": [3]}
    session = prunus.Session(model, recipe_of(Merge(), granularity=Channel()), task, sparsity=0.2)
    goal = model(x).detach().clone()
    from prunus.engine.apply_ import apply_, parameter_masks
    from prunus.engine.rebuild import rebuilt

    masks = {g.name: torch.ones(g.shape, dtype=torch.bool) for g in session.groups}
    for name, gone in keep.items():
        masks[name][gone] = False
    masks = rebuilt(session, masks)
    apply_(session.parameters, parameter_masks(session.groups, masks, session.parameters))
    assert torch.allclose(session.model(x), goal, atol=1e-6) and not torch.equal(session.model(x), goal)


# Criterion and mask search


def test_obs_saliency_of_single_weights_is_the_error_of_removing_one_and_refitting() -> None:
    model, task, x = built(Mlp, (6,))
    scores = prunus.score(model, task, replace(methods.obc, criterion=ObsSaliency(damp=0.0)))["b.weight"]
    hidden = F.relu(model.a(x)).detach()
    w = model.b.weight.detach()
    for row, column in ((0, 0), (2, 5), (6, 7)):
        keep = torch.ones(1, 8, dtype=torch.bool)
        keep[0, column] = False
        fit = refit(hidden, w[row : row + 1], keep)
        assert float(scores[row, column]) == pytest.approx(float((hidden @ (fit - w[row : row + 1]).T).square().mean()))


def test_obs_saliency_of_a_convolution_and_of_its_channels() -> None:
    model, task, x = built(Conv, (2, 6, 6))
    scores = prunus.score(model, task, replace(methods.obc, criterion=ObsSaliency(damp=0.0)))
    patches = F.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 18)
    inverse = torch.linalg.inv(patches.T @ patches / len(patches))
    expected = model.a.weight.detach().square() / inverse.diagonal().reshape(1, 2, 3, 3)
    assert torch.allclose(scores["a.weight"], expected)
    strided = nn.Sequential(nn.Conv2d(2, 4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()
    units = prunus.score(strided, task, replace(methods.obspa, criterion=ObsSaliency(damp=0.0)))
    hidden = strided[:3](x).detach()
    inverse = torch.linalg.inv(hidden.T @ hidden / len(hidden))
    each = (strided[3].weight.detach().square() / inverse.diagonal()).reshape(3, 4, 4).sum((0, 2))
    assert torch.allclose(units["0"], each)


def test_rearranging_is_kwons_greedy_exchange() -> None:
    """Against the published loop: each kept unit in ascending order joins, and the best one to put back leaves."""
    from prunus.parts.allocation.rearranged import rearranged

    draw = torch.Generator().manual_seed(5)
    gates = torch.randn(9, 30, generator=draw, dtype=torch.float64) @ torch.randn(30, 6, generator=draw).double()
    scores = gates.square().sum(1)
    order = scores.argsort().tolist()
    gone = order[:5]
    for unit in order[5:]:
        gone.append(unit)
        errors = [float(gates[[v for v in gone if v != u]].sum(0).square().sum()) for u in gone]
        gone.pop(errors.index(min(errors)))
    mask = torch.ones(9, dtype=torch.bool)
    mask[order[:5]] = False
    found = rearranged(scores, mask, gates)
    assert sorted(gone) == (~found).nonzero().squeeze(1).tolist() != sorted(order[:5])
    lost = [float(gates[~m].sum(0).square().sum()) for m in (mask, found)]
    assert lost[1] < lost[0]


def test_rearranging_uses_every_batch_and_keeps_the_counts() -> None:
    model, task, x = built(Mlp, (6,))
    labels = torch.randint(3, (64,), generator=torch.Generator().manual_seed(1))
    batches = [(x[:32], labels[:32]), (x[32:], labels[32:])]
    task = prunus.Task(loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]), calib=batches, example=(x[:1],))
    found = replace(methods.kwon, allocate=Rearranged(of=Uniform()), reconstruct=None, schedule=OneShot())
    result = prunus.prune(model, task, found, sparsity=0.5)
    gates = {}
    for name in ("a", "b"):
        rows = []
        for n in range(64):
            m = torch.ones(8 if name == "a" else 7, dtype=torch.float64, requires_grad=True)
            z = x[n : n + 1]
            h = F.relu(model.a(z)) * m if name == "a" else F.relu(model.a(z))
            h = F.relu(model.b(h)) if name == "a" else F.relu(model.b(h)) * m
            rows.append(torch.autograd.grad(F.cross_entropy(model.c(h), labels[n : n + 1]), m)[0])
        gates[name] = torch.stack(rows, 1)
    from prunus.parts.allocation.rearranged import rearranged

    for name, g in gates.items():
        scores = g.square().mean(1)
        mask = torch.zeros(len(g), dtype=torch.bool)
        mask[scores.argsort(descending=True)[: (len(g) + 1) // 2]] = True
        assert torch.equal(result.unit_masks[name], rearranged(scores, mask, g)), name
