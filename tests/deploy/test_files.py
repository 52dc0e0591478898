"""Folders of pruned models: what is written is what is read, and nothing else is."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import nn

import prunus
from prunus.core.errors import PrunusError, SpecError, StructureError, VerificationError
from prunus.deploy.files import MASKS, WEIGHTS, load_masks, serialize, stored_bytes
from prunus.deploy.manifest import read_manifest
from tests.deploy.toys import KINDS, Toy, pixels, pruned, toy

# Nothing but whole channels is gone, and what is left is dense.
DENSE = ("structured", "tied", "bfloat16 structured")
FILES = (WEIGHTS, MASKS, "pruning.json")


def serialized(state: dict[str, torch.Tensor]) -> bytes:
    """What the safetensors library makes of it, each tensor once."""
    once = {(t.data_ptr(), t.shape): n for n, t in reversed(state.items())}
    return safetensors.torch.save({n: state[n].contiguous() for n in sorted(once.values())}, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prunus.save(pruned("structured"), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_was_written(kind: str, tmp_path: Path) -> None:
    factory, example, _, _ = KINDS[kind]
    result = pruned(kind)
    structured = result.recipe.structure == "structured"
    expected = (result.compact() if structured else result.model).eval()
    loaded = prunus.load(prunus.save(result, tmp_path / "x"), factory)
    own, theirs = loaded.state_dict(), expected.state_dict()
    assert own.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert own[name].dtype == tensor.dtype and own[name].is_contiguous()
        assert torch.equal(own[name], tensor), name
    assert torch.equal(loaded(example), expected(example))
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in expected.named_parameters()]
    masks = load_masks(tmp_path / "x")
    assert masks.keys() == result.unit_masks.keys()
    assert all(torch.equal(m, result.unit_masks[n]) for n, m in masks.items())
    dense = prunus.save(result, tmp_path / "y", sparse=False)
    size = (dense / WEIGHTS).stat().st_size
    assert size == stored_bytes(expected) == len(serialize(expected))
    # In another order, offsets have more or fewer digits.
    assert abs(size - len(serialized(expected.state_dict()))) <= 64
    if kind not in DENSE:
        assert (tmp_path / "x" / WEIGHTS).stat().st_size < stored_bytes(expected)
    if structured:
        assert stored_bytes(expected) < stored_bytes(factory())


def test_a_structured_result_can_be_kept_in_its_dense_shape(tmp_path: Path) -> None:
    result = pruned("structured")
    loaded = prunus.load(prunus.save(result, tmp_path / "x", compact=False), toy)
    assert torch.equal(loaded(pixels()), result.model.eval()(pixels()))
    assert loaded.conv1.weight.shape[0] == 8


def test_another_process_computes_the_same_bits(tmp_path: Path) -> None:
    result = pruned("structured")
    prunus.save(result, tmp_path / "x")
    code = (
        "import sys, torch, prunus; torch.set_num_threads(1)\n"
        "from tests.deploy.toys import toy, pixels\n"
        "from safetensors.torch import save_file\n"
        "with torch.no_grad(): save_file({'y': prunus.load(sys.argv[1], toy)(pixels())}, sys.argv[2])\n"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x"), str(tmp_path / "y")], check=True, env=environment, timeout=120
    )
    from safetensors.torch import load_file

    with torch.no_grad():
        assert torch.equal(load_file(tmp_path / "y")["y"], result.compact().eval()(pixels()))


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_noticed(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    dice = random.Random(f"{name}")
    for at in dice.sample(range(8 * len(content)), 60):
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        (folder / name).write_bytes(damaged)
        with pytest.raises(VerificationError):
            load_masks(folder) if name == MASKS else prunus.load(folder, toy)
    (folder / name).write_bytes(content)
    prunus.load(folder, toy)


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_noticed(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    lengths = {0, 1, 7, 8, 9, *range(0, len(content), max(1, len(content) // 25)), len(content) - 1}
    for length in lengths - {len(content)}:
        (folder / name).write_bytes(content[:length])
        with pytest.raises(VerificationError):
            load_masks(folder) if name == MASKS else prunus.load(folder, toy)


def test_the_manifest_is_checked_byte_for_byte(folder: Path) -> None:
    file = folder / "pruning.json"
    text = file.read_text()
    for changed in (text + " ", text.replace('"seed":', '"seed" :'), text.replace("sha256", "SHA256", 1)):
        file.write_text(changed)
        with pytest.raises(VerificationError, match=r"pruning\.json"):
            prunus.load(folder, toy)


@pytest.mark.parametrize("name", [WEIGHTS, "pruning.json"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(PrunusError, match=name):
        prunus.load(folder, toy)


def test_every_mismatch_of_a_wrong_factory_is_named(tmp_path: Path) -> None:
    folder = prunus.save(pruned("unstructured"), tmp_path / "x")

    def other() -> nn.Module:
        model = Toy()
        model.conv1 = nn.Conv2d(1, 8, 5, bias=False)
        model.conv2 = nn.Conv2d(8, 16, 3, bias=False)
        model.extra = nn.Linear(2, 2)
        return model

    with pytest.raises(SpecError) as caught:
        prunus.load(folder, other)
    for name in ("conv1.weight", "(8, 1, 3, 3)", "(8, 1, 5, 5)", "conv2.bias", "extra.weight", "extra.bias"):
        assert name in str(caught.value)
    with pytest.raises(SpecError, match="returned int"):
        prunus.load(folder, lambda: 3)


class Parts(nn.Module):
    """Sizes that are kept in a sequence and in an object of settings."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.config = [6, 2], SimpleNamespace(width=5, flag=True)
        self.a, self.b, self.c, self.d = nn.Linear(4, 8), nn.Linear(6, 5), nn.Linear(2, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.a(x).relu().split(self.sizes, -1)
        out: torch.Tensor = self.d((self.b(left) + self.c(right)).view(-1, self.config.width))
        return out


def test_sizes_in_sequences_and_settings_are_read_back(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    result = prunus.prune(Parts(), prunus.Task(example=x), "l1_filter", sparsity=0.5)
    small, folder = result.compact(), prunus.save(result, tmp_path / "x")
    again = prunus.load(folder, Parts)
    assert (again.sizes, again.config.width) == (small.sizes, small.config.width) == ([3, 1], 3)
    assert torch.equal(again(x), small.eval()(x))

    class Flags(Parts):
        def __init__(self) -> None:
            super().__init__()
            self.config.width = self.config.flag

    with pytest.raises(PrunusError, match="is no size in the model"):
        prunus.load(folder, Flags)


def test_a_structure_that_does_not_fit_the_factory_is_refused_whole(saved: Path) -> None:
    wide = Toy(width=16)
    before = {n: t.clone() for n, t in wide.state_dict().items()}
    with pytest.raises(StructureError, match=r"conv1\.weight"):
        prunus.load(saved, lambda: wide)
    assert all(torch.equal(t, before[n]) for n, t in wide.state_dict().items())


def test_weights_that_the_factory_ties_must_be_tied_in_the_file(tmp_path: Path) -> None:
    model = toy()
    model.tied.weight = nn.Parameter(model.tied.weight.detach() + 1)
    folder = prunus.save(prunus.prune(model, None, "magnitude", sparsity=0.5), tmp_path / "x")
    with pytest.raises(SpecError, match="one tensor in the model and two in the file"):
        prunus.load(folder, toy)


def test_state_that_is_no_tensor_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"n": 1}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    result = prunus.prune(nn.Sequential(Odd(4, 4)), None, "magnitude", sparsity=0.5)
    with pytest.raises(SpecError, match="extra_state"):
        prunus.save(result, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_notes_and_texts_travel_along(tmp_path: Path) -> None:
    result = pruned("unstructured")
    folder = prunus.save(result, tmp_path / "x", notes={"accuracy": 0.5}, texts={"report.md": "ä"})
    assert read_manifest(folder).notes == {"accuracy": 0.5}
    assert (folder / "report.md").read_text(encoding="utf-8") == "ä"
    for name in ("../x", "a/b", ".hidden", WEIGHTS, "pruning.json", ""):
        with pytest.raises(SpecError, match="texts"):
            prunus.save(result, tmp_path / "y", texts={name: ""})
    assert not (tmp_path / "y").exists()


def test_the_manifest_says_what_was_done(saved: Path) -> None:
    plain = json.loads((saved / "pruning.json").read_text())
    assert plain["format"] == "prunus" and plain["compacted"] is True
    assert plain["result"]["recipe"]["name"] == "l1_filter"
    assert plain["aliases"] == {"tied.weight": "fc.weight"}
    assert {e["target"] for e in plain["edits"]} >= {"conv1.weight", "conv1.out_channels", "bn1.running_mean", "gain"}
