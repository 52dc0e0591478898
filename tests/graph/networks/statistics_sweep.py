"""Widths under LayerNorm and GroupNorm over the list (`exact=False`): equal but for the statistics."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from prunus.core.errors import DataError, StructureError, VerificationError
from prunus.graph import trace
from tests.graph.networks import page
from tests.graph.networks.entry import Network
from tests.graph.networks.judge import FRACTION, line, spent
from tests.graph.networks.kind import Kind, Outcome, sizes
from tests.graph.proof import prove

OUTCOMES = ("equal", "none", "wrong", "crash", "timeout", "too large")
MOST_PARAMETERS = 60_000_000


@dataclass
class StatisticsVerdict(Outcome):
    """What came of one network.

    Attributes:
        outcome: `equal`; `none` (it has no such axis that could be pruned); `wrong`.
        kinds: how many groups have such an axis, by kind.
        units: how many units these have together, by kind.
        removed: the share of the parameters that is gone with half of all units.
        exactly: the same where every group is exact.
    """

    kinds: dict[str, int] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    removed: float = 0.0
    exactly: float = 0.0


def judge(network: Network) -> StatisticsVerdict:
    """Remove half of the units of every group, those under statistics among them, and compare."""
    start = time.process_time()
    torch.manual_seed(0)
    model, example = network.build().eval(), network.example()
    try:
        if not any(getattr(g, "statistics", ()) for g in trace(model, example, probe=False, exact=False).groups):
            return StatisticsVerdict("none", "", spent(start))
        structure, small = prove(model, example, FRACTION, exact=False)
    except (VerificationError, AssertionError) as error:
        return StatisticsVerdict("wrong", line(error), spent(start))
    except (StructureError, DataError) as error:
        return StatisticsVerdict("none" if isinstance(error, StructureError) else "crash", line(error), spent(start))
    loose = [g for g in structure.groups if getattr(g, "statistics", ())]
    verdict = StatisticsVerdict("equal" if loose else "none")
    for group in loose:
        verdict.kinds[group.kind] = verdict.kinds.get(group.kind, 0) + 1
        verdict.units[group.kind] = verdict.units.get(group.kind, 0) + group.units
    if not loose:
        verdict.reason = next((why for why in structure.frozen.values() if why.startswith("tried")), "")
    before = sum(p.numel() for p in model.parameters())
    verdict.removed = round(1 - sum(p.numel() for p in small.parameters()) / before, 3)
    verdict.exactly = round(exactly(network), 3)
    verdict.seconds = spent(start)
    return verdict


def exactly(network: Network) -> float:
    """The share of parameters that goes where every group is exact, as the results of the list say."""
    from tests.graph import sweep

    found = sweep.load().get(network.name)
    return found.removed if found is not None and found.outcome == "equal" else 0.0


def asked(networks: Sequence[Network]) -> list[Network]:
    """The whole list but for the largest, the small ones first."""
    chosen = [n for n in networks if sizes().get(n.name, 0) <= MOST_PARAMETERS]
    return sorted(chosen, key=lambda n: sizes().get(n.name, 0))


OPENING = f"""\
## Widths under LayerNorm and GroupNorm

With `exact=False` axes that LayerNorm and GroupNorm average over are pruned too. Half of the units of every group are
removed at random; the compact network has to equal the masked one whose normalizations average over the kept positions.
"Gone" is the share of the parameters that is gone, "exactly" the share where every group is exact. Networks without
such an axis are not shown, nor are those of more than {MOST_PARAMETERS // 10**6} million parameters asked.
`python -m tests.graph.sweep --statistics` repeats it.
"""


def section(networks: Sequence[Network], results: Mapping[str, StatisticsVerdict]) -> str:
    """One row for each network that has such axes."""
    rows = []
    for network in networks:
        verdict = results.get(network.name)
        if verdict is None or (verdict.outcome == "none" and not verdict.reason):
            continue
        under = ", ".join(f"{count:,} of {kind}" for kind, count in verdict.units.items())
        gone = (f"{verdict.removed:.0%}", f"{verdict.exactly:.0%}") if verdict.outcome == "equal" else ("", "")
        rows.append([f"`{network.name}`", verdict.outcome, under, *gone, page.escaped(verdict.reason[:200])])
    wanted = asked(networks)
    missing = sum(network.name not in results for network in wanted)
    found = [v for n, v in results.items() if v.outcome == "equal" and n in {network.name for network in wanted}]
    told = f"{len(found)} of {len(wanted)} networks have such an axis and came out equal; {missing} were not run."
    return f"{OPENING}\n{told}\n\n{page.table(['network', 'outcome', 'units', 'gone', 'exactly', 'remark'], rows)}\n"


KIND = Kind(
    help="prune also what LayerNorm and GroupNorm average over",
    judge=judge,
    verdict=StatisticsVerdict,
    results=Path(__file__).parent / "results_statistics.json",
    asked=asked,
    section=section,
    outcomes=OUTCOMES,
)
