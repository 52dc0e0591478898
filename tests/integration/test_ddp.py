"""Two processes on gloo: the same mask on every rank, or an error on every rank, and never a wait without end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration import ranks

pytestmark = [pytest.mark.ddp, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the ranks wrote; they run all cases, so that two processes are started only once."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(ranks.work, args=(str(folder),), nprocs=ranks.WORLD)
    return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(ranks.WORLD)]


@pytest.mark.parametrize("name", ranks.AGREE)
def test_every_rank_has_the_same_masks(reports: list[dict[str, Any]], name: str) -> None:
    one, other = (r["agree"][name] for r in reports)
    assert one["step"] == other["step"] == ranks.STEPS
    different = {"rigl": 3, "network_slimming": 2, "supermask": 2, "continuous_sparsification": 2}.get(name, 1)
    assert one["digests"] == other["digests"] and len(set(one["digests"])) == different
    assert one["weights"] == other["weights"] and one["sum"] == other["sum"] and one["kept"] == other["kept"] > 0
    assert one["score"] == other["score"]  # averaged over the batches of both


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("seed", "2 ranks of this run differ in their seed"),
        ("seed of a method without chance", "give every rank the same seed"),
        ("weights", "differ in their weights.*DistributedDataParallel before"),
        ("steps", "differ in their steps.*same steps"),
        ("budget", "differ in their budget"),
        ("recipe", "differ in their recipe"),
        ("masks", "2 ranks chose different masks.*average their gradients"),
    ],
)
def test_ranks_that_differ_all_say_so(reports: list[dict[str, Any]], case: str, message: str) -> None:
    for report in reports:
        text, untouched = report["errors"][case]
        assert re.search(message, text), text
        assert untouched
