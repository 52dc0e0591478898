"""torchvision: all classification networks by their registered names, segmentation, and detectors up to the boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.graph.networks.entry import CONV, MLP, Network, image, words

SIZES = {"inception_v3": 299, "maxvit_t": 224, "vit_h_14": 56}
OPTIONS: dict[str, dict[str, Any]] = {
    "inception_v3": {"init_weights": False},
    "googlenet": {"init_weights": False},
    "vit_h_14": {"image_size": 56},
    **{name: {"image_size": 64} for name in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32")},
}
FAST = {"squeezenet1_1", "mnasnet0_5", "shufflenet_v2_x0_5", "regnet_y_400mf", "mobilenet_v3_small"}
LARGE = ("regnet_y_128gf", "vit_h_14", "vit_l_16", "vit_l_32", "efficientnet_v2_l", "efficientnet_b7", "convnext_large")

CLASSIFICATION = words("""
alexnet
convnext_base convnext_large convnext_small convnext_tiny
densenet121 densenet161 densenet169 densenet201
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s
googlenet inception_v3 maxvit_t
mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3
mobilenet_v2 mobilenet_v3_large mobilenet_v3_small
regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf
resnet101 resnet152 resnet18 resnet34 resnet50
resnext101_32x8d resnext101_64x4d resnext50_32x4d
shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0
squeezenet1_0 squeezenet1_1
swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t
vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn
vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32
wide_resnet101_2 wide_resnet50_2
""")

SEGMENTATION = words("""
fcn_resnet50 fcn_resnet101 deeplabv3_resnet50 deeplabv3_resnet101 deeplabv3_mobilenet_v3_large
lraspp_mobilenet_v3_large
""")

DETECTION = words("""
fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2 fasterrcnn_mobilenet_v3_large_fpn
fasterrcnn_mobilenet_v3_large_320_fpn maskrcnn_resnet50_fpn maskrcnn_resnet50_fpn_v2 keypointrcnn_resnet50_fpn
retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 fcos_resnet50_fpn ssd300_vgg16 ssdlite320_mobilenet_v3_large
""")


class RawDetector(nn.Module):
    """A one-stage detector up to its head: everything before boxes are chosen by their scores."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        out: dict[str, Tensor] = self.head([features] if isinstance(features, Tensor) else list(features.values()))
        return out


class RawTwoStage(nn.Module):
    """A two-stage detector with regions that are given: proposal head, pooled regions, and every head on them.

    The regions come from averages over the features in place of `roi_align`, whose kernel is a compiled one.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.proposals = detector.backbone, detector.rpn.head
        heads = detector.roi_heads
        self.box_head, self.box_predictor = heads.box_head, heads.box_predictor
        self.mask_head: Any = getattr(heads, "mask_head", None)
        self.mask_predictor: Any = getattr(heads, "mask_predictor", None)
        self.keypoint_head: Any = getattr(heads, "keypoint_head", None)
        self.keypoint_predictor: Any = getattr(heads, "keypoint_predictor", None)

    def forward(self, x: Tensor) -> dict[str, Any]:
        levels = list(self.backbone(x).values())
        regions = nn.functional.adaptive_avg_pool2d(levels[0], 7)
        scores, boxes = self.box_predictor(self.box_head(regions))
        out: dict[str, Any] = {"proposals": self.proposals(levels), "scores": scores, "boxes": boxes}
        if self.mask_head is not None:
            out["masks"] = self.mask_predictor(self.mask_head(nn.functional.adaptive_avg_pool2d(levels[1], 14)))
        if self.keypoint_head is not None:
            wide = nn.functional.adaptive_avg_pool2d(levels[1], 14)
            out["keypoints"] = self.keypoint_predictor(self.keypoint_head(wide))
        return out


def classifier(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=10, **OPTIONS.get(name, {}))
        return model

    return build


def segmenter(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        options = {} if name.startswith("lraspp") else {"aux_loss": True}
        model: nn.Module = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=5, **options
        )
        return model

    return build


def detector(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        whole = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5)
        return RawTwoStage(whole) if "rcnn" in name else RawDetector(whole)

    return build


def clip(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision.models import optical_flow, video

        if name.startswith("raft"):
            flow: nn.Module = getattr(optical_flow, name)(weights=None)
            return flow
        model: nn.Module = getattr(video, name)(weights=None, num_classes=7)
        return model

    return build


def frames(count: int, size: int) -> Callable[[], Tensor]:
    """A clip of noise."""
    return lambda: torch.randn(1, 3, count, size, size)


def pair(size: int = 128) -> dict[str, Any]:
    """Two images between which something moved."""
    return {"image1": torch.randn(1, 3, size, size), "image2": torch.randn(1, 3, size, size), "num_flow_updates": 2}


def kinds(name: str) -> tuple[str, ...]:
    if name.startswith(("vit", "swin")):
        return (*MLP, "head")
    return MLP if name.startswith("convnext") else CONV


NETWORKS = [
    *(
        Network(
            f"torchvision/{name}", "torchvision", classifier(name), image(SIZES.get(name, 64)),
            None if name in LARGE or name in SIZES or name.startswith("vit") else image(96, batch=1), kinds(name),
            fast=name in FAST, seconds=400 if name in LARGE else 0,
        )
        for name in CLASSIFICATION
    ),
    *(
        Network(f"torchvision/{name}", "segmentation", segmenter(name), image(64), image(96, batch=1))
        for name in SEGMENTATION
    ),
    *(
        Network(
            f"torchvision/{name}", "detection", detector(name), image(300 if name.startswith("ssd3") else 128),
            None if name.startswith("ssd3") else image(160, batch=1),
        )
        for name in DETECTION
    ),
    *(
        Network(f"torchvision/{name}", "video", clip(name), frames(8, 32), frames(8, 48))
        for name in ("r3d_18", "mc3_18", "r2plus1d_18")
    ),
    Network("torchvision/s3d", "video", clip("s3d"), frames(16, 224)),
    Network("torchvision/raft_small", "video", clip("raft_small"), pair, lambda: pair(136)),
    Network("torchvision/raft_large", "video", clip("raft_large"), pair, lambda: pair(136)),
]  # fmt: skip
