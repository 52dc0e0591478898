"""One number per unit: kept units are scaled, or removed ones folded into kept ones."""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import PrunusWarning, SpecError
from prunus.core.layer import Choose, Layer, Update
from prunus.core.part import Reconstruction
from prunus.parts.evidence.curvature import solvable
from prunus.parts.reconstruct.solve import check_damp


@dataclass(frozen=True)
class MaskRescale(Reconstruction):
    """min over s of ||sum over kept units of s_u z_u - sum over all units of z_u||^2, z_u = what unit u adds to the
    layer's output: the mask of a unit becomes a number (Kwon et al. 2022, arXiv:2204.09656, section 4.3).

    Shapes: `[out, in] -> [out, in]`, the columns of unit u times s_u. Single weights have no unit: each column is one.
    Cost: out * in^2 and units^3 / 3. Fails: where a scale is beyond `most` in magnitude the layer is left unscaled, and
    a warning says so. Differs: the official code minimizes by LSMR with a damping of its own (here `damp`, relative, a
    pull towards 1), takes the unpruned network's output, residual included, as the target, and where a scale is beyond
    10 leaves out all later layers too.
    """

    damp: float = 1e-4
    most: float = 10.0

    def __post_init__(self) -> None:
        check_damp("MaskRescale", self.damp)
        if not self.most > 0:
            raise SpecError(f"MaskRescale(most={self.most}) is the largest scale allowed, above 0")

    def __call__(self, layer: Layer, choose: Choose) -> Update:
        masked = layer.w.masked_fill(~layer.keep, 0.0)
        unit = layer.unit if layer.whole_columns else torch.arange(len(layer.unit), device=layer.unit.device)
        left = masked.any(0) & (unit >= 0)
        owner, index = unit[left].unique(return_inverse=True)
        if not len(owner):
            return Update(masked, layer.keep)
        kept = masked[:, left]
        # <z_u, z_v> is the sum over u's and v's columns of H times the products of the weights.
        products = summed(summed((kept.T @ kept) * layer.gram[left][:, left], index, len(owner)).T, index, len(owner))
        lost = ((layer.w - masked) @ layer.gram)[:, left] * kept
        excess = summed(lost.sum(0, keepdim=True).T, index, len(owner)).squeeze(1)
        scale = 1 + torch.linalg.solve(solvable(products, self.damp, layer.name), excess)
        if float(scale.abs().max()) > self.most:
            warnings.warn(
                PrunusWarning(f"{layer.name} is not rescaled: a unit would be scaled by more than {self.most:g}"),
                stacklevel=4,
            )
            return Update(masked, layer.keep)
        masked[:, left] *= scale[index]
        return Update(masked, layer.keep)


def summed(rows: Float[Tensor, "n k"], index: Tensor, size: int) -> Float[Tensor, "m k"]:
    """The rows of each index added up."""
    total = torch.zeros(size, rows.shape[1], dtype=rows.dtype, device=rows.device)
    return total.index_add_(0, index, rows)


@dataclass(frozen=True)
class Merge(Reconstruction):
    """w_k += s w_r: the readers of a removed unit r take s times the kept unit k most like it in its place, instead of
    nothing (Kim et al. 2020, Neuron Merging, arXiv:2010.13160, algorithm 1).

    `like="weights"`: k has the largest cosine to r between the weights (and biases) that make them, s = |r| / |k|:
    exact for ReLU where they are parallel. `like="inputs"`: k has the largest cosine between what their reader sees of
    them, and s is fitted: s = <x_r, x_k> / <x_k, x_k>; it needs no formula for what lies between. Units whose cosine is
    below `threshold` are dropped. Identical units (as centripetal SGD trains them: Ding et al. 2019, arXiv:1904.03837)
    merge without loss either way. Shapes: `[out, in] -> [out, in]`. Cost: units^2. Fails: takes single weights' masks
    as they are, without a change. Differs: the official code has a formula for batch normalization in between, which
    weighs cosine and shift; use `like="inputs"` there.
    """

    like: Literal["weights", "inputs"] = "inputs"
    threshold: float = 0.45

    def __post_init__(self) -> None:
        if self.like not in ("weights", "inputs") or not -1 <= self.threshold <= 1:
            raise SpecError(f"{self}: like is 'weights' or 'inputs', and the threshold a cosine")

    def __call__(self, layer: Layer, choose: Choose) -> Update:
        w = layer.w.masked_fill(~layer.keep, 0.0)
        if not layer.whole_columns:
            return Update(w, layer.keep)
        made = products(layer) if self.like == "inputs" or layer.made_by is None else layer.made_by @ layer.made_by.T
        columns = layer.columns
        there = layer.keep.any(0)[columns].any(1)
        cosine, scale = alike(made)
        scale = cosine * scale if self.like == "inputs" else scale
        into = cosine.masked_fill(~there, -torch.inf).argmax(1)
        for r in (~there).nonzero().squeeze(1).tolist():
            k = int(into[r])
            if bool(there[k]) and float(cosine[r, k]) >= self.threshold:
                w[:, columns[k]] += scale[r, k] * layer.w[:, columns[r]]
        return Update(w, layer.keep)


def products(layer: Layer) -> Float[Tensor, "units units"]:
    """E<x_u, x_v>, summed over the columns that units own, in their order."""
    columns = layer.columns
    total: Tensor = layer.gram[columns.unsqueeze(1), columns.unsqueeze(0)].sum(2)
    return total


def alike(products: Float[Tensor, "n n"]) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """The cosine of every pair, and the length of the first over that of the second; 0 where one has no length."""
    length = products.diagonal().clamp(min=0.0).sqrt()
    there = length > 0
    both: Bool[Tensor, "n n"] = there.unsqueeze(1) & there.unsqueeze(0)
    cosine = torch.where(both, products / (length.outer(length)).clamp(min=1e-300), 0.0)
    return cosine, torch.where(both, length.unsqueeze(1) / length.clamp(min=1e-300), 0.0)
