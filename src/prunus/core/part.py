"""Parts: the words that recipes are made of.

A part is a frozen dataclass with a `__call__`. Equality, `repr`, copying with `dataclasses.replace`, and conversion
to and from plain JSON follow from that. Defining a concrete part registers it under its slot: there is no list to edit.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError, UnknownNameError
from prunus.core.events import Event
from prunus.core.groups import Group, Role
from prunus.core.needs import needs as needs

if TYPE_CHECKING:
    from prunus.core.evidence import Evidence
    from prunus.core.gate import Moment
    from prunus.core.layer import Choose, Layer, Site, Update

Scores = Mapping[str, Float[Tensor, "*units"]]
Masks = dict[str, Bool[Tensor, "*units"]]
Space = Mapping[str, Group]
Reduce = Literal["sum", "mean", "l2", "max"]
P = TypeVar("P", bound="Part")


class Part:
    """Base of everything that fills a slot of a recipe."""

    slot: ClassVar[str] = ""
    given: ClassVar[frozenset[str]] = frozenset()
    _registry: ClassVar[dict[str, dict[str, type["Part"]]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.slot and not inspect.isabstract(cls) and "__call__" in dir(cls) and Part not in cls.__bases__:
            Part._registry.setdefault(cls.slot, {})[cls.__name__] = cls

    def asks(self) -> Mapping[str, "Evidence"]:
        """What `__call__` wants to be told: parameter name -> evidence. A part that wraps another asks for it."""
        return needs(type(self))

    def settings(self) -> dict[str, Any]:
        """What evidence may know of the part that asks: its fields (a wrapper adds those of what it wraps)."""
        return {f.name: getattr(self, f.name) for f in fields(cast(Any, self))}

    @classmethod
    def known(cls, slot: str | None = None) -> Mapping[str, type["Part"]]:
        """The registered parts of a slot, by class name."""
        return MappingProxyType(Part._registry.get(slot or cls.slot, {}))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: `{"part": class name, field: value, ...}`."""
        return {"part": type(self).__name__, **{f.name: _plain(getattr(self, f.name)) for f in fields(cast(Any, self))}}

    @classmethod
    def from_dict(cls: type[P], data: Mapping[str, Any]) -> P:
        """The part that `to_dict` described; unknown names and fields are refused, nothing is executed."""
        known = cls.known()
        name = data.get("part")
        kind = known.get(name) if isinstance(name, str) else None
        if kind is None:
            raise UnknownNameError(cls.slot, str(name), known)
        allowed = {f.name for f in fields(cast(Any, kind))}
        values = {k: v for k, v in data.items() if k != "part"}
        if unknown := sorted(set(values) - allowed):
            raise SpecError(f"{cls.slot} {name} has no field {', '.join(unknown)}; its fields are {sorted(allowed)}")
        return cast(P, kind(**{k: _restored(v) for k, v in values.items()}))


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return {"slot": value.slot, **value.to_dict()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _restored(value: Any) -> Any:
    if isinstance(value, Mapping) and "part" in value:
        inner = SLOTS.get(str(value.get("slot")))
        if inner is None:
            raise UnknownNameError("slot", str(value.get("slot")), SLOTS)
        return inner.from_dict({k: v for k, v in value.items() if k != "slot"})
    return tuple(_restored(v) for v in value) if isinstance(value, list) else value


class Granularity(Part):
    """`(model, example) -> groups`: what one unit is.

    `reduce` says how element-wise scores become one score per unit (over the unit's scored slices).
    """

    slot: ClassVar[str] = "granularity"
    structure: ClassVar[Literal["unstructured", "semi-structured", "structured"]]
    reduce: Reduce = "sum"

    def __call__(self, model: Any, example: Any) -> tuple[Group, ...]:
        raise SpecError(f"{type(self).__name__} does not say what its units are")


class Criterion(Part):
    """`(**evidence) -> scores`, higher = keep.

    Every evidence arrives as `[*units, k]`: the k entries of each unit. A score may have that shape (element-wise; the
    granularity reduces it) or be `[*units]` (the unit as a whole). What a criterion reads is said by its annotations.
    """

    slot: ClassVar[str] = "criterion"
    __call__: Callable[..., Tensor]


class Growth(Part):
    """`(**evidence) -> scores` of pruned units, higher = regrow first; evidence as for a criterion."""

    slot: ClassVar[str] = "grow"
    __call__: Callable[..., Tensor]


class Penalty(Part):
    """`(**evidence) -> scalar`, called once per group and added to the loss; evidence as for a criterion.

    `lasts`: whether it goes on after the last event.
    """

    slot: ClassVar[str] = "penalty"
    lasts: ClassVar[bool] = True
    __call__: Callable[..., Tensor]


class Prox(Part):
    """`(**evidence) -> factor`: what a unit is multiplied by after each optimizer step, `[*units]` or `[*units, 1]`.

    Proximal maps of separable and of group norms scale a unit and keep its direction, so a factor tells all of them:
    soft thresholds, hard thresholds, half-space projections, decay. Evidence as for a criterion; where it is undefined
    a group is left alone.

    Attributes:
        roles: the members that are scaled; those that produce a unit and its normalization and bias by default, so that
            a unit falls silent while what reads it stays as it is.
        on: "gradients" scales gradients before the step instead (gradient selection).
        freezes: with "gradients": a parameter whose gradient is then zero everywhere is left out of the step, so that
            decay and momentum do not move it either.
        lasts: whether it goes on after the last event.
    """

    slot: ClassVar[str] = "prox"
    lasts: ClassVar[bool] = True
    roles: ClassVar[tuple[Role, ...]] = ("out", "scale", "shift", "bias")
    on: ClassVar[Literal["weights", "gradients"]] = "weights"
    freezes: ClassVar[bool] = False
    __call__: Callable[..., Tensor]


class Redistribution(Part):
    """`(**evidence) -> shares`: how what was dropped is spread over the groups when it is regrown.

    Parameters are evidence of all groups at once, as for an allocation: group name -> tensor. Returns group name -> a
    share, not negative; the engine spreads the number dropped in proportion, exactly, and no further than groups have
    room. Without one every group regrows what it dropped.
    """

    slot: ClassVar[str] = "redistribute"
    __call__: Callable[..., Mapping[str, float]]


class Allocation(Part):
    """`(scores, density, space, **evidence) -> masks`: which units stay, given their scores.

    Further parameters are evidence, as for a criterion, but of all groups at once: group name -> tensor (what a unit
    costs, what a layer's features look like).

    `pattern` is True where the allocation itself imposes a semi-structured pattern (N:M). `pays`: a currency in which
    it solves for a budget by itself (`afford`); in all others the engine looks for the number of units that fits.
    `apart`: what it keeps of a group hangs on that group's scores alone, so that groups may come one by one.
    """

    slot: ClassVar[str] = "allocate"
    pays: ClassVar[str | None] = None
    given: ClassVar[frozenset[str]] = frozenset({"scores", "density", "space"})
    pattern: ClassVar[bool] = False
    apart: ClassVar[bool] = False
    scope: ClassVar[Literal["global", "local"]] = "local"

    def __call__(self, *args: Any, **evidence: Any) -> Masks:
        """See the class: `(scores, density, space, **evidence)`."""
        raise SpecError(f"{type(self).__name__} does not say which units stay")

    def foresees(self) -> Mapping[str, "Evidence"]:
        """What `settled` wants to be told: evidence of the whole model, before anything is done at an event."""
        return {}

    def settled(self, density: float, space: Space, there: Mapping[str, int], **evidence: Any) -> "Allocation":
        """The same with every layer's density written down; `there`: how many units of a group are left."""
        return self

    def afford(self, scores: Scores, keep: float, space: Space, **evidence: Any) -> Masks:
        """The masks that leave at most the share `keep` of the dense model's cost in the currency that it pays."""
        raise SpecError(f"{type(self).__name__} meets no budget by itself")


class Schedule(Part):
    """`(density, steps) -> events`: when it happens. `density` is the final fraction kept, in any currency."""

    slot: ClassVar[str] = "schedule"

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        raise SpecError(f"{type(self).__name__} gives no events")


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
        sees: `value`, `penalty`, `open` and `restarted` want `moment.w`.
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

    def values(
        self, thetas: Mapping[str, Float[Tensor, "..."]], moments: Mapping[str, "Moment"]
    ) -> Mapping[str, Float[Tensor, "..."]]:
        """The same of all groups, for gates whose units compete across them; worked out once per step if overridden."""
        return {n: self.value(t, moments[n]) for n, t in thetas.items()}

    def weight(self, w: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What the network computes with, given the values of its weight's entries."""
        return w * value

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: "Moment") -> Float[Tensor, ""] | None:
        """A term of the loss, of all groups at once, counted once per step; None for none."""
        return None

    def duals(self, groups: int) -> tuple[float, ...]:
        """Numbers that are carried from step to step (multipliers of constraints), as `moment.duals`: their start."""
        return ()

    def ascended(
        self, duals: Float[Tensor, "n"], thetas: Mapping[str, Float[Tensor, "..."]], moment: "Moment"
    ) -> Float[Tensor, "n"]:
        """These numbers for the next step, at the thetas with which the step at hand was made."""
        return duals

    def estimated(
        self,
        loss: Callable[[Mapping[str, Tensor]], float],
        thetas: Mapping[str, Float[Tensor, "..."]],
        moments: Mapping[str, "Moment"],
    ) -> tuple[Mapping[str, Float[Tensor, "..."]], Float[Tensor, "n"] | None]:
        """Gradients of thetas from the loss alone, without differentiating it, and duals (None: as they were): `loss`
        runs the next calibration batch with the values that it is given, group by group. A moment for every group.
        """
        return {}, None

    def projected(self, theta: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Theta after a step, put back where it may lie."""
        return theta

    def confined(
        self, thetas: Mapping[str, Float[Tensor, "..."]], moment: "Moment"
    ) -> Mapping[str, Float[Tensor, "..."]]:
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

    def open(self, theta: Float[Tensor, "..."], moment: "Moment") -> Bool[Tensor, "..."] | None:
        """The units that the gates would keep by themselves, without a budget; None where they do not say."""
        return None

    def rate(self, progress: float) -> float:
        """The factor of the gates' learning rate."""
        return 1.0

    def optimizer(self, parameters: list[Any]) -> Any:
        """The torch optimizer that trains the gates."""
        raise SpecError(f"{type(self).__name__} does not say what trains its gates")


class Reconstruction(Part):
    """`(layer, choose) -> update`: new weights of one linear map, so that it computes what it did before.

    layer: see `prunus.core.layer.Layer`. choose: which weights stay, given scores of a block of columns, at the share
    that the allocation gave the layer; a reconstruction that does not select takes `layer.keep` as it is.
    `chooses`: it selects single weights anew, so that of masks only the number in each row, block or layer counts.
    """

    slot: ClassVar[str] = "reconstruct"
    chooses: ClassVar[bool] = False

    def __call__(self, layer: "Layer", choose: "Choose") -> "Update":
        raise SpecError(f"{type(self).__name__} rebuilds nothing")


class Preparation(Part):
    """`(model, example, task) -> model`, in place: the same outputs from other modules, which give other units."""

    slot: ClassVar[str] = "prepare"
    reads: ClassVar[Literal["nothing", "inputs", "labels"]] = "nothing"  # of the task; of the example without one

    def __call__(self, model: Any, example: Any, task: Any = None) -> Any:
        raise SpecError(f"{type(self).__name__} prepares nothing")

    def again(self, model: Any, names: Collection[str]) -> Any:
        """The same modules, for a model whose values are then read from a file that holds `names`."""
        return self(model, None)


class Recovery(Part):
    """What brings a pruned model back: what is done at once, and how it is trained afterwards.

    `__call__` runs after the last event, in place; the others shape the training steps that follow, in `prunus.prune`.
    `teacher`: whether it wants a copy of the dense model. `restarts`: whether optimizers forget what they gathered.
    `trains`: whether `__call__` trains by itself, and so needs a loss and batches.
    `throughout`: whether its `loss` is trained with from the first step on, while units are still being chosen.
    """

    slot: ClassVar[str] = "recover"
    reads: ClassVar[Literal["nothing", "inputs", "labels"]] = "nothing"
    teacher: ClassVar[bool] = False
    restarts: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    throughout: bool = False

    def __call__(self, site: "Site") -> None:
        """Change `site.model` in place. Nothing by default."""

    def steps(self, steps: int, macs_ratio: Callable[[], float]) -> int:
        """How many steps to train after the last event where `steps` were asked for; the ratio is dense / pruned."""
        return steps

    def rate(self, progress: float) -> float | None:
        """The learning-rate factor at a fraction of the steps after the last event; None leaves it as it is."""
        return None

    def loss(self, site: "Site", batch: Any) -> Tensor | None:
        """The loss to train with after the last event, or `throughout`; None for the task's own."""
        return None


_SLOTS = (Granularity, Criterion, Growth, Redistribution, Penalty, Prox, Allocation, Schedule, Gate)
SLOTS: dict[str, type[Part]] = {c.slot: c for c in (*_SLOTS, Reconstruction, Preparation, Recovery)}


def plain_dataclass(part: Part) -> None:
    """Refuse a part that is not a frozen dataclass: equality and serialization rest on it."""
    if not is_dataclass(part) or not type(part).__dataclass_params__.frozen:
        raise SpecError(f"{type(part).__name__} must be a @dataclass(frozen=True)")
