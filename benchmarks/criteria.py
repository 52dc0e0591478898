"""What scoring ResNet-50 costs with each criterion, in forward-and-backward passes.

    python benchmarks/criteria.py [--json] [--markdown] [--batch 4] [--limit 240] [--only Magnitude ...] [--again]

One process per criterion, so that one's memory is not another's. In it, one forward and backward of the loss over all
weights (the pass) and one scoring (evidence, criterion, reduction to units; finding the groups and tracing are left
out) take turns on one synthetic batch of 224-pixel images; processor seconds, medians, and the ratio of the two. A
criterion takes single weights where it is defined on them and channels or blocks where not. Memory is how far the peak
of the resident size (`VmHWM`, Linux only) rises above the size before, in multiples of the weights' bytes, beside that
of the pass. What takes longer than --limit processor seconds, or says that it is undefined on this network, is noted as
that. Criteria that wrap another one or read what training leaves behind are run with what they take by default.

--markdown keeps the results in docs/criteria-cost.json and writes docs/criteria-cost.md from them; criteria that have
a result there are left alone unless --again.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from vision import define_missing

from graph import vision
from prunus import Task, parts
from prunus.core.errors import PrunusError
from prunus.core.part import Criterion, Part
from prunus.engine.score import make_sources, rate, seeded
from prunus.parts.granularity import Block, Channel, Element

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "criteria-cost.md"
RESULTS = PAGE.with_suffix(".json")
GRANULARITIES = {"weights": Element, "channels": Channel, "blocks": Block}


def criteria() -> list[str]:
    """Every criterion of Prunus that can be made without being told anything."""
    parts.load_all()
    found = []
    for name, kind in sorted(Part.known("criterion").items()):
        try:
            kind()
        except TypeError:
            continue
        if kind.__module__.startswith("prunus."):
            found.append(name)
    return found


def status(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def peak_of(work: Any) -> tuple[float, float]:
    """Processor seconds of one call, and the bytes by which it raised the resident size at most."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, start = status("VmRSS"), time.process_time()
    work()
    return time.process_time() - start, float(max(0, status("VmHWM") - before))


def measure(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """One criterion against the pass, in this process."""
    define_missing()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, _ = vision("resnet50")
    x, y = torch.randn(batch, 3, 224, 224), torch.randint(0, 1000, (batch,))
    task = Task(loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]), calib=[(x, y)], example=(x[:1],))
    weights = [p for p in model.parameters() if p.ndim > 1]
    criterion: Criterion = Part.known("criterion")[name]()  # type: ignore[assignment]

    def one_pass() -> None:
        torch.autograd.grad(task.loss_of(model, (x, y)), weights)

    reason = ""
    for units, granularity in GRANULARITIES.items():
        try:
            found = granularity()
            groups = found(model, (x[:1],))

            def scoring(groups: Any = groups, reduce: Any = found.reduce) -> None:
                rate(criterion, make_sources(model, task, groups, seeded(0), criterion), reduce)

            one_pass()
            taken = [peak_of(one_pass)]
            scored = [peak_of(scoring)]
        except PrunusError as error:
            reason = str(error)
            continue
        while len(scored) < rounds and sum(t for t, _ in scored) < 20:
            taken.append(peak_of(one_pass))
            scored.append(peak_of(scoring))
        size = sum(p.nbytes for p in model.parameters())
        return {
            "criterion": name,
            "units": units,
            "seconds": median(t for t, _ in scored),
            "pass": median(t for t, _ in taken),
            "ratio": median(t for t, _ in scored) / median(t for t, _ in taken),
            "memory": max(m for _, m in scored) / size,
            "pass_memory": max(m for _, m in taken) / size,
        }
    return {"criterion": name, "note": reason.splitlines()[0][:160] or "undefined on this network"}


def alone(name: str, options: Any) -> dict[str, Any]:
    """The same in a process of its own, with a limit."""
    command = [sys.executable, __file__, "--one", name, "--batch", str(options.batch), "--rounds", str(options.rounds)]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (options.limit, options.limit + 5))

    run = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited, check=False)
    if run.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"criterion": name, "note": f"not finished in {options.limit} s"}
    if run.returncode:
        return {"criterion": name, "note": f"failed: {(run.stderr.strip().splitlines() or ['?'])[-1][:160]}"}
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def told(row: dict[str, Any]) -> tuple[str, ...]:
    """A row as text."""
    if "note" in row:
        return row["criterion"], "", "", "", row["note"]
    memory = f"{row['memory']:.1f} ({row['pass_memory']:.1f})"
    return row["criterion"], row["units"], f"{row['ratio']:.2f}", memory, f"{row['seconds']:.2f} s"


def page(rows: list[dict[str, Any]], batch: int) -> str:
    """docs/criteria-cost.md."""
    from prunus.report.markdown import table

    done = sorted((r for r in rows if "note" not in r), key=lambda r: r["ratio"])
    cells = [told(r) for r in (*done, *(r for r in rows if "note" in r))]
    missing = sorted(set(criteria()) - {r["criterion"] for r in rows})
    rest = f"\nNot measured yet: {', '.join(missing)}.\n" if missing else ""
    return (
        "# What each criterion costs\n\n"
        "<!-- Written by `python benchmarks/criteria.py --markdown`; run that instead of editing. -->\n\n"
        f"Scoring torchvision's ResNet-50 (25.6 M parameters) with one batch of {batch} synthetic 224-pixel images on\n"
        f"one core, torch {torch.__version__}. *Passes*: processor time over that of one forward and backward over\n"
        "all weights on the same batch. *Memory*: how far the peak of the resident size rises, in multiples of the\n"
        "bytes of the weights; in brackets, that of the pass. Finding the groups is left out.\n\n"
        + table(("Criterion", "Units", "Passes", "Memory", "Seconds, or why not"), cells, right=(2, 3))
        + rest
    )


def main() -> None:
    """Run the criteria and print a line each."""
    parser = argparse.ArgumentParser(description="What scoring ResNet-50 costs with each criterion.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=240)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.one is not None:
        parts.load_all()
        print(json.dumps(measure(options.one, options.batch, options.rounds)))
        return
    stored = json.loads(RESULTS.read_text()) if options.markdown and RESULTS.exists() else {}
    known: dict[str, Any] = stored.get("rows", {}) if stored.get("batch") == options.batch else {}
    rows = {name: known[name] for name in criteria() if name in known}
    for name in options.only or criteria():
        if "ratio" in rows.get(name, {}) and not options.again:
            continue
        rows[name] = alone(name, options)
        if not options.json:
            print(
                "  ".join(f"{cell:>{width}}" for cell, width in zip(told(rows[name]), (28, 9, 8, 14, 0), strict=True))
            )
            sys.stdout.flush()
        if options.markdown:
            RESULTS.write_text(json.dumps({"batch": options.batch, "rows": rows}, indent=1) + "\n")
            PAGE.write_text(page(list(rows.values()), options.batch), encoding="utf-8")
    if options.json:
        print(json.dumps(list(rows.values()), indent=1))


if __name__ == "__main__":
    main()
