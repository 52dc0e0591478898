"""Exported graphs of the networks of which something stays whole on their own class: what can be removed there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import DataError, StructureError, VerificationError
from prunus.graph import exported
from prunus.graph.running import mapped
from prunus.graph.verify import differ, outputs
from tests.graph.networks import page
from tests.graph.networks.entry import Network
from tests.graph.networks.judge import OUTCOMES as PLAIN
from tests.graph.networks.judge import Verdict, line, spent
from tests.graph.networks.judge import judge as prune
from tests.graph.networks.kind import Kind, Outcome, sizes
from tests.graph.networks.stays import REFUSED, STAYS
from tests.graph.proof import disturb

OUTCOMES = (*PLAIN, "no graph")
"""Those of pruning; and that `torch.export` makes no graph."""
HERE = Path(__file__).parent


@dataclass
class ExportedVerdict(Outcome):
    """What came of one network as an exported graph.

    Attributes:
        kinds: how many groups of which kind the graph has.
        units: how many units of which kind they have together.
        removed: the share of the parameters that is gone.
        batch: `free` (the graph takes batches of another size, and computes the same) or why it does not.
    """

    kinds: dict[str, int] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    removed: float = 0.0
    batch: str = ""


def judge(network: Network) -> ExportedVerdict:
    """Export the network, compare the graph with it, and ask of the graph what is asked of a network."""
    start = time.process_time()
    torch.manual_seed(0)
    model = disturb(network.build()).eval()
    example = network.example()
    try:
        graph = exported(model, example)
    except StructureError as error:
        return ExportedVerdict("no graph", line(error), spent(start))
    try:
        apart = compared(model, graph, example)
    except (VerificationError, StructureError) as error:
        return ExportedVerdict("wrong", f"the graph: {line(error)}", spent(start))
    if not apart <= 1e-5:
        return ExportedVerdict("wrong", f"the graph's outputs are {apart:.1e} apart", spent(start))
    batch = freedom(model, graph, example)
    found: Verdict = prune(replace(network, build=lambda: graph, other=None))
    verdict = ExportedVerdict(found.outcome, found.reason, spent(start), found.kinds, found.units)
    verdict.removed, verdict.batch = round(found.removed, 3), batch
    if batch.startswith("wrong"):
        verdict.outcome, verdict.reason = "wrong", batch
    return verdict


def compared(model: nn.Module, graph: nn.Module, example: Any) -> float:
    """How far the outputs of the graph are from the model's, relative to the largest value of each."""
    return differ(outputs(model, example), graph, example)


def freedom(model: nn.Module, graph: nn.Module, example: Any) -> str:
    """Whether the graph takes a batch of another size as the model does."""

    def longer(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor[:1]]) if tensor.dim() else tensor

    more = mapped(example, longer)
    try:
        expected = outputs(model, more)
    except DataError:
        return "the network takes no other"
    try:
        apart = differ(expected, graph, more)
    except (StructureError, VerificationError) as error:
        return f"fixed: {line(error)}"[:200]
    return "free" if apart <= 1e-5 else f"wrong: outputs of another batch size are {apart:.1e} apart"


MOST_PARAMETERS = 100_000_000
"""Networks with more are left out; they differ from smaller ones of the list in their widths and depths only."""


def asked(networks: Sequence[Network]) -> list[Network]:
    """Those of which something stays whole although networks of their kind could lose it, the small ones first."""
    names = {name for own in STAYS.values() for name in own} | set(REFUSED)
    chosen = [n for n in networks if n.name in names and sizes().get(n.name, MOST_PARAMETERS) <= MOST_PARAMETERS]
    return sorted(chosen, key=lambda n: sizes().get(n.name, MOST_PARAMETERS))


OPENING = f"""\
## Exported graphs

What stays whole on a network's own class may go in the graph that `prunus.graph.exported` makes of it: sizes that are
written into a forward are attributes there. For each network of which heads, key-value groups, neurons or experts stay
whole although networks of its kind can lose them, and for each that is refused: the graph must compute what the network
computes, and is then asked what every network is asked. Networks of more than {MOST_PARAMETERS // 10**6} million
parameters are left out. "On its class" are the units that can be removed without it.
`python -m tests.graph.sweep --exported` repeats it.
"""


def section(networks: Sequence[Network], results: Mapping[str, ExportedVerdict]) -> str:
    """One row for each network."""
    from tests.graph import sweep

    plain, wanted = sweep.load(), {network.name for network in asked(networks)}
    head = ["network", "on its class", "outcome", "in the graph", "parameters gone", "batch", "remark"]
    rows = []
    for network in (n for n in networks if n.name in wanted):
        verdict, own = results.get(network.name), plain.get(network.name)
        before = amounts(own.units) if own is not None else ""
        if verdict is None:
            rows.append([f"`{network.name}`", before, "not run", "", "", "", ""])
            continue
        gone = f"{verdict.removed:.0%}" if verdict.outcome == "equal" else ""
        remark = "" if verdict.outcome == "equal" else page.escaped(verdict.reason[:200])
        outcome = "refused" if verdict.outcome == "unchanged" else verdict.outcome
        cells = [outcome, amounts(verdict.units), gone, verdict.batch.partition(":")[0], remark]
        rows.append([f"`{network.name}`", before, *cells])
    return f"{OPENING}\n{page.table(head, rows)}\n"


def amounts(units: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} of {kind}" for kind, count in units.items())


KIND = Kind(
    help="prune the exported graphs of the networks of which something stays whole",
    judge=judge,
    verdict=ExportedVerdict,
    results=HERE / "results_exported.json",
    asked=asked,
    section=section,
    outcomes=OUTCOMES,
    imports=("torch.export", "torch._export"),
)
