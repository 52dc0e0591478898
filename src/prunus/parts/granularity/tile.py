"""Boxes of a weight: kernels, kernel rows, stripes, blocks."""

import warnings
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

from torch import nn

from prunus.core.errors import PrunusWarning, SpecError, listed
from prunus.core.groups import Group, Member
from prunus.core.part import Granularity, Reduce
from prunus.parts.granularity.element import is_stack, matrices


@dataclass(frozen=True)
class Tile(Granularity):
    """Boxes that divide every weight evenly, each box a unit: what lies between single weights and channels.

    `box` says how long a box is along each axis of a weight `[out, in, kh, kw]`; 0 is the whole axis:

    - `(1, 1, 0, 0)`: 2-D kernels, the connections between an input and an output channel.
    - `(1, 1, 1, 0)`: rows of kernels; with `NofM(1, 3)` one row of every 3x3 kernel stays.
    - `(1, 0, 1, 1)`: stripes, one kernel position over all input channels of a filter (Meng et al. 2020,
      arXiv:2009.14410), also called filterlets (Han et al. 2024, arXiv:2401.09068).
    - `(4, 1, 0, 0)`: the kernels of 4 consecutive filters at the same input (1xN: Lin et al. 2023, arXiv:2105.14713);
      `(4, 1, 1, 1)`: 4x1 blocks of single weights.
    - `(16, 16, 1, 1)`: blocks of filters x channels at one kernel position, "block-punched" where kernels are larger
      than 1x1 (Cai et al. 2021, arXiv:2009.05697).

    Weights with fewer axes take the first entries (a linear layer the first two), those with more repeat the last one;
    of stacked experts every matrix is cut by itself. Which weights there are is what `Element` says. The unit space is
    `[boxes along out, all other boxes]`, so `NofM` and `Uniform(within="row")` mean the same as for single weights.
    Nothing can be cut out: boxes become zeros.

    Fails: weights that a box does not divide are left whole, with a warning that names them.

    Attributes:
        box: lengths, 0 for the whole axis.
        kernel: only convolutions with a kernel of this size, such as `(3, 3)`; `()` takes every weight.
        reduce: how the scores of a box's weights become one score.
        exclude: parameter or module names, with shell wildcards, that stay dense.
        skip_last: leave the last weight (the classifier) dense.
    """

    box: tuple[int, ...] = (1, 1, 0, 0)
    kernel: tuple[int, ...] = ()
    reduce: Reduce = "sum"
    exclude: tuple[str, ...] = ()
    skip_last: bool = False
    structure: ClassVar[Literal["unstructured", "semi-structured", "structured"]] = "semi-structured"

    def __post_init__(self) -> None:
        if len(self.box) < 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in self.box):
            raise SpecError(f"Tile(box={self.box}): two or more lengths, for out, in and the kernel; 0 is a whole axis")

    def __call__(self, model: nn.Module, example: object = None) -> tuple[Group, ...]:
        found: list[Group] = []
        whole: list[str] = []
        for name, p in matrices(model, self.exclude, skip_last=self.skip_last):
            if self.kernel and tuple(p.shape[2:]) != self.kernel:
                continue
            tile = self.lengths(tuple(p.shape), stack=is_stack(name, p))
            if any(n % t for n, t in zip(p.shape, tile, strict=True)):
                whole.append(f"{name} {tuple(p.shape)}")
                continue
            grid = [n // t for n, t in zip(p.shape, tile, strict=True)]
            along = 2 if is_stack(name, p) else 1
            shape = (prod(grid[:along]), prod(grid[along:]))
            found.append(Group(name, shape, (Member(name, tile=tile),), weight=tuple(p.shape), kind="tile"))
        if whole:
            what = f"boxes of {self.box} do not divide these weights, which stay whole: {listed(whole)}"
            warnings.warn(PrunusWarning(what), stacklevel=2)
        return tuple(found)

    def lengths(self, shape: tuple[int, ...], *, stack: bool) -> tuple[int, ...]:
        """The box of a weight of `shape`, with whole axes written out."""
        box = (1, *self.box) if stack else self.box
        box = (*box, *[box[-1]] * len(shape))[: len(shape)]
        return tuple(t or n for t, n in zip(box, shape, strict=True))
