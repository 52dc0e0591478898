"""A folder pruned on several devices in one process: the same bytes, however many there are.

On a machine with two GPUs or more the same cases run on them; elsewhere those are skipped, and copies, threads and the
dealing out of layers are tried on the CPU, named several times.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.core.errors import DataError, SpecError
from prunus.engine.crew import Crew
from prunus.engine.walk import Call
from prunus.parts.allocation import NofM
from prunus.parts.evidence.capture import Use
from prunus.stream import prune_folder
from prunus.stream.devices import devices_of
from tests.stream.test_folder import batches_for, files, saved
from tests.stream.test_towers import made

GPUS = torch.cuda.device_count()
SEVERAL = pytest.param(
    *("cuda:0", "cuda"),
    marks=pytest.mark.skipif(GPUS < 2, reason=f"{GPUS} GPUs here: two at least are needed to share a block"),
)
SURGEON = prunus.methods.get("sparsegpt")
assert SURGEON.reconstruct is not None
RECIPES: dict[str, Any] = {
    "wanda": "wanda",
    "sparsegpt": "sparsegpt",
    "2:4": replace(SURGEON, allocate=NofM(2, 4)),
    "layer by layer": replace(SURGEON, reconstruct=replace(SURGEON.reconstruct, fed="pruned")),  # type: ignore[call-arg]
    "owl": "owl",
    "dsnot": "dsnot",
    "gblm": "gblm",
}
OFTEN = ("wanda", "sparsegpt")


def pruned(folder: Path, out: Path, recipe: Any, batches: list[Any], **how: Any) -> dict[str, bytes]:
    pattern = not isinstance(recipe, str) and recipe.allocate.pattern
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prune_folder(folder, out, recipe, batches, sparsity=None if pattern else 0.5, **how)
    return files(out)


def data(kind: str) -> list[dict[str, Tensor]]:
    """Five batches, of which one is longer, with labels."""
    first, *rest = batches_for(kind)
    more = [{"input_ids": b["input_ids"].flip(0).roll(1, 1)} for b in rest]
    several = [{"input_ids": torch.cat([first["input_ids"]] * 2, 1)}, *rest, *more]
    return [b | {"labels": b["input_ids"]} for b in several]


@pytest.mark.parametrize(("one", "several"), [("cpu", "cpu,cpu"), SEVERAL])
@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m in OFTEN else pytest.mark.slow) for m in RECIPES])
def test_as_one_device(method: str, one: str, several: str, tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense", "20KB")
    alone = pruned(folder, tmp_path / "one", RECIPES[method], data("llama"), device=one)
    assert pruned(folder, tmp_path / "several", RECIPES[method], data("llama"), device=several) == alone


@pytest.mark.parametrize("method", [pytest.param("wanda", marks=pytest.mark.slow), "sparsegpt"])
def test_experts_on_more_devices_than_batches(method: str, tmp_path: Path) -> None:
    _, folder = saved("mixtral", tmp_path / "dense", "20KB")
    alone = pruned(folder, tmp_path / "one", method, batches_for("mixtral"))
    assert pruned(folder, tmp_path / "several", method, batches_for("mixtral"), device=["cpu"] * 4) == alone


def test_towers_with_batches_of_several_kinds(tmp_path: Path) -> None:
    model, batches, _ = made("llava")
    model.save_pretrained(tmp_path / "dense")
    alone = pruned(tmp_path / "dense", tmp_path / "one", "sparsegpt", batches)
    assert pruned(tmp_path / "dense", tmp_path / "two", "sparsegpt", batches, device="cpu, cpu") == alone


def test_a_run_goes_on_with_another_number_of_devices(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, of: int, record: Any) -> None:
        if done == 2:
            raise Stop

    _, folder = saved("llama", tmp_path / "dense", "20KB")
    alone = pruned(folder, tmp_path / "one", "sparsegpt", data("llama"))
    with pytest.raises(Stop):
        pruned(folder, tmp_path / "two", "sparsegpt", data("llama"), device="cpu,cpu,cpu", on_block=stop)
    assert not (tmp_path / "two").exists()
    assert pruned(folder, tmp_path / "two", "sparsegpt", data("llama"), device="cpu,cpu", resume=True) == alone


def test_what_a_device_finds_wrong_is_said(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _, folder = saved("llama", tmp_path / "dense")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][7] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    batches = [{"input_ids": torch.full((2, 6), 7 if i == 1 else 3)} for i in range(4)]
    with pytest.raises(DataError, match="NaN or infinite values in calibration batch 1"):
        pruned(folder, tmp_path / "out", "sparsegpt", batches, device="cpu,cpu,cpu")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense"]
    assert not [t.name for t in threading.enumerate() if t.name.startswith("prunus-device")]


def test_batches_run_side_by_side_on_copies_that_follow_the_block() -> None:
    block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    block.forward = lambda *_: pytest.fail("what stands in for the block's forward was copied")  # type: ignore[method-assign]
    seen: list[tuple[int, str]] = []
    both = threading.Barrier(2)

    def act(one: nn.Module, call: Call) -> Tensor:
        both.wait(60)  # until another batch runs too
        seen.append((id(one), threading.current_thread().name))
        assert not torch.is_grad_enabled() and not one.training
        return nn.Sequential.forward(one, call.args[0])  # type: ignore[arg-type]

    calls = [Call((torch.randn(4, 3),), {}) for _ in range(6)]
    with Crew(["cpu", "cpu"]) as crew:
        crew.take_up(block)
        for scale in (1.0, 0.5):
            with torch.no_grad():
                block[0].weight.mul_(scale)
                block[1].running_mean.add_(scale)  # type: ignore[operator, union-attr]
            outputs = list(crew.each(act, calls))
            for call, output in zip(calls, outputs, strict=True):
                assert torch.equal(output, nn.Sequential.forward(block, call.args[0]))
    assert len(set(seen)) == 2 and len({i for i, _ in seen}) == 2 and len({n for _, n in seen}) == 2


def test_layers_are_dealt_out_by_what_they_cost_and_stay_with_their_inputs() -> None:
    x, y, z = (torch.randn(5, n) for n in (4, 4, 8))
    shapes = {"q": (4, 4), "k": (4, 4), "o": (4, 4), "down": (4, 8)}
    parameters = {n: torch.zeros(s) for n, s in shapes.items()}
    uses = {n: [Use(n, t, 1)] for n, t in (("q", x), ("k", x), ("o", y), ("down", z))}
    with Crew(["cpu", "cpu"]) as crew:
        crew.deal_(uses, parameters)
        assert crew.slots == {"down": 0, "q": 1, "k": 1, "o": 1}
        assert uses["q"][0].x is uses["k"][0].x
        crew.deal_({"late": [Use("late", x, 1)], "k": [Use("k", x, 1)]}, parameters | {"late": torch.zeros(9, 4)})
        assert crew.slots["late"] == 1  # where those that are fed the same lie
        found = list(crew.solve(lambda n: (n, threading.current_thread().name), [(n, n) for n in shapes]))
    assert [n for n, _ in found] == list(shapes)
    assert {t.rpartition("_")[0] for n, t in found if n != "down"} == {"prunus-device-1"}


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = saved("llama", tmp_path / "dense")
    for device in ("cpu,cuda:77", "cpu,,cpu", []):
        with pytest.raises(SpecError, match="cannot be used here"):
            prune_folder(folder, tmp_path / "out", "wanda", data("llama"), sparsity=0.5, device=device)
    with pytest.raises(SpecError, match="which one process does, on the CPU"):
        prune_folder(folder, tmp_path / "out", "flap", data("llama"), sparsity=0.5, device="cpu,cpu")
    monkeypatch.setattr("prunus.stream.devices.distributed", lambda: True)
    with pytest.raises(SpecError, match="several devices are for one process"):
        devices_of("cpu,cpu")
    monkeypatch.setattr("prunus.stream.devices.distributed", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch, "empty", lambda *_, device: device)
    assert devices_of("cuda") == ("cuda:0", "cuda:1", "cuda:2") and devices_of("cuda:1") == ("cuda:1",)
