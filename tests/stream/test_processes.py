"""A folder pruned by two processes on gloo: what one process makes of it, and errors on both where they differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.core.errors import SpecError
from prunus.stream import prune_folder
from tests.stream import ranks
from tests.stream.test_folder import read, saved

pytestmark = [pytest.mark.ddp, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ranks wrote; they run all cases, so that two processes are started only once."""
    made = tmp_path_factory.mktemp("ranks")
    for kind in dict(ranks.CASES).values():
        saved(kind, made / kind)
    (made / "llama-alone").mkdir()
    (made / "llama-alone" / "mine.txt").touch()
    torch.multiprocessing.spawn(ranks.work, args=(str(made),), nprocs=ranks.WORLD)
    return made


def reports(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks.WORLD)]


@pytest.mark.parametrize(("method", "kind"), ranks.CASES)
def test_two_processes_are_as_good_as_one(folder: Path, method: str, kind: str) -> None:
    one = prune_folder(folder / kind, folder / f"{method}-{kind}-one", method, ranks.data(kind), sparsity=0.5)
    assert [r["masks"][f"{method}-{kind}"] for r in reports(folder)] == [[one.masks, True]] * ranks.WORLD
    model = saved(kind, folder / f"{kind}-again")[0]
    alone, together = (read(type(model), folder / f"{method}-{kind}-{n}").state_dict() for n in ("one", "two"))
    for name, w in alone.items():
        if method == "sparsegpt":  # sums in another order
            assert torch.allclose(w, together[name], rtol=1e-4, atol=1e-6), name
        else:
            assert torch.equal(w, together[name]), name


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("seed", "2 ranks of this run differ in their model, recipe, budget, seed or calibration data"),
        ("data", "2 ranks of this run differ"),
        ("few", "1 calibration batches cannot be shared by 2 processes"),
        ("there", ""),
    ],
)
def test_what_cannot_be_done_together_is_refused_by_all(folder: Path, case: str, message: str) -> None:
    for report in reports(folder):
        assert message in report["errors"][case] and "did it" not in report["errors"][case]
    assert not (folder / "refused").exists() and (folder / "llama-alone" / "mine.txt").exists()


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for device in ("cuda:77", "nonsense"):
        with pytest.raises(SpecError, match=f"device='{device}' cannot be used here"):
            prune_folder(tmp_path, tmp_path / "out", "wanda", ranks.data("llama"), sparsity=0.5, device=device)
