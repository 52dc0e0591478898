"""Networks from elsewhere, by name: torchvision, timm, Hugging Face transformers, and any importable factory.

Nothing is downloaded unless `pretrained=True` is asked for.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import MissingExtraError, PrunusError, SpecError, UnknownNameError, require

_LIBRARIES = ("torchvision", "timm", "hf")


def is_external(name: str) -> bool:
    """Whether the name has a prefix (`timm:resnet18`, `package.module:factory`), so is not one of the zoo's own."""
    return ":" in name


def build(name: str, *, num_classes: int, in_channels: int | None, **options: Any) -> nn.Module:
    """Build a network whose name has a prefix; see `prunus.lab.zoo.build`."""
    prefix, _, rest = name.partition(":")
    if not prefix or not rest:
        raise SpecError(
            f"{name!r} is not a network: write library:name, such as timm:resnet18, or package.module:factory"
        )
    if prefix == "torchvision":
        return _torchvision(rest, num_classes, in_channels, options)
    if prefix == "timm":
        return _timm(rest, num_classes, in_channels, options)
    if prefix == "hf":
        return _transformers(rest, num_classes, options)
    return _factory(prefix, rest, {"num_classes": num_classes, "in_channels": in_channels}, options)


def example(name: str, *, in_channels: int | None, size: int | None, batch: int, seed: int) -> tuple[Tensor, ...]:
    """Standard normal images, or for `hf:` tokens below 100; see `prunus.lab.zoo.example_inputs`."""
    generator = torch.Generator().manual_seed(seed)
    if name.startswith("hf:"):
        return (torch.randint(100, (batch, size or 16), generator=generator),)
    side = size or 224
    return (torch.randn(batch, in_channels or 3, side, side, generator=generator),)


def _library(module: str, extra: str, name: str) -> Any:
    try:
        return require(module, extra=extra, why=f"the network {name} comes from it")
    except RuntimeError as error:
        # What torchvision raises when it was built for another torch, and what timm and transformers pass on.
        raise PrunusError(
            f"{name}: {module.split('.')[0]} is installed but does not work with torch {torch.__version__} ({error}); "
            "reinstall torch and torchvision together, from one source"
        ) from error


def _torchvision(name: str, num_classes: int, in_channels: int | None, options: dict[str, Any]) -> nn.Module:
    models = _library("torchvision.models", "vision", f"torchvision:{name}")
    if name not in models.list_models():
        raise UnknownNameError("torchvision network", name, models.list_models())
    if in_channels not in (None, 3):
        raise SpecError(
            f"torchvision:{name} takes images with 3 channels, not {in_channels}: use timm:{name} or repeat them"
        )
    if options.pop("pretrained", False):
        # Pretrained heads have as many outputs as their own data set has classes.
        model: nn.Module = models.get_model(name, weights="DEFAULT", **options)
    else:
        model = models.get_model(name, weights=None, num_classes=num_classes, **options)
    return model


def _timm(name: str, num_classes: int, in_channels: int | None, options: dict[str, Any]) -> nn.Module:
    timm = _library("timm", "vision", f"timm:{name}")
    # timm also builds `hf-hub:...`, which would download.
    if name.split(".")[0] not in timm.list_models():
        raise UnknownNameError("timm network", name, timm.list_models())
    pretrained = bool(options.pop("pretrained", False))
    model: nn.Module = timm.create_model(
        name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels or 3, **options
    )
    return model


def _transformers(name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    """`name` is a folder with a config.json (its weights are read if they are there), or a type such as `gpt2`."""
    transformers = _library("transformers", "hf", f"hf:{name}")
    pretrained = bool(options.pop("pretrained", False))
    folder = Path(name)
    if (folder / "config.json").is_file():
        from prunus.deploy.hf import check_index

        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
        kind = _model_class(transformers, folder)
        check_index(folder)
        if any(folder.glob("*.safetensors")):
            model: nn.Module = kind.from_pretrained(
                folder, config=config, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
            return model
        return _from_config(kind, config)
    if pretrained:
        auto = transformers.AutoModelForCausalLM
        downloaded: nn.Module = auto.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **options)
        return downloaded
    if folder.exists():
        raise SpecError(f"hf:{name}: the folder has no config.json, so the network's class and sizes are unknown")
    types = transformers.CONFIG_MAPPING
    if name not in types:
        raise UnknownNameError("transformers model type or folder", name, list(types.keys()))
    config = types[name](**options)
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return _from_config(transformers.AutoModelForCausalLM, config)
    if type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        config.num_labels = num_classes
        return _from_config(transformers.AutoModelForImageClassification, config)
    return _from_config(transformers.AutoModel, config)


def _model_class(transformers: Any, folder: Path) -> Any:
    """The class that the folder's config names, if this version of transformers has it."""
    try:
        content = json.loads((folder / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise SpecError(f"hf:{folder}: config.json is not JSON ({error}); copy the folder again") from error
    names = content.get("architectures") or []
    found = getattr(transformers, names[0], None) if names and str(names[0]).isidentifier() else None
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    return transformers.AutoModelForCausalLM


def _from_config(kind: Any, config: Any) -> nn.Module:
    build_it = kind.from_config if hasattr(kind, "from_config") else kind
    model: nn.Module = build_it(config)
    return model


def _factory(module: str, name: str, offered: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    if not all(part.isidentifier() for part in (module + "." + name).split(".")):
        raise SpecError(
            f"{module}:{name} is not a network: write package.module:factory, "
            f"or one of {', '.join(_LIBRARIES)} before the colon"
        )
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if module == missing or module.startswith(missing + "."):
            near = f"{missing!r} cannot be imported; is it installed, or is its folder on PYTHONPATH?"
            raise SpecError(f"{module}:{name}: {near}") from error
        raise MissingExtraError(f"{module}:{name}: importing it needs {missing!r}, which is not installed") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UnknownNameError(f"name in module {module}", part, [n for n in dir(found) if not n.startswith("_")])
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise SpecError(f"{module}:{name} is a {type(found).__name__}, not a callable that returns a torch.nn.Module")
    model = found(**_accepted(found, offered, options, f"{module}:{name}"))
    if not isinstance(model, nn.Module):
        raise SpecError(f"{module}:{name} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _accepted(
    factory: Callable[..., Any], offered: dict[str, Any], options: dict[str, Any], name: str
) -> dict[str, Any]:
    """Those of the offered arguments that the factory has by name, and all options; options it lacks are an error."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # builtins and some C extensions have no signature
        return dict(options)
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = sorted(set(options) - set(parameters))
    if unknown and not anything:
        raise SpecError(f"{name} has no option {', '.join(unknown)}: it takes {', '.join(parameters) or 'none'}")
    return {k: v for k, v in offered.items() if k in parameters and v is not None} | options
