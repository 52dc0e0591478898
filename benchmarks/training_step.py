"""What a masked training step costs over a dense one: ResNet-20, batches of CIFAR size, SGD with momentum.

    python benchmarks/training_step.py [--json] [--rounds 40] [--batch 128] [--threads 1]

Two copies of the network are trained side by side on the same batch, one with a session attached to its optimizer
(global magnitude, 90 % of the weights pruned); their steps take turns, the order changing every round. A step is
zero_grad, forward, loss, backward and optimizer step. The ratio is the median over rounds of the ratio within a
round, of processor time.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from statistics import median, quantiles

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.lab.zoo.resnet import resnet20


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    start = time.process_time()
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=40, help="timed pairs of steps (at least 9)")
    parser.add_argument("--batch", type=int, default=128, help="images in a batch")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    dense = resnet20(num_classes=10).train()
    masked = copy.deepcopy(dense)
    images, labels = torch.randn(given.batch, 3, 32, 32), torch.randint(10, (given.batch,))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4) for m in (dense, masked)]
    session = prunus.Session(masked, "magnitude", prunus.Task(), sparsity=0.9, steps=10**6)
    session.attach(optimizers[1])
    ratios: list[float] = []
    taken: list[tuple[float, float]] = []
    for i in range(max(9, given.rounds) + 2):
        models = (dense, masked)
        pair = [0.0, 0.0]
        for j in (0, 1) if i % 2 else (1, 0):
            pair[j] = step(models[j], optimizers[j], images, labels)
        if i >= 2:  # the first two warm up
            ratios.append(pair[1] / pair[0])
            taken.append((pair[0], pair[1]))
    low, _, high = quantiles(ratios, n=4)
    found = {
        "batch": given.batch,
        "threads": given.threads,
        "rounds": len(ratios),
        "dense_seconds": median(d for d, _ in taken),
        "masked_seconds": median(m for _, m in taken),
        "masked_over_dense": median(ratios),
        "masked_over_dense_quartiles": [low, high],
    }
    if given.json:
        print(json.dumps(found))
        return
    print(f"ResNet-20, batch {given.batch}, {given.threads} thread(s), {len(ratios)} pairs")
    print(f"dense step  {found['dense_seconds'] * 1e3:8.1f} ms")
    print(f"masked step {found['masked_seconds'] * 1e3:8.1f} ms")
    print(f"masked over dense {median(ratios):.3f} (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
