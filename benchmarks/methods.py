"""Every method on one small problem: what a method costs and what its networks are worth, before and after training.

    python benchmarks/methods.py [--again] [--jobs 2] [--seeds 2] [--only snip magnitude ...]

The first 8,000 training images of Fashion-MNIST (where it lies; nothing is downloaded) and the first 4,000 test images.
A method whose units are heads or neurons of transformers runs on a ViT, one whose units are blocks on a ResNet-20, all
others on a ResNet-8. Methods that expect trained weights get the dense network of their seed (300 steps) and 75 steps
of fine-tuning; methods that expect initial ones train for 300 steps, as long as the dense network; several rounds share
these steps. Batch 64, SGD with momentum 0.9 and weight decay 5e-4, cosine from 0.05 (fine-tuning: 0.01), no
augmentation, one thread. What is removed: 80 % of single weights, half of everything else; patterns bring their own.
`pruned` is the accuracy right after pruning, without any training in between, of methods on trained weights; `trained`
is that after all steps; `random` methods of the same budget are among the rows. Test accuracy chose nothing here.

Results go to src/prunus/methods/measured.json, which `prunus methods show NAME` prints; a method that is there already
is left alone unless --again. One small problem ranks no methods: it shows that they run, what they cost, and whether
they beat random removal by far or not at all. Searches are cut short (`OPTIONS`), and their rows say so.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus import Budget, Recipe, Task, methods, prune
from prunus.core.errors import PrunusError
from prunus.lab import data, zoo
from prunus.parts.granularity import Block, Head, Joint

FILE = Path(__file__).resolve().parents[1] / "src" / "prunus" / "methods" / "measured.json"
STEPS, TUNING, BATCH = 300, 75, 64
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNet-8": ("resnet8", {"width": 1.0, "stem_stride": 2}),
    "ResNet-20": ("resnet20", {"width": 0.5, "stem_stride": 2}),
    "ViT": ("vit_tiny_cifar", {"dim": 48, "depth": 3, "heads": 4, "size": 28, "patch": 7, "fused": False}),
}
FOR_TRANSFORMERS = ("bert", "kwon", "head")
# Searches that are cut short here, and said to be.
OPTIONS: dict[str, dict[str, Any]] = {
    "eagle_eye": {"candidates": 20},
    "random_channel_pruning": {"candidates": 20},
    "legr": {"population": 8, "sample": 4, "generations": 16},
}


@cache
def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images and their classes."""
    found = data.load("fashion-mnist")
    train = found.train.head(8000)
    return train.inputs(train.x), train.y, found.test.inputs(found.test.x[:4000]), found.test.y[:4000]


def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Ten epochs of training batches in an order that the seed decides."""
    x, y, _, _ = images()
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(5)])
    return [(x[part], y[part]) for part in order.split(BATCH)]


def accuracy(model: nn.Module) -> float:
    """Share of the test images that are classified right."""
    _, _, x, y = images()
    was = model.training
    model.eval()
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    model.train(was)
    return right / len(y)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])


def cosine(progress: float) -> float:
    """The learning-rate factor."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def network(name: str, seed: int) -> nn.Module:
    """Initial weights."""
    build, options = NETWORKS[name]
    torch.manual_seed(seed)
    return zoo.build(build, in_channels=1, **options)


def optimizer(rate: float) -> Any:
    """What makes the optimizer of a run."""
    return lambda parameters: torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=5e-4)


@cache
def dense(name: str, seed: int) -> tuple[nn.Module, float]:
    """The dense network of a seed, trained, and its accuracy."""
    model = network(name, seed).train()
    found, step = batches(seed), optimizer(0.05)(model.parameters())
    for i in range(STEPS):
        for group in step.param_groups:
            group["lr"] = 0.05 * cosine(i / STEPS)
        step.zero_grad(set_to_none=True)
        loss(model, found[i]).backward()
        step.step()
    return model.eval(), accuracy(model)


def place(name: str) -> str:
    """The network that a method is run on."""
    method = methods.find(name)
    units = getattr(method, "granularity", None)
    if isinstance(units, Head | Joint) or any(word in name for word in FOR_TRANSFORMERS):
        return "ViT"
    return "ResNet-20" if isinstance(units, Block) or "block" in getattr(units, "noun", "") else "ResNet-8"


def budget(name: str) -> Budget | None:
    """How much is kept; None where the method's pattern says it."""
    method = methods.find(name)
    if isinstance(method, Recipe) and getattr(method.allocate, "density", None) is not None:
        return None
    return Budget(density=0.2 if method.structure == "unstructured" else 0.5)


def run(name: str, seed: int) -> dict[str, Any]:
    """One method with one seed."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    method, where = methods.find(name), place(name)
    trained = method.on == "pretrained"
    whole, best = dense(where, seed)
    model = copy.deepcopy(whole) if trained else network(where, seed)
    found = batches(seed + 1000)
    task = Task(loss=loss, train=found, calib=found[:2], example=(found[0][0][:2],))
    told: dict[str, Any] = {"budget": budget(name), "seed": seed, **OPTIONS.get(name, {})}
    row: dict[str, Any] = {"seed": seed, "dense": best}
    start = time.process_time()
    if trained:
        pruned = prune(model, task, name, **told).model
        row["seconds"] = time.process_time() - start
        row["pruned"] = accuracy(pruned)
    steps, rate = (TUNING, 0.01) if trained else (STEPS, 0.05)
    start = time.process_time()
    result = prune(model, task, name, steps=steps, optimizer=optimizer(rate), rate=cosine, **told)
    row["whole"] = time.process_time() - start
    row["trained"] = accuracy(result.model)
    row["sparsity"], row["weights"] = result.sparsity, result.weight_sparsity
    return row


def job(name: str, seeds: int) -> dict[str, Any]:
    """A method's line of the results."""
    try:
        rows = [run(name, seed) for seed in range(seeds)]
    except PrunusError as error:
        return {"method": name, "network": place(name), "note": str(error).splitlines()[0][:300]}
    line: dict[str, Any] = {"method": name, "network": place(name), "seeds": seeds}
    if name in OPTIONS:
        line["options"] = ", ".join(f"{k}={v}" for k, v in OPTIONS[name].items())
    for key in ("dense", "pruned", "trained", "sparsity", "weights", "seconds", "whole"):
        values = [r[key] for r in rows if key in r]
        if values:
            line[key] = round(mean(values), 4)
    line["spread"] = round(stdev(r["trained"] for r in rows), 4) if seeds > 1 else 0.0
    return line


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description="Every method on one small problem.")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=None)
    options = parser.parse_args()
    known = [*methods.names(), *methods.procedures()]
    before = json.loads(FILE.read_text(encoding="utf-8"))["rows"] if FILE.is_file() else []
    lines = {line["method"]: line for line in before if line["method"] in known}
    due = [n for n in (options.only or known) if options.again or options.only or n not in lines]
    with ProcessPoolExecutor(options.jobs) as pool:
        for done in as_completed([pool.submit(job, name, options.seeds) for name in due]):
            line = done.result()
            lines[line["method"]] = line
            print(json.dumps(line), flush=True)
            made = {
                "command": "python benchmarks/methods.py",
                "data": "Fashion-MNIST, 8,000 training and 4,000 test images",
                "torch": torch.__version__,
            }
            rows = "[\n" + ",\n".join(json.dumps(lines[n]) for n in sorted(lines)) + "\n]"
            FILE.write_text(f'{{"made": {json.dumps(made)},\n"rows": {rows}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
