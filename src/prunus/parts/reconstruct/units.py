"""Whole units that leave a layer's input: which ones, and how the others make up for them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.layer import Choose, Layer, Update
from prunus.core.part import Reconstruction
from prunus.parts.evidence.curvature import solvable
from prunus.parts.reconstruct.solve import Removal, check_damp, error, on_support


@dataclass(frozen=True)
class GroupObs(Reconstruction):
    """The unit u of least tr(w_u ([H^-1]_uu)^-1 w_u^T) leaves, the others are updated, and so on: optimal brain surgeon
    for whole columns (Kurtic et al. 2023, ZipLM, arXiv:2302.04089, eq. 2; OBC's group form, arXiv:2208.11580,
    section 4.3).

    As many units stay as the masks keep, in each part that has to keep equally many. Where several layers read the
    units, or single weights are pruned, the masks are taken as they are and the weights are `LeastSquares`. Shapes:
    `[out, in] -> [out, in]`. Cost: in^3 + units removed * (out + in) * in * columns per unit. Fails: as `LeastSquares`.
    Differs: ZipLM measures latency to decide how many go; here the allocation does.
    """

    damp: float = 1e-4

    def __post_init__(self) -> None:
        check_damp("GroupObs", self.damp)

    def __call__(self, layer: Layer, choose: Choose) -> Update:
        h = solvable(layer.gram, self.damp, layer.name)
        if not layer.free or not layer.whole_columns:
            return Update(on_support(layer.w, layer.keep, h), layer.keep)
        left = remaining(layer, h, 1).there
        keep = unit_columns(layer, left)
        return Update(on_support(layer.w, keep, h), keep)


@dataclass(frozen=True)
class Osscar(Reconstruction):
    """Greedy removal of units, then swaps as long as the error falls (OSSCAR: Meng et al. 2024, arXiv:2403.12983,
    algorithm 1 and its official code).

    Units leave `at_once` at a time, by the rise of the error each of them alone would cause, every other weight fitted.
    Then `swaps` units of least rise leave together and as many of largest gain come back; what does not lower the error
    is undone, and halves the number. As many units stay as the masks keep; the cases in which the masks stand are those
    of `GroupObs`. Shapes: `[out, in] -> [out, in]`. Cost: `GroupObs`, and in^3 per swap, `rounds` at most. Fails: as
    `LeastSquares`. Differs: the code adds a fixed share of the diagonal per model; `damp` is relative, and pulls to the
    weights as they were instead of to zero.
    """

    at_once: int = 1
    swaps: int = 8
    rounds: int = 20
    damp: float = 1e-4

    def __post_init__(self) -> None:
        check_damp("Osscar", self.damp)
        if self.at_once < 1 or self.swaps < 1 or self.rounds < 0:
            raise SpecError(f"{self}: at_once and swaps are at least 1, rounds at least 0")

    def __call__(self, layer: Layer, choose: Choose) -> Update:
        h = solvable(layer.gram, self.damp, layer.name)
        if not layer.free or not layer.whole_columns:
            return Update(on_support(layer.w, layer.keep, h), layer.keep)
        left = remaining(layer, h, self.at_once).there
        keep = unit_columns(layer, left)
        w = on_support(layer.w, keep, h)
        least, swaps = error(w, layer.w, h), self.swaps
        for _ in range(self.rounds):
            other = swapped(layer, h, left, swaps)
            columns = unit_columns(layer, other)
            found = on_support(layer.w, columns, h)
            if (reached := error(found, layer.w, h)) < least * (1 - 1e-9):
                left, keep, w, least = other, columns, found, reached
            elif swaps == 1:
                break
            else:
                swaps //= 2
        return Update(w, keep)


def unit_columns(layer: Layer, there: Bool[Tensor, "units"]) -> Bool[Tensor, "out in"]:
    """The mask of the weights that keeps the columns of these units, and those of no unit."""
    columns = torch.where(layer.unit >= 0, there[layer.unit.clamp(min=0)], True)
    return columns.expand_as(layer.keep).clone()


def kept_units(layer: Layer, keep: Bool[Tensor, "out in"]) -> Bool[Tensor, "units"]:
    """Which units a mask of the weights keeps."""
    return keep.any(0)[layer.columns].any(1)


def remaining(layer: Layer, h: Float[Tensor, "in in"], at_once: int) -> Removal:
    """The units removed one by one (or a few at a time), until as many of every part are left as the masks keep."""
    removal = Removal(layer.w, h, layer.columns)
    if layer.allowed is not None and len(before := (~kept_units(layer, layer.allowed)).nonzero().squeeze(1)):
        removal.remove(before)
    wanted = kept_units(layer, layer.keep).reshape(layer.parts, -1).sum(1)
    while bool((over := removal.there.reshape(layer.parts, -1).sum(1) - wanted).any()):
        rises = removal.losses().reshape(layer.parts, -1)
        # Of equals the later one leaves.
        order = rises.shape[1] - 1 - rises.flip(1).argsort(dim=1, stable=True)
        leaving = [
            part * rises.shape[1] + order[part, : min(at_once, int(n))] for part, n in enumerate(over) if int(n) > 0
        ]
        removal.remove(torch.cat(leaving))
    return removal


def swapped(layer: Layer, h: Float[Tensor, "in in"], there: Bool[Tensor, "units"], swaps: int) -> Bool[Tensor, "units"]:
    """Of every part the `swaps` units of least rise out, and as many of largest gain in."""
    removal = Removal(layer.w, h, layer.columns)
    if len(gone := (~there).nonzero().squeeze(1)):
        removal.remove(gone)
    now = there.clone()
    may = torch.ones_like(there) if layer.allowed is None else kept_units(layer, layer.allowed)
    apart = [t.reshape(layer.parts, -1) for t in (now, may)]
    number = [min(swaps, int(n), int((m & ~n_).sum())) for n, n_, m in zip(apart[0].sum(1), *apart, strict=True)]
    rises = removal.losses().reshape(layer.parts, -1)
    for part, k in enumerate(number):
        apart[0][part, rises[part].argsort(stable=True)[:k]] = False
    removal.remove((there & ~now).nonzero().squeeze(1))
    gains = gained(layer, h, removal).masked_fill(~may, -torch.inf).reshape(layer.parts, -1)
    for part, k in enumerate(number):
        apart[0][part, gains[part].argsort(descending=True, stable=True)[:k]] = True
    return now


def gained(layer: Layer, h: Float[Tensor, "in in"], removal: Removal) -> Float[Tensor, "units"]:
    """By how much the error falls when each unit comes back, every weight fitted; -inf for those that are there."""
    slope = (layer.w - removal.w) @ h
    gains = torch.full((len(removal.columns),), -torch.inf, dtype=h.dtype, device=h.device)
    for unit in (~removal.there).nonzero().squeeze(1).tolist():
        own = removal.columns[unit]
        curve = h[own][:, own] - h[own] @ removal.inverse @ h[:, own]
        gains[unit] = (slope[:, own].T * torch.linalg.solve(curve, slope[:, own].T)).sum()
    return gains
