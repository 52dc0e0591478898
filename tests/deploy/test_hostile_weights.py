"""Weights that somebody wrote on purpose, with digests that fit; and folders of version 1."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from prunus.core.errors import PrunusError, SpecError, VerificationError
from prunus.deploy import load_masks, unpack_folder
from prunus.deploy.files import MASKS, WEIGHTS
from prunus.deploy.tensors import TensorFile
from tests.deploy.toys import pruned, toy

MARK = "pruning.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prunus.save(pruned("unstructured"), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def content(folder: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((folder / MARK).read_text())
    return plain


def seal(folder: Path, plain: dict[str, Any]) -> None:
    """Write a manifest whose digests fit it and the files."""
    for name in (WEIGHTS, MASKS):
        data = (folder / name).read_bytes()
        plain["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    plain["sha256"] = "0" * 64
    text = json.dumps(plain).encode()
    (folder / MARK).write_bytes(text.replace(b"0" * 64, hashlib.sha256(text).hexdigest().encode(), 1))


def written(folder: Path, header: bytes | dict[str, Any], data: bytes = b"") -> None:
    """Weights with this header, sealed."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data)
    seal(folder, content(folder))


def read_every_way(folder: Path, tmp_path: Path) -> None:
    """Every reader refuses it."""
    for read in (
        lambda: prunus.load(folder, toy),
        lambda: load_masks(folder),
        lambda: unpack_folder(folder, tmp_path / "out"),
    ):
        with pytest.raises(PrunusError):
            read()
    assert not (tmp_path / "out").exists()


HUGE = 1 << 62
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","dtype":"U8","shape":[2],"data_offsets":[0,8]}}',
        {"a": F32 | {"shape": [HUGE]}},
        {"a": F32 | {"shape": [1 << 31, 1 << 31]}},
        {"a": F32 | {"shape": [HUGE, 0, 4]}},
        {"a": F32 | {"shape": [-2]}},
        {"a": F32 | {"shape": [2.0]}},
        {"a": F32 | {"shape": [True, 2]}},
        {"a": F32 | {"shape": [1] * 5000 + [2]}},
        {"a": F32 | {"shape": "2"}},
        {"a": F32 | {"dtype": "F128"}},
        {"a": F32 | {"dtype": ["F32"]}},
        {"a": F32 | {"data_offsets": [0, 4]}},
        {"a": F32 | {"data_offsets": [8, 0]}},
        {"a": F32 | {"data_offsets": [0, 8, 16]}},
        {"a": F32 | {"data_offsets": [HUGE, HUGE + 8]}},
        {"a": F32 | {"data_offsets": [4, 12]}},
        {"a": F32 | {"more": 1}},
        {"a": F32, "b": F32},
        {"a": None},
        {"a": []},
        {},
        b"[]",
        b"null",
        b'{"a":NaN}',
        b"[" * 100_000,
        b'{"a":' * 30_000,
        b"\xff" * 64,
    ],
    ids=lambda h: str(h)[:60],
)
def test_headers_of_nothing(header: bytes | dict[str, Any], folder: Path, tmp_path: Path) -> None:
    written(folder, header, bytes(8))
    read_every_way(folder, tmp_path)
    if header != {"a": F32 | {"shape": [HUGE, 0, 4]}}:
        with pytest.raises(VerificationError):
            TensorFile(folder / WEIGHTS)


def test_the_length_of_a_header_is_not_believed(folder: Path, tmp_path: Path) -> None:
    for length in (0, 1, 1 << 20, 1 << 40, (1 << 64) - 1):
        (folder / WEIGHTS).write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(64))
        seal(folder, content(folder))
        read_every_way(folder, tmp_path)


def test_three_hundred_thousand_tensors(folder: Path, tmp_path: Path) -> None:
    written(folder, {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(300_000)})
    seal(folder, content(folder) | {"tensors": {}, "mask_of": {}, "aliases": {}})
    with pytest.raises(SpecError, match="is not the one that was saved") as caught:
        prunus.load(folder, toy)
    assert len(str(caught.value)) < 5000


def test_many_containers_that_are_not_there(folder: Path) -> None:
    plain = content(folder)
    one = plain["tensors"]["conv2.weight"] | {"shape": [2], "block": [1, 1], "kept": 0, "parameter": []}
    plain["tensors"] = {f"t{i}": one | {"coding": "bitmask"} for i in range(20_000)}
    seal(folder, plain)
    with pytest.raises(VerificationError):
        prunus.load(folder, toy)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [HUGE]},
        {"shape": [1 << 31, 1 << 31]},
        {"shape": [16, 8, 3, 3], "kept": 1},
        {"shape": [16, 8, 3]},
        {"shape": [-16, 8, 3, 3]},
        {"shape": [16, 8, 3, 300_000_000], "kept": 0},
        {"dtype": "F64"},
        {"dtype": "__import__"},
        {"coding": "dense"},
        {"coding": "zstd"},
        {"coding": "csr", "parameter": []},
        {"coding": "n_of_m", "parameter": [2, 4]},
        {"block": [0, 0]},
        {"block": [1 << 40, 1]},
        {"kept": HUGE},
        {"kept": -1},
        {"parameter": [99]},
        {"sparsity": 7.0},
        {"unknown": 1},
    ],
    ids=str,
)
def test_containers_that_do_not_fit(change: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    plain = content(folder)
    plain["tensors"]["conv2.weight"] |= change
    seal(folder, plain)
    with pytest.raises(PrunusError):
        prunus.load(folder, toy)
    with pytest.raises(PrunusError):
        unpack_folder(folder, tmp_path / "out")


def test_a_container_of_nothing_that_claims_everything(folder: Path, tmp_path: Path) -> None:
    """Streams of no bytes are a matrix of zeros of any size: the model says how large, or the memory that is free."""
    plain = content(folder)
    record = plain["tensors"]["conv2.weight"]
    plain["tensors"] = {"conv2.weight": record | {
        "shape": [1 << 28, 1 << 28], "coding": "gaps", "block": [1, 1], "kept": 0, "parameter": [0],
    }}  # fmt: skip
    plain["mask_of"] = {"conv2.weight": "conv2.weight"}
    plain["masks"] = {"conv2.weight": [1 << 28, 1 << 28]}
    plain["aliases"] = {}
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({"conv2.weight.gaps": empty, "conv2.weight.values": empty | {"dtype": "F32"}}).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)
    seal(folder, plain)
    with pytest.raises(SpecError, match="is not the one that was saved"):
        prunus.load(folder, toy)
    with pytest.raises(VerificationError, match="is said to take"):
        load_masks(folder)
    with pytest.raises(VerificationError, match="is said to take"):
        unpack_folder(folder, tmp_path / "out")
    with pytest.raises(PrunusError, match="free"):
        unpack_folder(folder, tmp_path / "out", limit=1 << 62)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"mask_of": {"nowhere": "conv2.weight"}},
        {"mask_of": {"conv2.weight": "../../etc/passwd"}},
        {"mask_of": {"conv2.weight": "conv1.weight"}},
        {"parent": "x"},
        {"metrics": {"accuracy": {"before": "high"}}},
        {"sizes": {"dense": -1, "stored": 0, "bound": 0}},
        {"tensors": {"conv2.weight": {}}},
    ],
    ids=str,
)
def test_new_fields_are_checked_too(change: dict[str, Any], folder: Path) -> None:
    seal(folder, content(folder) | change)
    with pytest.raises(VerificationError):
        load_masks(folder)


@pytest.mark.parametrize("name", [WEIGHTS, MASKS, MARK])
def test_links_out_of_the_folder_are_not_followed(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VerificationError, match="symbolic link"):
        load_masks(folder) if name == MASKS else prunus.load(folder, toy)


@pytest.mark.parametrize("name", [WEIGHTS, MASKS, MARK])
def test_what_is_no_file_is_not_waited_for(name: str, folder: Path) -> None:
    """A pipe that nobody writes to, and a folder."""
    import os

    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(PrunusError):
        load_masks(folder) if name == MASKS else prunus.load(folder, toy)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(PrunusError):
        load_masks(folder) if name == MASKS else prunus.load(folder, toy)


def flips(folder: Path, name: str, places: list[int]) -> None:
    content = (folder / name).read_bytes()
    for at in places:
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        (folder / name).write_bytes(damaged)
        with pytest.raises(VerificationError):
            load_masks(folder) if name == MASKS else prunus.load(folder, toy)


@pytest.mark.parametrize("name", [WEIGHTS, MASKS, MARK])
def test_flipped_bits_of_packed_folders(name: str, folder: Path) -> None:
    size = 8 * (folder / name).stat().st_size
    flips(folder, name, random.Random(name).sample(range(size), 150))


@pytest.mark.slow
@pytest.mark.parametrize("name", [WEIGHTS, MASKS])
def test_every_bit_of_packed_folders(name: str, folder: Path) -> None:
    flips(folder, name, list(range(8 * (folder / name).stat().st_size)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [WEIGHTS, MASKS, MARK])
def test_every_truncation_of_packed_folders(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    for length in range(len(content)):
        (folder / name).write_bytes(content[:length])
        with pytest.raises(VerificationError):
            load_masks(folder) if name == MASKS else prunus.load(folder, toy)


def test_folders_of_version_1_are_read(tmp_path: Path) -> None:
    """As the first version wrote them: every tensor dense, every mask stored, none of the newer fields."""
    made = pruned("unstructured")
    folder = prunus.save(made, tmp_path / "x", sparse=False)
    plain = content(folder) | {"format_version": 1}
    assert not plain["tensors"] and not plain["mask_of"]
    for field in ("tensors", "sizes", "mask_of", "parent", "metrics"):
        plain.pop(field)
    seal(folder, plain)
    state = prunus.load(folder, toy).state_dict()
    assert all(torch.equal(t, state[n]) for n, t in made.model.state_dict().items())
    assert all(torch.equal(m, made.unit_masks[n]) for n, m in load_masks(folder).items())
    assert unpack_folder(folder, tmp_path / "y").packed == 0
    assert content(tmp_path / "y")["format_version"] == 2
