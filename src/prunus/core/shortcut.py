"""A linear map on a residual connection, in models whose own `forward` adds what a branch puts out to the stream."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import StructureError


class Link:
    """What a `Branching` lays by until its `Joining` takes it; copied together with the two."""

    def __init__(self) -> None:
        self.x: Tensor | None = None

    def take(self) -> Float[Tensor, "..."]:
        """The stream at the branch. Errors: `StructureError` where none came past there before."""
        x, self.x = self.x, None
        if x is None:
            raise StructureError(
                "a residual branch ends that did not begin: the norm before it was not run. The two stand for a linear "
                "map on the connection beside the branch, so they can only run together, one after the other"
            )
        return x


class Branching(nn.Module):
    """The norm that a residual branch begins with, which lays by the stream that it is given, for the branch's end.

    Its one child, `norm_<number>`, is the norm; the number is that of its `Joining`. One run at a time: a model with
    such modules cannot be run by several threads at once. `weight` and `bias` are the norm's, for code that looks at
    them.
    """

    def __init__(self, norm: nn.Module, number: int, link: Link) -> None:
        super().__init__()
        self.number, self.link = number, link
        self.add_module(f"norm_{number}", norm)

    @property
    def norm(self) -> nn.Module:
        """The norm."""
        return self.get_submodule(f"norm_{self.number}")

    def forward(self, *args: Any, **kwargs: Any) -> Float[Tensor, "..."]:
        """What the norm makes of the stream, which is the first tensor that it is given."""
        self.link.x = next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor))
        y: Tensor = self.norm(*args, **kwargs)
        return y

    @property
    def weight(self) -> Tensor | None:
        """The norm's scale."""
        return self.norm._parameters.get("weight")

    @property
    def bias(self) -> Tensor | None:
        """The norm's shift."""
        return self.norm._parameters.get("bias")


class Joining(nn.Module):
    """The last map of a residual branch, which adds to its output what a shortcut makes of the stream where the branch
    began: x + (map(h) + x S), so that the connection beside the branch is x (I + S).

    Children: `map`, and `shortcut_<number>`, a linear map without a bias, with S transposed as its weight; zeros at
    first. `weight` and `bias` are those of `map`, for code that looks at them.
    """

    def __init__(self, last: nn.Module, number: int, link: Link, like: Float[Tensor, "d"]) -> None:
        super().__init__()
        self.number, self.link, self.map = number, link, last
        shortcut = nn.Linear(len(like), len(like), bias=False, device="meta", dtype=like.dtype)
        shortcut.weight = nn.Parameter(like.new_zeros(len(like), len(like)), requires_grad=like.requires_grad)
        self.add_module(f"shortcut_{number}", shortcut)

    @property
    def shortcut(self) -> nn.Module:
        """The linear map beside the connection."""
        return self.get_submodule(f"shortcut_{self.number}")

    def forward(self, *args: Any, **kwargs: Any) -> Float[Tensor, "..."]:
        """What is added to the stream."""
        y: Tensor = self.map(*args, **kwargs)
        beside: Tensor = self.shortcut(self.link.take())
        return y + beside.reshape(y.shape)

    @property
    def weight(self) -> Tensor | None:
        """That of `map`."""
        return self.map._parameters.get("weight")

    @property
    def bias(self) -> Tensor | None:
        """That of `map`."""
        return self.map._parameters.get("bias")
