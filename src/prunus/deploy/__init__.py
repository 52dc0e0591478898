"""Files: pruned models on disk, without pickle, verified when read; and what other tools read."""

import importlib
from typing import TYPE_CHECKING, Any

# Imported when used: `prunus.load` needs neither transformers nor ONNX.
_HOME = {
    "Exported": "prunus.deploy.onnx",
    "Saved": "prunus.deploy.hf",
    "export_onnx": "prunus.deploy.onnx",
    "from_pretrained": "prunus.deploy.hf",
    "save_pretrained": "prunus.deploy.hf",
}

if TYPE_CHECKING:
    from prunus.deploy.hf import Saved, from_pretrained, save_pretrained
    from prunus.deploy.onnx import Exported, export_onnx

__all__ = ["Exported", "Saved", "export_onnx", "from_pretrained", "save_pretrained"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
