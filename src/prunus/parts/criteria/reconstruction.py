"""Criteria that go by how well the next layers' outputs can do without a unit.

Their scores are an order of removal: cut at any number of units, it gives what the method keeps.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence.activations import Activation
from prunus.parts.evidence.contributions import Contributions


@dataclass(frozen=True)
class GreedyReconstruction(Criterion):
    """When a unit is removed greedily: each step takes the one that leaves ||sum of removed z_j||^2 smallest
    (ThiNet: Luo et al. 2017, arXiv:1707.06342, eq. 6 and algorithm 1), z_j = what unit j adds to its readers' outputs.

    Shapes: `[units, units] -> [units]`, the step, 0 first. Units: ranks; compare within a layer. Cost: one forward per
    batch, then units^2. Undefined on groups that no visible linear map or convolution reads.
    Differs: the error is that of all positions and output channels of the calibration batches; the paper samples some.
    Several readers' errors are summed.
    """

    def __call__(self, c: Contributions) -> Float[Tensor, "units"]:
        cost = c.diagonal().clone()
        step = torch.zeros_like(cost)
        for k in range(len(cost)):
            # Of equals the later one goes first.
            gone = len(cost) - 1 - int(cost.flip(0).argmin())
            step[gone] = k
            cost += 2 * c[:, gone]
            cost[gone] = torch.inf
        return step


@dataclass(frozen=True)
class LassoPath(Criterion):
    """The largest lambda at which beta_j is not zero in min 1/2 ||y - sum beta_j z_j||^2 + lambda ||beta||_1
    (channel pruning: He et al. 2017, arXiv:1707.06168, eq. 2), y = sum z_j, z_j = what unit j adds to its readers.

    The exact path by homotopy (LARS with the lasso modification), in float64. Shapes: `[units, units] -> [units]`.
    Units: squared outputs; compare within a layer. Units that are linear combinations of others never enter: 0. Cost:
    one forward per batch, then up to units^4 / 3, all on small matrices. Undefined where nothing visible reads a group.
    Differs: the paper bisects lambda until few enough betas are left; where a beta leaves the path again before that,
    it keeps its place here, so that selections are nested. No intercept (the official code fits one number); all
    positions instead of a sample; inputs are those of the layers before it still whole.
    """

    def __call__(self, c: Contributions) -> Float[Tensor, "units"]:
        scale = c.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
        return lasso_entries(c / scale, (c / scale).sum(1)) * scale


def lasso_entries(gram: Float[Tensor, "n n"], target: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """The lambda at which each variable enters the lasso path, 0 for those that never do (Efron et al. 2004)."""
    n, tiny = len(gram), 1e-10
    entered, beta, corr = (torch.zeros(n, dtype=torch.float64, device=gram.device) for _ in range(3))
    corr = target.clone()
    active: list[int] = []
    out = gram.diagonal() <= tiny  # a unit that contributes nothing is never needed
    left = -1
    level = float(corr.abs().masked_fill(out, 0).amax())
    for _ in range(20 * n + 20):  # ties could make it circle
        if level <= tiny:
            break
        free = ~out
        free[active] = False
        if not active:
            first = int(corr.abs().masked_fill(~free, -1).argmax())
            active, entered[first] = [first], max(float(entered[first]), level)
            continue
        at = torch.tensor(active, device=gram.device)
        step = torch.linalg.solve(gram[at][:, at], corr[at].sign())
        slope = gram[:, at] @ step
        just = torch.arange(n, device=gram.device) == left  # what has just left stands on the edge, and moves off it
        sides = (level - corr) / (1 - slope), (level + corr) / (1 + slope)
        wrong = [~free | (t < 0) | t.isnan() | (just & (t <= tiny * level)) for t in sides]
        reach = torch.minimum(*(t.masked_fill(w, torch.inf) for t, w in zip(sides, wrong, strict=True)))
        fall = -beta[at] / step
        fall = fall.masked_fill((fall <= tiny) | fall.isnan(), torch.inf)
        gain = min(float(reach.amin()), float(fall.amin()), level)
        beta[at] += gain * step
        corr -= gain * slope
        level, left = level - gain, -1
        if float(fall.amin()) <= gain:
            left = active.pop(int(fall.argmin()))
            beta[left] = 0
            out = gram.diagonal() <= tiny
        else:
            new = int(reach.argmin())
            joined = torch.linalg.solve(gram[at][:, at], gram[at, new])
            if float(gram[new, new] - gram[new, at] @ joined) <= tiny * float(gram[new, new]):
                out[new] = True  # a combination of what is there
                continue
            active.append(new)
            entered[new] = max(float(entered[new]), level)
    return entered


@dataclass(frozen=True)
class BinaryFilterSearch(Criterion):
    """The damage at which a unit is removed by binary filter search (AOFP: Ding et al. 2019, ICML).

    damage = ||change of the readers' outputs||^2 / ||their outputs||^2 when half of the searched units are masked at
    random, averaged over the masks that contain a unit. The half with the least damage is removed at once if all of it
    stays below `threshold`; if not, it is searched in turn, down to a single unit. Then the search starts over with
    what is left. Shapes: `[units, units] -> [units]`, never falling from removal to removal. Units: a share of the
    outputs' energy; comparable across layers. Cost: one forward per batch, then up to units^3 log(units).
    Differs: the mean over masks is exact instead of sampled, which a linear reader allows: outputs are taken before the
    reader's bias, normalization and nonlinearity, which the official code includes. The search goes on to the last unit
    and the budget decides where to stop; the paper stops a layer where a single unit's damage reaches the threshold.
    """

    threshold: float = 0.01

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise SpecError(f"BinaryFilterSearch(threshold={self.threshold}) is a share of the outputs' energy, >= 0")

    def __call__(self, c: Contributions) -> Float[Tensor, "units"]:
        score = torch.zeros(len(c), dtype=c.dtype, device=c.device)
        alive = torch.arange(len(c), device=c.device).flip(0)  # the later of equals goes first
        level = -math.inf
        while len(alive):
            energy = c[alive][:, alive].sum().clamp(min=torch.finfo(c.dtype).tiny)
            space = alive
            while True:
                half = max(1, len(space) // 2)
                t = half_mask_damage(c[space][:, space], half) / energy
                order = t.argsort(stable=True)[:half]
                if half == 1 or float(t[order[-1]]) < self.threshold:
                    break
                space = space[order.sort().values]
            for i in order.tolist():
                level = max(float(t[i]), math.nextafter(level, math.inf))
                score[space[i]] = level
            alive = alive[~torch.isin(alive, space[order])]
        return score


def half_mask_damage(c: Float[Tensor, "m m"], half: int) -> Float[Tensor, "m"]:
    """The mean of ||sum over T of z||^2 over all sets T of `half` units that contain a given one."""
    m, own, rows = len(c), c.diagonal(), c.sum(1)
    one = (half - 1) / max(1, m - 1)  # how often another unit is in T, and how often two others are
    two = (half - 1) * (half - 2) / max(1, (m - 1) * (m - 2))
    others = own.sum() - own
    pairs = c.sum() - 2 * rows + own - others
    return own + 2 * one * (rows - own) + one * others + two * pairs


@dataclass(frozen=True)
class SummedActivation(Criterion):
    """The sum of a unit's activations over samples and positions, as its first reader sees them (the size of a hidden
    unit in i-SpaSP, Wolfe & Kyrillidis 2022, arXiv:2112.04905, algorithm 1).

    Signed: meant for activations behind a ReLU. Shapes: `[units, batch, values] -> [units]`. Units: those of the
    activations; compare within a layer. Cost: one forward per batch. Undefined where nothing visible reads a group.
    """

    def __call__(self, x: Activation) -> Float[Tensor, "units"]:
        return x.sum((1, 2), dtype=torch.float64)
