"""Folders that `from_pretrained` reads, for compact models of transformers."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from prunus import __version__
from prunus.core.errors import PrunusError, SpecError, StructureError, VerificationError, listed, require
from prunus.core.task import Example
from prunus.deploy.atomic import MARK, new_folder
from prunus.deploy.files import load, save
from prunus.deploy.hf_search import Number, built, configurations, differences, refusals, uneven
from prunus.deploy.manifest import read_manifest, sha256_of
from prunus.deploy.tensors import open_plain
from prunus.deploy.weights import check_claim, free_memory
from prunus.engine.result import Result
from prunus.graph import Nothing
from prunus.graph import verify as compare
from prunus.graph.running import unwrap

NOTE = "prunus.json"
_TRIES = 6
_INDEX = "model.safetensors.index.json"
_READ = ("config.json", "generation_config.json", _INDEX)
_MOST = 1 << 26  # bytes of a file of JSON
_HALF = 1e-2
_REFUSED = "{} refuses the configuration with these shapes ({})"
_NOTES = "transformers"


@dataclass(frozen=True)
class Saved:
    """Where a compact model lies and how it is read.

    Attributes:
        folder: the folder.
        uniform: whether transformers reads it by itself; otherwise Prunus is needed to read it.
        changed: field of the configuration -> its value in the dense model and now.
        reason: why it is not uniform.
        kind: the name of the model's class.
    """

    folder: Path
    uniform: bool
    kind: str
    changed: dict[str, tuple[Number | None, Number | None]] = field(default_factory=dict)
    reason: str = ""

    @property
    def loader(self) -> str:
        """The Python expression that gives the model back."""
        if self.uniform:
            return f"transformers.{self.kind}.from_pretrained({str(self.folder)!r})"
        return f"prunus.deploy.from_pretrained({str(self.folder)!r})"

    def __str__(self) -> str:
        if not self.uniform:
            return f"{self.folder}: {self.loader} ({self.reason})"
        fields = ", ".join(f"{n} {was} -> {now}" for n, (was, now) in self.changed.items())
        return f"{self.folder}: {self.loader} ({fields or 'configuration unchanged'})"


def save_pretrained(
    model: Result | nn.Module, folder: str | Path, *, example: Example | Tensor | None = None, verify: bool = True
) -> Saved:
    """Write a compact transformers model so that `from_pretrained` of its own class gives it back.

    The fields of the configuration that have to change (`intermediate_size`, `num_key_value_heads`, ...) are found by
    building the class on the meta device until all shapes are those of the compact model, and what `from_pretrained`
    then makes of the folder is compared with it, in float64. Where layers keep unequally many units, no configuration
    can say so: the folder is then one of `prunus.save`, with the dense configuration in its manifest, and
    `prunus.deploy.from_pretrained` reads it.

    Args:
        model: a `Result` (compacted here), or a model that is compact already, which must be uniform.
        folder: where to; an earlier folder of the same kind is replaced in one step, anything else is refused.
        example: an input to compare on; left out, the result's own.
        verify: compare outputs. Without it, the first configuration with the right shapes is taken.

    Returns: what was written. `str()` of it says how to read it.
    Cost: a few instances without weights for the search, one more copy of the model for the comparison.
    Errors: `SpecError` for a model that is not of transformers or a missing example; `StructureError` for a compact
        model without a result that no configuration describes; `VerificationError` as of `Result.compact`.
    """
    transformers = require("transformers", extra="hf")
    dense = unwrap(model.model if isinstance(model, Result) else model)
    if not isinstance(dense, transformers.PreTrainedModel):
        raise SpecError(
            f"save_pretrained is for models of transformers, this is a {type(dense).__name__}: use prunus.save"
        )
    example = model.example if example is None and isinstance(model, Result) else example
    if verify and example is None:
        raise SpecError("the saved model is compared with this one: pass example=, or verify=False")
    folder = Path(folder)
    small = unwrap(model.compact(verify=example is not None)) if isinstance(model, Result) else dense
    branches = any(isinstance(module, Nothing) for module in small.modules())
    reason = "single branches of layers were removed" if branches else uneven(small, small.config)
    for config in islice(configurations(small, small.config), _TRIES) if not reason else ():
        try:
            return _uniform(small, config, folder, model, example if verify else None, dense.config)
        except _Unfit as error:
            reason = reason or str(error)
    reason = reason or "no configuration of this class gives these shapes"
    if not isinstance(model, Result):
        raise StructureError(
            f"{type(small).__name__} cannot say this structure in its configuration: {reason}. "
            "Pass the Result: its edits are then saved beside the weights"
        )
    return _manifest(model, folder, reason)


def _uniform(
    small: nn.Module, config: Any, folder: Path, source: Any, example: Example | Tensor | None, dense: Any
) -> Saved:
    """Write the folder as transformers does; `_Unfit` where what is read back computes something else."""
    kind: Any = type(small)
    carrier: Any = built(kind, config)
    # The weights themselves, not copies; what is computed and not saved may stay without values.
    carrier.load_state_dict(small.state_dict(), assign=True)
    carrier.tie_weights()
    if getattr(small, "generation_config", None) is not None:
        carrier.generation_config = copy.deepcopy(small.generation_config)
    changed = differences(dense, config)
    note: dict[str, Any] = {"prunus": __version__, "class": kind.__name__, "changed": changed}
    if isinstance(source, Result):
        note["result"] = source.to_dict()
    try:
        with new_folder(folder, mark=NOTE) as temporary, no_bars():
            _write(carrier, temporary)
            if example is not None:
                back = _read_back(kind, temporary, small)
                half = any(t.is_floating_point() and t.itemsize < 4 for t in (*small.parameters(), *small.buffers()))
                # Tables that are computed and not saved may have been rounded with the weights.
                compare(small, back, example, tol=_HALF if half else 1e-9)
            note["files"] = {f.name: sha256_of(f) for f in sorted(temporary.iterdir())}
            (temporary / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    except (VerificationError, StructureError) as error:
        raise _Unfit(f"the configuration with these shapes computes something else ({error})") from error
    return Saved(folder, True, kind.__name__, changed)


@contextmanager
def no_bars() -> Iterator[None]:
    """Without the progress bars of transformers."""
    logging = importlib.import_module("transformers.utils.logging")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class _Unfit(Exception):
    """A configuration with the right shapes that does not give the compact model back."""


def _write(carrier: Any, folder: Path) -> None:
    try:
        carrier.save_pretrained(str(folder))
    except OSError:
        raise  # the disk, not the configuration
    except safetensors.SafetensorError as error:
        raise PrunusError(f"could not write the weights: {error}. Nothing was left behind; free space") from error
    except refusals() as error:
        raise _Unfit(_REFUSED.format(type(carrier).__name__, error)) from error


def _read_back(kind: Any, folder: Path, small: nn.Module) -> nn.Module:
    place = next(small.parameters())
    try:
        with torch.random.fork_rng(devices=[]):
            back: nn.Module = kind.from_pretrained(str(folder), local_files_only=True)
    except refusals() as error:
        raise _Unfit(_REFUSED.format(kind.__name__, error)) from error
    return back.to(place.device)


def _manifest(result: Result, folder: Path, reason: str) -> Saved:
    """A folder of `prunus.save` that also says which class and configuration to start from."""
    notes, texts = described(unwrap(result.model), folder.name, reason)
    save(result, folder, compact=True, sparse=False, notes=notes, texts=texts)  # other tools look into these folders
    return Saved(folder, False, type(unwrap(result.model)).__name__, reason=reason)


def described(model: Any, folder: str, reason: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What a folder of `prunus.save` says of a dense transformers model, for `from_pretrained` below: notes for its
    manifest, and files (name -> content).
    """
    kind = type(model).__name__
    note: dict[str, Any] = {"class": kind, "config": json.loads(model.config.to_json_string(use_diff=False))}
    if getattr(model, "generation_config", None) is not None:
        note["generation"] = json.loads(model.generation_config.to_json_string(use_diff=False))
    readme = (
        f"# A pruned {kind}\n\n"
        f"No configuration of transformers can say its structure: {reason}.\n"
        f"It is in `{MARK}`, checked by digest when it is read:\n\n"
        f"```python\nimport prunus.deploy\n\nmodel = prunus.deploy.from_pretrained({folder!r})\n```\n"
    )
    # Without a configuration, transformers would build a model of its default size; with the dense one it stops at once
    # and names the shapes that differ.
    texts = {
        "README.md": readme,
        "config.json": json.dumps({**note["config"], "architectures": [kind]}, indent=1) + "\n",
    }
    return {_NOTES: note}, texts


def from_pretrained(folder: str | Path) -> nn.Module:
    """The model of a folder that `save_pretrained` wrote, uniform or not, in evaluation mode.

    The class is one of transformers' own, by the name that the folder gives; nothing in the folder is executed, and
    weights are read from safetensors only.

    Digests are compared where the folder has any, and all weights must be in its files.
    Errors: `SpecError` for a folder of something else; `VerificationError` for a changed, truncated or incomplete one,
    or a model that takes more memory than is free.
    """
    transformers = require("transformers", extra="hf")
    folder = Path(folder)
    if (folder / MARK).is_file():
        note = read_manifest(folder).notes.get(_NOTES)
        if not isinstance(note, dict) or not isinstance(note.get("config"), dict):
            raise SpecError(f"{folder} holds no model of transformers: prunus.load({str(folder)!r}, factory) reads it")
        kind = _class_named(transformers, note.get("class"), folder)
        with torch.random.fork_rng(devices=[]):
            model = load(folder, lambda: _dense(kind, note["config"], folder))
        if isinstance(note.get("generation"), dict):
            setattr(model, "generation_config", transformers.GenerationConfig.from_dict(note["generation"]))  # noqa: B010
        return model
    if not (folder / NOTE).is_file():
        raise SpecError(f"{folder} has neither {MARK} nor {NOTE}: it is not a folder of prunus.deploy.save_pretrained")
    named = _told(folder / NOTE)
    kind = _class_named(transformers, named.get("class"), folder)
    _check_files(folder, named.get("files"))
    config = _told(folder / "config.json")
    failures: tuple[type[Exception], ...] = (*refusals(), safetensors.SafetensorError)
    try:
        check_claim(f"{kind.__name__} in {folder}", _bytes_of(kind, config), free_memory())
        with no_bars():
            found: tuple[nn.Module, dict[str, Any]] = kind.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except failures as error:
        raise VerificationError(f"{folder} cannot be read: {error}; save the model again") from error
    model, about = found
    wrong = [f"{n} ({what.removesuffix('_keys')})" for what in sorted(about) for n in sorted(map(str, about[what]))]
    if wrong:
        raise VerificationError(f"{folder} does not hold what its configuration says: {listed(wrong)}")
    return model.eval()


def _told(file: Path) -> dict[str, Any]:
    """A table in a JSON file. Errors: `VerificationError`."""
    try:
        with open_plain(file, links=True) as stream:
            text = stream.read(_MOST + 1)
        found = json.loads(text) if len(text) <= _MOST else None
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"{file} is not JSON ({error}): it was changed; save the model again") from error
    if not isinstance(found, dict):
        raise VerificationError(f"{file} is no table of at most {_MOST:,} bytes: it was changed; save the model again")
    return found


def _check_files(folder: Path, digests: Any) -> None:
    """Compare what transformers will read with its digests, where there are any. Errors: `VerificationError`."""
    read = [f for f in folder.iterdir() if f.suffix == ".safetensors" or f.name in _READ]
    if digests is not None:
        known: dict[Any, Any] = digests if isinstance(digests, dict) else {}
        names = {f.name for f in read} | {str(n) for n in known}
        wrong = [n for n in sorted(names) if Path(n).name != n or known.get(n) != sha256_of(folder / n, links=True)]
        if wrong:
            raise VerificationError(f"{folder} was changed after it was written: {listed(wrong)}; save the model again")
    check_index(folder)


def check_index(folder: Path) -> None:
    """Refuse an index of shards that leads out of its folder, which transformers would follow.

    Errors: `VerificationError`.
    """
    if (index := folder / _INDEX).exists():
        shards = _told(index).get("weight_map")
        for name in shards.values() if isinstance(shards, dict) else [None]:
            if not isinstance(name, str) or Path(name).name != name:
                raise VerificationError(f"{index} names {str(name)[:80]!r}, which is no file of the folder")


def _bytes_of(kind: Any, config: dict[str, Any]) -> int:
    """Bytes that a model with this configuration takes; nothing where it cannot be built, which is told later."""
    hollow = built(kind, kind.config_class.from_dict(config))
    return 0 if hollow is None else sum(t.nbytes for t in (*hollow.parameters(), *hollow.buffers()))


def _dense(kind: Any, config: dict[str, Any], folder: Path) -> nn.Module:
    try:
        check_claim(f"{kind.__name__} in {folder / MARK}", _bytes_of(kind, config), free_memory())
        dense: nn.Module = kind(kind.config_class.from_dict(config))
    except refusals() as error:
        raise SpecError(
            f"{kind.__name__} cannot be built from the configuration in {folder / MARK}: {error}"
        ) from error
    return dense


def _class_named(transformers: Any, name: Any, folder: Path) -> Any:
    """A model class of transformers itself, never one that a folder brings along."""
    found = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise SpecError(
            f"{folder} names the class {name!r}, which is no model of transformers {transformers.__version__}"
        )
    return found
