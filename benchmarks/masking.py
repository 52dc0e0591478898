"""What scoring and masking 25 M weights by global magnitude costs, in passes over the weights.

    python benchmarks/masking.py [--json] [--rounds 9] [--threads 1]

Time: one "pass" is `w.abs()` on every weight tensor, which reads all of them and writes as much. Passes and prunings
take turns in this process, and the ratio is that of the medians of the processor time they take, which a busy machine
disturbs less than the time on the wall. All start from a heap that has been handed back to the system
(`malloc_trim`), as in a program that prunes once, so new memory costs everyone its page faults. What is timed is
`Session.start()`: collecting evidence, scoring, selecting, and zeroing the weights in place; making the session,
which finds the groups and refuses NaN weights, is shown beside it.

Memory: in a process of its own, the peak resident size (`VmHWM`, reset through /proc/self/clear_refs: Linux only)
during both, less the resident size before, over the bytes of the weights.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

import prunus

# The shapes of a ResNet-50: 25.5 M weights in 54 tensors of very different sizes.
STAGES = ((64, 256, 3), (128, 512, 4), (256, 1024, 6), (512, 2048, 3))


def network() -> nn.Module:
    """The convolutions and the classifier of ResNet-50, as a heap of layers: nothing here runs them."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, bias=False)]
    wide = 64
    for narrow, out, blocks in STAGES:
        layers.append(nn.Conv2d(wide, out, 1, bias=False))
        for _ in range(blocks):
            layers += [nn.Conv2d(wide, narrow, 1, bias=False), nn.Conv2d(narrow, narrow, 3, bias=False)]
            layers.append(nn.Conv2d(narrow, out, 1, bias=False))
            wide = out
    layers.append(nn.Linear(2048, 1000, bias=False))
    return nn.ModuleList(layers)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.parameters()]


def session(model: nn.Module) -> prunus.Session:
    return prunus.Session(model, "magnitude", prunus.Task(), sparsity=0.9)


def clock(action: Callable[[], object]) -> float:
    """Processor time, all threads, from a heap without spare pages; what the action returns is freed outside of it."""
    ctypes.CDLL(None).malloc_trim(0)
    start = time.process_time()
    kept = action()
    seconds = time.process_time() - start
    del kept
    return seconds


def resident() -> None:
    """Run in a process of its own: how far pruning lifts the resident size, over the bytes of the weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session(nn.ModuleList([nn.Linear(512, 512)])).start()  # what is imported and allocated once
        model = network()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = status("VmRSS")
        held = session(model)
        held.start()
        print((status("VmHWM") - before) / sum(w.nbytes for w in weights(model)))


def status(field: str) -> int:
    """A size of this process in bytes, as Linux counts it."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=11, help="timed repetitions of each (at least 9)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--resident", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.resident:
        resident()
        return
    model = network()
    draw = torch.Generator().manual_seed(0)
    times: dict[str, list[float]] = {"pass": [], "check": [], "prune": []}
    warnings.simplefilter("ignore")  # weights that are no network's collapse layers
    for i in range(max(9, given.rounds) + 1):
        one = clock(lambda: [w.abs() for w in weights(model)])
        check = clock(lambda: session(model))
        prune = clock(session(model).start)
        if i:  # the first round warms caches and code up
            for name, seconds in (("pass", one), ("check", check), ("prune", prune)):
                times[name].append(seconds)
        for w in weights(model):
            w.normal_(0.0, 0.05, generator=draw)
    middle = {k: median(v) for k, v in times.items()}
    out = subprocess.run([sys.executable, __file__, "--resident"], capture_output=True, text=True, check=True)
    found = {
        "weights": sum(w.numel() for w in weights(model)),
        "threads": given.threads,
        "rounds": len(times["pass"]),
        "seconds": middle,
        "score_and_mask_over_pass": middle["prune"] / middle["pass"],
        "with_checks_over_pass": (middle["prune"] + middle["check"]) / middle["pass"],
        "extra_memory_over_weights": float(out.stdout),
    }
    if given.json:
        print(json.dumps(found))
        return
    print(f"{found['weights'] / 1e6:.1f} M weights, {given.threads} thread(s), medians of {found['rounds']}")
    print(f"one pass, w.abs():            {middle['pass'] * 1e3:8.1f} ms")
    print(
        f"score and mask:               {middle['prune'] * 1e3:8.1f} ms  {found['score_and_mask_over_pass']:.2f} passes"
    )
    print(
        f"refusing NaN (session made):  {middle['check'] * 1e3:8.1f} ms  {middle['check'] / middle['pass']:.2f} passes"
    )
    print(f"extra memory:                 {found['extra_memory_over_weights']:8.2f} x the bytes of the weights")


if __name__ == "__main__":
    main()
