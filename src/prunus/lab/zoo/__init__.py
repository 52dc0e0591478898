"""The networks of the survey in their CIFAR form, small transformers, and the way to networks from elsewhere.

>>> from prunus.lab import zoo
>>> model = zoo.build("resnet20", num_classes=10, in_channels=1, width=0.5)
>>> x, = zoo.spec("resnet20").example(in_channels=1, size=28)
>>> model(x).shape
torch.Size([2, 10])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunus.lab.zoo.catalog import SPECS, Spec, networks, spec

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["SPECS", "Spec", "build", "example_inputs", "networks", "spec"]


def build(name: str, *, num_classes: int = 10, in_channels: int | None = None, **options: Any) -> nn.Module:
    """Build a network by name.

    Args:
        name: One of `networks()`; or `torchvision:NAME`, `timm:NAME`, `hf:FOLDER-OR-MODEL` when that library is
            installed; or `package.module:factory`, a callable that takes no arguments, or any of `num_classes`,
            `in_channels` and `options` by these names.
        num_classes: Number of classes; ignored by token networks.
        in_channels: Channels of the images; what the network was designed for when left out (1 for `lenet300` and
            `mlp`, else 3). Ignored by token networks.
        options: What else the factory takes: `size` and `width` for most networks, `pretrained=True` for the libraries
            (the only case in which anything is downloaded).

    Raises:
        UnknownNameError: no such network; the message has the nearest names.
        SpecError: an option that the network does not have, or a value that it cannot use.
        MissingExtraError: the library behind a prefix is not installed.
    """
    from prunus.lab.zoo import external

    if external.is_external(name):
        return external.build(name, num_classes=num_classes, in_channels=in_channels, **options)
    record = spec(name)
    if record.kind == "image":
        options["num_classes"] = num_classes
        options["in_channels"] = record.channels if in_channels is None else in_channels
    return record.build(**options)


def example_inputs(
    name: str, *, in_channels: int | None = None, size: int | None = None, batch: int = 2, seed: int = 0
) -> tuple[Tensor, ...]:
    """Inputs that the named network accepts, as `model(*inputs)` takes them.

    For a network of a library: 224-pixel images with three channels, or 16 tokens below 100, when nothing else is said.

    Raises:
        UnknownNameError: no such network.
    """
    from prunus.lab.zoo import external

    if external.is_external(name):
        return external.example(name, in_channels=in_channels, size=size, batch=batch, seed=seed)
    return spec(name).example(in_channels, size, batch=batch, seed=seed)
