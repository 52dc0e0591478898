"""What a contrast is: arms that differ by edits of recipes, operating points, claims, and the survey's own figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from prunus import methods
from prunus.core.errors import SpecError
from prunus.core.recipe import Recipe
from prunus.lab.contrast.problem import Problem
from prunus.lab.contrast.trial import Currency, Record

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
    """

    name: str
    recipe: Recipe | None
    training: Training
    baseline: bool = False

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
    def trained(self) -> bool:
        """Whether it starts from trained weights."""
        return self.recipe is not None and self.recipe.on == "pretrained"

    @property
    def density(self) -> float | None:
        """The density that the recipe's pattern fixes; 1 for the dense network; None where it is asked for."""
        return 1.0 if self.recipe is None else getattr(self.recipe.allocate, "density", None)


def arm(name: str, recipe: Recipe | str, training: Training | None = None, **edits: Any) -> Arm:
    """An arm: a method, or an edit of one. Trained weights are fine-tuned, others trained in full, unless said."""
    found = methods.get(recipe) if isinstance(recipe, str) else recipe
    found = replace(found, **edits) if edits else found
    return Arm(name=name, recipe=found, training=training or ("tune" if found.on == "pretrained" else "full"))


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


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`left` lies above `right` (or above 0) by more than `margin`, in a metric of the runs.

    Attributes:
        id: short, unique in the contrast.
        text: the claim in a sentence.
        left, right: names of arms; right empty: the number itself is judged.
        metric: a name of `METRICS`.
        margin: the least effect that counts, in the metric's unit; below 0 for "not worse by more than".
        at: the operating points (fractions kept) that it is about; all where left out.
        survey: what the survey says of it, with its numbers.
    """

    id: str
    text: str
    left: str
    right: str = ""
    metric: str = "test"
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
    currency: Currency = "units"
    points: tuple[float, ...] = POINTS
    survey: tuple[Quoted, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        names = [a.name for a in self.arms]
        if len(set(names)) < len(names):
            raise SpecError(f"contrast {self.name}: two arms of one name among {', '.join(names)}")
        for claim in self.claims:
            if missing := [n for n in (claim.left, claim.right) if n and n not in names]:
                raise SpecError(
                    f"contrast {self.name}: claim {claim.id!r} names the arm {missing[0]!r}, which it lacks"
                )
            if claim.metric not in METRICS:
                raise SpecError(f"contrast {self.name}: claim {claim.id!r} has no metric {claim.metric!r}")

    def arm(self, name: str) -> Arm:
        """An arm by its name."""
        return next(a for a in self.arms if a.name == name)
