"""In which order to prune and to quantize to int8: accuracy of a small trained network, both ways.

    python benchmarks/pruning_and_int8.py [--seeds 3] [--epochs 15] [--markdown] [--json]

`vgg_tiny` and `mlp` are trained on the digits of scikit-learn, pruned without fine-tuning, and run with int8 arithmetic
as runtimes have it: weights symmetric, one scale per output channel; activations one scale and zero point per layer,
from the least and the largest value of 256 training images; everything else in float32. Three orders:

- prune, then quantize: scales and ranges are those of the pruned network.
- quantize, then prune: scales and ranges are those of the dense network; what is smallest in int8 is made zero, ties
  by place.
- prune by int8, then quantize: what is smallest in int8 goes, scales and ranges are those of the pruned network.

Unstructured: magnitudes over all layers. Channels: l1 norms, the same share of every layer, made zero. Medians over
seeds of the initial weights, of the difference in test accuracy to the first order. --markdown writes the table into
docs/deployment.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus import Task
from prunus.lab import data, zoo

PAGE = Path(__file__).resolve().parents[1] / "docs" / "deployment.md"
MARKS = ("<!-- int8: begin -->", "<!-- int8: end -->")
NETWORKS = ("vgg_tiny", "mlp")
CASES = (("magnitude", 0.5), ("magnitude", 0.8), ("magnitude", 0.9), ("l1_filter", 0.25), ("l1_filter", 0.5))
ORDERS = ("prune, then quantize", "quantize, then prune", "prune by int8, then quantize")


def trained(name: str, seed: int, epochs: int, set_: Any) -> nn.Module:
    """The network after some epochs of Adam."""
    torch.manual_seed(seed)
    model = zoo.build(name, in_channels=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x, y = set_.train.inputs(set_.train.x), set_.train.y
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def scales(model: nn.Module) -> list[Tensor]:
    """One per output channel of every layer; of an empty one, 1."""
    found = []
    for m in layers(model):
        most = m.weight.detach().abs().amax(tuple(range(1, m.weight.dim())), keepdim=True)
        found.append(torch.where(most > 0, most / 127, torch.ones_like(most)))
    return found


def rounded_(model: nn.Module, by: list[Tensor]) -> None:
    """Weights as int8 holds them."""
    with torch.no_grad():
        for m, scale in zip(layers(model), by, strict=True):
            m.weight.copy_((m.weight / scale).round().clamp(-127, 127) * scale)


@contextmanager
def watched(model: nn.Module, look: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """`look` sees, and may replace, what every layer is given."""

    def hook(i: int) -> Callable[[nn.Module, tuple[Tensor, ...]], Any]:
        return lambda _m, args: None if (new := look(i, args[0])) is None else (new,)

    handles = [m.register_forward_pre_hook(hook(i)) for i, m in enumerate(layers(model))]
    try:
        yield
    finally:
        for h in handles:
            h.remove()


@torch.no_grad()
def ranges(model: nn.Module, x: Tensor) -> dict[int, tuple[float, float]]:
    found: dict[int, tuple[float, float]] = {}

    def look(i: int, given: Tensor) -> None:
        found[i] = (min(0.0, float(given.min())), max(0.0, float(given.max())))

    with watched(model, look):
        model(x)
    return found


@torch.no_grad()
def accuracy(model: nn.Module, set_: Any, seen: dict[int, tuple[float, float]] | None = None) -> float:
    """On the test images; with ranges, activations are rounded to 256 steps in them."""

    def look(i: int, given: Tensor) -> Tensor | None:
        if seen is None:
            return None
        low, high = seen[i]
        step = (high - low) / 255 or 1.0
        zero = round(-low / step)
        return ((given / step).round() + zero).clamp(0, 255).sub(zero) * step

    with watched(model, look):
        out = model(set_.test.inputs(set_.test.x))
    return float((out.argmax(1) == set_.test.y).double().mean())


def pruned(model: nn.Module, example: Tensor, method: str, share: float) -> nn.Module:
    """Zeros in place."""
    return prunus.prune(model, Task(example=(example,)), method, sparsity=share).model.eval()


def copied(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model)


def measured(name: str, seed: int, epochs: int) -> list[dict[str, Any]]:
    """A row per case, accuracies by order."""
    set_ = data.load("digits")
    dense = trained(name, seed, epochs, set_)
    calib = set_.train.inputs(set_.train.x[:256])
    example = calib[:1]
    by, seen = scales(dense), ranges(dense, calib)
    whole = copied(dense)
    rounded_(whole, by)
    rows = []
    for method, share in CASES:
        first = pruned(copied(dense), example, method, share)
        float_ = accuracy(first, set_)
        seen_first = ranges(first, calib)
        rounded_(first, scales(first))
        second = pruned(copied(whole), example, method, share)
        mask = [m.weight.detach() != 0 for m in layers(second)]
        third = copied(dense)
        with torch.no_grad():
            for m, other, keep in zip(layers(third), layers(second), mask, strict=True):
                m.weight.mul_(keep)
                if m.bias is not None:
                    m.bias.copy_(other.bias)
            for one, other in zip(third.modules(), second.modules(), strict=True):
                if isinstance(one, nn.BatchNorm2d):
                    one.load_state_dict(other.state_dict())
        seen_third = ranges(third, calib)
        rounded_(third, scales(third))
        found = (accuracy(first, set_, seen_first), accuracy(second, set_, seen), accuracy(third, set_, seen_third))
        rows.append(
            {
                "network": name,
                "seed": seed,
                "method": method,
                "removed": share,
                "dense": accuracy(dense, set_),
                "int8": accuracy(whole, set_, seen),
                "float": float_,
                **dict(zip(ORDERS, found, strict=True)),
            }
        )
    return rows


def written(rows: list[dict[str, Any]]) -> str:
    """The table."""
    seeds = len({r["seed"] for r in rows})
    lines = [
        f"Test accuracy on digits, medians over {seeds} seeds, no fine-tuning; in brackets the median difference to",
        "the first order, seed by seed, in points (`python benchmarks/pruning_and_int8.py --seeds 5 --markdown`):",
        "",
        "| Network | removed | dense | dense int8 | pruned, float32 | " + " | ".join(ORDERS) + " |",
        "| :--- | :--- |" + " ---: |" * (3 + len(ORDERS)),
    ]
    for name in NETWORKS:
        for method, share in CASES:
            own = [r for r in rows if (r["network"], r["method"], r["removed"]) == (name, method, share)]
            if not own:
                continue

            def middle(key: str, own: list[dict[str, Any]] = own) -> str:
                return f"{statistics.median(r[key] for r in own):.1%}"

            cells = [middle(ORDERS[0])]
            for order in ORDERS[1:]:
                gap = 100 * statistics.median(r[order] - r[ORDERS[0]] for r in own)
                cells.append(f"{middle(order)} ({gap:+.1f})")
            what = f"{share:.0%} of the {'weights' if method == 'magnitude' else 'channels'}"
            lines.append(
                f"| {name} | {what} | {middle('dense')} | {middle('int8')} | {middle('float')} | "
                + " | ".join(cells)
                + " |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = [r for name in NETWORKS for seed in range(asked.seeds) for r in measured(name, seed, asked.epochs)]
    text = written(rows)
    print(json.dumps(rows, indent=1) if asked.json else text)
    if asked.markdown:
        page = PAGE.read_text()
        head, _, rest = page.partition(MARKS[0])
        PAGE.write_text(f"{head}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")


if __name__ == "__main__":
    main()
