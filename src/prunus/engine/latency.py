"""A budget in latency: no count foretells it, so candidates are made physically small and timed."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.budget import Clock, Currency, Timing
from prunus.core.errors import BudgetError, SpecError
from prunus.core.groups import Group
from prunus.core.part import Masks
from prunus.core.task import Example
from prunus.engine.agreement import distributed

TRIALS = 10
CLOSE = 0.98


class Latency:
    """Times masks on this machine: what they leave is compacted and run in turn with the dense model.

    Args:
        model: the dense model; it is not changed.
        example: what a run is given, batch included.
        clock: see `prunus.core.budget.Clock`.

    Attributes:
        found: the timing of the masks that the last `search` chose; None before.
        trials: how many candidates that search compacted and timed.

    Cost of every timing: a copy of what is kept, and the clock's runs of both models. In a distributed run every
    process times, and the first one's figures count for all.
    """

    currency: Currency = "latency"

    def __init__(self, model: nn.Module, example: Example, clock: Clock) -> None:
        self.model, self.example, self.clock = model, example, clock
        self.found: Timing | None = None
        self.trials = 0

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
        """What the last search found, for the history of a run: the measured share, its quartiles, the candidates."""
        if self.found is None:
            return {}
        return {"latency": self.found.share, "latency_quartiles": list(self.found[1:]), "timed": self.trials}

    def search(self, at: Callable[[int], Masks], total: int, keep: float, groups: tuple[Group, ...]) -> Masks:
        """The largest masks among those tried that were measured to take at most `keep` of the dense time.

        at: kept units -> masks, for 0 (every group at its minimum) to `total`.

        Bisection over the kept units, on the assumption that more units take no less time. That holds only roughly
        (kernels work in blocks of channels), so what is promised is not the largest masks that fit but that those which
        come out do: they are timed once more when the search is over, and where they are too slow then, so are the next
        smaller ones that fitted. At most `TRIALS` candidates; a share within 2 % below `keep` ends the search.

        Errors: `BudgetError` with the measured share where even the smallest masks take longer, in words that say
        so.
        """
        self.found, self.trials = None, 0
        if keep >= 1.0:
            return at(total)
        low, high = 0, total
        fitting = [at(0)]
        above = at(total)
        timing = self._tried(groups, fitting[0])
        if timing.share > keep:
            raise _out_of_reach(keep, timing)
        while high - low > 1 and self.trials < TRIALS and not CLOSE * keep <= timing.share <= keep:
            middle = (low + high) // 2
            masks = at(middle)
            if _same(masks, fitting[-1]):
                low = middle
            elif _same(masks, above):
                high = middle
            else:
                timing = self._tried(groups, masks)
                if timing.share <= keep:
                    low = middle
                    fitting.append(masks)
                else:
                    high, above = middle, masks
        return self._confirmed(groups, fitting, keep)

    def _tried(self, groups: tuple[Group, ...], masks: Masks) -> Timing:
        self.trials += 1
        return self.time(groups, masks)

    def _confirmed(self, groups: tuple[Group, ...], fitting: list[Masks], keep: float) -> Masks:
        """The largest of the fitting masks that fits a second time: the luckiest of several timings is too good."""
        again = None
        for masks in reversed(fitting):
            again = self.time(groups, masks)
            if again.share <= keep:
                self.found = again
                return masks
        assert again is not None
        raise _out_of_reach(keep, again)


def _same(a: Masks, b: Masks) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


def _out_of_reach(keep: float, floor: Timing) -> BudgetError:
    return BudgetError(
        f"{keep:.4g} of the latency cannot be met: with every group at its minimum {floor.share:.4g} is left "
        f"(measured; quartiles {floor.low:.4g} to {floor.high:.4g}). Ask for more, let more be pruned (exclude, "
        f"at_least, granularity), or time a larger batch, where less of the time is overhead"
    )
