"""Judge the list of networks, one process each, and write down what came out.

    python -m tests.graph.sweep                     those that are not in the results yet
    python -m tests.graph.sweep --again             all of them
    python -m tests.graph.sweep --family timm --only 'swin*' --again
    python -m tests.graph.sweep --failed            those that did not come out equal
    python -m tests.graph.sweep --markdown          write docs/networks.md from the results, run nothing
    python -m tests.graph.sweep --onnx              another kind of sweep, with results of its own (see `--help`)

Every process has a limit of CPU time and of memory, so that one network can neither stop the others nor the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from tests.graph.networks import depth_sweep, exported_sweep, onnx_sweep, page, statistics_sweep
from tests.graph.networks.catalog import FAMILIES, NETWORKS
from tests.graph.networks.entry import Network
from tests.graph.networks.judge import OUTCOMES, Verdict, judge, line
from tests.graph.networks.kind import Kind, Outcome

RESULTS = Path(__file__).parent / "networks" / "results.json"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "networks.md"
PLAIN = Kind("prune and compare", judge, Verdict, RESULTS, list, page.sections, OUTCOMES)
KINDS: dict[str, Kind] = {
    "depth": depth_sweep.KIND,
    "statistics": statistics_sweep.KIND,
    "exported": exported_sweep.KIND,
    "onnx": onnx_sweep.KIND,
}
"""The other kinds, by the name of their option."""


def load(path: Path = RESULTS, kind: Kind = PLAIN) -> dict[str, Any]:
    """The results so far; none where the file does not exist."""
    if not path.exists():
        return {}
    return {name: kind.verdict.read(plain) for name, plain in json.loads(path.read_text(encoding="utf-8")).items()}


def store(results: dict[str, Any], path: Path = RESULTS) -> None:
    """All results, in the order of the list, replaced at once. What is no longer listed is dropped."""
    rows = {network.name: results[network.name].plain() for network in NETWORKS if network.name in results}
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(row, sort_keys=True)}" for name, row in rows.items())
    partial = path.with_suffix(".partial")
    partial.write_text("{\n" + text + "\n}\n", encoding="utf-8")
    partial.replace(path)


def child(network: Network, seconds: int, gigabytes: float, pipe: Connection, kind: Kind = PLAIN) -> None:
    """Judge one network in this process, under its limits, and send the verdict."""
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        try:
            verdict = kind.judge(network)
        except Exception as error:  # noqa: BLE001 - whatever a network raises is the result
            verdict = kind.verdict("crash", line(error))
    if any(sign in verdict.reason for sign in ("can't allocate memory", "MemoryError")):
        verdict.outcome = "too large"
    pipe.send(verdict.plain())
    pipe.close()


def sweep(
    chosen: Sequence[Network], jobs: int, seconds: int, gigabytes: float, kind: Kind = PLAIN
) -> Iterator[tuple[Network, Any]]:
    """Judge networks side by side, each in a fork of this process, in which everything is imported already."""
    context = multiprocessing.get_context("fork")
    waiting, running = list(chosen), dict[Connection, tuple[Network, Any, float]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            network = waiting.pop(0)
            mine, theirs = context.Pipe(duplex=False)
            limit = network.seconds or seconds
            process = context.Process(target=child, args=(network, limit, gigabytes, theirs, kind))
            process.start()
            theirs.close()
            running[mine] = network, process, time.monotonic() + 5 * limit
        for pipe in wait(list(running), timeout=1.0):
            assert isinstance(pipe, Connection)
            network, process, _ = running.pop(pipe)
            try:
                verdict: Outcome = kind.verdict.read(pipe.recv())
            except EOFError:
                verdict = lost(process, network.seconds or seconds, kind)
            process.join()
            yield network, verdict
        for pipe, (network, process, until) in list(running.items()):
            if time.monotonic() > until:
                process.kill()
                process.join()
                del running[pipe]
                yield network, kind.verdict("timeout", f"no end after {5 * (network.seconds or seconds)} s")


def lost(process: Any, seconds: int, kind: Kind = PLAIN) -> Outcome:
    """A process that ended without a verdict: out of time, killed for memory, or crashed below Python."""
    process.join()
    if process.exitcode in (-24, -9):  # SIGXCPU, and SIGKILL five seconds later
        return kind.verdict("timeout", f"more than {seconds} s of CPU time")
    return kind.verdict("crash", f"the process ended with {process.exitcode}")


def prepare(chosen: Sequence[Network], kind: Kind = PLAIN) -> None:
    """Import once, before the forks, what every process would import."""
    os.environ["PRUNUS_TEST_TYPECHECK"] = "0"  # shapes are checked by the other tests; here it would only cost time
    importlib.import_module("tests.conftest")  # no downloads, and torchvision importable beside a CPU build
    importlib.import_module("torch._dynamo")  # by an optimizer's first step
    for module in kind.imports:
        importlib.import_module(module)
    for source in dict.fromkeys(network.name.partition("/")[0] for network in chosen):
        if source != "other":
            importlib.import_module(source)


def selected(arguments: argparse.Namespace, results: dict[str, Any], kind: Kind = PLAIN) -> list[Network]:
    """The networks that the options name."""
    chosen = []
    for network in kind.asked(NETWORKS):
        short = network.name.partition("/")[2]
        if arguments.family and network.family not in arguments.family:
            continue
        if arguments.only and not any(fnmatch(network.name, p) or fnmatch(short, p) for p in arguments.only):
            continue
        done = results.get(network.name)
        if done is None or arguments.again or (arguments.failed and done.outcome != "equal"):
            chosen.append(network)
    return chosen


def totals(results: dict[str, Any], kind: Kind = PLAIN) -> Iterator[str]:
    """A plain table: outcomes by family."""
    asked = kind.asked(NETWORKS)
    names = (*kind.outcomes, "to do")
    yield f"{'family':<14}" + "".join(f"{outcome:>13}" for outcome in names)
    for family in (*FAMILIES, "all"):
        own = [n.name for n in asked if family in (n.family, "all")]
        count = Counter(results[name].outcome if name in results else "to do" for name in own)
        yield f"{family:<14}" + "".join(f"{count[outcome]:>13}" for outcome in names)


def row(name: str, verdict: Any) -> str:
    """One network in one line."""
    kinds = ", ".join(f"{n} {kind}" for kind, n in getattr(verdict, "kinds", {}).items())
    what = f"-{verdict.removed:5.1%} {kinds}" if verdict.outcome == "equal" else verdict.reason[:160]
    return f"{name:<52} {verdict.outcome:<12} {verdict.seconds:6.1f} s  {what}"


def markdown() -> str:
    """The page docs/networks.md from the results of all kinds."""
    others = [kind.section(NETWORKS, load(kind.results, kind)) for kind in KINDS.values()]
    return page.markdown(NETWORKS, load(), others)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 1 if a network of the selection came out wrong or crashed."""
    parser = argparse.ArgumentParser(prog="python -m tests.graph.sweep", description=__doc__.partition("\n")[0])
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this part of the list (repeatable)")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="only names that match (repeatable)")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--failed", action="store_true", help="also those whose result is not 'equal'")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    parser.add_argument("--seconds", type=int, default=120, help="CPU seconds per network (default: 120)")
    parser.add_argument("--gigabytes", type=float, default=14.0, help="address space per network (default: 14)")
    parser.add_argument("--results", type=Path, help="the file of results (default: that of the kind)")
    which = parser.add_mutually_exclusive_group()
    for name, kind in KINDS.items():
        which.add_argument(f"--{name}", dest="kind", action="store_const", const=name, help=kind.help)
    parser.add_argument("--markdown", action="store_true", help=f"write {PAGE.name} from the results and run nothing")
    arguments = parser.parse_args(argv)
    if arguments.markdown:
        PAGE.write_text(markdown(), encoding="utf-8")
        print(f"wrote {PAGE}")
        return 0
    kind = KINDS.get(arguments.kind, PLAIN)
    path = arguments.results or kind.results
    results = load(path, kind)
    chosen = selected(arguments, results, kind)
    prepare(chosen, kind)
    bad = 0
    for network, verdict in sweep(chosen, arguments.jobs, arguments.seconds, arguments.gigabytes, kind):
        results = {**load(path, kind), network.name: verdict}  # another sweep may have written meanwhile
        store(results, path)
        bad += verdict.outcome in kind.bad
        print(row(network.name, verdict), flush=True)
    print(*totals(results, kind), sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
