"""MobileNetV2 with strides for 32x32 images.

Source: Sandler, Howard, Zhu, Zhmoginov & Chen 2018, CVPR, arXiv:1801.04381, table 2. Differs from the paper in strides
only: the stem and the second stage keep the resolution (CIFAR images are 7 times smaller), so 32 pixels end as 4. The
parameter count is untouched by that: 2,236,682 with 10 classes. A common CIFAR form has 2.30 M because it adds
projections to blocks that change their channels without stride; the paper has none, and neither has this.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.lab.zoo.catalog import scaled

# expansion, channels, blocks, stride of the first block
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _unit(inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outer), nn.ReLU6()]


class InvertedResidual(nn.Module):
    """Expand with 1x1, filter each channel with 3x3, project with 1x1 (linearly); a shortcut where shapes agree."""

    def __init__(self, inner: int, outer: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inner * expansion
        layers = _unit(inner, hidden, 1) if expansion > 1 else []
        layers += _unit(hidden, hidden, 3, stride, groups=hidden)
        layers += _unit(hidden, outer, 1)[:-1]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inner == outer

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels h w"]:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Stem, seven stages of inverted residuals, a 1x1 convolution, the mean over pixels, dropout, one linear layer."""

    def __init__(self, *, num_classes: int, in_channels: int, width: float, dropout: float) -> None:
        super().__init__()
        inner = scaled(32, width, 8)
        layers: list[nn.Module] = _unit(in_channels, inner, 3)
        for expansion, channels, count, first in _STAGES:
            outer = scaled(channels, width, 8)
            for position in range(count):
                layers.append(InvertedResidual(inner, outer, first if position == 0 else 1, expansion))
                inner = outer
        # The paper never narrows the last convolution, it only widens it.
        last = scaled(1280, max(1.0, width), 8)
        layers += _unit(inner, last, 1)
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(last, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        logits: Tensor = self.classifier(self.dropout(self.pool(self.features(x)).flatten(1)))
        return logits


def mobilenetv2(
    *, num_classes: int = 10, in_channels: int = 3, size: int = 32, width: float = 1.0, dropout: float = 0.0
) -> MobileNetV2:
    """MobileNetV2: 2,236,682 parameters with 10 classes. Channels are multiples of 8 times `width`, as in the paper.

    Raises:
        SpecError: an image too small to be halved three times, or a width that is not positive.
    """
    if size < 8:
        raise SpecError(
            f"images of {size} pixels are too small for mobilenetv2, which halves them three times: use 8 or more"
        )
    return MobileNetV2(num_classes=num_classes, in_channels=in_channels, width=width, dropout=dropout)
