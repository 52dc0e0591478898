"""Files: pruned models on disk, without pickle, verified when read; what other tools read; and runtimes."""

import importlib
from typing import TYPE_CHECKING, Any

# Imported when used: `prunus.load` needs neither transformers nor ONNX.
_HOME = {
    "Deployment": "prunus.deploy.deployment",
    "Exported": "prunus.deploy.onnx",
    "Plain": "prunus.deploy.torch_prune",
    "Saved": "prunus.deploy.hf",
    "Written": "prunus.deploy.exporting",
    "deploy": "prunus.deploy.deploying",
    "export": "prunus.deploy.exporting",
    "export_onnx": "prunus.deploy.onnx",
    "flush_denormals_": "prunus.deploy.denormals",
    "digest_of": "prunus.deploy.files",
    "from_pretrained": "prunus.deploy.hf",
    "from_torch_prune": "prunus.deploy.torch_prune",
    "load_masks": "prunus.deploy.files",
    "multiples": "prunus.deploy.widths",
    "quantize_": "prunus.deploy.quantize",
    "read_pt": "prunus.deploy.pickled",
    "save_pretrained": "prunus.deploy.hf",
    "RuntimeClock": "prunus.deploy.clock",
    "staircase": "prunus.deploy.rounding",
    "to_torch_prune": "prunus.deploy.torch_prune",
    "unpack_folder": "prunus.deploy.unpacking",
}

if TYPE_CHECKING:
    from prunus.deploy.clock import RuntimeClock
    from prunus.deploy.denormals import flush_denormals_
    from prunus.deploy.deploying import deploy
    from prunus.deploy.deployment import Deployment
    from prunus.deploy.exporting import Written, export
    from prunus.deploy.files import digest_of, load_masks
    from prunus.deploy.hf import Saved, from_pretrained, save_pretrained
    from prunus.deploy.onnx import Exported, export_onnx
    from prunus.deploy.pickled import read_pt
    from prunus.deploy.quantize import quantize_
    from prunus.deploy.rounding import staircase
    from prunus.deploy.torch_prune import Plain, from_torch_prune, to_torch_prune
    from prunus.deploy.unpacking import unpack_folder
    from prunus.deploy.widths import multiples

__all__ = [
    "Deployment",
    "Exported",
    "Plain",
    "RuntimeClock",
    "Saved",
    "Written",
    "deploy",
    "digest_of",
    "export",
    "export_onnx",
    "flush_denormals_",
    "from_pretrained",
    "from_torch_prune",
    "load_masks",
    "multiples",
    "quantize_",
    "read_pt",
    "save_pretrained",
    "staircase",
    "to_torch_prune",
    "unpack_folder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
