"""Files: pruned models on disk, without pickle, verified when read; what other tools read; and runtimes."""

import importlib
from typing import TYPE_CHECKING, Any

# Imported when used: `prunus.load` needs neither transformers nor ONNX.
_HOME = {
    "Deployment": "prunus.deploy.deployment",
    "Exported": "prunus.deploy.onnx",
    "Saved": "prunus.deploy.hf",
    "Written": "prunus.deploy.exporting",
    "deploy": "prunus.deploy.deploying",
    "export": "prunus.deploy.exporting",
    "export_onnx": "prunus.deploy.onnx",
    "flush_denormals_": "prunus.deploy.denormals",
    "from_pretrained": "prunus.deploy.hf",
    "multiples": "prunus.deploy.rounding",
    "quantize_": "prunus.deploy.quantize",
    "save_pretrained": "prunus.deploy.hf",
    "staircase": "prunus.deploy.rounding",
}

if TYPE_CHECKING:
    from prunus.deploy.denormals import flush_denormals_
    from prunus.deploy.deploying import deploy
    from prunus.deploy.deployment import Deployment
    from prunus.deploy.exporting import Written, export
    from prunus.deploy.hf import Saved, from_pretrained, save_pretrained
    from prunus.deploy.onnx import Exported, export_onnx
    from prunus.deploy.quantize import quantize_
    from prunus.deploy.rounding import multiples, staircase

__all__ = [
    "Deployment",
    "Exported",
    "Saved",
    "Written",
    "deploy",
    "export",
    "export_onnx",
    "flush_denormals_",
    "from_pretrained",
    "multiples",
    "quantize_",
    "save_pretrained",
    "staircase",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
