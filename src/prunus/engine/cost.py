"""What a set of masks costs, as a fraction of the dense model, in any currency of `Budget`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor, nn

from prunus.core.budget import PHYSICAL, Budget, Currency
from prunus.core.counting import count
from prunus.core.errors import BudgetError, SpecError
from prunus.core.groups import Group
from prunus.core.task import Task
from prunus.engine.latency import Latency


@dataclass(frozen=True)
class Cost:
    """Prices one element of each tensor; what no group touches is a constant.

    A parameter's multiply-accumulates are proportional to its number of elements (every element is used at as many
    positions as every other), and so are its bytes, so the cost of masks is a sum over tensors of price times elements
    that survive: no new trace. Experts of which a token uses a fixed number are the exception: their
    multiply-accumulates stay, whatever is removed.

    Attributes:
        currency: what is counted.
        prices: parameter or buffer name -> cost of one element.
        shapes: parameter or buffer name -> shape; tensors that are not among them cost nothing.
        fixed: cost that no parameter accounts for (attention products). It is charged in full whatever is removed, so
            that a ceiling is kept rather than reached.
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
        whole: dict[str, None] = {}
        saved = 0.0
        for group in groups:
            if group.name not in masks:
                continue
            keep = masks[group.name]
            gone = group.units - count(keep)
            if not gone:
                continue
            # Where tokens choose a fixed number of experts, fewer experts do the same multiply-accumulates.
            steady = getattr(group, "steady", ()) if self.currency == "macs" else ()
            for m in group.members:
                if m.param not in self.shapes or m.param in steady:
                    continue
                if m.unit is not None:
                    if not keep.reshape(-1)[m.unit]:
                        whole[m.param] = None
                elif m.dim is None:
                    each = prod(m.tile) if m.tile is not None else 1
                    saved += self.prices.get(m.param, 0.0) * gone * each
                else:
                    each = 1 if m.index is None else m.index.shape[1]
                    axes = removed.setdefault(m.param, {})
                    axes[m.dim] = axes.get(m.dim, 0) + gone * each
        for name in dict.fromkeys((*removed, *whole)):
            shape, axes = self.shapes[name], removed.get(name, {})
            left = 0 if name in whole else prod(n - axes.get(d, 0) for d, n in enumerate(shape))
            saved += self.prices.get(name, 0.0) * (prod(shape) - left)
        return (self.dense - saved) / self.dense if self.dense else 1.0

    def record(self) -> dict[str, Any]:
        """What a run's history should say beyond the masks: nothing, a count follows from them."""
        return {}


def cost_of(model: nn.Module, task: Task, currency: Currency, groups: tuple[Group, ...] = ()) -> Cost | Latency:
    """The cost model for a currency. MACs take one trace of the example; latency takes nothing before masks are timed.

    groups: where given, a currency that they cannot be paid in is refused here and now.
    Errors: `SpecError` where an example is needed and there is none, `BudgetError` for bytes and latency of single
    weights.
    """
    check_physical(currency, groups)
    if currency == "bytes":
        saved = dict(_saved(model))
        shapes = {n: tuple(t.shape) for n, t in saved.items()}
        return Cost(currency, {n: float(t.element_size()) for n, t in saved.items()}, shapes)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    if currency not in ("macs", "latency"):
        return Cost(currency, dict.fromkeys(shapes, 1.0), shapes)
    call = task.example_inputs()
    if call is None:
        what = "MACs needs an input to count them with" if currency == "macs" else "latency needs an input to time"
        raise SpecError(f"a budget in {what}: pass Task(example=...)")
    if currency == "latency":
        from prunus import default_clock, layer_prices

        example = call[1] or call[0]
        return Latency(
            model, example, task.clock or default_clock(), lambda: layer_prices(model, example, task.clock, groups)
        )
    from prunus.graph import trace

    structure = trace(model, call[1] or call[0], probe=False)
    prices = {n: structure.macs.get(n, 0) / prod(s) for n, s in shapes.items() if prod(s)}
    return Cost(currency, prices, shapes, float(structure.fixed_macs))


def price_of(model: nn.Module, task: Task, budget: Budget, groups: tuple[Group, ...]) -> Cost | Latency | None:
    """What a budget is paid in: None for units, which the allocation counts by itself; else see `cost_of`."""
    return None if budget.currency == "units" else cost_of(model, task, budget.currency, groups)


def check_physical(currency: Currency, groups: tuple[Group, ...]) -> None:
    """Refuse to count zeros as saved bytes or time.

    Errors: `BudgetError` where the units are single weights, which no compaction removes.
    """
    if currency in PHYSICAL and not all(g.movable for g in groups):
        what = "stored like any other number" if currency == "bytes" else "multiplied like any other number"
        raise BudgetError(
            f"a budget in {currency} cannot be met by removing single weights: their zeros are {what}. Use a "
            f"structured recipe (l1_filter, taylor_fo, ...), or budget the weights themselves (Budget(params=...))"
        )


def _saved(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that a file of the model holds, under their first names, shared memory once."""
    seen: set[tuple[Any, ...]] = set()
    passing = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }
    for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, tensor in named:
            key = _place(tensor)
            if name not in passing and key not in seen:
                seen.add(key)
                yield name, tensor


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """A key that tensors share when they are the same numbers in the same place."""
    if tensor.is_meta or tensor.untyped_storage().data_ptr() == 0:
        return (id(tensor),)
    start = tensor.untyped_storage().data_ptr()
    return (tensor.device, start, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
