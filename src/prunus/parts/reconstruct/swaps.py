"""Masks adjusted to the layer's expected output, with the weights as they are."""

from dataclasses import dataclass

import torch

from prunus.core.errors import SpecError
from prunus.core.layer import Choose, Layer, Update
from prunus.core.part import Reconstruction


@dataclass(frozen=True)
class ExpectedErrorSwaps(Reconstruction):
    """In every row, as long as the expected error e = sum of w_j E[x_j] over pruned weights keeps its sign and exceeds
    `threshold`: the pruned weight that lowers |e| most per Var[x_j]^power comes back, and of the kept ones that lower
    it too when they go, the one of least |w_j| ||x_j|| goes (DSnoT: Zhang et al. 2024, arXiv:2310.08915, section 3.2).

    No weight changes its value. Shapes: `[out, in] -> [out, in]`. Cost: a sort per row, `cycles` swaps at most. Fails:
    patterns and units larger than single weights keep their masks. Differs: a row in which no kept weight of the right
    sign is left stops there; the official code goes on with the others. N:M patterns are not swapped within blocks.
    """

    cycles: int = 50
    threshold: float = 0.1
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.cycles < 0 or self.threshold < 0 or self.power < 0:
            raise SpecError(f"{self}: none of these is negative")

    def __call__(self, layer: Layer, choose: Choose) -> Update:
        keep = layer.keep.clone()
        if layer.free and not layer.whole_columns and layer.block is None:
            square = layer.gram.diagonal()
            spread = (square - layer.mean.square()).clamp(min=torch.finfo(torch.float64).tiny)
            expected = layer.w * layer.mean
            gain, worth = expected / spread**self.power, layer.w.abs() * square.sqrt()
            may = torch.ones_like(keep) if layer.allowed is None else layer.allowed
            for row in range(len(keep)):
                gone, left = (~keep[row] & may[row]).nonzero().squeeze(1), keep[row].nonzero().squeeze(1)
                back = gone[gain[row, gone].argsort(stable=True)].tolist()
                order = left[worth[row, left].argsort(stable=True)].tolist()
                for went, came in self.swaps(expected[row].tolist(), float(expected[row, gone].sum()), back, order):
                    keep[row, went], keep[row, came] = False, True
        return Update(layer.w.masked_fill(~keep, 0.0), keep)

    def swaps(self, expected: list[float], error: float, back: list[int], order: list[int]) -> list[tuple[int, int]]:
        """What goes and what comes back in one row; `back` by gain, `order` by worth, both ascending."""
        below, above = ([j for j in order if (expected[j] < 0) == negative] for negative in (True, False))
        positive, made = error > 0, []
        for _ in range(self.cycles):
            leaving = below if positive else above
            if abs(error) <= self.threshold or not leaving or not back:
                break
            came, went = back.pop() if positive else back.pop(0), leaving.pop(0)
            after = error + expected[went] - expected[came]
            if after == 0 or (after > 0) != positive:
                break
            made.append((went, came))
            error = after
        return made
