"""Gates: learned masks in the network's graph, and what they are told of the step at hand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Part, Thetas


@dataclass(frozen=True, eq=False)
class Moment:
    """The step at hand, as the gates of one group see it.

    Attributes:
        progress: steps made since the gates began, or since the last event that did more than mark, over those until
            the next such event; 1 when it comes.
        density: what the next event keeps.
        keep: `[*units]`, the units that are kept by now: those that the recipe's allocation would keep (where the gate
            `selects`), or those that the last event kept.
        noise: of theta's shape, uniform in [0, 1), drawn anew for every step; only where the gate `samples`, and not
            for the values that stay.
        duals: `[n]`, what the gates carry from step to step, such as the multipliers of their constraints.
        sizes: group name -> how many weights each of its units owns, for penalties on what is left.
        wide: `[*units]`, the units that would be kept at the density that the gate asks for as `wider`; while training.
        w: `[*units, k]`, the weights behind the gates, where the gate `sees`; no gradient goes to them.
        others: group name -> the moment of every group, this one included; while training.
        left: of gates that lie over each other, given what every unit of some groups counts for, by name: how
            many numbers of their matrices are left, each times the product of its units' shares, and how many there
            are; while training.
    """

    progress: float
    density: float
    keep: Bool[Tensor, "*units"] | None = None
    noise: Float[Tensor, "..."] | None = None
    duals: Float[Tensor, "n"] | None = None
    sizes: Mapping[str, float] = field(default_factory=dict)
    wide: Bool[Tensor, "*units"] | None = None
    w: Float[Tensor, "*units k"] | None = None
    others: Mapping[str, "Moment"] = field(default_factory=dict)
    left: Callable[[Thetas], tuple[Float[Tensor, ""], float]] | None = None


class Gate(Part):
    """Learned masks: one number theta per unit, trained beside (or instead of) the weights, in the network's graph.

    `(**evidence) -> theta`: what they start from; `[*units]` or `[*units, 1]`, or any other shape of which `value` and
    `worth` make `[*units]` (a threshold per row, two moments or six candidates per unit). Evidence as for a criterion.
    The other methods say what is made of them. All are pure, and differentiable where theta is to be trained through
    them.

    While a session is attached, a gated weight w is used as `weight(w, value)`. The value of a single weight is its own
    gate's; that of a unit (channel, neuron, head) multiplies what it is read with, the slices of the role `in`, so that
    it acts after normalizations and nonlinearities; that of a residual branch what the branch ends in. After the last
    event weights are what the network was computed with, pruned units are zero, and the gates are gone.
    `prunus.engine.gating` trains them.

    Attributes:
        trained: False for gates that hold nothing to be trained: the recipe's criterion scores the weights behind them,
            which pruning leaves as they are until the last event.
        freezes: all parameters of the model stay as they are while the gates are trained.
        selects: `moment.keep` is chosen anew every `every` steps, by the gates' worth, or by the recipe's criterion
            where they are not trained. Cost: one allocation each time. Otherwise it is what the last event kept.
        samples: how many draws of `moment.noise` it wants for every step; several lie along a first axis.
        sees: `value`, `penalty`, `open` and `restarted` want `moment.w`, and `worth_over` takes the place of `worth`.
        evaluates: `estimated` is asked for gradients, once per step.
    """

    slot: ClassVar[str] = "gate"
    trained: ClassVar[bool] = True
    freezes: ClassVar[bool] = False
    selects: ClassVar[bool] = False
    samples: ClassVar[int] = 0
    sees: ClassVar[bool] = False
    evaluates: ClassVar[bool] = False
    every: int = 1
    __call__: Callable[..., Tensor]

    def entered(self, w: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What lies behind the gates in the place of a weight when they are put in (for other parametrizations)."""
        return w

    def value(self, theta: Float[Tensor, "..."], moment: "Moment") -> Float[Tensor, "..."]:
        """What a unit is multiplied by: `[*units]`, or what broadcasts to it."""
        return theta

    def values(self, thetas: Thetas, moments: Mapping[str, "Moment"]) -> Thetas:
        """The same of all groups, for gates whose units compete across them; worked out once per step if overridden."""
        return {n: self.value(t, moments[n]) for n, t in thetas.items()}

    def weight(self, w: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What the network computes with, given the values of its weight's entries."""
        return w * value

    def penalty(self, thetas: Thetas, moment: "Moment") -> Float[Tensor, ""] | None:
        """A term of the loss, of all groups at once, counted once per step; None for none."""
        return None

    def duals(self, groups: int) -> tuple[float, ...]:
        """Numbers that are carried from step to step (multipliers of constraints), as `moment.duals`: their start."""
        return ()

    def ascended(self, duals: Float[Tensor, "n"], thetas: Thetas, moment: "Moment") -> Float[Tensor, "n"]:
        """These numbers for the next step, at the thetas with which the step at hand was made."""
        return duals

    def estimated(
        self, loss: Callable[[Mapping[str, Tensor]], float], thetas: Thetas, moments: Mapping[str, "Moment"]
    ) -> tuple[Thetas, Float[Tensor, "n"] | None]:
        """Gradients of thetas from the loss alone, without differentiating it, and duals (None: as they were): `loss`
        runs the next calibration batch with the values that it is given, group by group. A moment for every group.
        """
        return {}, None

    def projected(self, theta: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Theta after a step, put back where it may lie."""
        return theta

    def confined(self, thetas: Thetas, moment: "Moment") -> Thetas:
        """All thetas after a step, put back where they may lie together."""
        return {n: self.projected(t) for n, t in thetas.items()}

    def restarted(self, theta: Float[Tensor, "..."], moment: "Moment") -> Float[Tensor, "..."]:
        """Theta after a step, `projected`, where it has to begin anew: a layer that it would leave nothing of."""
        return theta

    def wider(self, density: float) -> float | None:
        """The density of a second, wider choice: `moment.wide`, made whenever `moment.keep` is; None for none."""
        return None

    def renewed(self, theta: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Theta for the next round, after an event that is not the last and does not only mark."""
        return theta

    def worth(self, theta: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What `GateValue` evidence tells a criterion, `[*units]`; higher = keep."""
        return theta

    def worth_over(self, theta: Float[Tensor, "..."], w: Float[Tensor, "*units k"]) -> Float[Tensor, "..."]:
        """The same of gates that `sees`: w are the weights behind them, which do not count unless this says so."""
        return self.worth(theta)

    def open(self, theta: Float[Tensor, "..."], moment: "Moment") -> Bool[Tensor, "..."] | None:
        """The units that the gates would keep by themselves, without a budget; None where they do not say."""
        return None

    def rate(self, progress: float) -> float:
        """The factor of the gates' learning rate."""
        return 1.0

    def optimizer(self, parameters: list[Any]) -> Any:
        """The torch optimizer that trains the gates."""
        raise SpecError(f"{type(self).__name__} does not say what trains its gates")
