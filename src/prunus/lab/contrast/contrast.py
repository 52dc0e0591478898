"""What a contrast is: arms that differ by edits of recipes, operating points, claims, and the survey's own figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Literal

from prunus import methods
from prunus.core.errors import SpecError
from prunus.core.recipe import Recipe
from prunus.lab.contrast.problem import Problem, Tier
from prunus.lab.contrast.trial import Currency, Record
from prunus.parts.allocation import GlobalRanking
from prunus.parts.granularity import Element

Training = Literal["none", "tune", "full", "both", "twice"]
POINTS = (0.5, 0.25, 0.125, 0.0625, 0.03)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One line of a contrast: a recipe (None: the dense network) and how long it is trained.

    Attributes:
        name: as it is shown; unique within a contrast.
        recipe: the method, edited.
        training: `none`; `tune`, a fine-tuning; `full`, a training from scratch; `both`, as long as these together;
            `twice`, two trainings from scratch (where a recipe goes back to the start).
        baseline: there because every comparison needs it, not because the contrast asks for it.
        where: edits of the problem that it is run on.
        masks: the name of the arm whose masks it takes over; its recipe then ranks by magnitude what they leave.
        shrinks: the part of a budget in multiply-accumulates, on a scale of logarithms, that smaller images take: where
            k is kept, they leave at most k^shrinks, and the recipe removes the rest.
    """

    name: str
    recipe: Recipe | None
    training: Training
    baseline: bool = False
    where: Mapping[str, Any] = field(default_factory=dict)
    masks: str = ""
    shrinks: float = 0.0

    def edits(self, keep: float) -> Mapping[str, Any]:
        """Edits of the problem at a point."""
        return {**self.where, "resolution": keep**self.shrinks} if self.shrinks else self.where

    def epochs(self, problem: Problem) -> int:
        """Passes over the data."""
        return {
            "none": 0,
            "tune": problem.tune,
            "full": problem.epochs,
            "both": problem.epochs + problem.tune,
            "twice": 2 * problem.epochs,
        }[self.training]

    @property
    def origin(self) -> dict[str, Any]:
        """Edits of the problem that the dense network was trained on which it starts from; rates are its own."""
        return {k: v for k, v in self.where.items() if k != "rates"}

    @property
    def trained(self) -> bool:
        """Whether it starts from trained weights."""
        return self.recipe is not None and self.recipe.on == "pretrained"

    @property
    def density(self) -> float | None:
        """The density that the recipe's pattern fixes; 1 for the dense network; None where it is asked for."""
        return 1.0 if self.recipe is None else getattr(self.recipe.allocate, "density", None)


def arm(
    name: str,
    recipe: Recipe | str,
    training: Training | None = None,
    *,
    where: Mapping[str, Any] | None = None,
    masks: str = "",
    shrinks: float = 0.0,
    **edits: Any,
) -> Arm:
    """An arm: a method, or an edit of one. Trained weights are fine-tuned, others trained in full, unless said."""
    found = methods.get(recipe) if isinstance(recipe, str) else recipe
    found = replace(found, **edits) if edits else found
    length = training or ("tune" if found.on == "pretrained" else "full")
    return Arm(name=name, recipe=found, training=length, where=where or {}, masks=masks, shrinks=shrinks)


BODY = Element(skip_last=True)
"""The weights of a network whose last layer is another one for other classes."""

_TAKING = replace(
    methods.get("magnitude"),
    name="masks_taken_over",
    source="Morcos et al. 2019, NeurIPS, arXiv:1906.02773",
    granularity=BODY,
    allocate=GlobalRanking(rounding="nearest"),
    on="initialized",
)


def taking(name: str, masks: str, *, without: str = "", where: Mapping[str, Any] | None = None) -> Arm:
    """An arm with the masks of another one, trained once from initial weights; `without` as `methods.ablated`."""
    recipe = methods.ablated(_TAKING, without) if without else _TAKING
    return arm(name, recipe, "full", masks=masks, where=where)


Metric = Callable[[Record], float | None]


def _depth_slope(record: Record) -> float | None:
    """Spearman's rank correlation of a layer's depth with the share of it that is removed."""
    kept = [layer.kept / layer.weights for layer in record.layers]
    if len(kept) < 3 or len(set(kept)) < 2:
        return None
    ranks = [sum(b < a for b in kept) + (sum(b == a for b in kept) - 1) / 2 for a in kept]
    middle = (len(kept) - 1) / 2
    across = sum((i - middle) * (r - middle) for i, r in enumerate(ranks))
    spread = sum((i - middle) ** 2 for i in range(len(kept))) * sum((r - middle) ** 2 for r in ranks)
    return float(-across / spread**0.5)


METRICS: Mapping[str, tuple[Metric, str]] = MappingProxyType(
    {
        "test": (lambda r: 100 * r.test, "points of test accuracy"),
        "untrained": (
            lambda r: None if r.untrained is None else 100 * r.untrained,
            "points of held-out accuracy before training",
        ),
        "collapsed": (lambda r: float(len(r.collapsed)), "layers of which nothing is left"),
        "dead": (
            lambda r: None if r.effective is None else 100 * (r.effective - r.sparsity),
            "points of sparsity by weights on no path",
        ),
        "depth": (_depth_slope, "rank correlation of depth and share removed"),
        "macs": (lambda r: 100 * r.macs_kept / r.macs_dense, "per cent of the multiply-accumulates"),
    }
)


def _shares(left: Record, right: Record) -> float | None:
    """How many weight tensors keep another number of weights than their namesakes of the same size."""
    other = {layer.name: layer for layer in right.layers}
    if not left.layers or {n: x.weights for n, x in other.items()} != {x.name: x.weights for x in left.layers}:
        return None
    return float(sum(layer.kept != other[layer.name].kept for layer in left.layers))


Pair = Callable[[Record, Record], float | None]
PAIRS: Mapping[str, tuple[Pair, str]] = MappingProxyType(
    {"shares": (_shares, "weight tensors of which another share is kept")}
)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`left` lies above `right` (or above 0) by more than `margin`, in a metric of the runs; or an exact claim about
    pairs of runs.

    Attributes:
        id: short, unique in the contrast.
        text: the claim in a sentence.
        left, right: names of arms; right empty: the number itself is judged.
        metric: a name of `METRICS`; or of `PAIRS`, which is a number of two runs of one problem, point and seed.
        exact: of pairs: that the number is 0 in all of them (`none`), or in none (`some`). No interval is taken.
        margin: the least effect that counts, in the metric's unit; below 0 for "not worse by more than".
        at: the operating points (fractions kept) that it is about; all where left out.
        survey: what the survey says of it, with its numbers.
    """

    id: str
    text: str
    left: str
    right: str = ""
    metric: str = "test"
    exact: Literal["", "none", "some"] = ""
    margin: float = 0.0
    at: tuple[float, ...] = ()
    survey: str = ""


@dataclass(frozen=True)
class Quoted:
    """A table of the survey, to be printed beside ours."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two settings of one kind of pruning, compared.

    Attributes:
        name: as the command line takes it.
        title: in words.
        section: where the survey treats it.
        question: what is asked.
        arms: what is compared.
        claims: what is said about it.
        on: edits of every problem of a tier, where it is about a part of the data, or about networks of its own.
        aside: what is run but is no line of it: dense networks and masks that arms start from, and what a claim asks.
        currency: of the operating points.
        points: fractions kept, from mild to extreme.
        survey: the survey's own figures.
        notes: what a reader must know.
    """

    name: str
    title: str
    section: str
    question: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    on: Mapping[str, Any] = field(default_factory=dict)
    aside: tuple[Arm, ...] = ()
    currency: Currency = "units"
    points: tuple[float, ...] = POINTS
    survey: tuple[Quoted, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        names = [a.name for a in self.every]
        if len(set(names)) < len(names):
            raise SpecError(f"contrast {self.name}: two arms of one name among {', '.join(names)}")
        for one in self.every:
            if one.shrinks and self.currency != "macs":
                raise SpecError(f"contrast {self.name}: smaller images ({one.name!r}) need a budget in macs")
            if one.masks and one.masks not in names:
                raise SpecError(f"contrast {self.name}: {one.name!r} takes over masks of {one.masks!r}, which it lacks")
        for claim in self.claims:
            if missing := [n for n in (claim.left, claim.right) if n and n not in names]:
                raise SpecError(
                    f"contrast {self.name}: claim {claim.id!r} names the arm {missing[0]!r}, which it lacks"
                )
            if claim.metric not in (PAIRS if claim.exact else METRICS):
                raise SpecError(f"contrast {self.name}: claim {claim.id!r} has no metric {claim.metric!r}")

    @property
    def every(self) -> tuple[Arm, ...]:
        """The arms, and what is run aside."""
        return (*self.arms, *self.aside)

    def arm(self, name: str) -> Arm:
        """An arm by its name."""
        return next(a for a in self.every if a.name == name)

    def parent(self, one: Arm) -> Arm | None:
        """The dense network that an arm starts from, trained once; None where it is not there."""
        dense = (a for a in self.every if a.recipe is None and a.training == "full")
        return next((a for a in dense if dict(a.where) == one.origin), None)

    def problems(self, tier: Tier) -> tuple[Problem, ...]:
        """The tier's problems as this contrast has them; of those that become one (network and data), the last."""
        if not self.on:
            return tier.problems
        if "network" not in self.on:
            return tuple(p.edited(self.on) for p in tier.problems)
        found = {p.data: p.edited(self.on) for p in tier.problems}
        return tuple(p.edited({"name": f"{p.network}-{PurePath(p.data).name}"}) for p in found.values())
