"""How well tables of layers predict the latency of a narrower network, and what they cost.

    python benchmarks/latency_tables.py [--networks resnet18 minilm] [--threads 1] [--choices 10] [--markdown]

Random widths are drawn for every group of channels of a torchvision network (multiples of 8, each between a fifth and
all of its units; initial weights, 224 x 224, batch 1, float32, PyTorch eager), and of heads and feed-forward channels
of MiniLM (128 tokens). Each choice is predicted from this
machine's tables, then really made by `graph.compact` and run in turn with the dense network. `rank` is Spearman's
correlation of the two shares over the choices, `error` the median of |predicted / measured - 1|. `MACs rank` and
`MACs error` are the same for the share of multiply-accumulates, which costs nothing to know. `fill` is what measuring
all tables took from an empty cache, `use` what pricing one choice takes, `make` what compacting and timing it takes.

With `--processor-time` everything is timed by the processor time of the calling thread, which a busy machine disturbs
less than the time on the wall; that is right for one thread alone. `fill`, `use` and `make` are on the wall.

With `--search` also what a budget of half the latency takes to meet on the convolutional networks, with and without
tables.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vision import define_missing

import prunus
import prunus.measure.beside as between
from deploy import minilm
from prunus import measure
from prunus.core.groups import Group, shapes_left
from prunus.engine.cost import cost_of
from prunus.graph import compact
from prunus.measure import tables as table_files
from prunus.measure import timing
from prunus.measure.clock import latency_share
from prunus.measure.layers import LayerCall, layers
from prunus.measure.machine import machine
from prunus.measure.prices import evenly, prices
from prunus.measure.tables import LatencyTables, shapes_of
from prunus.parts.granularity import Channel, Coupled

PAGE = Path(__file__).resolve().parents[1] / "docs" / "latency.md"
MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")


@dataclass
class Row:
    """What one network came to."""

    network: str
    layers: int
    shapes: int
    widths: int
    fill: float | None
    use: float | None
    make: float | None
    rank: float
    error: float
    macs_rank: float
    macs_error: float
    dense_ms: float | None
    told: float | None
    choices: list[tuple[float, float, float]]

    def cells(self) -> list[str]:
        counts = [f"{self.layers}", f"{self.shapes}", f"{self.widths}"]
        use = None if self.use is None else 1e3 * self.use
        costs = ["–" if v is None else f"{v:.1f}" for v in (self.fill, use, self.make)]
        agreement = [f"{self.rank:.3f}", f"{self.error:.1%}", f"{self.macs_rank:.3f}", f"{self.macs_error:.1%}"]
        dense = "–" if self.dense_ms is None else f"{self.dense_ms:.1f}"
        return [self.network, *counts, *costs, *agreement, dense, "–" if self.told is None else f"{self.told:.0%}"]


HEADER = (
    "network", "layers", "shapes", "widths", "fill, s", "use, ms", "make, s", "rank", "error", "MACs rank",
    "MACs error", "dense, ms", "of it in tables",
)  # fmt: skip


@dataclass
class Search:
    """A budget of half of the latency, met."""

    network: str
    how: str
    seconds: float
    made: int
    share: float
    predicted: float | None


def by_processor_time() -> None:
    """Time single runs, of layers and of networks, by the processor time of this thread."""

    def clock(device: torch.device) -> Any:
        def run(call: Any) -> float:
            start = time.thread_time_ns()
            call()
            return (time.thread_time_ns() - start) / 1e6

        return run

    timing.stopwatch = table_files.stopwatch = between.stopwatch = clock  # type: ignore[attr-defined]


def built(name: str) -> nn.Module:
    """A torchvision network with its initial weights, or MiniLM."""
    if name == "minilm":
        return minilm()[0]
    found = importlib.util.find_spec("torchvision")
    if found is None:
        raise SystemExit("torchvision is not installed: pip install 'prunus[vision]'")
    define_missing()
    import torchvision

    torch.manual_seed(0)
    network: nn.Module = torchvision.models.get_model(name, weights=None)
    return network.eval()


def example_of(name: str) -> Any:
    """An image, or a sentence of 128 tokens."""
    if name == "minilm":
        return minilm()[1]
    return (torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)


def spearman(a: list[float], b: list[float]) -> float:
    """Correlation of the ranks."""

    def ranks(values: list[float]) -> list[float]:
        order = sorted(range(len(values)), key=values.__getitem__)
        found = [0.0] * len(values)
        for rank, i in enumerate(order):
            found[i] = float(rank)
        return found

    return statistics.correlation(ranks(a), ranks(b))


def one(name: str, threads: int, choices: int) -> Row:
    """A network's tables against what its narrower versions really take."""
    model, example = built(name), example_of(name)
    groups = (Coupled() if name == "minilm" else Channel())(model, example)
    tables = LatencyTables(threads=threads)
    calls = layers(model, example)
    shapes = list(dict.fromkeys(c.shape for c in calls))
    began = time.perf_counter()
    tables.fill(shapes)
    fill = time.perf_counter() - began
    found = prices(model, example, groups, tables=tables)
    macs = cost_of(model, prunus.Task(example=example), "macs", groups)
    sizes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    pairs, used, made = [], [], []
    for _ in range(choices):
        masks = drawn(groups, generator)
        began = time.perf_counter()
        predicted = found.share(shapes_left(sizes, groups, masks))
        used.append(time.perf_counter() - began)
        began = time.perf_counter()
        small, _ = compact(model, groups, masks, verify=False)
        timed = measure.compare({"dense": model, "small": small}, example, runs=30, threads=threads).latency
        made.append(time.perf_counter() - began)
        pairs.append((predicted, timed["small"].median_ms / timed["dense"].median_ms, macs.fraction(groups, masks)))
        print(f"{name}: predicted {pairs[-1][0]:.3f}, measured {pairs[-1][1]:.3f}, MACs {pairs[-1][2]:.3f}", flush=True)
    return row_of(
        name,
        calls,
        pairs,
        step=tables.step,
        fill=fill,
        use=statistics.median(used),
        make=statistics.median(made),
        dense_ms=found.dense_ms,
        told=found.scale * found.parts({})[0] / found.dense_ms,
    )


def row_of(
    name: str, calls: Sequence[LayerCall], pairs: list[tuple[float, float, float]], *, step: int, **costs: float | None
) -> Row:
    """What predictions, measurements and shares of MACs come to."""
    said, took, work = (list(column) for column in zip(*pairs, strict=True))
    shapes = dict.fromkeys(c.shape for c in calls)
    return Row(
        network=name,
        layers=len(calls),
        shapes=len(shapes),
        widths=sum(len(shapes_of(s, step)) for s in shapes),
        rank=spearman(said, took),
        error=statistics.median(abs(p / t - 1) for p, t in zip(said, took, strict=True)),
        macs_rank=spearman(work, took),
        macs_error=statistics.median(abs(w / t - 1) for w, t in zip(work, took, strict=True)),
        choices=pairs,
        **costs,
    )


LINE = re.compile(r"^(\w+): predicted ([\d.]+), measured ([\d.]+), MACs ([\d.]+)$", re.MULTILINE)
SEARCH = re.compile(
    r"Search\(network='(\w+)', how='([^']+)', seconds=([\d.]+), made=(\d+), share=([\d.]+), predicted=([\w.]+)\)"
)


def searches_from_log(text: str) -> Iterator[Search]:
    """The budgets that such a run met."""
    for name, how, seconds, made, share, said in SEARCH.findall(text):
        yield Search(name, how, float(seconds), int(made), float(share), None if said == "None" else float(said))


def from_log(text: str) -> Iterator[Row]:
    """The rows of a run that was ended before its last network was done: agreement is known, costs are not."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for name, said, took, work in LINE.findall(text):
        found.setdefault(name, []).append((float(said), float(took), float(work)))
    for name, pairs in found.items():
        if len(pairs) > 2:
            calls = layers(built(name), example_of(name))
            yield row_of(name, calls, pairs, step=8, fill=None, use=None, make=None, dense_ms=None, told=None)


def drawn(groups: tuple[Group, ...], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random widths for all groups."""
    masks = {}
    for g in groups:
        share = 0.2 + 0.8 * float(torch.rand(1, generator=generator))
        whole = 8 if g.units > 16 else 1  # heads are few, and each is many channels
        masks[g.name] = evenly(g, max(whole, int(share * g.units) // whole * whole))
    return masks


def searched(name: str, threads: int) -> list[Search]:
    """A budget of half the latency by l1 norms ranked globally: the knapsack and the ranking, and without tables."""
    from dataclasses import replace

    from prunus.parts.allocation import GlobalRanking

    recipe = replace(
        prunus.methods.l1_filter, allocate=GlobalRanking(normalize="mean"), granularity=Channel(round_to=8)
    )
    example = example_of(name)

    def plain(*args: Any) -> Any:  # the same clock under another name, of which no tables are known
        return latency_share(*args)

    rows = []
    ways: list[tuple[str, Any, str]] = [
        ("knapsack, tables", None, "knapsack"),
        ("own ranking, tables", None, "own"),
        ("own ranking, bisection", plain, "own"),
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for how, clock, solver in ways:
            task = prunus.Task(example=example, clock=clock)
            began = time.perf_counter()
            budget: Any = prunus.Budget(latency=0.5, solver=solver)  # type: ignore[arg-type]
            result = prunus.prune(built(name), task, recipe, budget=budget)
            record = result.history[-1]
            rows.append(
                Search(name, how, time.perf_counter() - began, record["timed"], record["latency"],
                       record.get("latency_predicted"))
            )  # fmt: skip
            print(rows[-1], flush=True)
    finally:
        torch.set_num_threads(before)
    return rows


def written(rows: list[Row], searches: list[Search], threads: int, clock: str, load: float | None) -> str:
    """The part of the page that is measured; `load` of the machine when the run ended, where that is known."""
    here = machine()
    features = ", ".join(n for n, there in here.features.items() if there)
    where = (
        f"Measured on {here.cpu} ({features}), {here.usable:.3g} cores, {threads} thread(s), torch {torch.__version__}"
    )
    lines = [
        f"{where}; {clock}" + ("." if load is None else f"; load average {load:.1f} at the end."),
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + " --- |" * len(HEADER),
        *("| " + " | ".join(r.cells()) + " |" for r in rows),
    ]
    if searches:
        lines += [
            "",
            "A budget of half of the latency, l1 norms ranked over all layers, tables already filled:",
            "",
            "| network | how | seconds | candidates made | share that came out | predicted |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for s in searches:
            said = "" if s.predicted is None else f"{s.predicted:.3f}"
            lines.append(f"| {s.network} | {s.how} | {s.seconds:.1f} | {s.made} | {s.share:.3f} | {said} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2", "vgg11_bn", "minilm"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--choices", type=int, default=10)
    parser.add_argument("--processor-time", action="store_true", help="of the calling thread, for one thread")
    parser.add_argument("--search", action="store_true", help="also meet a budget, with and without tables")
    parser.add_argument("--markdown", action="store_true", help=f"write the table into {PAGE.name}")
    parser.add_argument("--log", type=Path, help="take the choices that an earlier, unfinished run printed")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if options.processor_time:
        if options.threads != 1:
            parser.error("--processor-time is that of one thread: leave --threads at 1")
        by_processor_time()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PRUNUS_CACHE"] = folder  # an empty cache, so that filling it is measured
        if options.log is not None:
            text = options.log.read_text()
            rows, searches = list(from_log(text)), list(searches_from_log(text))
        else:
            rows = [one(name, options.threads, options.choices) for name in options.networks]
            sought = [n for n in options.networks if options.search and n != "minilm"]
            searches = [s for name in sought for s in searched(name, options.threads)]
    clock = "processor time of one thread" if options.processor_time else "time on the wall"
    text = written(rows, searches, options.threads, clock, None if options.log else os.getloadavg()[0])
    print(text)
    if options.json is not None:
        told = {"rows": [asdict(r) for r in rows], "searches": [asdict(s) for s in searches]}
        options.json.write_text(json.dumps(told, indent=1))
    if options.markdown:
        page = PAGE.read_text()
        head, _, rest = page.partition(MARKS[0])
        PAGE.write_text(f"{head}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")


if __name__ == "__main__":
    main()
