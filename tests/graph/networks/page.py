"""The page docs/networks.md: the list of networks with what is pruned and what came out, from the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tests.graph.networks.entry import Network
from tests.graph.networks.judge import Verdict

TITLES = {
    "torchvision": "torchvision: classification",
    "segmentation": "torchvision: segmentation",
    "detection": "torchvision: detection, up to the raw heads",
    "video": "torchvision: video and optical flow",
    "timm": "timm",
    "transformers": "transformers, small configurations",
    "images": "Images to images",
    "sequences": "Recurrence and sequences to sequences",
    "graphs": "Graph networks with plain tensors",
}
OPENING = """\
# The networks that Prunus is tried on

<!-- Written by `python -m tests.graph.sweep --markdown` from tests/graph/networks/results.json. -->

For each network: it is built with random weights and traced; half of the units of every group are removed at random;
the compact model must compute in float64 what the masked model computes, within 1e-9 of its largest output (in float32,
within 1e-4, where a kernel of the network does not exist in float64); its parameters and multiply-accumulates must be
what the groups predict, to the unit; and one training step must run with
finite gradients. `make networks` repeats all of it.

"Equal" means all of this held. "Refused" means that nothing could be removed, and the reason was given. "Stays whole"
says how many of the weights that produce something cannot be pruned, and the commonest reason beyond the output.
"""


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("_", "\\_").replace("*", "\\*")


def cells(network: Network, verdict: Verdict | None) -> list[str]:
    short = f"`{network.name.partition('/')[2]}`"
    if verdict is None:
        return [short, "not run", "", "", "", ""]
    outcome = "refused" if verdict.outcome == "unchanged" else verdict.outcome
    pruned = ", ".join(f"{verdict.units[kind]:,} of {kind}" for kind in verdict.kinds)
    if verdict.outcome != "equal":
        return [short, outcome, pruned, "", "", escaped(verdict.reason)]
    reason = "" if verdict.reason == "an output of the model" else f": {escaped(verdict.reason)}"
    whole = f"{verdict.frozen[0]} of {verdict.frozen[1]}{reason}"
    macs = f"{1 - verdict.macs[1] / verdict.macs[0]:.0%}" if verdict.macs[0] else ""
    return [short, outcome, pruned, f"{verdict.removed:.0%}", macs, whole]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, [":---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell or " " for cell in row) + " |" for row in lines)


def markdown(networks: Sequence[Network], results: Mapping[str, Verdict], others: Sequence[str] = ()) -> str:
    """The whole page: the summary, the sections of other kinds of sweep, and the networks."""
    summary, tables = tabulated(networks, results)
    return "\n".join([OPENING, summary, *others, tables])


def sections(networks: Sequence[Network], results: Mapping[str, Verdict]) -> str:
    """The summary and all tables."""
    return "\n".join(tabulated(networks, results))


def tabulated(networks: Sequence[Network], results: Mapping[str, Verdict]) -> tuple[str, str]:
    """The summary by parts of the list, and one table for each part."""
    summary: list[list[str]] = []
    names = ("equal", "refused", "wrong", "crash", "timeout", "too large", "not run")
    sections: list[str] = []
    for family in dict.fromkeys(network.family for network in networks):
        own = [network for network in networks if network.family == family]
        rows = [cells(network, results.get(network.name)) for network in own]
        count = Counter(row[1] for row in rows)
        summary.append([TITLES[family], str(len(own)), *(str(count[name]) for name in names)])
        head = ["network", "outcome", "units that can be removed", "parameters gone", "MACs gone", "stays whole"]
        sections.append(f"## {TITLES[family]}\n\n{table(head, rows)}\n")
    total = ["all", *(str(sum(int(row[i]) for row in summary)) for i in range(1, len(names) + 2))]
    return table(["part of the list", "networks", *names], [*summary, total]) + "\n", "\n".join(sections)
