"""A budget in latency: no count foretells it, so candidates are made physically small and timed.

Where this machine's tables price what is not made (`prunus.measure.prices`), few candidates are: each is the largest
that is predicted to fit, and what the last ones really took corrects the prediction.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.budget import Clock, Currency, Prices, Timing
from prunus.core.errors import BudgetError, SpecError
from prunus.core.groups import Group, shapes_left
from prunus.core.part import Masks
from prunus.core.task import Example
from prunus.engine.agreement import distributed

TRIALS = 10
CLOSE = 0.98
AIM = 0.99  # of the budget, so that a small error of the prediction still fits

Line = Callable[[int], Masks]
Point = tuple[int, float, float]
"""Kept units (or any other measure of a line), their predicted and their measured share of the dense time."""


class Latency:
    """Times masks on this machine: what they leave is compacted and run in turn with the dense model.

    Args:
        model: the dense model; it is not changed.
        example: what a run is given, batch included.
        clock: see `prunus.core.budget.Clock`.
        prices: makes what prices masks that are not made, asked once, at the first search; it may give None.

    Attributes:
        found: the timing of the masks that the last `search` chose; None before.
        predicted: the share that prices said these masks would take; None without.
        trials: how many candidates that search compacted and timed.

    Cost of every timing: a copy of what is kept, and the clock's runs of both models. In a distributed run every
    process times, and the first one's figures count for all.
    """

    currency: Currency = "latency"

    def __init__(
        self, model: nn.Module, example: Example, clock: Clock, prices: Callable[[], Prices | None] | None = None
    ) -> None:
        self.model, self.example, self.clock, self._prices = model, example, clock, prices
        self.shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        self.found: Timing | None = None
        self.predicted: float | None = None
        self.trials = 0

    @cached_property
    def prices(self) -> Prices | None:
        """What prices masks that are not made; None where nothing does, and in a distributed run, whose processes would
        not agree.
        """
        return None if self._prices is None or distributed() else self._prices()

    def time(self, groups: tuple[Group, ...], masks: Mapping[str, Tensor]) -> Timing:
        """The timing of what these masks leave.

        Errors: `StructureError` where it cannot be compacted, `SpecError` for a clock that gives no positive number.
        """
        from prunus.graph import compact

        small, _ = compact(self.model, groups, masks, verify=False)
        timing = Timing(*(float(v) for v in self.clock(self.model, small, self.example)))
        if distributed():
            device = next(iter(masks.values())).device
            figures = torch.tensor(timing, dtype=torch.float64, device=device)
            torch.distributed.broadcast(figures, 0)
            timing = Timing(*figures.tolist())
        if not all(0.0 < v < float("inf") for v in timing):
            raise SpecError(f"the clock says that the pruned model takes {timing} of the dense one's time")
        return timing

    def fraction(self, groups: tuple[Group, ...], masks: Mapping[str, Tensor]) -> float:
        """The median latency that these masks leave over the dense model's, measured now."""
        return self.time(groups, masks).share

    def record(self) -> dict[str, Any]:
        """What the last search found, for the history of a run: the measured share, its quartiles, the candidates; the
        share that was predicted, where there were prices.
        """
        if self.found is None:
            return {}
        told = {"latency": self.found.share, "latency_quartiles": list(self.found[1:]), "timed": self.trials}
        return told if self.predicted is None else {**told, "latency_predicted": self.predicted}

    def search(self, at: Line, total: int, keep: float, groups: tuple[Group, ...]) -> Masks:
        """The largest masks among those tried that were measured to take at most `keep` of the dense time.

        at: kept units, or any other measure that grows with what is kept -> masks, for 0 (every group at its minimum)
        to `total`.

        Bisection over it, or with prices interpolation between what was timed, on the assumption that more takes no
        less time. That holds only roughly (kernels work in blocks of channels), so what is promised is not the largest
        masks that fit but that those which come out do: they are timed a second time, the luckiest of several timings
        being too good, and where they are too slow then, the search goes on below them. At most `TRIALS` candidates;
        then the next smaller ones that fitted come out. A share within 2 % below `keep` ends the search.

        Errors: `BudgetError` with the measured share where even the smallest masks take longer, in words that say
        so.
        """
        self.found, self.predicted, self.trials = None, None, 0
        if keep >= 1.0:
            return at(total)
        least, above = at(0), at(total)
        timing = self._tried(groups, least)
        if timing.share > keep:
            raise _out_of_reach(keep, timing)
        fitting: list[tuple[Point, Masks]] = [((0, self._foreseen(groups, least), timing.share), least)]
        high: Point = (total, self._foreseen(groups, above), 1.0)
        sides = list[bool]()
        while fitting:
            low, largest = fitting[-1]
            if high[0] - low[0] > 1 and self.trials < TRIALS and low[2] < CLOSE * keep:
                middle = self._next(at, low, high, keep, groups, sides)
                masks = at(middle)
                if _same(masks, largest):
                    fitting[-1] = ((middle, *low[1:]), largest)
                elif _same(masks, above):
                    high = (middle, *high[1:])
                else:
                    timing = self._tried(groups, masks)
                    point = (middle, self._foreseen(groups, masks), timing.share)
                    sides.append(timing.share <= keep)
                    if sides[-1]:
                        fitting.append((point, masks))
                    else:
                        high, above = point, masks
                continue
            timing = self.time(groups, largest)
            if timing.share <= keep:
                self.found, self.predicted = timing, None if self.prices is None else low[1]
                return largest
            fitting.pop()
            high, above = (*low[:2], timing.share), largest
        raise _out_of_reach(keep, timing)

    def _next(
        self, at: Line, low: Point, high: Point, keep: float, groups: tuple[Group, ...], sides: list[bool]
    ) -> int:
        """Where to look between two points: in the middle without prices, and where the last two looks ended on the
        same side; else the last place whose share, interpolated by what is predicted, is within the budget.
        """
        middle = (low[0] + high[0]) // 2
        if self.prices is None or high[1] <= low[1] or (len(sides) > 1 and sides[-1] == sides[-2]):
            sides.clear()
            return middle
        wanted = low[1] + (high[1] - low[1]) * (AIM * keep - low[2]) / max(high[2] - low[2], 1e-9)
        fits, over = low[0], high[0]
        while over - fits > 1:
            middle = (fits + over) // 2
            fits, over = (middle, over) if self._foreseen(groups, at(middle)) <= wanted else (fits, middle)
        return min(max(fits, low[0] + 1), high[0] - 1)

    def _foreseen(self, groups: tuple[Group, ...], masks: Masks) -> float:
        """The share that the prices predict; 0 without any."""
        return 0.0 if self.prices is None else self.prices.share(shapes_left(self.shapes, groups, masks))

    def _tried(self, groups: tuple[Group, ...], masks: Masks) -> Timing:
        self.trials += 1
        return self.time(groups, masks)


def _same(a: Masks, b: Masks) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


def _out_of_reach(keep: float, floor: Timing) -> BudgetError:
    return BudgetError(
        f"{keep:.4g} of the latency cannot be met: with every group at its minimum {floor.share:.4g} is left "
        f"(measured; quartiles {floor.low:.4g} to {floor.high:.4g}). Ask for more, let more be pruned (exclude, "
        f"at_least, granularity), or time a larger batch, where less of the time is overhead"
    )
