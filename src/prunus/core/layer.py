"""What is rebuilt and recovered after pruning: one linear map at a time, or the model as a whole."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prunus.core.groups import Group
from prunus.core.symmetric import Symmetric
from prunus.core.task import Task

Choose = Callable[[Float[Tensor, "out b"], slice], Bool[Tensor, "out b"]]
"""`(scores, columns) -> keep`: of a block of columns, what stays at the layer's share; higher scores stay."""


if TYPE_CHECKING:
    Gram = Tensor
else:
    Gram = Float[Tensor, "in in"] | Symmetric


class _Wide:
    """A field that is given as it is stored (`given`), and read as a whole matrix in float64."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        if layer is None:
            return self
        given = layer.__dict__[f"{self.name} given"]
        if isinstance(given, Tensor) and given.dtype == torch.float64:
            return given
        if self.name not in layer.__dict__:
            layer.__dict__[self.name] = given.double() if isinstance(given, Tensor) else given.whole()
        return layer.__dict__[self.name]

    def __set__(self, layer: Any, given: Tensor | Symmetric) -> None:
        layer.__dict__[f"{self.name} given"] = given


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear map y = w x + b, with what is known of its inputs. All numbers here are read as float64.

    A convolution is the map of its unfolded patches, `[out, in*kh*kw]`; one with groups comes as several layers.

    Attributes:
        name: the weight's parameter name.
        w: `[out, in]`, the weights before this event zeroes anything; may be given in the type they are stored in.
        bias: `[out]`, or None.
        keep: `[out, in]`, what the masks keep: scattered for single weights, whole columns for units of the layer
            before.
        gram: `[in, in]`, the mean of x x^T over samples and positions, with the layers before this one as they are by
            now (pruned and rebuilt). May be given as a `Symmetric`, which `half` hands on.
        mean: `[in]`, the mean of x.
        count: how many x these are means of.
        unit: `[in]`, which unit of the group that is removed a column belongs to; -1 for none, and for single weights.
        made_by: `[units, k]`, the weights and biases that produce each unit, or None for single weights.
        allowed: `[out, in]`, what may be kept; False where an earlier event pruned. None: everything.
        block: `[in]`, which block of a pattern (N:M) each column belongs to, or None where there is no pattern.
        free: whether a reconstruction may keep other weights or units than `keep`, as many of them in each block, or
            part, as `keep` does. False where other layers read the same units.
        box: `[in]`, which box of its row each column belongs to, where units are such boxes, all equally long, and no
            pattern lies on them; then whole boxes may be chosen anew. None otherwise.
        parts: the units form this many equal consecutive parts, which have to keep equally many each.
        stored: the type that the weights come from and go back to. A reconstruction may compute in float32 where it is
            no finer than that, if it says how far off that can be.
        own: whether `keep` is this layer's alone, so that a reconstruction that chooses may write its choice into it.
    """

    name: str
    w: Float[Tensor, "out in"]
    bias: Float[Tensor, "out"] | None
    keep: Bool[Tensor, "out in"]
    gram: Gram
    mean: Float[Tensor, "in"]
    count: int
    unit: Int[Tensor, "in"]
    made_by: Float[Tensor, "units k"] | None = None
    allowed: Bool[Tensor, "out in"] | None = None
    block: Int[Tensor, "in"] | None = None
    free: bool = True
    box: Int[Tensor, "in"] | None = None
    parts: int = 1
    stored: torch.dtype = torch.float64
    own: bool = False

    @property
    def width(self) -> int:
        """How many inputs."""
        return self.keep.shape[1]

    @property
    def stored_w(self) -> Float[Tensor, "out in"]:
        """The weights in the type in which they were given; not to be written to."""
        found: Tensor = self.__dict__["w given"]
        return found

    @property
    def half(self) -> Symmetric:
        """`gram` as it was given, to be factored in its place by a reconstruction that does so with all layers that
        share it; a copy where it was given whole.
        """
        given = self.__dict__["gram given"]
        return given if isinstance(given, Symmetric) else Symmetric.of(given)

    @property
    def whole_columns(self) -> bool:
        """True where units of the layer before are removed, so that all rows keep the same columns."""
        return bool((self.unit >= 0).any())

    @property
    def columns(self) -> Int[Tensor, "units s"]:
        """The columns of each unit, in order."""
        owned = (self.unit >= 0).nonzero().squeeze(1)
        order = owned[self.unit[owned].argsort(stable=True)]
        return order.reshape(int(self.unit.max()) + 1, -1)

    @property
    def box_columns(self) -> Int[Tensor, "boxes c"]:
        """The columns of each box, in order."""
        assert self.box is not None
        return self.box.argsort(stable=True).reshape(int(self.box.max()) + 1, -1)

    @property
    def span(self) -> int:
        """How many consecutive columns it takes for blocks of a pattern to be whole; 1 without a pattern."""
        if self.block is None:
            return 1
        so_far, to_come = self.block.cummax(0).values, self.block.flip(0).cummin(0).values.flip(0)
        ends = (so_far[:-1] < to_come[1:]).nonzero()
        return int(ends[0]) + 1 if len(ends) else len(self.block)


for _name in ("w", "gram"):
    setattr(Layer, _name, _Wide(_name))


class Update(NamedTuple):
    """New weights of a layer.

    Attributes:
        w: `[out, in]`, zero where `keep` is False.
        keep: `[out, in]`; a reconstruction that selects by itself may differ from the layer's.
        bias: `[out]`; None leaves it as it is. Ignored with a warning where the layer has none.
    """

    w: Float[Tensor, "out in"]
    keep: Bool[Tensor, "out in"]
    bias: Float[Tensor, "out"] | None = None


@dataclass(eq=False)
class Site:
    """Where a recovery works.

    Attributes:
        model: the pruned model, masks applied; changed in place.
        task: the user's task.
        groups: the groups that were ranked.
        masks: parameter name -> bool of its shape: what must stay zero.
        generator: the only source of randomness.
        teacher: the dense model as it was, in evaluation mode, where the recovery asks for one.
        memory: tensors that a recovery's loss carries from step to step; saved with the session. A key is the name of
            the parameter on whose device it lies, and a suffix after `|`.
    """

    model: nn.Module
    task: Task
    groups: tuple[Group, ...]
    masks: Mapping[str, Tensor]
    generator: torch.Generator
    teacher: nn.Module | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
