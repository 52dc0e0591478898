"""Two processes on gloo with sharded weights (FSDP2), or copies of them: one process's masks, and its weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus.core.errors import SpecError
from tests.integration import sharding, toys

pytestmark = [pytest.mark.ddp, pytest.mark.timeout(240)]
MOVED = ("rigl", "lth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes wrote, and what one process comes to."""
    folder = tmp_path_factory.mktemp("shards")
    for name in sharding.RECIPES:
        run = sharding.Run(name).train(sharding.HALFWAY)
        (folder / f"alone {name} half").write_bytes(toys.pack(run.save()))
        (folder / f"alone {name}").write_bytes(toys.pack(run.train(sharding.STEPS).save()))
    torch.multiprocessing.spawn(sharding.work, args=(str(folder),), nprocs=sharding.WORLD)
    return folder


def read(folder: Path, *names: str) -> list[dict[str, Any]]:
    return [toys.unpack((folder / name).read_bytes()) for name in names]


def equal_masks_and_near_weights(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Masks, and all that is decided, to the bit; sums over processes are rounded in another order."""
    for key in ("masks", "explored"):
        assert toys.same(found["session"][key], expected["session"][key])
    assert found["session"]["history"] == expected["session"]["history"]
    for kind in ("model", "momentum"):
        assert found[kind].keys() == expected[kind].keys()
        for n, t in found[kind].items():
            torch.testing.assert_close(t, expected[kind][n], rtol=1e-9, atol=1e-12)
            assert torch.equal(t == 0, expected[kind][n] == 0), f"{kind} of {n} is zero elsewhere"


@pytest.mark.parametrize(("way", "name"), sharding.WAYS)
def test_masks_and_weights_are_those_of_one_process(folder: Path, way: str, name: str) -> None:
    for half in (" half", ""):
        one, other, alone = read(folder, f"0/{way} {name}{half}", f"1/{way} {name}{half}", f"alone {name}{half}")
        assert toys.pack(one) == toys.pack(other)  # every process holds, and saves, the same
        equal_masks_and_near_weights(one, alone)
    assert sum(int((t == 0).sum()) for t in one["model"].values()) > 10


@pytest.mark.parametrize("name", MOVED)
def test_a_run_goes_on_in_another_number_of_processes(folder: Path, name: str) -> None:
    alone, there, back = read(folder, f"alone {name}", f"0/resumed {name}", f"0/fsdp {name} half")
    equal_masks_and_near_weights(there, alone)
    here = sharding.Run(name, saved=back).train(sharding.STEPS)
    equal_masks_and_near_weights(toys.unpack(toys.pack(here.save())), alone)


@pytest.mark.parametrize("case", sharding.REFUSED)
def test_what_cannot_work_on_shards_is_refused(folder: Path, case: str) -> None:
    for rank in range(sharding.WORLD):
        text, untouched = json.loads((folder / str(rank) / "refused").read_text())[case]
        assert re.search(sharding.REFUSED[case][1], text, re.DOTALL), text
        assert untouched


class FullyShardedDataParallel(nn.Module):
    """What a model wrapped in the first version of FSDP looks like."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_the_first_fsdp_is_refused() -> None:
    with pytest.raises(SpecError, match="fully_shard"):
        prunus.Session(FullyShardedDataParallel(toys.network()), "magnitude", budget=prunus.Budget(0.5))
