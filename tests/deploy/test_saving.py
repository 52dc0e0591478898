"""Saves that are killed, starved, or larger than memory should be asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

import prunus
from prunus.core.errors import PrunusError, SpecError
from prunus.deploy import atomic, unpack_folder
from prunus.deploy.files import WEIGHTS
from prunus.deploy.manifest import read_manifest
from tests.deploy.saving import PEAK, result, storm, wide
from tests.deploy.toys import pruned, toy

ROOT = Path(__file__).parents[2]


def test_twenty_killed_saves_leave_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    died, old, new = storm(tmp_path / "x", 20)
    assert died >= 10 and old and new


@pytest.mark.slow
def test_a_hundred_killed_saves(tmp_path: Path) -> None:
    died, old, new = storm(tmp_path / "x", 100, seed=1)
    assert died >= 50 and old and new


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read off /proc")
@pytest.mark.parametrize("kind", ["lazy", "model"])
def test_memory_is_under_two_of_the_tensors(kind: str, tmp_path: Path) -> None:
    """Three tensors of 25 MB: made when they are asked for, and of a pruned model that is in memory anyway."""
    run = subprocess.run(
        [sys.executable, "-c", PEAK, kind, str(tmp_path / "x")],
        # What is freed is given back at once, so that the resident size is what is in use.
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr
    rose, tensor = map(int, run.stdout.split())
    assert rose < 2 * tensor, f"{rose / tensor:.2f} tensors"


def test_a_full_disk_is_known_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(PrunusError, match=r"needs [\d,]+ bytes, and 1,000 are free"):
        prunus.save(result(0), tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_links_are_not_written_through(tmp_path: Path) -> None:
    real = prunus.save(result(0), tmp_path / "real")
    before = (real / WEIGHTS).read_bytes()
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name in ("link", "nowhere"):
        with pytest.raises(SpecError, match="symbolic link"):
            prunus.save(result(1), tmp_path / name)
    assert (real / WEIGHTS).read_bytes() == before and sorted(os.listdir(tmp_path)) == ["link", "nowhere", "real"]
    assert prunus.load(tmp_path / "link", lambda: wide(3)) is not None  # reading through a link to a folder is harmless


def test_nothing_outside_the_folder_is_opened(tmp_path: Path) -> None:
    code = (
        "import sys, torch, prunus\n"
        "from tests.deploy.saving import result, wide\n"
        "made = result(0)\n"
        "prunus.load(prunus.save(made, sys.argv[1] + '/warm/x'), lambda: wide(3))\n"
        "seen = []\n"
        "sys.addaudithook(lambda e, a: seen.append((e, str(a[0]))) if e in ('open', 'os.rename', 'os.remove', "
        "'os.mkdir', 'os.rmdir', 'os.chmod', 'shutil.rmtree') and not isinstance(a[0], int) else None)\n"
        "prunus.load(prunus.save(made, sys.argv[1] + '/a/x'), lambda: wide(3))\n"
        "prunus.save(made, sys.argv[1] + '/a/x')\n"
        "print(*(f'{e} {p}' for e, p in seen), sep='\\n')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    # /proc/meminfo is read, modules are imported, and rmtree opens names relative to the folder that it empties.
    harmless = ("/proc/", "/sys/", sys.prefix, sys.base_prefix, str(ROOT / "src"))
    lines = [line.split(" ", 1) for line in run.stdout.splitlines()]
    touched = [(e, p) for e, p in lines if p.startswith("/") and not p.startswith(harmless)]
    assert len(touched) > 10
    assert {p for e, p in touched if not p.startswith(str(tmp_path / "a"))} <= {str(tmp_path)}


@pytest.mark.parametrize("kind", ["unstructured", "semi-structured", "structured", "tied", "bfloat16"])
def test_unpacked_folders_are_what_any_tool_reads(kind: str, tmp_path: Path) -> None:
    made = pruned(kind)
    folder = prunus.save(made, tmp_path / "x", parent=toy(), metrics={"accuracy": (0.9, None)})
    done = unpack_folder(folder, tmp_path / "y")
    model = made.compact() if made.recipe.structure == "structured" else made.model
    own, manifest = model.state_dict(), read_manifest(tmp_path / "y")
    read = safetensors.torch.load_file(tmp_path / "y" / WEIGHTS)
    assert {n: t.dtype for n, t in read.items()} == {n: own[n].dtype for n in read}
    assert all(torch.equal(t, own[n]) for n, t in read.items())
    assert read.keys() | manifest.aliases.keys() == own.keys()
    old = read_manifest(folder)
    assert done.packed == len(old.tensors) and manifest.tensors == {} and manifest.mask_of == {}
    assert (manifest.parent, manifest.metrics, manifest.edits) == (old.parent, old.metrics, old.edits)
    for name, mask in prunus.deploy.load_masks(tmp_path / "y").items():
        assert torch.equal(mask, made.unit_masks[name])
    assert done.after == sum(t.nbytes for t in read.values()) == old.sizes.dense
    assert done.before == old.sizes.stored
    assert unpack_folder(folder, tmp_path / "z", write=False).after == done.after and not (tmp_path / "z").exists()
    with pytest.raises(PrunusError, match="more than the 10 that it may take"):
        unpack_folder(folder, tmp_path / "z", limit=10)


def test_packed_files_are_plain_safetensors(tmp_path: Path) -> None:
    folder = prunus.save(pruned("unstructured"), tmp_path / "x")
    read = safetensors.torch.load_file(folder / WEIGHTS)
    record = read_manifest(folder).tensors["conv2.weight"]
    assert record.pattern == "unstructured" and 0.5 < record.sparsity < 0.9
    assert read["conv2.weight.values"].shape == (record.kept,)
    assert record.bytes == sum(t.nbytes for n, t in read.items() if n.startswith("conv2.weight."))
    assert record.bound <= record.bytes <= 1.1 * record.bound
    with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt", "prunus": "packed"}


def test_codings_can_be_named(tmp_path: Path) -> None:
    made = pruned("unstructured")
    sizes = {}
    for coding in (True, ("bitmask",), ("csr",), False):
        folder = prunus.save(made, tmp_path / "x", sparse=coding)
        assert all(torch.equal(t, made.model.state_dict()[n]) for n, t in prunus.load(folder, toy).state_dict().items())
        sizes[str(coding)] = read_manifest(folder).sizes.stored
        kinds = {r.coding for r in read_manifest(folder).tensors.values()}
        assert coding is True or kinds == set(coding or ())
    # Streams are filled up to whole entries, which the choice does not count.
    assert sizes["True"] <= min(sizes.values()) + 16 and sizes["False"] == max(sizes.values())


def test_the_manifest_knows_its_parent_and_what_was_measured(tmp_path: Path) -> None:
    made, dense = pruned("unstructured"), toy()
    manifest = read_manifest(prunus.save(made, tmp_path / "x", parent=dense, metrics={"accuracy": (0.9, 0.8)}))
    assert manifest.parent == prunus.deploy.digest_of(toy()) and len(manifest.parent) == 64
    assert manifest.metrics["accuracy"].before == 0.9 and manifest.metrics["accuracy"].after == 0.8
    with torch.no_grad():
        dense.conv1.weight[0, 0, 0, 0] += 1
    assert prunus.deploy.digest_of(dense) != manifest.parent
    assert read_manifest(prunus.save(made, tmp_path / "y", parent=manifest.parent)).parent == manifest.parent
