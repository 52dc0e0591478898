"""Lets torchvision, and through it transformers, be imported beside a torch that its compiled operators do not fit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_KEPT: list[torch.library.Library] = []  # what a library defines goes when it does


def define_missing() -> None:
    """Define the two operators that importing torchvision needs, where its own do not load (a CPU build of torch)."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    for compiled in sorted(Path(found.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(compiled)
        except OSError:
            continue
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)
