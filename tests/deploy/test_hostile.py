"""Manifests that somebody wrote on purpose, with a digest that fits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import prunus
from prunus.core.errors import PrunusError, SpecError, VerificationError
from prunus.deploy import manifest
from prunus.deploy.files import load_masks
from prunus.deploy.unpacking import unpack_folder
from tests.deploy.toys import pruned, toy


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prunus.save(pruned("structured"), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def seal(folder: Path, plain: Any) -> None:
    """Write a manifest with a digest that is right."""
    if isinstance(plain, dict):
        plain["sha256"] = "0" * 64
    text = json.dumps(plain).encode()
    digest = hashlib.sha256(text).hexdigest().encode()
    (folder / "pruning.json").write_bytes(text.replace(b"0" * 64, digest, 1))


def content(folder: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((folder / "pruning.json").read_text())
    return plain


def test_sealing_by_hand_is_how_the_format_does_it(folder: Path) -> None:
    seal(folder, content(folder))
    prunus.load(folder, toy)


@pytest.mark.parametrize(
    "edit",
    [
        {"target": "forward", "old": 1, "new": 1},
        {"target": "conv1.forward", "old": 1, "new": 0},
        {"target": "conv1.__class__", "old": 1, "new": 0},
        {"target": "conv1.__dict__.out_channels", "old": 8, "new": 4},
        {"target": "__class__.__name__", "old": 1, "new": 0},
        {"target": "conv1._forward_hooks", "old": {}, "new": {"1": "print"}},
        {"target": "conv1._parameters", "old": {}, "new": {}},
        {"target": "conv1.training", "old": False, "new": True},
        {"target": "conv1.training", "old": 0, "new": 0},
        {"target": "bn1.affine", "old": 1, "new": 0},
        {"target": "conv1.padding_mode", "old": "zeros", "new": "reflect"},
        {"target": "conv1.out_channels", "old": 8, "new": "eight"},
        {"target": "conv1.out_channels", "old": 8, "new": 4.0},
        {"target": "conv1.out_channels", "old": 8, "new": -4},
        {"target": "conv1.out_channels", "old": 8, "new": 10**30},
        {"target": "conv1.kernel_size", "old": [3, 3], "new": 3},
        {"target": "conv1.kernel_size", "old": [3, 3], "new": [3, 3, 3]},
        {"target": "conv1.nothing", "old": 8, "new": 4},
        {"target": "nowhere.out_channels", "old": 8, "new": 4},
        {"target": "../conv1.out_channels", "old": 8, "new": 4},
        {"target": "", "old": 8, "new": 4},
        {"target": "fc.weight", "dim": 1, "size": 16, "keep": [[0, 10**15]]},
        {"target": "fc.weight", "dim": -1, "size": 16, "keep": [[0, 8]]},
        {"target": "fc.weight", "dim": 7, "size": 16, "keep": [[0, 8]]},
        {"target": "fc.weight", "dim": 1, "size": 16, "keep": [[8, 16], [0, 8]]},
        {"target": "fc.weight", "dim": 1, "size": 16, "keep": [[0, 8], [4, 12]]},
        {"target": "fc.weight", "dim": 1, "size": 16, "keep": [[4, 4]]},
        {"target": "fc.weight", "dim": 1, "size": 10**15, "keep": [[0, 10**15]]},
        {"target": "forward", "dim": 0, "size": 16, "keep": [[0, 8]]},
        {"target": "fc.weight", "dim": 1, "size": 16, "keep": [[0, 8]], "old": 1, "new": 2},
    ],
    ids=lambda e: f"{e['target']}-{e.get('new', e.get('keep'))}"[:40],
)
def test_edits_that_no_compaction_makes_are_refused_before_the_first_is_applied(
    edit: dict[str, Any], folder: Path
) -> None:
    plain = content(folder)
    plain["edits"] = [edit, *plain["edits"]]
    seal(folder, plain)
    model = toy()
    shape, kept = model.conv1.weight.shape, dict(vars(model.conv1))
    with pytest.raises(PrunusError):
        prunus.load(folder, lambda: model)
    assert model.conv1.weight.shape == shape and vars(model.conv1) == kept


@pytest.mark.parametrize(
    "change",
    [
        {"files": {}},
        {"files": {"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}},
        {"files": {"model.safetensors": {"sha256": "x", "bytes": 1}}},
        {"aliases": {"tied.weight": "nowhere"}},
        {"aliases": {"fc.weight": "fc.bias"}},
        {"aliases": ["fc.weight"]},
        {"masks": {"conv1": [-8]}},
        {"format": "other"},
        {"unknown": 1},
        {"edits": "none"},
        {"result": None},
    ],
    ids=str,
)
def test_other_fields_are_checked_too(change: dict[str, Any], folder: Path) -> None:
    seal(folder, content(folder) | change)
    with pytest.raises(VerificationError):
        prunus.load(folder, toy)


def test_masks_of_another_shape_are_refused(folder: Path) -> None:
    plain = content(folder)
    plain["masks"] = {name: [10**12] for name in plain["masks"]}
    seal(folder, plain)
    with pytest.raises(VerificationError, match="no mask of"):
        load_masks(folder)


def test_a_folder_of_a_later_version_says_so(folder: Path) -> None:
    seal(folder, content(folder) | {"format_version": 3, "prunus": "9.0"})
    with pytest.raises(SpecError, match=r"version 3.*reads 2.*9\.0"):
        prunus.load(folder, toy)


@pytest.mark.parametrize("plain", [None, 1, "x", [], [1], {}, {"format": "prunus"}], ids=str)
def test_what_is_no_manifest_is_refused(plain: Any, folder: Path) -> None:
    seal(folder, plain)
    with pytest.raises(VerificationError):
        prunus.load(folder, toy)


def test_a_manifest_that_is_nested_deeply_is_refused(folder: Path) -> None:
    deep: Any = 1
    for _ in range(500):
        deep = {"a": deep}
    seal(folder, content(folder) | {"edits": [deep]})
    with pytest.raises(VerificationError):
        prunus.load(folder, toy)
    (folder / "pruning.json").write_text("[" * 200_000)
    with pytest.raises(VerificationError, match="not JSON"):
        prunus.load(folder, toy)


@pytest.mark.parametrize("half", [b'"\\ud800"', b'"\xed\xa0\x80"'], ids=str)
def test_texts_that_no_file_can_hold_are_refused(half: bytes, folder: Path, tmp_path: Path) -> None:
    """Half a character is JSON, but no UTF-8: it could be read and never be written again."""
    text = (folder / "pruning.json").read_bytes()
    assert b'"notes": {}' in text
    plain = text.replace(content(folder)["sha256"].encode(), b"0" * 64)
    plain = plain.replace(b'"notes": {}', b'"notes": {"a": ' + half + b"}")
    (folder / "pruning.json").write_bytes(plain.replace(b"0" * 64, hashlib.sha256(plain).hexdigest().encode(), 1))
    for read in (lambda: prunus.load(folder, toy), lambda: unpack_folder(folder, tmp_path / "out")):
        with pytest.raises(VerificationError, match="surrogates"):
            read()


def test_a_manifest_that_is_too_large_is_not_even_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "LIMIT", 100)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("it was read"))
    with pytest.raises(VerificationError, match="no manifest is that large"):
        prunus.load(folder, toy)
