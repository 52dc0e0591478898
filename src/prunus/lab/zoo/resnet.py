"""Residual networks for small images: ResNet-20/32/56 and the CIFAR form of ResNet-18.

Source: He, Zhang, Ren & Sun 2016, CVPR, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.lab.zoo.catalog import scaled

Shortcut = Literal["A", "B", "none"]


class PadShortcut(nn.Module):
    """He et al.'s option A: keep every second pixel and surround the channels with zeros; no parameters.

    `before` and `after` are the numbers of zero channels on either side. They are plain attributes, so that a network
    whose channels were removed can be repaired by writing the new numbers into them.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = before, after, stride

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels h w"]:
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"before={self.before}, after={self.after}, stride={self.stride}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with batch normalization, around a shortcut, or (`none`) without one."""

    def __init__(self, inner: int, outer: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.shortcut: nn.Module | None
        if shortcut == "none":
            self.shortcut = None
        elif stride == 1 and inner == outer:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            extra = outer - inner
            self.shortcut = PadShortcut(extra // 2, extra - extra // 2, stride)
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels h w"]:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y if self.shortcut is None else y + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, stages of basic blocks (each stage after the first halves the image), global average, one linear layer."""

    def __init__(
        self,
        blocks: tuple[int, ...],
        channels: tuple[int, ...],
        *,
        num_classes: int,
        in_channels: int,
        shortcut: Shortcut,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        stages: list[nn.Module] = []
        inner = channels[0]
        for index, (count, outer) in enumerate(zip(blocks, channels, strict=True)):
            stage: list[nn.Module] = []
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                stage.append(BasicBlock(inner, outer, stride, shortcut))
                inner = outer
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inner, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.stages(x)).flatten(1)
        logits: Tensor = self.fc(x)
        return logits


def cifar_resnet(
    depth: int,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    size: int = 32,
    width: float = 1.0,
    shortcut: Shortcut = "A",
    stem_stride: int = 1,
) -> ResNet:
    """The 6n+2-layer network for CIFAR: three stages of 16, 32 and 64 channels times `width`, n blocks each.

    With option A shortcuts and 10 classes: 269,722 parameters (depth 20), 464,154 (32), 853,018 (56), the 0.27 M,
    0.46 M and 0.85 M of the paper's table 6. `shortcut="none"` is the paper's plain network, which begins with the same
    weights as that with option A. `stem_stride=2` halves the image in the first convolution, which makes
    every layer about four times cheaper and leaves the parameters as they are; the paper has 1. `size` is only checked.

    Raises:
        SpecError: a depth that is not 6n+2, an image too small, a stride below 1, or a width that is not positive.
    """
    if depth < 8 or (depth - 2) % 6:
        raise SpecError(f"a CIFAR ResNet has 6n+2 layers (8, 14, 20, 32, 44, 56, ...), not {depth}")
    if stem_stride < 1:
        raise SpecError(f"stem_stride must be at least 1, not {stem_stride}")
    if size < 4 * stem_stride:
        raise SpecError(
            f"images of {size} pixels are too small for resnet{depth}, which divides them by {4 * stem_stride}: "
            f"use {4 * stem_stride} or more"
        )
    channels = tuple(scaled(c, width) for c in (16, 32, 64))
    return ResNet(
        ((depth - 2) // 6,) * 3,
        channels,
        num_classes=num_classes,
        in_channels=in_channels,
        shortcut=shortcut,
        stem_stride=stem_stride,
    )


def resnet8(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    size: int = 32,
    width: float = 1.0,
    shortcut: Shortcut = "A",
    stem_stride: int = 1,
) -> ResNet:
    """One block per stage, 75,290 parameters: of the family but not in the paper; for small data and machines."""
    return cifar_resnet(
        8,
        num_classes=num_classes,
        in_channels=in_channels,
        size=size,
        width=width,
        shortcut=shortcut,
        stem_stride=stem_stride,
    )


def resnet14(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    size: int = 32,
    width: float = 1.0,
    shortcut: Shortcut = "A",
    stem_stride: int = 1,
) -> ResNet:
    """`cifar_resnet` of depth 14, 172,506 parameters: of the family but not in the paper."""
    return cifar_resnet(
        14,
        num_classes=num_classes,
        in_channels=in_channels,
        size=size,
        width=width,
        shortcut=shortcut,
        stem_stride=stem_stride,
    )


def resnet20(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    size: int = 32,
    width: float = 1.0,
    shortcut: Shortcut = "A",
    stem_stride: int = 1,
) -> ResNet:
    """`cifar_resnet` of depth 20: 269,722 parameters."""
    return cifar_resnet(
        20,
        num_classes=num_classes,
        in_channels=in_channels,
        size=size,
        width=width,
        shortcut=shortcut,
        stem_stride=stem_stride,
    )


def resnet32(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    size: int = 32,
    width: float = 1.0,
    shortcut: Shortcut = "A",
    stem_stride: int = 1,
) -> ResNet:
    """`cifar_resnet` of depth 32: 464,154 parameters."""
    return cifar_resnet(
        32,
        num_classes=num_classes,
        in_channels=in_channels,
        size=size,
        width=width,
        shortcut=shortcut,
        stem_stride=stem_stride,
    )


def resnet56(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    size: int = 32,
    width: float = 1.0,
    shortcut: Shortcut = "A",
    stem_stride: int = 1,
) -> ResNet:
    """`cifar_resnet` of depth 56: 853,018 parameters."""
    return cifar_resnet(
        56,
        num_classes=num_classes,
        in_channels=in_channels,
        size=size,
        width=width,
        shortcut=shortcut,
        stem_stride=stem_stride,
    )


def resnet18(*, num_classes: int = 10, in_channels: int = 3, size: int = 32, width: float = 1.0) -> ResNet:
    """The ImageNet ResNet-18 with a 3x3 stem of stride 1 and no pooling behind it, as used on CIFAR.

    Four stages of two blocks, 64 to 512 channels, projection shortcuts (option B): 11,173,962 parameters.

    Raises:
        SpecError: an image too small to be halved three times, or a width that is not positive.
    """
    if size < 8:
        raise SpecError(
            f"images of {size} pixels are too small for resnet18, which halves them three times: use 8 or more"
        )
    channels = tuple(scaled(c, width) for c in (64, 128, 256, 512))
    return ResNet((2, 2, 2, 2), channels, num_classes=num_classes, in_channels=in_channels, shortcut="B")
