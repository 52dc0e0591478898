"""Files: pruned models on disk, without pickle, verified when read; what other tools read; and runtimes."""

import importlib
from typing import TYPE_CHECKING, Any

# Imported when used: `prunus.load` needs neither transformers nor ONNX.
_HOME = {
    "Deployment": "prunus.deploy.deployment",
    "Exported": "prunus.deploy.onnx",
    "Saved": "prunus.deploy.hf",
    "deploy": "prunus.deploy.deploying",
    "export_onnx": "prunus.deploy.onnx",
    "flush_denormals_": "prunus.deploy.denormals",
    "from_pretrained": "prunus.deploy.hf",
    "save_pretrained": "prunus.deploy.hf",
}

if TYPE_CHECKING:
    from prunus.deploy.denormals import flush_denormals_
    from prunus.deploy.deploying import deploy
    from prunus.deploy.deployment import Deployment
    from prunus.deploy.hf import Saved, from_pretrained, save_pretrained
    from prunus.deploy.onnx import Exported, export_onnx

__all__ = [
    "Deployment",
    "Exported",
    "Saved",
    "deploy",
    "export_onnx",
    "flush_denormals_",
    "from_pretrained",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
