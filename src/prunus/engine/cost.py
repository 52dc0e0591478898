"""What a set of masks costs, as a fraction of the dense model, in any currency of `Budget`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from torch import Tensor, nn

from prunus.core.budget import Currency
from prunus.core.counting import count
from prunus.core.errors import SpecError
from prunus.core.groups import Group
from prunus.core.task import Task


@dataclass(frozen=True)
class Cost:
    """Prices one element of each parameter; what no group touches is a constant.

    A parameter's multiply-accumulates are proportional to its number of elements (every element is used at as many
    positions as every other), so the cost of masks is a sum over parameters of price times elements that survive: no
    new trace.

    Attributes:
        currency: what is counted.
        prices: parameter name -> cost of one element.
        shapes: parameter name -> shape.
        fixed: cost that no parameter accounts for (attention products).
    """

    currency: Currency
    prices: Mapping[str, float]
    shapes: Mapping[str, tuple[int, ...]]
    fixed: float = 0.0
    dense: float = field(init=False)

    def __post_init__(self) -> None:
        total = self.fixed + sum(self.prices.get(n, 0.0) * prod(s) for n, s in self.shapes.items())
        object.__setattr__(self, "dense", total)

    def fraction(self, groups: tuple[Group, ...], masks: Mapping[str, Tensor]) -> float:
        """The masked model's cost over the dense model's. Cost: one count per group."""
        removed: dict[str, dict[int, int]] = {}
        saved = 0.0
        for group in groups:
            if group.name not in masks:
                continue
            gone = group.units - count(masks[group.name])
            if not gone:
                continue
            for m in group.members:
                if m.buffer:
                    continue
                if m.dim is None:
                    saved += self.prices.get(m.param, 0.0) * gone
                else:
                    each = 1 if m.index is None else m.index.shape[1]
                    axes = removed.setdefault(m.param, {})
                    axes[m.dim] = axes.get(m.dim, 0) + gone * each
        for name, axes in removed.items():
            shape = self.shapes[name]
            left = prod(n - axes.get(d, 0) for d, n in enumerate(shape))
            saved += self.prices.get(name, 0.0) * (prod(shape) - left)
        return (self.dense - saved) / self.dense if self.dense else 1.0


def cost_of(model: nn.Module, task: Task, currency: Currency) -> Cost:
    """The cost model for a currency. MACs take one trace of the example."""
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    if currency != "macs":
        return Cost(currency, dict.fromkeys(shapes, 1.0), shapes)
    example = task.example_inputs()
    if example is None:
        raise SpecError("a budget in MACs needs an input to count them with: pass Task(example=...)")
    from prunus.graph import trace

    structure = trace(model, example[1] or example[0], probe=False)
    prices = {n: structure.macs.get(n, 0) / prod(s) for n, s in shapes.items() if prod(s)}
    return Cost(currency, prices, shapes, float(structure.fixed_macs))
