"""A transformers model without weights, and the names under which its folder holds them.

Which tensors of a folder make which parameter is what transformers itself says (experts that are stored one by one and
computed as one tensor, layers that were renamed): its own conversion reads them and, reversed, writes them back.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import DataError, Problems, SpecError, listed, require
from prunus.deploy.containers.grid import DTYPES
from prunus.deploy.hf import no_bars
from prunus.engine.walk import Visit
from prunus.stream.memory import give_back
from prunus.stream.shards import Checkpoint

META = torch.device("meta")


@contextmanager
def hollow() -> Iterator[None]:
    """Modules made inside have parameters without values; tables that they compute are real."""
    register = nn.Module.register_parameter

    def registered(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param)
        own = self._parameters[name]
        if own is not None and not own.is_meta:
            self._parameters[name] = nn.Parameter(own.detach().to(META), requires_grad=False)

    nn.Module.register_parameter = registered  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


class Skeleton:
    """The model of a folder, whose weights come and go.

    Attributes:
        model: the module; parameters are on the meta device until they are loaded.
        checkpoint: the folder's weights.
        targets: tensor of the folder -> the parameter or buffer that it is, or is a part of; None for what the model
            does not have.
        large: from how many bytes on a tensor outside of the blocks is read only when it is needed.

    Errors: `MissingExtraError` without transformers; `SpecError` where the class is not one of transformers' own;
        `DataError` where the folder lacks a weight of the model.
    """

    large = 1 << 23

    def __init__(self, checkpoint: Checkpoint) -> None:
        transformers = require("transformers", extra="hf")
        self._loading: Any = importlib.import_module("transformers.core_model_loading")
        self.checkpoint = checkpoint
        floating = (DTYPES[e.dtype] for e in checkpoint.entries.values() if DTYPES[e.dtype].is_floating_point)
        self.model: Any = built(transformers, checkpoint.folder, floating)
        self.model.eval()
        self._ties: dict[str, tuple[str, ...]] = _ties(self.model)
        mapping = importlib.import_module("transformers.conversion_mapping")
        self._conversions: list[Any] = mapping.get_model_conversion_mapping(self.model)
        self._made: dict[str, list[str]] = {}
        self.targets = self._targets()
        self._check()

    def check_tokens(self, batches: Iterable[Any]) -> None:
        """Refuse token ids that the model's table of embeddings does not have, before anything is written."""
        found = getattr(self.model, "get_input_embeddings", lambda: None)
        try:
            table = found()
        except (NotImplementedError, AttributeError):
            return
        if not isinstance(table, nn.Embedding):
            return
        for number, batch in enumerate(batches):
            given = batch if isinstance(batch, Mapping) else {"input_ids": batch}
            for name in ("input_ids", "decoder_input_ids"):
                ids = given.get(name)
                if not isinstance(ids, Tensor) or ids.is_floating_point() or not ids.numel():
                    continue
                low, high = int(ids.min()), int(ids.max())
                if low < 0 or high >= table.num_embeddings:
                    raise DataError(
                        f"{name} of calibration batch {number} holds the token {low if low < 0 else high}, and "
                        f"{self.checkpoint.folder} knows 0 to {table.num_embeddings - 1}: was the text cut into tokens "
                        f"by another model's tokenizer?"
                    )

    def keys(self, prefix: str) -> list[str]:
        """The folder's tensors of a block."""
        start = f"{prefix}." if prefix else ""
        return [k for k, t in self.targets.items() if t is not None and t.startswith(start)]

    def tied(self, name: str) -> tuple[str, ...]:
        """All names of a parameter in the model."""
        return self._ties.get(name, (name,))

    def load_(self, keys: Iterable[str], source: Checkpoint | None = None) -> None:
        """Read these tensors into the model, from the folder or from what was made of it.

        Cost: their bytes, once; twice their memory where tensors are joined.
        """
        state = {k: (source or self.checkpoint).read(k) for k in keys}
        if not state:
            return
        modeling: Any = importlib.import_module("transformers.modeling_utils")
        config = modeling.LoadStateDictConfig(weight_mapping=self._conversions)
        self.model._weight_conversions = None
        with no_bars():
            info, _ = self._loading.convert_and_load_state_dict_in_model(self.model, state, config)
        problems = Problems(f"{self.checkpoint.folder} does not fit {type(self.model).__name__}")
        for name, there, wanted in sorted(info.mismatched_keys):
            problems.add(f"{name} is {tuple(there)} in the folder and {tuple(wanted)} by config.json")
        for name, error in sorted(info.conversion_errors.items()):
            problems.add(f"{name}: {error}")
        problems.raise_if_any(DataError)
        for name in {self.targets[k] for k in state}:
            if name is not None:
                self._tie_(name)

    def stored(self, prefix: str) -> dict[str, Tensor]:
        """A loaded block's tensors as the folder names and cuts them."""
        keys = self.keys(prefix)
        names = {n for k in keys if (n := self.targets[k]) is not None}
        own = {n: t for n, t in self.model.state_dict().items() if n.startswith(f"{prefix}." if prefix else "")}
        found = self._loading.revert_weight_conversion(self.model, {n: t for n, t in own.items() if not t.is_meta})
        out: dict[str, Tensor] = {}
        for name, tensor in found.items():
            if name in self.targets:
                out[name] = tensor
                continue
            # A prefix that transformers adds or drops by itself.
            same = [k for k in keys if self.targets[k] == name]
            if len(same) == 1:
                out[same[0]] = tensor
        if missing := sorted(set(keys) - set(out)):
            raise DataError(
                f"{listed(missing)} cannot be written back as the folder has them, of {len(names)} parameters of "
                f"{prefix}: load the model and prune it in memory"
            )
        return {k: out[k].contiguous() for k in keys}

    def evict_(self, block: nn.Module) -> None:
        """Forget a block's weights."""
        for module in block.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = nn.Parameter(p.detach().to(META), requires_grad=False)

    def loaded(
        self, visits: Iterable[Visit], blocks: Mapping[str, nn.Module], load: Callable[[Visit], None]
    ) -> Iterator[Visit]:
        """The visits, each block with its weights, which `load` reads, until the next one."""
        before: nn.Module | None = None
        for visit in visits:
            if before is not None:
                self.evict_(before)
            self.release_(blocks)
            load(visit)
            give_back()
            before = visit.block
            yield visit
        if before is not None:
            self.evict_(before)

    @contextmanager
    def on_demand(self, blocks: Mapping[str, nn.Module]) -> Iterator[None]:
        """Load what lies outside of the blocks: small tensors now, large ones (tables of embeddings, the output layer)
        when the module that holds them is called.
        """
        inside = {id(m) for b in blocks.values() for m in b.modules()}
        waiting: dict[int, list[str]] = {}
        now: list[str] = []
        for path, module in self.model.named_modules():
            own = [f"{path}.{n}" if path else n for n in (*module._parameters, *module._buffers)]
            names = {tied for n in own for tied in self._ties.get(n, (n,))}
            for key in (k for k, t in self.targets.items() if t in names and id(module) not in inside):
                if self.checkpoint.entries[key].size < self.large:
                    now.append(key)
                else:
                    waiting.setdefault(id(module), []).append(key)

        def load(module: nn.Module, _args: Any) -> None:
            if keys := [k for k in waiting[id(module)] if self._empty(k)]:
                give_back()  # the last block is still there, and what running it has left
                self.load_(keys)

        self.load_(dict.fromkeys(now))
        with ExitStack() as stack:
            for module in self.model.modules():
                if id(module) in waiting:
                    stack.callback(module.register_forward_pre_hook(load).remove)
            yield

    def release_(self, blocks: Mapping[str, nn.Module]) -> None:
        """Forget the large tensors outside of the blocks, until they are needed again."""
        inside = {id(m) for b in blocks.values() for m in b.modules()}
        for module in self.model.modules():
            for name, p in module._parameters.items() if id(module) not in inside else ():
                if p is not None and p.numel() * p.itemsize >= self.large:
                    module._parameters[name] = nn.Parameter(p.detach().to(META), requires_grad=False)

    def _empty(self, key: str) -> bool:
        path, _, leaf = str(self.targets[key]).rpartition(".")
        return bool(getattr(self.model.get_submodule(path), leaf).is_meta)

    def _tie_(self, name: str) -> None:
        """Let all modules that share a parameter share it again."""
        ties = self._ties.get(name, ())
        if len(ties) > 1:
            path, _, leaf = name.rpartition(".")
            value = self.model.get_submodule(path)._parameters[leaf]
            for other in ties:
                path, _, leaf = other.rpartition(".")
                self.model.get_submodule(path)._parameters[leaf] = value

    def _targets(self) -> dict[str, str | None]:
        state = self.model.state_dict()
        renamings = [c for c in self._conversions if isinstance(c, self._loading.WeightRenaming)]
        converters = [c for c in self._conversions if isinstance(c, self._loading.WeightConverter)]
        all_made = {p: c.target_patterns for c in converters for p in c.source_patterns}
        found: dict[str, str | None] = {}
        for key in self.checkpoint.entries:
            prefix = self.model.base_model_prefix
            name, pattern = self._loading.rename_source_key(key, renamings, converters, prefix, state)
            if name not in state:
                name, pattern = self._loading.rename_source_key(key, [], [], prefix, state)
            found[key] = name if name in state else None
            if name in state:
                first, *others = all_made.get(pattern, [""])
                self._made[key] = [name, *(name.replace(first, other) for other in others)]
        return found

    def _check(self) -> None:
        there = {n for made in self._made.values() for t in made for n in self._ties.get(t, (t,))}
        missing = sorted(n for n, _ in self.model.named_parameters() if n not in there)
        # What transformers itself computes and never stores (sinusoidal positions).
        made = [re.compile(p) for p in self.model._keys_to_ignore_on_load_missing or ()]
        for name in [n for n in missing if any(p.search(n) for p in made)]:
            module = self.model.get_submodule(name.rpartition(".")[0])
            module.to_empty(device="cpu", recurse=False)
            self.model._init_weights(module)
            missing.remove(name)
        if missing:
            raise DataError(
                f"{self.checkpoint.folder} lacks {len(missing)} weights of {type(self.model).__name__}: "
                f"{listed(missing)}. Is it the folder of another model, or were shards left out of the index?"
            )


def _ties(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Parameter name -> all names of the same parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(group) for group in names.values() for name in group}


def built(transformers: Any, folder: Path, floating: Iterable[torch.dtype] = ()) -> Any:
    """The model of a folder's config, without memory; its type is the config's, else the first of `floating`.

    Fails: `SpecError` for a config that is missing or no JSON, or names a class that is no model of transformers.
    """
    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = told.get("architectures") or []
    except FileNotFoundError:
        raise SpecError(f"{folder} has no config.json, so the model's class and sizes are unknown") from None
    except (ValueError, AttributeError) as error:
        raise SpecError(f"{folder / 'config.json'} is no JSON table ({error}): copy it again") from None
    kind = getattr(transformers, str(names[0]), None) if names and str(names[0]).isidentifier() else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise SpecError(
            f"{folder / 'config.json'} names the class {names[0] if names else None!r}, which is no model of "
            f"transformers {transformers.__version__}; code from a folder is never run"
        )
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    dtype = config.dtype or next(iter(floating), torch.float32)
    made: Any = kind
    with hollow(), torch.random.fork_rng(devices=[]):
        return made._from_config(config, dtype=dtype)
