"""What one process of several does with a folder; the test reads what it wrote."""

from __future__ import annotations

import json
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import prunus
from prunus.core.errors import PrunusError
from prunus.stream import prune_folder
from tests import conftest  # noqa: F401 (what transformers needs here)
from tests.stream.test_folder import batches_for

WORLD = 2
CASES = (
    *(("magnitude_uniform", "llama"), ("wanda", "llama"), ("sparsegpt", "llama"), ("owl", "llama")),
    ("wanda", "mixtral"),
)


def data(kind: str) -> list[Any]:
    """An odd number of batches of which one is longer, so that processes see unequally many tokens."""
    first, *rest = batches_for(kind)
    return [{"input_ids": torch.cat([first["input_ids"]] * 2, 1)}, *rest]


def work(rank: int, folder: str) -> None:
    """Every case, one after another in one process group."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=300)
    )
    masks = {}
    for method, kind in CASES:
        out = Path(folder, f"{method}-{kind}-two")
        made = prune_folder(Path(folder, kind), out, method, data(kind), sparsity=0.5)
        masks[f"{method}-{kind}"] = [made.masks, (out / "prunus.json").is_file()]
    errors = {
        "seed": refused(folder, data("llama"), seed=rank),
        "data": refused(folder, data("llama")[rank:]),
        "few": refused(folder, data("llama")[:1]),
        "there": refused(folder, data("llama"), out="llama-alone"),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps({"masks": masks, "errors": errors}))
    dist.destroy_process_group()


def refused(folder: str, batches: list[Any], seed: int = 0, out: str = "refused") -> str:
    """What is said to something that the processes cannot do together."""
    try:
        prune_folder(Path(folder, "llama"), Path(folder, out), "wanda", batches, sparsity=0.5, seed=seed)
    except PrunusError as error:
        return str(error)
    return f"{prunus.__name__} did it"
