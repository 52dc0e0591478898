"""What a low-rank product leaves of a layer, by rows."""

from dataclasses import dataclass

from torch import nn

from prunus.core.factors import LowRankPlus
from prunus.core.groups import Group
from prunus.core.part import Reduce
from prunus.parts.granularity.tile import Tile


@dataclass(frozen=True)
class Remainder(Tile):
    """Rows of what low-rank products leave of the layers that `Residue` wrote as sums, and nothing else.

    A row is what one output is given beside the product, so an output whose row goes is still computed, from less
    (LoSparse: Li et al. 2023, ICML, arXiv:2306.11222). Box `(0, 1)` gives columns, `(1, 1)` single weights. Nothing can
    be cut out: rows become zeros. See `Tile` for the other attributes.
    """

    box: tuple[int, ...] = (1, 0)
    reduce: Reduce = "mean"

    def __call__(self, model: nn.Module, example: object = None) -> tuple[Group, ...]:
        rests = {f"{name}.rest.weight" for name, m in model.named_modules() if isinstance(m, LowRankPlus)}
        return tuple(g for g in super().__call__(model, example) if g.name in rests)
