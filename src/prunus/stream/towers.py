"""Models of several towers, each calibrated with what it takes: texts, images, sound, or all of them together."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from prunus.core.errors import PrunusWarning, listed
from prunus.core.task import Batch, Task

FEATURES = ("get_image_features", "get_video_features", "get_audio_features", "get_text_features")
"""What models of transformers call the ways through one tower."""


def by_tower(model: nn.Module, batch: Batch) -> Any:
    """The outputs of a model, or of the one tower whose inputs are all that a batch holds.

    Args:
        model: of transformers; others are called as ever.
        batch: a dict of keywords, or anything else that the model takes. `labels` do not count.

    A tower is asked through the model's own `get_image_features` (or video, audio, text), where that takes all keywords
    of the batch and needs no others; the encoder of a model that listens, through `get_encoder`. Anything else is the
    whole model's: texts of a model that also sees are what its decoder reads.
    """
    given = {k: v for k, v in batch.items() if k != "labels" and v is not None} if isinstance(batch, Mapping) else {}
    for name in FEATURES if given else ():
        way = getattr(model, name, None)
        if way is not None and _takes(way, given):
            return way(**given)
    main = getattr(model, "main_input_name", "input_ids")
    two = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if two and main != "input_ids" and main in given and given.keys() <= {main, "attention_mask"}:
        return model.get_encoder()(**given)  # type: ignore[operator]
    return Task().outputs(model, batch)


def _takes(way: Callable[..., Any], given: Iterable[str]) -> bool:
    """Whether a function names all of these keywords, and needs no others."""
    every = inspect.signature(way).parameters.values()
    named = [p for p in every if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = {p.name for p in named if p.default is p.empty}
    return needed <= set(given) <= {p.name for p in named}


def unreached(blocks: Iterable[str], order: Sequence[str]) -> list[str]:
    """The blocks that no calibration batch came to, whole lists as one (`vision_tower.layers.*`)."""
    left = [n for n in blocks if n not in set(order)]
    whole = {n.rpartition(".")[0] for n in left} - {n.rpartition(".")[0] for n in order}
    return list(dict.fromkeys(f"{p}.*" if (p := n.rpartition(".")[0]) in whole else n for n in left))


def warn_unreached(blocks: Iterable[str], order: Sequence[str], stacklevel: int) -> None:
    """Say which blocks no calibration batch came to; `stacklevel` as `warnings.warn` takes it, of the caller."""
    if left := unreached(blocks, order):
        what = f"no calibration batch comes to {listed(left)}: it is copied whole. Pass batches of its kind too"
        warnings.warn(PrunusWarning(what), stacklevel=stacklevel + 1)
