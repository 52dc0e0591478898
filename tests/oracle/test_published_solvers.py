"""SparseGPT's and Wanda's layer routines as their papers have them, in float64, against ours on the same inputs.

Transcribed from algorithm 1 of arXiv:2301.00774 (and its section 3.3 on n:m) and from section 3 of arXiv:2306.11695,
with what the papers leave to their code: H = 2 X X^T; 1 % of the mean of its diagonal on the diagonal; a dead input
gets H_jj = 1 and weights of zero; a block is cut where its sorted costs reach the share that goes, `<=` included; of
n:m the n cheapest of every m go.

Where ours differs by choice:
- Of a block exactly its share goes. `<=` lets one more go (the threshold itself).
- A dead input adds nothing to the mean of the diagonal; there it adds 1, whatever the scale of the other inputs.
- A weight on a dead input that happens to be kept stays as it was; there it becomes zero.
- Where blocks of m do not come out even, the last one of the routine is broken (see the last tests).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import DataError, PrunusWarning
from prunus.core.layer import Layer
from prunus.core.symmetric import Symmetric
from prunus.engine.rebuild import chooser
from prunus.parts.allocation import NofM
from prunus.parts.reconstruct import ObsUpdate
from prunus.parts.reconstruct.solve import factored, restore_, upper_
from prunus.parts.reconstruct.surgeon import precision
from tests.oracle.linear import inputs, layer_of, run


def published(
    w: Tensor,
    x: Tensor,
    *,
    gone: float = 0.5,
    n: int = 0,
    m: int = 0,
    block: int = 128,
    damp: float = 0.01,
    exactly: bool = False,
    dead_as: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Weights and what is kept. `exactly`: the cheapest `share` of a block go, instead of all up to a threshold."""
    w = w.clone()
    h = 2 * x.T @ x
    dead = h.diagonal() == 0
    h.diagonal()[dead] = dead_as
    w[:, dead] = 0
    level = damp * h.diagonal().mean()
    h.diagonal().add_(level)
    u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    d = u.diagonal()
    keep = torch.ones_like(w, dtype=torch.bool)
    for i in range(0, w.shape[1], block):
        stop = min(i + block, w.shape[1])
        errors = torch.zeros(len(w), stop - i, dtype=torch.float64)
        if not m:
            cost = (w[:, i:stop] / d[i:stop]).square()
            ranked = cost.flatten().sort().values
            share = int(cost.numel() * gone)
            keep[:, i:stop] = cost >= ranked[share] if exactly else cost > ranked[share]
        for j in range(i, stop):
            if m and (j - i) % m == 0:
                cost = (w[:, j : min(j + m, stop)] / d[j : min(j + m, stop)]).square()
                keep[:, j:stop].scatter_(1, cost.topk(n, dim=1, largest=False).indices, False)
            errors[:, j - i] = torch.where(keep[:, j], 0.0, w[:, j]) / d[j]
            w[:, j:stop] -= errors[:, j - i].outer(u[j, j:stop])
        w[:, stop:] -= errors @ u[i:stop, stop:]
    return w * keep, keep


def half(out: int, width: int) -> Tensor:
    """A mask of half of the weights with rows that keep unequal numbers, so that the share is the layer's."""
    keep = torch.arange(out * width).reshape(out, width) % 2 == 0
    keep[0, 1] = True
    keep[1, int(keep[1].int().argmax())] = False
    return keep


def pattern(layer: Layer, n: int, m: int) -> Layer:
    """The layer with an n:m pattern, of which any n stay to begin with."""
    width = layer.w.shape[1]
    keep = (torch.arange(width) % m < n).expand(len(layer.w), -1).clone()
    return replace(layer, keep=keep, block=torch.arange(width) // m)


def setting(out: int, width: int, seed: int = 0) -> tuple[Layer, Tensor]:
    x = inputs(3 * width, width, seed)
    return layer_of(x, out, half(out, width), seed=seed + 1), x


def close(ours: Tensor, theirs: Tensor) -> bool:
    return float((ours - theirs).norm()) <= 1e-10 * float(theirs.norm())


@pytest.mark.parametrize(("out", "width", "block"), [(12, 200, 128), (9, 129, 128), (20, 40, 16)])
def test_half_of_every_block_is_the_published_routine(out: int, width: int, block: int) -> None:
    layer, x = setting(out, width)
    update = run(ObsUpdate(block=block), layer)
    theirs, kept = published(layer.w, x, block=block, exactly=True)
    assert torch.equal(update.keep, kept) and close(update.w, theirs)


def test_with_the_published_threshold_one_more_weight_goes_from_every_block() -> None:
    layer, x = setting(12, 256)
    update = run(ObsUpdate(), layer)
    theirs, kept = published(layer.w, x)
    # The first block sees the same weights: all but one choice is the same, and that one is the threshold.
    assert not (kept & ~update.keep)[:, :128].any() and int((update.keep & ~kept)[:, :128].sum()) == 1
    assert int(kept.sum()) == 12 * 256 // 2 - 2
    # From the published mask come the published weights, whatever they were cut by.
    again = run(ObsUpdate(select="masks"), replace(layer, keep=kept))
    assert torch.equal(again.keep, kept) and close(again.w, theirs)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4)])
@pytest.mark.parametrize("width", [128, 136])
def test_patterns_are_the_published_routines(n: int, m: int, width: int) -> None:
    layer, x = setting(12, width)
    update = run(ObsUpdate(), pattern(layer, n, m))
    theirs, kept = published(layer.w, x, n=m - n, m=m)
    assert torch.equal(update.keep, kept) and close(update.w, theirs)


def test_dead_inputs_go_first() -> None:
    """Their own weights cost nothing; those of the rest are as published, at the damping that comes to the same."""
    layer, x = setting(12, 160)
    x[:, ::10] = 0
    layer = replace(layer, gram=x.T @ x / len(x))
    level = (2 * x.T @ x).diagonal()
    more = float((level.sum() + 16) / level.sum())  # sixteen dead inputs that count as one each
    update = run(ObsUpdate(damp=0.01 * more), layer)
    theirs, kept = published(layer.w, x, exactly=True)
    assert torch.equal(update.keep, kept) and close(update.w, theirs)
    assert not update.keep[:, ::10].any()


def test_weights_on_dead_inputs_that_stay_keep_their_values() -> None:
    layer, x = setting(12, 128)
    x[:, :100] = 0
    update = run(ObsUpdate(), replace(layer, gram=x.T @ x / len(x)))
    assert update.keep[:, 100:].all() and bool(update.keep[:, :100].any())
    assert torch.equal(update.w, layer.w * update.keep)


# Widths that are no multiple of the pattern


@pytest.mark.parametrize("width", [126, 129, 130])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
def test_rows_that_do_not_divide_stay_dense_and_are_named(width: int, n: int, m: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    task = prunus.Task(
        calib=[(torch.randn(300, width, dtype=torch.float64),)], example=(torch.zeros(1, width).double(),)
    )
    result = prunus.prune(model, task, replace(methods.sparsegpt, allocate=NofM(n, m)))
    assert f"rows of {width} do not divide" in result.skipped["0.weight"]
    assert torch.equal(result.model[0].weight, model[0].weight) and "0.weight" not in result.masks
    assert (result.masks["2.weight"].reshape(-1, m).sum(1) == n).all()


@pytest.mark.parametrize("width", [126, 129, 130])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
def test_a_last_block_of_a_pattern_that_is_short_is_right(width: int, n: int, m: int) -> None:
    layer, x = setting(12, width)
    layer = pattern(layer, n, m)
    update = run(ObsUpdate(), layer)
    for b in range(-(-width // m)):
        inside = slice(b * m, min((b + 1) * m, width))
        assert torch.equal(update.keep[:, inside].sum(1), layer.keep[:, inside].sum(1))
    again = run(ObsUpdate(select="masks"), replace(layer, keep=update.keep))
    assert close(update.w, again.w)
    if width == 129:
        with pytest.raises(RuntimeError):  # the published loop asks for more than the last block has
            published(layer.w, x, n=m - n, m=m)


@pytest.mark.parametrize(("block", "m"), [(126, 4), (130, 8), (6, 4), (3, 8)])
def test_a_block_that_is_no_multiple_of_the_pattern(block: int, m: int) -> None:
    """The published loop starts the pattern anew at every block, and leaves rows with fewer or more than n of m."""
    layer, x = setting(8, 264)
    ours = run(ObsUpdate(block=block), pattern(layer, m // 2, m)).keep
    assert (ours.reshape(8, -1, m).sum(2) == m // 2).all()
    if block == 126:
        theirs = published(layer.w, x, n=m // 2, m=m, block=block)[1]
        assert not (theirs.reshape(8, -1, m).sum(2) == m // 2).all()


# Wanda


@pytest.mark.parametrize("gone", [0.5, 0.3, 0.7])
def test_wandas_rows(gone: float) -> None:
    """S = |W| ||X_j||; of every row the share of least S goes."""
    model, task, x = one_layer(50)
    w = model[0].weight.detach()
    scores = w.abs() * x.norm(dim=0)
    expected = torch.ones_like(w, dtype=torch.bool)
    expected.scatter_(1, scores.sort(dim=1, stable=True).indices[:, : int(50 * gone)], False)
    assert torch.equal(prunus.prune(model, task, methods.wanda, sparsity=gone).masks["0.weight"], expected)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
def test_wandas_patterns(n: int, m: int) -> None:
    model, task, x = one_layer(48)
    w = model[0].weight.detach()
    scores = w.abs() * x.norm(dim=0)
    expected = torch.ones_like(w, dtype=torch.bool)
    for j in range(0, 48, m):
        expected.scatter_(1, j + scores[:, j : j + m].topk(m - n, dim=1, largest=False).indices, False)
    found = prunus.prune(model, task, replace(methods.wanda, allocate=NofM(n, m)))
    assert torch.equal(found.masks["0.weight"], expected)


def test_of_equal_scores_the_earlier_stay_where_the_published_sort_lets_them_go() -> None:
    model, _, _ = one_layer(8)
    x = torch.randint(0, 2, (90, 8), generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    mask = prunus.prune(model, prunus.Task(calib=[(x,)], example=(x[:1],)), methods.wanda, sparsity=0.5).masks[
        "0.weight"
    ]
    scores = model[0].weight.detach().abs() * x.square().mean(0).sqrt()
    theirs = torch.ones_like(mask).scatter_(1, scores.sort(dim=1, stable=True).indices[:, :4], False)
    assert torch.equal(mask, torch.arange(8).expand(12, -1) < 4) and torch.equal(theirs, ~mask)


def one_layer(width: int) -> tuple[nn.Sequential, prunus.Task, Tensor]:
    torch.manual_seed(width)
    model, x = nn.Sequential(nn.Linear(width, 12)).double(), inputs(90, width)
    return model, prunus.Task(calib=[(x[:40],), (x[40:],)], example=(x[:1],)), x


# Numbers


def worst(width: int) -> Tensor:
    """Inputs of which one direction holds all there is, so that damping alone keeps H from being singular."""
    x = torch.randn(4 * width, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return x @ torch.randn(1, width, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["correlated", "worst"])
@pytest.mark.parametrize(
    ("width", "damp"), [(256, 0.01), (256, 256 / 2**22), (300, 300 / 2**22), (700, 0.01), (700, 0.0012)]
)
def test_float32_is_within_1e_4_of_float64_wherever_it_is_used(kind: str, width: int, damp: float) -> None:
    x = inputs(3 * width, width) if kind == "correlated" else worst(width)
    layer = layer_of(x, 32, half(32, width))
    layer = replace(layer, w=layer.w.float().double())
    fine = run(ObsUpdate(damp=damp, select="masks"), layer)
    coarse = run(ObsUpdate(damp=damp, select="masks"), replace(layer, stored=torch.float32))
    assert coarse.w.dtype == torch.float32 and fine.w.dtype == torch.float64
    assert float((coarse.w - fine.w).norm()) <= 1e-4 * float(fine.w.norm())
    # And it chooses as float64 does, but for weights that cost the same to within rounding.
    chosen = [run(ObsUpdate(damp=damp), replace(layer, stored=t)).keep for t in (torch.float32, torch.float64)]
    assert float((chosen[0] != chosen[1]).double().mean()) <= 2e-3


def test_when_float32_is_used() -> None:
    layer = layer_of(inputs(60, 40), 5)
    for stored in (torch.float32, torch.bfloat16, torch.float16):
        assert precision(replace(layer, stored=stored), 0.01) == torch.float32
        assert precision(replace(layer, stored=stored), 39.9 / 2**22) == torch.float64
        assert precision(replace(layer, stored=stored), 0.0) == torch.float64
    assert precision(layer, 0.01) == torch.float64
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")  # products would be rounded to TF32
        assert precision(replace(layer, stored=torch.float32), 0.01) == torch.float64
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("width", [1, 5, 256, 257, 520])
def test_the_upper_factor(width: int) -> None:
    h = layer_of(inputs(3 * width + 2, width), 1).gram
    half = Symmetric.of(h)
    assert torch.allclose(half.whole(), h) and torch.equal(half.diagonal(), h.diagonal())
    assert upper_(half) == 0  # it takes the place of what it is the factor of
    m = half.corner(slice(0, width))
    assert torch.allclose(m @ m.T, h) and bool((m.diagonal() > 0).all())
    low, high = width // 3, width // 2
    for columns, part in half.upper(slice(low, high), slice(high, width)):
        assert torch.equal(part, m[low:high, columns])
    restore_(half, 0)
    assert torch.allclose(half.whole(), h)


def test_products_in_float32_where_they_hardly_matter() -> None:
    h = layer_of(worst(800), 1).gram
    h.diagonal().add_(0.01 * h.diagonal().mean())
    least = float(torch.linalg.eigvalsh(h)[0])
    fine, rough, wild = (Symmetric.of(h) for _ in range(3))
    assert upper_(fine) == upper_(rough, 300 * least) == upper_(wild, 1e9 * least) == 0
    made = [one.corner(slice(0, 800)) for one in (fine, rough, wild)]
    off = [float(torch.linalg.matrix_norm(m @ m.T - h, 2)) / least for m in made]
    assert off[0] < 1e-10 < 1e-8 < off[1] < 2e-6 < off[2]


@pytest.mark.parametrize("at", [0, 255, 256, 400, 519])
def test_a_matrix_without_a_factor_is_as_it_was(at: int) -> None:
    h = layer_of(inputs(1600, 520), 1).gram
    h[at, at] = -1.0
    half = Symmetric.of(h)
    done = upper_(half)
    assert done == 1 + at // 256
    restore_(half, done)
    assert torch.allclose(half.whole(), h)


def test_sums_of_products_are_those_of_whole_matrices() -> None:
    x = inputs(900, 300)
    half = Symmetric.zeros(300).add_products_(x[:500]).add_products_(x[500:].float()).div_(900)
    assert torch.allclose(half.whole(), x.T @ x / 900, rtol=1e-6, atol=1e-8)
    twice = half.plus(half.clone())
    assert torch.equal(twice.whole(), 2 * half.whole())


def test_layers_that_are_fed_the_same_are_factored_once() -> None:
    layer = layer_of(inputs(900, 300), 4)
    apart_ = [run(ObsUpdate(), replace(layer, w=w)).w for w in (layer.w, -layer.w.flip(0))]
    half = Symmetric.of(layer.gram)
    both = [replace(layer, w=w, gram=half) for w in (layer.w, -layer.w.flip(0))]
    together = [run(ObsUpdate(), one).w for one in both]
    assert half.factored is not None and all(map(torch.equal, apart_, together))


@pytest.mark.parametrize("part", [ObsUpdate(damp=0.0), ObsUpdate(damp=1e-16)])
def test_a_failing_factor_gets_ten_times_the_damping_and_says_so(part: ObsUpdate) -> None:
    x = inputs(10, 30)
    layer = layer_of(x, 4)
    with pytest.warns(PrunusWarning, match=r"fc\.weight are linearly dependent .*: 1e-1\d of their mean square"):
        update = run(part, layer)
    used = settled_at(layer, part.damp)
    assert close(update.w, run(ObsUpdate(damp=used), layer).w)


def settled_at(layer: Layer, damp: float) -> float:
    with pytest.warns(PrunusWarning):
        return factored(Symmetric.of(layer.gram), damp, "x").used


def test_damping_ends_at_the_mean_diagonal() -> None:
    layer = layer_of(inputs(60, 6), 3)
    broken = replace(layer, gram=layer.gram - 5 * layer.gram.diagonal().mean() * torch.eye(6, dtype=torch.float64))
    with pytest.raises(DataError, match=r"fc\.weight has no Cholesky factor even with 1 times"):
        run(ObsUpdate(), broken)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_inputs_that_are_no_numbers_are_refused_with_the_layers_name(wrong: float) -> None:
    layer = layer_of(inputs(60, 6), 3)
    layer.gram[2, 3] = wrong
    with pytest.raises(DataError, match=r"inputs of fc\.weight hold NaN or infinite"):
        ObsUpdate()(layer, chooser(layer))


def test_an_input_that_is_no_number_is_refused_with_the_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.randn(20, 6, dtype=torch.float64)
    bad = x.clone()
    bad[3, 2] = torch.inf
    task = prunus.Task(calib=[(x,), (bad,)], example=(x[:1],), loss=lambda m, b: F.mse_loss(m(b[0]), b[0][:, :3]))
    recipe = replace(methods.magnitude_uniform, name="rebuilt", reconstruct=ObsUpdate())
    with pytest.raises(DataError, match=r"inputs of 0\.weight .* in calibration batch 1"):
        prunus.prune(model, task, recipe, sparsity=0.5)
