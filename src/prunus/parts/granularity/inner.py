"""Units inside of layers, and of layers those in the middle."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import nn

from prunus.core.errors import SpecError
from prunus.core.groups import Group
from prunus.core.part import Granularity, Reduce
from prunus.parts.granularity.coupled import Coupled
from prunus.parts.granularity.tried import Tried


@dataclass(frozen=True)
class Inner(Coupled):
    """Heads, neurons and channels: all coupled units but the dimensions of residual streams, which all layers share.

    See `Coupled` for the attributes and for what it needs.
    """

    kinds: ClassVar[tuple[str, ...]] = ("channel", "neuron", "head", "kv group")


@dataclass(frozen=True)
class Middle(Granularity):
    """The units of another granularity, but for those of the first and of the last layers, which stay whole.

    Layers are the entries with parameters of an outermost `ModuleList` or `Sequential` (encoder and decoder count for
    themselves). Shares are rounded to whole layers, so that of 32 layers the defaults leave 4 and 2 alone (LLM-Pruner:
    Ma et al. 2023, arXiv:2305.11627; Shortened LLaMA: Kim et al. 2024, arXiv:2402.02834), and of 2 none. A unit that
    reaches into one of them stays as well.

    Attributes:
        of: the granularity; one that can `exclude`.
        first, last: the shares of the layers that stay whole at both ends.
    """

    of: Granularity = Inner()
    first: float = 0.125
    last: float = 0.0625
    structure: ClassVar[Literal["unstructured", "semi-structured", "structured"]] = "structured"

    def __post_init__(self) -> None:
        if not (isinstance(self.of, Coupled | Tried) and self.of.structure == self.structure):
            raise SpecError(f"Middle(of={self.of!r}): a granularity of structures that can exclude some by name")
        if not (self.first >= 0 and self.last >= 0 and self.first + self.last < 1):
            raise SpecError(f"Middle(first={self.first}, last={self.last}): shares of the layers, less than 1 together")

    @property
    def reduce(self) -> Reduce:  # type: ignore[override]
        """How the scores of a unit's weights become one score: as in the granularity inside."""
        return self.of.reduce

    def __call__(self, model: nn.Module, example: tuple[Any, ...] | Mapping[str, Any] | None) -> tuple[Group, ...]:
        of: Any = self.of
        names = [escaped(n) for n in self.ends(model)]
        return replace(of, exclude=(*of.exclude, *names, *(f"{n}.*" for n in names)))(model, example)  # type: ignore[no-any-return]

    def ends(self, model: nn.Module) -> list[str]:
        """The paths of the layers that stay whole."""
        found = []
        for layers in stacks(model):
            first, last = round(self.first * len(layers)), round(self.last * len(layers))
            found += [*layers[:first], *layers[len(layers) - last :]]
        return found


def stacks(model: nn.Module) -> Iterator[list[str]]:
    """Of every outermost container the paths of its entries with parameters."""
    inside: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and not any(path.startswith(f"{p}.") for p in inside if p):
            entries = [n for n, m in module.named_children() if any(True for _ in m.parameters())]
            if len(entries) > 1 and path:
                inside.append(path)
                yield [f"{path}.{n}" for n in entries]


def escaped(name: str) -> str:
    """A name as a pattern that matches nothing else."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
