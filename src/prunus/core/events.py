"""The timeline of a recipe is data: a schedule gives events, and an engine carries them out."""

from typing import NamedTuple


class Event(NamedTuple):
    """What happens at an optimizer step.

    Attributes:
        step: after this many optimizer steps (0: before the first one).
        density: fraction of the budget's currency kept from now on.
        regrow: fraction of the kept units of every group that is dropped and regrown elsewhere (prune-and-grow).
        rewind: put weights, buffers and the learning-rate clock back to this step (weight rewinding).
        replay: put only the learning-rate clock back to this step (learning-rate rewinding).
        hold: False zeroes the units once and lets them recover (soft pruning).
        revive: True lets pruned units compete again; otherwise their score is -inf and masks only shrink.
        skip: True skips the optimizer step at which the event falls.
        settle: carried out only if the masks that it would make differ in less than this fraction of the units from
            those that each of the `window` events before it would have made; until then it only remembers its masks.
            Once one such event was carried out, the remaining ones are left out (early tickets). 1 is always met.
        window: see `settle`.
        mark: True chooses the masks and leaves the weights as they are: penalties, proximal maps and gates act on the
            choice until a later event carries it out.
        across: with `regrow`: units of all groups compete for staying, instead of each group's own.
        under: with `regrow`: of the units that may be dropped only those go that are worth less than this.
        jointly: with `regrow`: units of all groups compete for being regrown, instead of each group's own.
        fresh: with `regrow`: a unit that is dropped and regrown at once starts at zero, as all others that are regrown
            do; otherwise it keeps its value.
        grow: kept units stay, and pruned ones join them, by the recipe's growth, until what the allocation gives at
            `density` is kept.
        below: units that this event would remove stay after all, where they are worth at least this share of the least
            that any kept unit of their group is worth (thresholds that rise, Narang et al. 2017, arXiv:1704.05119).
    """

    step: int
    density: float
    regrow: float = 0.0
    rewind: int | None = None
    replay: int | None = None
    hold: bool = True
    revive: bool = False
    skip: bool = False
    settle: float | None = None
    window: int = 0
    mark: bool = False
    across: bool = False
    under: float | None = None
    below: float | None = None
    jointly: bool = False
    fresh: bool = False
    grow: bool = False
