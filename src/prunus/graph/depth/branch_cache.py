"""Run a decoder twice, the second time with what the first left in its cache: `use_cache` and `past_key_values`.

Layers that are left out leave a hole in the cache, and how long a mask or a position is may be read from one layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.graph.flow import tensors_in
from prunus.graph.running import FAILURES

_CACHES = ("past_key_values", "cache_params")
_SWITCH = "use_cache"
_TEXTS = (("decoder_input_ids", "decoder_attention_mask"), ("input_ids", "attention_mask"))
"""What grows from step to step, and its mask; the first that a model is given."""


class Stepper(nn.Module):
    """A model as one that takes two steps: all of the example, and its last token once more with the cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.held = SimpleNamespace(cache=None)  # an attribute of this module would come back with those of the model

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        signature = inspect.signature(self.model.forward)
        taken = next((n for n in _CACHES if n in signature.parameters), None)
        if taken is None or _SWITCH not in signature.parameters:
            raise TypeError("takes no cache")
        bound = signature.bind(*args, **kwargs).arguments
        rest = next((n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD), None)
        inputs = {**{k: v for k, v in bound.items() if k != rest}, **(bound.get(rest, {}) if rest else {})}
        text, mask = next(((t, m) for t, m in _TEXTS if isinstance(inputs.get(t), Tensor)), ("", ""))
        if not text:
            raise TypeError("is given no tokens")
        first = self.model(**{**inputs, _SWITCH: True})
        if isinstance(first, tuple):
            first = self.model(**{**inputs, _SWITCH: True, "return_dict": True})
        cache = self.held.cache = first[taken] if isinstance(first, Mapping) else getattr(first, taken)
        if cache is None:
            raise TypeError("returns no cache")
        before = [t.clone() for t in _without_cache(first)]
        more = {text: inputs[text][:, -1:], taken: cache, _SWITCH: True}
        if isinstance(inputs.get(mask), Tensor):
            more[mask] = torch.cat([inputs[mask], inputs[mask][:, -1:]], dim=1)
        # Positions of the first step are not those of the second, which the model counts itself.
        again = {k: v for k, v in inputs.items() if "position" not in k and k not in ("labels", "inputs_embeds")}
        try:
            after = self.model(**{**again, **more})
        except FAILURES:  # images and sounds that went with the first step
            after = self.model(**{**{k: v for k, v in again.items() if not isinstance(v, Tensor)}, **more})
        return [*before, *_without_cache(after), torch.tensor(_lengths(cache))]


def takes_cache(module: nn.Module) -> bool:
    """Whether a module can be given a cache."""
    return bool(set(_CACHES) & set(inspect.signature(module.forward).parameters))


def _without_cache(output: Any) -> list[Tensor]:
    return [t for k, v in output.items() if k not in _CACHES for t in tensors_in(v)]


def _lengths(cache: Any) -> list[int]:
    """What models read from a cache: its length, and the length and offset of masks, by kind of layer."""
    kinds = list(getattr(cache, "is_sliding", ()))
    found: list[int] = []
    try:
        found.append(int(cache.get_seq_length()))
        for kind in dict.fromkeys(kinds):
            found += [int(n) for n in cache.get_mask_sizes(1, kinds.index(kind))]
    except FAILURES:  # a cache of states has no length
        return found
    return found
