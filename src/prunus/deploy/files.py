"""Saving and loading pruned models: safetensors for numbers, JSON for everything else, SHA-256 for both."""

from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from safetensors.torch import save as serialized
from torch import Tensor, nn

from prunus import __version__, preparation_of
from prunus.core.errors import PrunusError, SpecError, VerificationError, listed
from prunus.deploy.atomic import MARK, new_folder
from prunus.deploy.manifest import FileRecord, Manifest, read_manifest, sha256_of
from prunus.engine.apply_ import pack, unpack
from prunus.engine.result import Result
from prunus.graph import replay_

WEIGHTS, MASKS = "model.safetensors", "masks.safetensors"
_META = {"format": "pt"}


def save(
    result: Result,
    path: str | Path,
    *,
    compact: bool | None = None,
    notes: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write a pruned model to a folder: `model.safetensors`, `masks.safetensors`, `pruning.json`.

    Args:
        result: what pruning gave.
        path: the folder; an earlier one of ours is replaced in one step, anything else is refused.
        compact: store the physically smaller model. Left out: yes where the recipe removes whole units.
        notes: anything JSON that should travel along (metrics, the data's digest).
        texts: further files (name -> content) that belong to the folder, such as a report.

    Nothing is pickled. A folder that cannot be written whole is not written at all. Cost: one pass over the weights.
    """
    texts = texts or {}
    for name in texts:
        if not name or Path(name).name != name or name.startswith(".") or name in (WEIGHTS, MASKS, MARK):
            raise SpecError(f"texts names a file {name!r}: give a plain name that save does not use itself")
    compact = result.recipe.structure == "structured" if compact is None else compact
    model = result.compact(verify=result.example is not None) if compact else result.model
    state, aliases = distinct(model.state_dict())
    masks = {n: pack(m).cpu() for n, m in result.unit_masks.items()}
    with new_folder(Path(path)) as folder:
        try:
            save_file(state, str(folder / WEIGHTS), metadata=_META)
            save_file(masks, str(folder / MASKS), metadata=_META)
        except safetensors.SafetensorError as error:
            raise PrunusError(
                f"could not write {path}: {error}. Nothing was left behind; free space or choose another place"
            ) from error
        files = {
            n: FileRecord(sha256=sha256_of(folder / n), bytes=(folder / n).stat().st_size) for n in (WEIGHTS, MASKS)
        }
        manifest = Manifest.model_validate(
            {
                "prunus": __version__,
                "torch": torch.__version__,
                "compacted": compact,
                "result": result.to_dict(),
                "edits": [e.to_dict() for e in result.edits] if compact else [],
                "aliases": aliases,
                "masks": {n: tuple(m.shape) for n, m in result.unit_masks.items()},
                "files": files,
                "notes": dict(notes or {}),
            }
        )
        (folder / MARK).write_bytes(manifest.sealed())
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    return Path(path)


def load(path: str | Path, model_factory: Callable[[], nn.Module]) -> nn.Module:
    """Read a pruned model back: a fresh instance of the user's class, its edits replayed, its weights filled in.

    Args:
        path: a folder that `save` wrote.
        model_factory: makes the dense, unpruned network (`lambda: MyNet(num_classes=10)`); what the recipe prepares in
            it without an example is prepared again.

    Returns: the model in evaluation mode, weights in the dtype they were saved in. Buffers that are no part of
        `state_dict` are those that the factory makes, cut as the others are.
    Errors: `VerificationError` for a changed or truncated file, `SpecError` or `StructureError` for a folder or a
    factory that does not fit. Nothing in the folder is ever executed.
    """
    if isinstance(model_factory, nn.Module):
        raise SpecError("model_factory makes the network: pass a class or a function (`lambda: MyNet()`), no model")
    folder = Path(path)
    manifest = read_manifest(folder)
    state = _tensors(folder, WEIGHTS, manifest)
    for alias, name in manifest.aliases.items():
        if name not in state or alias in state:
            raise VerificationError(f"{folder / MARK} ties {alias} to {name}, which does not fit {WEIGHTS}")
    state |= {alias: state[name] for alias, name in manifest.aliases.items()}
    model = model_factory()
    if not isinstance(model, nn.Module):
        raise SpecError(f"model_factory must return a torch module, it returned {type(model).__name__}")
    _prepare_(model, manifest, state)
    modules = dict(model.named_modules())
    for target in manifest.sizes():
        module, _, name = target.rpartition(".")
        found = modules.get(module)
        if type(vars(found).get(name) if found is not None else 0) not in (int, tuple):
            # Numbers compare equal to flags: this keeps an edited manifest from switching one.
            raise SpecError(f"{folder / MARK} changes {target}, which is no size in the model that model_factory made")
    replay_(model, manifest.structure())
    own = _own_state(model)
    wrong = [f"{n} is missing in the file" for n in own if n not in state]
    wrong += [f"{n} is unknown to the model" for n in state if n not in own]
    wrong += [
        f"{n} is {tuple(state[n].shape)} in the file and {tuple(own[n].shape)} in the model"
        for n in own
        if n in state and own[n].shape != state[n].shape
    ]
    first: dict[int, str] = {}
    for name, tensor in own.items():
        twin = first.setdefault(id(tensor), name)
        if twin != name and name in state and twin in state and state[name] is not state[twin]:
            wrong.append(f"{name} and {twin} are one tensor in the model and two in the file")
    if wrong:
        raise SpecError(
            f"the model that model_factory made is not the one that was saved in {folder}: {listed(wrong, 12)}"
        )
    for name, tensor in own.items():
        tensor.data = state[name].to(tensor.device)
    return model.eval()


def load_masks(path: str | Path) -> dict[str, Tensor]:
    """The unit masks of a saved model: group name -> bool of the group's shape, True = kept.

    Errors: `VerificationError` for a changed or truncated file.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    packed = _tensors(folder, MASKS, manifest)
    for name, shape in manifest.masks.items():
        size = torch.Size(shape).numel()
        if name not in packed or packed[name].dtype != torch.uint8 or packed[name].numel() != -(-size // 8):
            raise VerificationError(f"{folder / MASKS} has no mask of {shape} for {name}")
    return {name: unpack(packed[name], shape) for name, shape in manifest.masks.items()}


def serialize(model: nn.Module) -> bytes:
    """The model's state as a safetensors file, tied tensors once. Cost: two copies of the weights."""
    return serialized(distinct(model.state_dict())[0], metadata=_META)


def stored_bytes(model: nn.Module) -> int:
    """The size of the file that the model's state makes."""
    return len(serialize(model))


def distinct(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tied tensor once, on the processor and contiguous, and the names that share it.

    Errors: `SpecError` where a module keeps state that is no tensor.
    """
    seen: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, t in state.items():
        if not isinstance(t, Tensor):
            raise SpecError(f"{name} is a {type(t).__name__}: only tensors can be saved; drop the module's extra state")
        key = (t.untyped_storage().data_ptr(), t.storage_offset(), tuple(t.shape), tuple(t.stride()), t.dtype)
        if t.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        tensors[name] = t.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, aliases


def _prepare_(model: nn.Module, manifest: Manifest, state: Mapping[str, Tensor]) -> None:
    """Write the model's modules anew where the recipe did so before pruning (layers as products), if it is not done."""
    recipe = manifest.result.get("recipe")
    plain = recipe.get("prepare") if isinstance(recipe, Mapping) else None
    stored = state.keys() - manifest.aliases.keys()
    if isinstance(plain, Mapping) and not _fits(stored, _own_state(model)):
        preparation_of(plain).again(model, stored)


def _fits(stored: Set[str], own: Mapping[str, Tensor]) -> bool:
    """Whether what is stored are names of the model, one for each of its tensors at most."""
    names = dict.fromkeys(id(t) for t in own.values())
    return stored == own.keys() or (stored < own.keys() and len(stored) == len(names))


def _own_state(model: nn.Module) -> dict[str, Tensor]:
    return {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}


def _tensors(folder: Path, name: str, manifest: Manifest) -> dict[str, Tensor]:
    """A safetensors file, after its size and digest were compared with the manifest's."""
    file, record = folder / name, manifest.files[name]  # type: ignore[index]  # the two names are its keys
    if not file.is_file():
        raise VerificationError(f"{file} is missing")
    size = file.stat().st_size
    if size != record.bytes:
        raise VerificationError(
            f"{file} has {size:,} bytes, the manifest says {record.bytes:,}: it was cut off or changed"
        )
    if sha256_of(file) != record.sha256:
        raise VerificationError(f"{file} is not what was saved: its SHA-256 differs from the manifest's")
    try:
        return load_file(str(file))
    except safetensors.SafetensorError as error:
        raise VerificationError(f"{file} is no readable safetensors file: {error}") from error
