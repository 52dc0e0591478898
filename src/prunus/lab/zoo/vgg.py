"""VGG with batch normalization in its CIFAR form: convolutions, global pooling, one linear layer.

Sources: Simonyan & Zisserman 2015, ICLR, arXiv:1409.1556, table 1 (the stacks A, D and E); the CIFAR form is that of
network slimming, Liu et al. 2017, ICCV, arXiv:1708.06519: its last pooling is global and a single linear layer follows.

The convolutions carry no bias, since batch normalization has its own. That is what gives 14.72 M (VGG-16) and 20.04 M
(VGG-19); forms with a redundant bias have 4,224 and 5,504 parameters more.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.lab.zoo.catalog import scaled

# Convolutions in each of the five stages; a stage has 64, 128, 256, 512 or 512 channels.
_STAGES = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five stages of 3x3 convolutions with max pooling between them, then the mean over pixels and a linear layer."""

    def __init__(self, depth: int, *, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inner = in_channels
        for stage, count in enumerate(_STAGES[depth]):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                outer = scaled(_CHANNELS[stage], width)
                layers += [nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
                inner = outer
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inner, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits


def _vgg(depth: int, num_classes: int, in_channels: int, size: int, width: float) -> VGG:
    if size < 16:
        raise SpecError(
            f"images of {size} pixels are too small for vgg{depth}, which halves them four times: use 16 or more"
        )
    return VGG(depth, num_classes=num_classes, in_channels=in_channels, width=width)


def vgg11(*, num_classes: int = 10, in_channels: int = 3, size: int = 32, width: float = 1.0) -> VGG:
    """Stack A, 8 convolutions: 9,228,362 parameters. Images of at least 16 pixels, else `SpecError`."""
    return _vgg(11, num_classes, in_channels, size, width)


def vgg16(*, num_classes: int = 10, in_channels: int = 3, size: int = 32, width: float = 1.0) -> VGG:
    """Stack D, 13 convolutions: 14,724,042 parameters. Images of at least 16 pixels, else `SpecError`."""
    return _vgg(16, num_classes, in_channels, size, width)


def vgg19(*, num_classes: int = 10, in_channels: int = 3, size: int = 32, width: float = 1.0) -> VGG:
    """Stack E, 16 convolutions: 20,035,018 parameters. Images of at least 16 pixels, else `SpecError`."""
    return _vgg(19, num_classes, in_channels, size, width)


class TinyVGG(nn.Module):
    """Three 3x3 convolutions with max pooling between them, then the mean over pixels and a linear layer."""

    def __init__(self, *, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inner = in_channels
        for channels in (16, 32, 64):
            outer = scaled(channels, width)
            layers += [nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            inner = outer
        self.features = nn.Sequential(*layers[:-1])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inner, num_classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits


def vgg_tiny(*, num_classes: int = 10, in_channels: int = 3, size: int = 32, width: float = 1.0) -> TinyVGG:
    """Three convolutions of 16, 32 and 64 channels: 24,346 parameters. Images of at least 4 pixels, else `SpecError`.

    Source: none; a network in VGG's style that trains in seconds.
    """
    if size < 4:
        raise SpecError(f"images of {size} pixels are too small for vgg_tiny, which halves them twice: use 4 or more")
    return TinyVGG(num_classes=num_classes, in_channels=in_channels, width=width)
