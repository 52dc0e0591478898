"""The rules that make numbers comparable: arms that every comparison must have, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from prunus import methods
from prunus.core.recipe import Recipe
from prunus.lab.contrast.contrast import Arm, Contrast, arm
from prunus.lab.contrast.problem import Tier
from prunus.parts.allocation import Inverted, Shuffled
from prunus.parts.criteria import Random

FEWEST_SEEDS, FEWEST_POINTS, FEWEST_PROBLEMS = 3, 5, 3
SHUFFLED = "{}, same layer shares"


def with_baselines(contrast: Contrast) -> Contrast:
    """The contrast with what it lacks of the mandatory baselines (rule R6 of the protocol).

    The dense network, trained once and trained as long as pruning and fine-tuning take; random pruning at every
    granularity; magnitude across layers and by layer; and for every arm whose masks stay, random pruning with the same
    layer shares. Arms that do the same are not added twice, whatever they are called. Where arms start from dense
    networks of an edited problem, these are trained aside.
    """
    own, asked = list(contrast.arms), [a for a in contrast.arms if not a.baseline]
    added = [
        Arm(name="dense", recipe=None, training="full"),
        Arm(name="dense, trained longer", recipe=None, training="both"),
        *(arm(f"random {kind}", "random", granularity=g) for kind, g in _granularities(asked)),
        arm("magnitude across layers", "magnitude"),
        arm("magnitude by layer", "magnitude_uniform"),
        *_same_shares(own),
    ]
    known = {_what(a) for a in own}
    new: list[Arm] = []
    for one in added:
        if _what(one) not in known:
            known.add(_what(one))
            new.append(replace(one, baseline=True))
    whole = replace(contrast, arms=(*own, *new))
    for one in whole.every:
        if one.trained and whole.parent(one) is None:
            told = ", ".join(f"{k} {v}" for k, v in one.origin.items())
            dense = Arm(name=f"dense, {told}", recipe=None, training="full", baseline=True, where=one.origin)
            whole = replace(whole, aside=(*whole.aside, dense))
    return whole


def warnings(contrast: Contrast, tier: Tier) -> list[str]:
    """What a reader must be told about how little this is (rules R4 and R5)."""
    said = []
    if len(tier.seeds) < FEWEST_SEEDS:
        said.append(f"{len(tier.seeds)} seed(s): at least {FEWEST_SEEDS} are needed before anything can be concluded")
    points = tier.points(contrast.points)
    if len(points) < FEWEST_POINTS:
        said.append(
            f"{len(points)} operating point(s): {FEWEST_POINTS} or more, an extreme one among them, make a fair "
            f"comparison"
        )
    problems = contrast.problems(tier)
    if len(problems) < FEWEST_PROBLEMS:
        said.append(f"{len(problems)} problem(s): {FEWEST_PROBLEMS} or more, one of them large, are the rule")
    return said


def mixed(initial: Iterable[tuple[str, int, bool, str]]) -> list[str]:
    """Runs that did not begin with the same weights though they should have (rule R1), in words.

    initial: (problem, seed, whether it began with trained weights, digest of the weights) of every run.
    """
    found: dict[tuple[str, int, bool], set[str]] = {}
    for problem, seed, trained, digest in initial:
        found.setdefault((problem, seed, trained), set()).add(digest)
    return [
        f"{problem}, seed {seed}: {len(digests)} different {'trained' if trained else 'initial'} networks"
        for (problem, seed, trained), digests in found.items()
        if len(digests) > 1
    ]


def _what(one: Arm) -> tuple[object, ...]:
    """An arm without its names."""
    plain = None if one.recipe is None else replace(one.recipe, name="", source="")
    return (repr(plain), one.training, repr(sorted(one.where.items())), one.masks, one.shrinks)


def _granularities(arms: Iterable[Arm]) -> list[tuple[str, object]]:
    found = {type(a.recipe.granularity).__name__: a.recipe.granularity for a in arms if a.recipe is not None}
    words = {"Element": "weights", "Channel": "channels", "Tile": "blocks", "Head": "heads"}
    return [(words.get(kind, kind.lower()), g) for kind, g in found.items()]


def _same_shares(arms: Iterable[Arm]) -> list[Arm]:
    return [
        replace(a, name=SHUFFLED.format(a.name), recipe=methods.ablated(a.recipe, "shuffle"))
        for a in arms
        if a.recipe is not None and a.shrinks < 1.0 and not a.baseline and _shuffles(a.recipe)
    ]


def _shuffles(recipe: Recipe) -> bool:
    """Whether a random mask with the same layer shares is another mask: not for patterns, moving or ablated masks."""
    moves = any(e.regrow or e.grow or e.step > 0 for e in recipe.timeline())
    pattern = getattr(recipe.allocate, "density", None) is not None
    ablated = isinstance(recipe.allocate, Shuffled | Inverted) or isinstance(recipe.criterion, Random)
    return not (moves or pattern or ablated or recipe.gate or recipe.reconstruct or recipe.recover)
