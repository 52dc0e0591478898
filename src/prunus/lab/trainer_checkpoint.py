"""The trainer's state on disk: tensors as safetensors, the rest as JSON, complete or not there at all.

A folder holds `training.json`, which names its tensor file and that file's SHA-256. The tensor file of a new epoch is
written under its own name first; renaming the JSON over the old one is the moment at which the new state counts.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from prunus.core.errors import PrunusError, SpecError, VerificationError
from prunus.deploy.atomic import write_bytes

_INDEX = "training.json"


@runtime_checkable
class Stateful(Protocol):
    """Anything that can say and take back its state, as a (nested) dict of tensors and JSON values."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read and verified."""

    folder: Path
    meta: dict[str, Any]
    tensors: dict[str, Tensor]


def _flatten(value: Any, at: str, tensors: dict[str, Tensor]) -> Any:
    """Move tensors out of nested dicts, lists and tuples into `tensors`, and leave JSON with references to them."""
    if isinstance(value, Tensor):
        # safetensors wants contiguous tensors that share no memory (tied weights do).
        tensors[at] = value.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": at}
    if isinstance(value, dict):
        # Optimizer states are keyed by integers, which JSON would turn into strings.
        return {"$dict": [[k, _flatten(v, f"{at}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "$tuple" if isinstance(value, tuple) else "$list"
        return {kind: [_flatten(v, f"{at}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise SpecError(f"cannot save {at}: a {type(value).__name__} is neither a tensor nor a JSON value")


def _restore(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "$tensor":
        return tensors[content]
    if kind == "$dict":
        return {k: _restore(v, tensors) for k, v in content}
    items = [_restore(v, tensors) for v in content]
    return tuple(items) if kind == "$tuple" else items


def make_writable(folder: Path) -> None:
    """Make the folder, and make sure that files can be written into it.

    Raises:
        PrunusError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PrunusError(f"cannot write checkpoints to {folder} ({error.strerror}): choose another folder") from error


def write(
    folder: Path,
    epoch: int,
    meta: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: Stateful | None,
) -> None:
    """Save the state after `epoch` and drop the one before."""
    tensors: dict[str, Tensor] = {}
    index = dict(meta)
    index["model"] = _flatten(dict(model.state_dict()), "model", tensors)
    index["optimizer"] = _flatten(optimizer.state_dict(), "optimizer", tensors)
    index["extra"] = None if extra is None else _flatten(extra.state_dict(), "extra", tensors)
    content = to_bytes(tensors)
    index["file"] = f"training-{epoch:05d}.safetensors"
    index["sha256"] = hashlib.sha256(content).hexdigest()
    write_bytes(folder / index["file"], content)
    write_bytes(folder / _INDEX, json.dumps(index).encode())
    for old in folder.glob("training-*.safetensors"):
        if old.name != index["file"]:
            old.unlink(missing_ok=True)


def read(folder: Path) -> Saved | None:
    """The state in a folder, verified; None if there is none.

    Raises:
        VerificationError: the files are damaged or do not belong together.
    """
    path = folder / _INDEX
    advice = f"delete {folder} to start anew"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        index = json.loads(text)
        name, expected = str(index["file"]), str(index["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError(f"{path} is damaged ({error}); {advice}") from error
    tensors_at = folder / Path(name).name
    try:
        content = tensors_at.read_bytes()
    except OSError as error:
        raise VerificationError(f"{path} names {name}, which cannot be read ({error.strerror}); {advice}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        sizes = f"SHA-256 {found[:16]}..., recorded {expected[:16]}..."
        raise VerificationError(f"{tensors_at} ({len(content)} bytes) was changed or is cut off: {sizes}; {advice}")
    return Saved(folder, index, from_bytes(content))


def restore(
    saved: Saved,
    plan: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: Stateful | None,
) -> None:
    """Put a checkpoint back, after making sure that it belongs to this plan, network and optimizer.

    Raises:
        SpecError: it belongs to another training; nothing was changed.
    """
    then = saved.meta["plan"]
    differing = [f"{k}: {then.get(k)} then, {v} now" for k, v in plan.items() if then.get(k) != v]
    weights = _restore(saved.meta["model"], saved.tensors)
    now = model.state_dict()
    differing += [f"{k} is only in one of them" for k in sorted(set(weights) ^ set(now))]
    for name in sorted(set(weights) & set(now)):
        a, b = tuple(weights[name].shape), tuple(now[name].shape)
        if a != b:
            differing.append(f"{name} was {a} then, is {b} now")
    moments = _restore(saved.meta["optimizer"], saved.tensors)
    if (saved.meta["extra"] is None) != (extra is None):
        differing.append("extra state was given in only one of them")
    if [len(g["params"]) for g in moments["param_groups"]] != [len(g["params"]) for g in optimizer.param_groups]:
        differing.append("the optimizers have different parameter groups")
    if differing:
        shown = "; ".join(differing[:4])
        raise SpecError(
            f"the checkpoint in {saved.folder} is of another training ({shown}): use resume=False or another folder"
        )
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    if extra is not None:
        extra.load_state_dict(_restore(saved.meta["extra"], saved.tensors))
