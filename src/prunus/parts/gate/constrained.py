"""Hard concrete gates under a constraint on what they leave, whose multipliers are trained along."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Moment
from prunus.parts.gate.concrete import HardConcrete

CARRIED = 7
"""Of every constraint: two multipliers, Adam's two averages of the slopes of each, and its number of steps."""


@dataclass(frozen=True)
class Lagrangian(HardConcrete):
    """`HardConcrete` with the term a (s - t) + b (s - t)^2, s the expected sparsity and t that of the budget, which
    rises from 0 over the share `warm` of the steps; a and b start from 0 and are trained upwards (FLOP: Wang, Wohlwend
    & Lei 2020, EMNLP, arXiv:1910.04732, eq. 6; CoFi: Xia, Zhong & Chen 2022, ACL, arXiv:2204.00408).

    `per="group"` gives every group a constraint of its own. a and b are trained by Adam at `ascent`. A gate is `open`
    if it is among the round(sum P) likeliest of its group, FLOP's rule. Shapes, units: those of `HardConcrete`.
    `weighs="weights"` measures s in the weights that units own, for a budget in parameters; `weighs="products"` in
    weights that all gates over them leave open (CoFi's expected size). Cost: one probability per unit. Differs: none
    from FLOP's code but the bound on theta and the rates, which are CoFi's, for tens of thousands of steps: in a few
    hundred lr=0.2, ascent=1 and warm=0.5 come within a percent of the target.
    """

    warm: float = 0.2
    ascent: float = 0.01
    per: Literal["model", "group"] = "model"
    strength: float = 0.0
    lr: float = 0.01
    last: Literal["mean", "median", "soft"] = "soft"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.warm <= 1 and self.ascent > 0) or self.per not in ("model", "group"):
            raise SpecError(f"{self}: 0 <= warm <= 1, ascent > 0, per is 'model' or 'group'")

    def gaps(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, "n"]:
        """s - t of every constraint."""
        parts = [{n: t} for n, t in thetas.items()] if self.per == "group" else [thetas]
        left = [self.left(p, moment) for p in parts]
        far = min(1.0, moment.progress / self.warm) if self.warm else 1.0
        goals = [(1 - self.goal(p, moment)) * far for p in parts]
        return torch.stack([1 - have / whole - goal for (have, whole), goal in zip(left, goals, strict=True)])

    def goal(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> float:
        """The density that some of the groups are to have together."""
        return moment.density

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        assert moment.duals is not None
        gap = self.gaps(thetas, moment)
        pair = moment.duals.reshape(-1, CARRIED)[:, :2].to(gap)
        return (pair[:, 0] * gap + pair[:, 1] * gap.square()).sum()

    def duals(self, groups: int) -> tuple[float, ...]:
        return (0.0,) * CARRIED * (groups if self.per == "group" else 1)

    def ascended(
        self, duals: Float[Tensor, "n"], thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment
    ) -> Float[Tensor, "n"]:
        gap = self.gaps(thetas, moment).to(duals)
        return adam(duals.reshape(-1, CARRIED), torch.stack([gap, gap.square()], dim=1), self.ascent).flatten()


def adam(carried: Float[Tensor, "n 7"], slope: Float[Tensor, "n 2"], rate: float) -> Float[Tensor, "n 7"]:
    """One step upwards."""
    pair, first, second, steps = carried.split((2, 2, 2, 1), dim=1)
    steps = steps + 1
    first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope.square()
    move = first / (1 - 0.9**steps) / ((second / (1 - 0.999**steps)).sqrt() + 1e-8)
    return torch.cat([pair + rate * move, first, second, steps], dim=1)


@dataclass(frozen=True)
class TargetShape(Lagrangian):
    """`Lagrangian` with one constraint for every group, whose target is what the recipe's allocation leaves of it: the
    gates choose which units make up a given shape (Sheared LLaMA: Xia et al. 2024, ICLR, arXiv:2310.06694, section
    2.1).

    For allocations that do not go by the scores when they deal out counts (`Uniform`). Shapes, units: those of
    `Lagrangian`. Cost: also an allocation every `every` steps. Differs: every layer has multipliers of its own; in the
    official code layers share those of their kind.
    """

    every: int = 1
    per: Literal["model", "group"] = "group"
    drop: float = 1 / 149.4  # log-odds of 5, the official start
    bound: float = 5.0
    lr: float = 1.0
    ascent: float = 1.0
    selects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1 or self.per != "group":
            raise SpecError(f"{self}: every >= 1, per is 'group'")

    def goal(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> float:
        (name,) = thetas
        keep = moment.others[name].keep
        return moment.density if keep is None else float(keep.double().mean())


@dataclass(frozen=True)
class DualRestart(HardConcrete):
    """`HardConcrete` with the term sum lambda_g (mean P over the units of g - density), one constraint per group (or
    one for the model), lambda_g going up by `ascent` times its violation after every step, and back to 0 as soon as it
    is met (constrained L0: Gallego-Posada et al. 2022, NeurIPS, arXiv:2208.04425, section 3 and appendix).

    Weights begin divided by 1 - drop, so that the network starts as large as it was (official code). Shapes, units:
    those of `HardConcrete`. Cost: one probability per unit. What is constrained is the mean of P; medians are open
    where P > 1/2, which in short runs, with many gates in between, are several per cent fewer. `Lagrangian` is drawn to
    its target from both sides.
    """

    ascent: float = 1e-3
    per: Literal["model", "group"] = "group"
    lr: float = 7e-4
    last: Literal["mean", "median", "soft"] = "median"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ascent > 0 or self.per not in ("model", "group"):
            raise SpecError(f"{self}: ascent > 0, per is 'model' or 'group'")

    def entered(self, w: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return w / (1 - self.drop)

    def gaps(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, "n"]:
        """By how much every constraint is violated; negative where it is met."""
        parts = [{n: t} for n, t in thetas.items()] if self.per == "group" else [thetas]
        left = [self.left(p, moment) for p in parts]
        return torch.stack([have / whole - moment.density for have, whole in left])

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        assert moment.duals is not None
        gap = self.gaps(thetas, moment)
        return (moment.duals.to(gap) * gap).sum()

    def duals(self, groups: int) -> tuple[float, ...]:
        return (0.0,) * (groups if self.per == "group" else 1)

    def ascended(
        self, duals: Float[Tensor, "n"], thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment
    ) -> Float[Tensor, "n"]:
        gap = self.gaps(thetas, moment).to(duals)
        return (duals + self.ascent * gap).clamp(min=0).masked_fill(gap <= 0, 0.0)
