"""Saving and loading pruned models: safetensors for numbers, JSON for everything else, SHA-256 for both."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from prunus import __version__, preparation_of
from prunus.core.errors import SpecError, VerificationError, listed
from prunus.deploy.atomic import MARK, new_folder
from prunus.deploy.containers.grid import Matrix
from prunus.deploy.containers.spec import Coding
from prunus.deploy.denormals import denormals_of
from prunus.deploy.manifest import (
    FileRecord,
    Manifest,
    MetricRecord,
    SizesRecord,
    TensorRecord,
    read_manifest,
    sha256_of,
)
from prunus.deploy.tensors import TensorFile, head_of, write_tensors
from prunus.deploy.weights import Laid, Weights, lay, mask_entries, nonzero_of
from prunus.engine.apply_ import unpack
from prunus.engine.result import Result
from prunus.graph import replay_
from prunus.graph.repair import read as attribute
from prunus.graph.running import unwrap

Name = Literal["model.safetensors", "masks.safetensors"]
WEIGHTS: Final = "model.safetensors"
MASKS: Final = "masks.safetensors"
PACKED = "packed"
"""What `prunus` says in the header of a file some of whose tensors are in containers."""
META = {"format": "pt"}


def save(
    result: Result,
    path: str | Path,
    *,
    compact: bool | None = None,
    sparse: bool | Sequence[Coding] = True,
    parent: nn.Module | str | None = None,
    metrics: Mapping[str, tuple[float | None, float | None]] | None = None,
    notes: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write a pruned model to a folder: `model.safetensors`, `masks.safetensors`, `pruning.json`.

    Args:
        result: what pruning gave.
        path: the folder; an earlier one of ours is replaced in one step, anything else is refused.
        compact: store the physically smaller model. Left out: yes where the recipe removes whole units.
        sparse: store each tensor in its smallest lossless container (`deploy.containers`), or leave all of them dense;
            names of codings (`("bitmask",)`) limit the choice. What pruning zeroed comes back as 0.0, whatever its
            sign was; everything else bit for bit. `prunus unpack` makes the file dense again for other tools.
        parent: the dense model that was pruned, or its `digest_of`, which the manifest then holds.
        metrics: name -> what was measured before and after pruning, None where it was not.
        notes: anything JSON that should travel along (the data's digest).
        texts: further files (name -> content) that belong to the folder, such as a report.

    Saving is lossless, so numbers too small for full precision (denormal) stay; the manifest says how many of which
    tensor there are. Make them zeros first with `prunus.deploy.flush_denormals_(result.model)`, or when the folder is
    exported or deployed.

    Nothing is pickled. A folder that cannot be written whole is not written at all. Cost: some passes over the
    weights. Memory: beside the model, one tensor where it has to be brought to the CPU or made contiguous, and some
    megabytes; a compact model is made in memory first.
    """
    texts = texts or {}
    for name in texts:
        if not name or Path(name).name != name or name.startswith(".") or name in (WEIGHTS, MASKS, MARK):
            raise SpecError(f"texts names a file {name!r}: give a plain name that save does not use itself")
    compact = result.recipe.structure == "structured" if compact is None else compact
    model = result.compact(verify=result.example is not None) if compact else result.model
    state, aliases = distinct(model.state_dict())
    laid = lay(state, keep=result.masks, sparse=sparse)
    mask_of = _readable_from(laid, result)
    masks = {n: m for n, m in result.unit_masks.items() if n not in mask_of}
    meta = META | ({"prunus": PACKED} if laid.packed else {})
    with new_folder(Path(path), needs=laid.stored) as folder:
        digests = {
            WEIGHTS: write_tensors(folder / WEIGHTS, laid.entries, meta),
            MASKS: write_tensors(folder / MASKS, mask_entries(masks), META),
        }
        manifest = _manifest(
            {
                "prunus": __version__,
                "torch": torch.__version__,
                "compacted": compact,
                "result": result.to_dict(),
                "edits": [e.to_dict() for e in result.edits] if compact else [],
                "aliases": aliases,
                "masks": {n: tuple(m.shape) for n, m in result.unit_masks.items()},
                "files": {n: FileRecord(sha256=d, bytes=(folder / n).stat().st_size) for n, d in digests.items()},
                "notes": dict(notes or {}),
                "tensors": {n: TensorRecord.of(made) for n, made in laid.packed.items()},
                "sizes": SizesRecord(dense=laid.dense, stored=laid.stored, bound=laid.bound),
                "mask_of": mask_of,
                "parent": digest_of(parent) if isinstance(parent, nn.Module) else parent,
                "metrics": {n: MetricRecord(before=b, after=a) for n, (b, a) in (metrics or {}).items()},
                "denormals": denormals_of(state),
            }
        )
        (folder / MARK).write_bytes(manifest.sealed())
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    return Path(path)


def _manifest(told: dict[str, Any]) -> Manifest:
    """The manifest of what is told. Errors: `SpecError` for what its reader would refuse."""
    try:
        return Manifest.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SpecError(f"{MARK} cannot hold {where} = {str(first['input'])[:200]}: {first['msg']}") from error


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
    weights = weights_of(folder, manifest)
    # Name -> the name that its values are stored under.
    stored = {n: n for n in weights.shapes}
    for alias, name in manifest.aliases.items():
        if name not in weights.shapes or alias in stored:
            raise VerificationError(f"{folder / MARK} ties {alias} to {name}, which does not fit {WEIGHTS}")
        stored[alias] = name
    made = model_factory()
    if not isinstance(made, nn.Module):
        raise SpecError(f"model_factory must return a torch module, it returned {type(made).__name__}")
    model = unwrap(made)  # `prune` looks into compiled and parallel models too
    _prepare_(model, manifest, stored)
    for target in manifest.sizes_changed():
        if type(attribute(model, target)) not in (int, tuple):
            # Numbers compare equal to flags: this keeps an edited manifest from switching one.
            raise SpecError(f"{folder / MARK} changes {target}, which is no size in the model that model_factory made")
    replay_(model, manifest.structure())
    own = _own_state(model)
    wrong = [f"{n} is missing in the file" for n in own if n not in stored]
    wrong += [f"{n} is unknown to the model" for n in stored if n not in own]
    wrong += [
        f"{n} is {weights.shapes[stored[n]]} in the file and {tuple(own[n].shape)} in the model"
        for n in own
        if n in stored and tuple(own[n].shape) != weights.shapes[stored[n]]
    ]
    first: dict[int, str] = {}
    for name, tensor in own.items():
        twin = first.setdefault(id(tensor), name)
        if twin != name and name in stored and twin in stored and stored[name] != stored[twin]:
            wrong.append(f"{name} and {twin} are one tensor in the model and two in the file")
    if wrong:
        raise SpecError(
            f"the model that model_factory made is not the one that was saved in {folder}: {listed(wrong, 12)}"
        )
    # Only now is anything allocated: the shapes are those that the model has itself.
    values: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if stored[name] not in values:
            values[stored[name]] = weights.tensor(stored[name], tuple(tensor.shape))
    for name, tensor in own.items():
        tensor.data = values[stored[name]].to(tensor.device)
    return made.eval()


def load_masks(path: str | Path) -> dict[str, Tensor]:
    """The unit masks of a saved model: group name -> bool of the group's shape, True = kept.

    Errors: `VerificationError` for a changed or truncated file.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    weights = weights_of(folder, manifest) if manifest.mask_of else None
    masks = Masks(folder, manifest, weights)
    return {name: masks.one(name) for name in manifest.masks}


class Masks:
    """The unit masks of a folder, read one at a time.

    Args:
        folder, manifest: the folder.
        weights: its weights, where the manifest reads masks off them.

    Errors: `VerificationError` for a changed file, and for masks that are not there or of another shape.
    """

    def __init__(self, folder: Path, manifest: Manifest, weights: Weights | None) -> None:
        self._file, self._manifest, self._weights = _verified(folder, MASKS, manifest), manifest, weights
        for name, shape in manifest.masks.items():
            size, place = math.prod(shape), self._file.places.get(name)
            if name in manifest.mask_of:
                record = manifest.tensors.get(manifest.mask_of[name])
                if record is None or math.prod(record.shape) != size:
                    raise VerificationError(f"{folder / MARK} reads the mask of {name} off what does not fit it")
            elif place is None or place.dtype != "U8" or place.size != -(-size // 8):
                raise VerificationError(f"{self._file.path} has no mask of {shape} for {name}")

    def one(self, name: str) -> Tensor:
        """A mask: bool of the group's shape."""
        shape = self._manifest.masks[name]
        if self._weights is None or name not in self._manifest.mask_of:
            return unpack(self._file.tensor(name), shape)
        return self._weights.mask(self._manifest.mask_of[name]).reshape(shape)


def serialize(model: nn.Module) -> bytes:
    """The model's state as a safetensors file, dense, tied tensors once. Cost: a copy of the weights."""
    entries = lay(distinct(model.state_dict())[0], sparse=False).entries
    pieces = [np.ascontiguousarray(p).tobytes() for e in entries for p in e.pieces()]
    return head_of(entries, META) + b"".join(pieces)


def stored_bytes(model: nn.Module) -> int:
    """The size of the file that the model's state makes, dense. Cost: no pass over the weights."""
    entries = lay(distinct(model.state_dict())[0], sparse=False).entries
    return len(head_of(entries, META)) + sum(e.size for e in entries)


def digest_of(model: nn.Module) -> str:
    """SHA-256 of a model's state: names, types, shapes and bytes, in the order of names; tied tensors once.

    Cost: one pass over the weights, about a second for a gigabyte.
    """
    sha = hashlib.sha256()
    state, aliases = distinct(model.state_dict())
    sha.update(json.dumps(sorted(aliases.items())).encode())
    for name in sorted(state):
        sha.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}\n".encode())
        sha.update(Matrix(state[name]).bits.data)
    return sha.hexdigest()


def distinct(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tied tensor once, as it lies in the model, and the names that share it.

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
        tensors[name] = t.detach()
    return tensors, aliases


def weights_of(folder: Path, manifest: Manifest) -> Weights:
    """The weights of a folder, after their file's size and digest were compared with the manifest's."""
    file = _verified(folder, WEIGHTS, manifest)
    return Weights(file, {n: r.spec() for n, r in manifest.tensors.items()})


def _readable_from(laid: Laid, result: Result) -> dict[str, str]:
    """Groups whose mask is which entries of one packed tensor hold anything: group name -> tensor."""
    found: dict[str, str] = {}
    for group in result.groups:
        mask, member = result.unit_masks.get(group.name), group.members[0]
        single = len(group.members) == 1 and member.dim is None and member.param in laid.packed
        if mask is not None and single and nonzero_of(laid.packed[member.param].source(), mask):
            found[group.name] = member.param
    return found


def _prepare_(model: nn.Module, manifest: Manifest, stored: Mapping[str, str]) -> None:
    """Write the model's modules anew where the recipe did so before pruning (layers as products), if it is not done."""
    recipe = manifest.result.get("recipe")
    plain = recipe.get("prepare") if isinstance(recipe, Mapping) else None
    names = stored.keys() - manifest.aliases.keys()
    if isinstance(plain, Mapping) and not _fits(names, _own_state(model)):
        preparation_of(plain).again(model, names)


def _fits(stored: Set[str], own: Mapping[str, Tensor]) -> bool:
    """Whether what is stored are names of the model, one for each of its tensors."""
    names = dict.fromkeys(id(t) for t in own.values())
    return stored <= own.keys() and len(stored) == len(names)


def _own_state(model: nn.Module) -> dict[str, Tensor]:
    return {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}


def _verified(folder: Path, name: Name, manifest: Manifest) -> TensorFile:
    """A safetensors file, after its size and digest were compared with the manifest's."""
    file, record = folder / name, manifest.files[name]
    if not file.is_file():
        raise VerificationError(f"{file} is missing")
    size = file.stat().st_size
    if size != record.bytes:
        raise VerificationError(
            f"{file} has {size:,} bytes, the manifest says {record.bytes:,}: it was cut off or changed"
        )
    if sha256_of(file) != record.sha256:
        raise VerificationError(f"{file} is not what was saved: its SHA-256 differs from the manifest's")
    return TensorFile(file)
