"""A linear map as the product of two, and as the sum of such a product and of what it leaves."""

from jaxtyping import Float
from torch import Tensor, nn


class Factors(nn.Sequential):
    """Two linear maps or convolutions in a row that stand for one; what lies between them are its components.

    `weight` and `bias` are those of the one that they stand for, for code that looks at them.
    """

    @property
    def weight(self) -> Float[Tensor, "out in ..."]:
        """The product of the two."""
        first, second = (m._parameters["weight"] for m in self)
        assert first is not None and second is not None
        product: Tensor = second.flatten(1) @ first.flatten(1)
        return product.reshape(len(second), *first.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        """The second map's."""
        return self[1]._parameters.get("bias")


class LowRankPlus(nn.Module):
    """A linear map or convolution as the sum of two that see the same input: `low`, a product, and `rest`.

    `weight` and `bias` are those of the one that it stands for, for code that looks at them.
    """

    def __init__(self, low: Factors, rest: nn.Module) -> None:
        super().__init__()
        self.low, self.rest = low, rest

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What the two make of an input, added."""
        y: Tensor = self.low(x) + self.rest(x)
        return y

    @property
    def weight(self) -> Float[Tensor, "out in ..."]:
        """The sum of the two."""
        rest = self.rest._parameters["weight"]
        assert rest is not None
        return self.low.weight + rest

    @property
    def bias(self) -> Tensor | None:
        """That of the product's second map."""
        return self.low.bias
