"""Layer-wise densities against the published codes: LAMP, Erdos-Renyi, smart ratio, N:M, on ResNet-20."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.parts.allocation import ERK, LAMP, NofM, SmartRatio
from tests.oracle.conftest import resnet20
from tests.oracle.rules import count, differences, first_k, joined, weights

Counts = dict[str, int]


def counts(masks: dict[str, Tensor]) -> Counts:
    return {n: int(m.sum()) for n, m in masks.items()}


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(w.shape) for n, w in weights(model).items()}


# LAMP


@pytest.fixture(scope="module")
def lamp_scores() -> dict[str, Tensor]:
    """Eq. 4, by a running sum from the largest weight down, in plain Python floats."""
    found = {}
    for name, w in weights(resnet20()).items():
        squares = [float(v) ** 2 for v in w.detach().flatten()]
        score, running = [0.0] * len(squares), 0.0
        for i in sorted(range(len(squares)), key=lambda i: (-squares[i], i)):
            running += squares[i]
            score[i] = squares[i] / running
        found[name] = torch.tensor(score, dtype=torch.float64).reshape(w.shape)
    return found


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
def test_lamp_is_equation_4_ranked_globally(net: nn.Module, lamp_scores: dict[str, Tensor], sparsity: float) -> None:
    n = joined(lamp_scores).numel()
    theirs = first_k(lamp_scores, n - int(sparsity * n))
    assert differences(prunus.prune(net, None, "lamp", sparsity=sparsity).masks, theirs) == {}


def test_lamp_of_the_authors_rounds_the_kept_count(net: nn.Module, lamp_scores: dict[str, Tensor]) -> None:
    """layer-adaptive-sparsity keeps np.round((1 - s) n) in all, split by how many of each layer reach the threshold,
    and then prunes each layer by magnitude: the recipe with rounding="nearest" (their float32 sums apart)."""
    for sparsity in (0.9, 0.95):
        survivors = first_k(lamp_scores, round(joined(lamp_scores).numel() * (1 - sparsity)))
        theirs = {
            name: first_k({name: w.detach().abs()}, int(survivors[name].sum()))[name]
            for name, w in weights(net).items()
        }
        nearest = replace(methods.lamp, allocate=LAMP(rounding="nearest"))
        assert differences(prunus.prune(net, None, nearest, sparsity=sparsity).masks, theirs) == {}


# Erdos-Renyi


def erdos_renyi(layers: dict[str, tuple[int, ...]], sparsity: float, kernel: bool) -> tuple[Counts, set[str]]:
    """google-research/rigl: the densest layer alone is made dense and everything is computed anew, until none exceeds
    1.

    Zeros are counted per layer, floor(s N); a layer's own zeros are floor((1 - p) N).
    """
    dense: set[str] = set()
    while True:
        right = divisor = 0.0
        raw = {}
        for name, shape in layers.items():
            size = math.prod(shape)
            zeros = math.floor(sparsity * size)
            if name in dense:
                right -= zeros
            else:
                right += size - zeros
                raw[name] = sum(shape) / size if kernel else (shape[0] + shape[1]) / (shape[0] * shape[1])
                divisor += raw[name] * size
        most = max(raw.values())
        if most * right / divisor <= 1:
            break
        dense |= {n for n, r in raw.items() if r == most}
    kept = {}
    for name, shape in layers.items():
        size = math.prod(shape)
        kept[name] = size if name in dense else size - math.floor((1 - right / divisor * raw[name]) * size)
    return kept, dense


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.98])
@pytest.mark.parametrize("kernel", [True, False])
def test_erdos_renyi_is_the_official_within_rounding(net: nn.Module, sparsity: float, kernel: bool) -> None:
    """The same layers are dense; every count is within two of the official, whose own total misses the target by up to
    two weights per layer; ours is exact."""
    theirs, dense = erdos_renyi(shapes(net), sparsity, kernel)
    recipe = replace(methods.erk_random, allocate=ERK(kernel=kernel))
    ours = counts(prunus.prune(net, None, recipe, sparsity=sparsity).masks)
    total = sum(w.numel() for w in weights(net).values())
    assert sum(ours.values()) == total - int(sparsity * total)
    assert {n for n, w in weights(net).items() if ours[n] == w.numel()} == dense
    assert all(abs(ours[n] - theirs[n]) <= 2 for n in ours), (ours, theirs)
    assert abs(sum(theirs.values()) - sum(ours.values())) <= 2 * len(ours)


def test_magnitude_erk_keeps_the_largest_of_each_layer(net: nn.Module) -> None:
    masks = prunus.prune(net, None, "magnitude_erk", sparsity=0.9).masks
    theirs = {n: first_k({n: w.detach().abs()}, int(masks[n].sum()))[n] for n, w in weights(net).items()}
    assert differences(masks, theirs) == {}


# Smart ratio


def smart_ratio(layers: dict[str, tuple[int, ...]], sparsity: float, decay: bool) -> Counts:
    """sanity-checking-pruning: layer k from the end of all layers gets k^2 + k (over i^2 for VGG), scaled so that the
    convolutions hold what 0.3 of the linear layer leaves; shares above 1 are cut and handed on."""
    names = list(layers)
    size = {n: math.prod(s) for n, s in layers.items()}
    convs = [n for n in names if len(layers[n]) == 4]
    linear = [n for n in names if n not in convs]
    raw = {}
    for i, name in enumerate(names):
        k = len(names) - i
        raw[name] = (k * k + k) / ((i + 1) ** 2 if decay else 1)
    goal = int(sum(size.values()) * (1 - sparsity)) - sum(int(0.3 * size[n]) for n in linear)
    scale = goal / sum(int(size[n] * raw[n]) for n in convs)
    ratio = {n: raw[n] * scale for n in convs}
    extra = 0
    for name in convs:
        if ratio[name] >= 1:
            extra += int((ratio[name] - 1) * size[name])
            ratio[name] = 1.0
        else:
            taken = min(extra, int((1 - ratio[name]) * size[name]))
            ratio[name] += taken / size[name]
            extra -= taken
    return {n: int(0.3 * size[n]) if n in linear else min(size[n], int(ratio[n] * size[n])) for n in names}


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.98])
def test_smart_ratio_is_the_official_within_rounding(net: nn.Module, sparsity: float, decay: bool) -> None:
    """The official code rounds five times per layer, down; ours once, to an exact total."""
    theirs = smart_ratio(shapes(net), sparsity, decay)
    recipe = replace(methods.smart_ratio, allocate=SmartRatio(decay=decay))
    ours = counts(prunus.prune(net, None, recipe, sparsity=sparsity).masks)
    total = sum(w.numel() for w in weights(net).values())
    assert sum(ours.values()) == total - int(sparsity * total)
    assert all(abs(ours[n] - theirs[n]) <= 5 for n in ours), (ours, theirs)


def test_random_methods_choose_evenly_within_a_layer(net: nn.Module) -> None:
    """A tenth of each quarter of a layer of 36 864: the mean is 921.6 and a deviation of six sigma does not happen."""
    mask = prunus.prune(net, None, "erk_random", sparsity=0.9, seed=3).masks["stages.2.1.conv2.weight"].flatten()
    kept = int(mask.sum()) / len(mask)
    sigma = math.sqrt(len(mask) / 4 * kept * (1 - kept))
    assert all(abs(int(q.sum()) - len(mask) / 4 * kept) < 6 * sigma for q in mask.chunk(4))
    again = prunus.prune(net, None, "erk_random", sparsity=0.9, seed=3).masks["stages.2.1.conv2.weight"].flatten()
    other = prunus.prune(net, None, "erk_random", sparsity=0.9, seed=4).masks["stages.2.1.conv2.weight"].flatten()
    assert torch.equal(mask, again)
    assert not torch.equal(mask, other)


# N:M


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize("along", ["row", "input"])
def test_n_of_m_block_by_block(net: nn.Module, n: int, m: int, along: str) -> None:
    """Rows of [out, in*kh*kw] in their own order, or the input channels at each kernel position; a layer whose rows
    do not divide stays dense and is named."""
    result = prunus.prune(net, None, replace(methods.n_of_m, allocate=NofM(n=n, m=m, along=along)))  # type: ignore[arg-type]
    theirs: dict[str, Tensor] = {}
    for name, w in weights(net).items():
        matrix = w.detach().abs()
        if matrix.ndim == 4:
            matrix = matrix.permute(0, 2, 3, 1) if along == "input" else matrix
        length = matrix.shape[-1] if along == "input" else matrix[0].numel()
        if length % m:
            continue
        flat, keep = matrix.flatten().tolist(), []
        for block in range(0, len(flat), m):
            best = sorted(range(m), key=lambda i, b=block: (-flat[b + i], i))[:n]
            keep += [i in best for i in range(m)]
        mask = torch.tensor(keep).reshape(matrix.shape)
        theirs[name] = mask.permute(0, 3, 1, 2) if along == "input" and w.ndim == 4 else mask
    assert differences(result.masks, theirs) == {}
    assert set(result.skipped) == set(weights(net)) - set(theirs) == {"conv1.weight"}
    assert count(result.masks) * m == sum(w.numel() for name, w in weights(net).items() if name in theirs) * n
