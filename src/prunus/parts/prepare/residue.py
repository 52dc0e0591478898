"""Layers as a product of low rank plus what that leaves, so that the rest can be pruned by itself."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunus.core.errors import SpecError
from prunus.core.factors import LowRankPlus
from prunus.core.part import Preparation
from prunus.parts.prepare.factorize import check_finite, product, replaced, unwritten


@dataclass(frozen=True)
class Residue(Preparation):
    """W = U V + S: every linear layer and convolution becomes the sum of a product of two, made of the largest singular
    components of W, and of one that holds the rest (LoSparse: Li et al. 2023, ICML, arXiv:2306.11222, and its official
    code).

    The rank is the ceiling of share * out * in / (out + in), so that U and V hold that share of the numbers of W,
    rounded up to a component (of a small layer, much more); a kernel is `[out, in*kh*kw]`. S keeps the parameter of W,
    as `<layer>.rest.weight`, and the product is `<layer>.low`, which has the bias. Outputs stay the same but for
    rounding. Taken are the layers that `Factorize` takes. The network is larger than before until enough of S is
    pruned. Cost: one singular value decomposition per layer.

    Fails: `SpecError` where no layer can be taken, `WeightsError` for NaN; nothing was changed.

    Attributes:
        share: of the numbers of W.
        exclude: names of layers, with shell wildcards, that stay as they are.
        skip_last: leave the last layer (the classifier) as it is.
    """

    share: float = 0.05
    exclude: tuple[str, ...] = ()
    skip_last: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise SpecError(f"Residue(share={self.share}): a share of the numbers of a weight, in (0, 1]")

    def __call__(self, model: nn.Module, example: Any = None, task: Any = None) -> nn.Module:
        found, written = unwritten(model, LowRankPlus, self.exclude, skip_last=self.skip_last)
        if not found and not written:
            raise SpecError(f"Residue finds no layer of {type(model).__name__} that it can write as a sum")
        check_finite(model, found)
        # Every product is made before the first layer is changed.
        products = {m: product(m, "even", self.rank(m)) for m in found}
        made: dict[nn.Module, nn.Module] = {}
        for module, low in products.items():
            weight = module._parameters["weight"]
            assert weight is not None
            with torch.no_grad():
                weight.sub_(low.weight)
            module._parameters["bias"] = None
            made[module] = LowRankPlus(low, module).train(module.training)
        return replaced(model, made)

    def rank(self, module: nn.Module) -> int:
        """That of the product which a layer is given."""
        weight = module._parameters["weight"]
        assert weight is not None
        out, columns = weight.flatten(1).shape
        return math.ceil(self.share * out * columns / (out + columns))
