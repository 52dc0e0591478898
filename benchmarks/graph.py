"""What it costs to find the groups of a network and to prune it, beside torch-pruning; and a 7B Llama on meta tensors.

    python benchmarks/graph.py [--json] [--rounds 5] [--limit 120] [--only resnet50 ...]

Speed: one process per network, in which Prunus and torch-pruning (1.6, `pip install torch-pruning`; without it only
Prunus is timed) take turns on copies of the same network, with one sample of its real input size. Both read the
network, form the groups, and remove a random half of every group's units; scoring is left out on both sides. The
columns: `trace` reads and groups, without the trial removal that our `trace` makes by default; `+ prune` includes
compaction and is what the ratio is formed of; `+ trial` is the default, which runs the network three times in float64
to see that the removal is exact. The other tool has nothing like it. Its network is run once afterwards, outside of
the clock, to see whether it still runs. Processor seconds, medians; where the other tool takes over 10 seconds, there
is one round after the first. If it takes longer than --limit seconds, or raises, that is noted, and does not enter the
mean; a limit sets a bound, which is given in place of the ratio.

7B: the same in a process of its own per shape, on the meta device, once: wall-clock and processor seconds, and how far
the peak of the resident size (`VmHWM`, Linux only) rises above the size before.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from vision import define_missing

from prunus.graph import compact, trace

VISION = ("resnet50", "vit_b_16", "convnext_tiny", "swin_t", "densenet121")
LLAMA = {"llama_7b": 32, "llama_7b_gqa": 8}  # with so many key-value heads
OTHER = "torch_pruning"


def vision(name: str) -> tuple[nn.Module, Tensor]:
    """A classification network of torchvision and one image of the size it is made for."""
    import torchvision

    return torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224)


def llama(kv: int, layers: int = 32, width: int = 4096) -> tuple[nn.Module, dict[str, Tensor]]:
    """Llama 2 7B by shape, without memory behind its weights, and 16 words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=width, intermediate_size=11008 * width // 4096, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=kv, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device("meta"):
        # The mask is given ready-made: building it from numbers would read values, and meta tensors have none.
        example = {"input_ids": torch.zeros(1, 16, dtype=torch.long), "attention_mask": torch.zeros(1, 1, 16, 16)}
        return LlamaForCausalLM(config).eval(), example


def build(name: str) -> tuple[nn.Module, Any]:
    return llama(LLAMA[name]) if name in LLAMA else vision(name)


def run(model: nn.Module, example: Any) -> None:
    with torch.no_grad():
        model(**example) if isinstance(example, dict) else model(example)


def half(structure: Any) -> dict[str, Tensor]:
    """Masks that keep a random half of every group."""
    draw, masks = torch.Generator().manual_seed(0), {}
    for group in structure.groups:
        masks[group.name] = torch.zeros(group.units, dtype=torch.bool)
        masks[group.name][torch.randperm(group.units, generator=draw)[: max(group.units // 2, group.at_least)]] = True
    return masks


def ours(model: nn.Module, example: Any, probe: bool = False) -> tuple[nn.Module, float, float]:
    """The smaller copy, and the seconds for the groups and for everything."""
    start = time.process_time()
    structure = trace(model, example, probe=probe)
    traced = time.process_time() - start
    small, _ = compact(model, structure.groups, half(structure), verify=False)
    return small, traced, time.process_time() - start


def theirs(model: nn.Module, example: Any, classes: tuple[int, ...] = (1000, 32000)) -> float:
    """Seconds to do the same with torch-pruning, in place. The layer that makes the output is left as it is."""
    import torch_pruning

    keep = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features in classes]
    more = {"output_transform": lambda out: out.logits} if isinstance(example, dict) else {}
    start = time.process_time()
    pruner = torch_pruning.pruner.BasePruner(
        model, example, importance=torch_pruning.importance.RandomImportance(), pruning_ratio=0.5,
        ignored_layers=keep, **more,
    )  # fmt: skip
    pruner.step()
    return time.process_time() - start


def told(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"


def try_theirs(name: str) -> dict[str, Any]:
    """In a process of its own, since it may not come back."""
    model, example = build(name)
    try:
        seconds = theirs(model, example)
    except Exception as error:  # noqa: BLE001 - whatever stops it is the finding
        return {"state": f"raises {told(error)}"}
    try:
        run(model, example)
    except Exception as error:  # noqa: BLE001
        return {"state": f"no longer runs: {told(error)}", "seconds": seconds}
    return {"state": "runs", "seconds": seconds}


def turns(name: str, rounds: int, both: bool) -> dict[str, Any]:
    """Both tools on one network, in turns."""
    model, example = build(name)
    run(model, example)  # warms up
    times: dict[str, list[float]] = {"trace": [], "prune": [], "trial": [], "theirs": []}
    for i in range(rounds + 1):
        gc.collect()  # the other tool's graph is full of cycles
        _, traced, total = ours(model, example)
        other = theirs(copy.deepcopy(model), example) if both else 0.0
        small, _, trial = ours(model, example, probe=True)
        if i == 0:
            run(small, example)
            continue  # imports, caches
        for key, seconds in (("trace", traced), ("prune", total), ("trial", trial), ("theirs", other)):
            times[key].append(seconds)
    return {key: median(values) for key, values in times.items() if key != "theirs" or both}


def memory(name: str) -> dict[str, Any]:
    """Wall-clock seconds and extra bytes of reading and pruning a network once."""
    run(*llama(LLAMA[name], 2, 512))
    ours(*llama(LLAMA[name], 2, 512))  # what is imported and allocated once
    model, example = build(name)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start, used = status("VmRSS"), time.perf_counter(), time.process_time()
    structure = trace(model, example)
    traced, used, peak = time.perf_counter() - start, time.process_time() - used, status("VmHWM") - before
    small, _ = compact(model, structure.groups, half(structure), verify=False)
    total, peak_total = time.perf_counter() - start, status("VmHWM") - before
    run(small, example)
    kinds: dict[str, int] = {}
    for group in structure.groups:
        kinds[getattr(group, "kind", "unit")] = kinds.get(getattr(group, "kind", "unit"), 0) + group.units
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, small)]
    return {
        "trace_seconds": traced, "trace_processor_seconds": used, "total_seconds": total,
        "trace_bytes": peak, "total_bytes": peak_total,
        "units": kinds, "params": sizes[0], "params_after": sizes[1],
    }  # fmt: skip


def status(field: str) -> int:
    """A size of this process in bytes, as Linux counts it."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def apart(job: str, name: str, given: argparse.Namespace, limit: float | None = None) -> dict[str, Any]:
    """Run one job in a fresh process; `limit` is in seconds of its processor time."""
    command = [sys.executable, __file__, "--job", job, "--only", name, "--rounds", str(given.rounds)]
    command += ["--threads", str(given.threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while limit is not None and process.poll() is None:
            time.sleep(0.5)
            if (used := processor(process.pid)) > limit:
                process.kill()
                return {"state": f"not finished after {used:.0f} s", "limit": used}
        out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{err}")
    return json.loads(out.splitlines()[-1])  # type: ignore[no-any-return]


def processor(pid: int) -> float:
    """Processor seconds that a process has used (Linux)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(name: str, given: argparse.Namespace, installed: bool) -> dict[str, Any]:
    """Everything about one network."""
    other = apart("theirs", name, given, given.limit) if installed else {"state": "not installed"}
    if other.get("seconds", 0) > 10:
        given = argparse.Namespace(**{**vars(given), "rounds": 1})
    found = apart("turns" if "seconds" in other else "alone", name, given)
    found["state"] = other["state"]
    if "theirs" in found:
        found["ratio"] = found["prune"] / found["theirs"]
    elif "limit" in other:
        found["ratio_below"] = found["prune"] / other["limit"]
    return found


def report(found: dict[str, Any]) -> None:
    print(f"processor seconds, one sample, half of all units removed; torch-pruning {found['other']}")
    print(f"{'':14s}{'trace':>9s}{'+ prune':>9s}{'+ trial':>9s}{'theirs':>9s}{'ratio':>9s}  theirs afterwards")
    for name, row in found["networks"].items():
        other = f"{row['theirs']:9.2f}" if "theirs" in row else f"{'-':>9s}"
        ratio = (
            f"{row['ratio']:8.2f}" if "ratio" in row else f"<{row['ratio_below']:7.3f}" if "ratio_below" in row else ""
        )
        numbers = f"{row['trace']:9.2f}{row['prune']:9.2f}{row['trial']:9.2f}"
        print(f"{name:14s}{numbers}{other}{ratio:>9s}  {row['state']}")
    for key, meaning in (("mean", "where both finish"), ("mean_with_bounds", "with the bounds where it does not")):
        if found[key] is not None:
            print(f"geometric mean of the ratios, {meaning}: {found[key]:.2f}")
    for name, row in found["meta"].items():
        after = row["params_after"] / row["params"]
        print(
            f"{name} ({row['params'] / 1e9:.2f} B) on meta: trace {row['trace_seconds']:.1f} s "
            f"({row['trace_processor_seconds']:.1f} s of processor), with pruning "
            f"{row['total_seconds']:.1f} s; extra memory {row['trace_bytes'] / 1e9:.2f} GB, "
            f"{row['total_bytes'] / 1e9:.2f} GB; {row['units']} units, {after:.0%} of the parameters are left"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=5, help="timed repetitions of each")
    parser.add_argument("--limit", type=float, default=120, help="processor seconds given to the other tool")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--only", nargs="*", default=[*VISION, "llama_7b", "llama_7b_gqa"], help="networks")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.job:
        warnings.simplefilter("ignore")
        define_missing()  # transformers imports torchvision too
        jobs: dict[str, Callable[[str], dict[str, Any]]] = {
            "theirs": try_theirs,
            "memory": memory,
            "turns": lambda name: turns(name, given.rounds, True),
            "alone": lambda name: turns(name, given.rounds, False),
        }
        print(json.dumps(jobs[given.job](given.only[0])))
        return
    installed = importlib.util.find_spec(OTHER) is not None
    networks: dict[str, Any] = {}
    for name in given.only:
        if name != "llama_7b_gqa":
            print(f"{name} ...", file=sys.stderr, flush=True)
            networks[name] = compare(name, given, installed)
    exact = [row["ratio"] for row in networks.values() if "ratio" in row]
    bounds = exact + [row["ratio_below"] for row in networks.values() if "ratio_below" in row]
    found = {
        "rounds": given.rounds,
        "threads": given.threads,
        "limit_seconds": given.limit,
        "other": importlib.metadata.version("torch-pruning") if installed else "is not installed",
        "networks": networks,
        "mean": exp(sum(map(log, exact)) / len(exact)) if exact else None,
        "mean_with_bounds": exp(sum(map(log, bounds)) / len(bounds)) if len(bounds) > len(exact) else None,
        "meta": {name: apart("memory", name, given) for name in given.only if name in LLAMA},
    }
    print(json.dumps(found)) if given.json else report(found)


if __name__ == "__main__":
    main()
