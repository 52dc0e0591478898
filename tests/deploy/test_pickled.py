"""Files of torch.save: weights are read, programs are not run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunus.core.errors import PrunusError, SpecError, VerificationError
from prunus.deploy import read_pt
from prunus.deploy.containers.grid import DTYPES
from tests.deploy.toys import toy


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def test_it_reads_what_torch_reads(tmp_path: Path) -> None:
    state = toy().state_dict()
    path = saved(tmp_path / "x.pt", state)
    theirs = torch.load(path, weights_only=True)
    ours = read_pt(path, trust=True)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], t) and ours[n].dtype == t.dtype for n, t in theirs.items())
    assert ours["fc.weight"].data_ptr() == ours["tied.weight"].data_ptr()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_views_types_and_nesting(protocol: int, tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state: dict[str, Any] = {
        f"of {n}": torch.randint(0, 2, (3, 4)).to(d) for n, d in DTYPES.items() if not n.startswith("F8")
    }
    state |= {"t": base.t(), "part": base[1:3, ::2], "scalar": torch.tensor(3.0), "none": torch.empty(0, 5)}
    state["parameter"] = nn.Parameter(torch.ones(3))
    whole = {"epoch": 3, "loss": 0.5, "ok": True, "names": ["a", ("b", None)], "state_dict": OrderedDict(state)}
    path = saved(tmp_path / "x.pt", whole, pickle_protocol=protocol)
    ours = read_pt(path, trust=True, key="state_dict")
    assert ours.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(ours[name], tensor) and ours[name].stride() == tensor.stride(), name
    with pytest.raises(SpecError, match="'epoch', 'loss'"):
        read_pt(path, trust=True)
    with pytest.raises(SpecError, match="no entry 'model'"):
        read_pt(path, trust=True, key="model")


def test_trust_is_said_aloud(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="trust=True"):
        read_pt(saved(tmp_path / "x.pt", {"a": torch.ones(2)}))


class Calls:
    """A pickle that calls something when it is loaded."""

    def __init__(self, what: Callable[..., Any], *given: Any) -> None:
        self.what, self.given = what, given

    def __reduce__(self) -> tuple[Any, ...]:
        return self.what, self.given


class State:
    """A pickle that sets attributes of an object."""

    def __setstate__(self, state: Any) -> None:
        os.system(state)

    def __getstate__(self) -> str:
        return "true"


def payloads(mark: Path) -> dict[str, Any]:
    """What runs when it is unpickled; each would make the file `mark`."""
    command = f"touch {mark}"
    built = __builtins__ if isinstance(__builtins__, dict) else vars(__builtins__)
    run = Calls(built["ex" + "ec"], f"open({str(mark)!r}, 'w')")
    return {
        "system": Calls(os.system, command),
        "exec": run,
        "nested": {"state_dict": {"a": [1, (2, Calls(os.system, command))]}},
        "optimizer": {"model": {"a": torch.ones(2)}, "optimizer": {"state": {0: Calls(os.popen, command)}}},
        "setstate": State(),
        "open": Calls(open, str(mark), "w"),
        "whole model": nn.Linear(2, 2),
    }


@pytest.mark.parametrize("kind", payloads(Path("x")))
def test_programs_do_nothing(kind: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = saved(tmp_path / "x.pt", payloads(mark)[kind])
    events: list[str] = []
    watched.append(events)
    try:
        with pytest.raises(PrunusError):
            read_pt(path, trust=True)
        with pytest.raises(PrunusError):
            read_pt(path, trust=True, key="state_dict")
    finally:
        watched.remove(events)
    assert not mark.exists() and events == []


watched: list[list[str]] = []
_BAD = ("os.system", "subprocess.Popen", "exec", "socket.connect", "pickle.find_class", "os.exec", "os.posix_spawn")
sys.addaudithook(lambda event, _: [w.append(event) for w in watched] if watched and event in _BAD else None)


def archive(path: Path, program: bytes, entries: dict[str, bytes] | None = None, **how: Any) -> Path:
    with zipfile.ZipFile(path, "w", **how) as file:
        for name, content in {"x/data.pkl": program, **(entries or {})}.items():
            file.writestr(name, content)
    return path


def test_archives_that_torch_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    program = pickle.dumps({}, protocol=2)
    assert read_pt(archive(path, program), trust=True) == {}
    bomb = archive(path, program, {"x/data/0": bytes(1 << 24)}, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 17
    with pytest.raises(VerificationError, match=r"entries of|compressed"):
        read_pt(path, trust=True)
    for name in ("../x/data/0", "x/../../etc/passwd", "/etc/passwd", "y/data/0", "x/", "x/a\\b"):
        archive(path, program, {name: b"x"})
        with pytest.raises(VerificationError):
            read_pt(path, trust=True)
    archive(path, program, {"x/byteorder": b"big"})
    with pytest.raises(VerificationError, match="order"):
        read_pt(path, trust=True)
    with pytest.raises(VerificationError, match="limit of 1"):
        read_pt(archive(path, program), trust=True, limit=1)


def test_what_is_no_archive(tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pt", {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(VerificationError, match=r"before PyTorch 1\.6"):
        read_pt(path, trust=True)
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("storages"), io.BytesIO(b""))
    for content in (path.read_bytes(), b"", b"PK", pickle.dumps({}), os.urandom(1000)):
        path.write_bytes(content)
        with pytest.raises(VerificationError):
            read_pt(path, trust=True)
    (tmp_path / "link.pt").symlink_to(saved(path, {"a": torch.ones(2)}))
    with pytest.raises(VerificationError, match="symbolic link"):
        read_pt(tmp_path / "link.pt", trust=True)


def of_torch(path: Path) -> tuple[bytes, dict[str, bytes]]:
    with zipfile.ZipFile(path) as file:
        entries = {n.replace(n.split("/")[0], "x", 1): file.read(n) for n in file.namelist()}
    return entries.pop("x/data.pkl"), entries


def test_tensors_beyond_their_storage(tmp_path: Path) -> None:
    program, entries = of_torch(saved(tmp_path / "x.pt", {"a": torch.ones(77, 3)}))
    path = tmp_path / "y.pt"
    assert read_pt(archive(path, program, entries), trust=True)["a"].shape == (77, 3)
    size = b"K\x4dK\x03\x86"  # (77, 3)
    assert size in program
    for wrong in (b"K\x4eK\x03\x86", b"J\xff\xff\xff\xffK\x03\x86", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"):
        with pytest.raises(VerificationError):
            read_pt(archive(path, program.replace(size, wrong), entries), trust=True)
    with pytest.raises(VerificationError, match="no entry"):
        read_pt(archive(path, program, {n: c for n, c in entries.items() if n != "x/data/0"}), trust=True)
    with pytest.raises(VerificationError, match="beyond"):
        read_pt(archive(path, program, entries | {"x/data/0": b"1234"}), trust=True)


def test_a_tensor_that_repeats_its_storage_is_refused(tmp_path: Path) -> None:
    """A view of one number that claims 2^40 of them costs nothing until something copies it."""
    path = saved(tmp_path / "x.pt", {"a": torch.ones(1).expand(1 << 40)})
    with pytest.raises(VerificationError, match="beyond"):
        read_pt(path, trust=True)


def test_every_truncation_and_many_flips(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"a": torch.arange(64.0), "b": torch.ones(3)})
    content, right = path.read_bytes(), read_pt(path, trust=True)
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(VerificationError):
            read_pt(path, trust=True)
    dice = torch.Generator().manual_seed(0)
    for at in torch.randint(0, 8 * len(content), (600,), generator=dice).tolist():
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            found = read_pt(path, trust=True)
        except PrunusError:
            continue
        # Checksums of the archive cover what is read: what is accepted is what was written.
        assert found.keys() == right.keys() and all(torch.equal(found[n], t) for n, t in right.items())


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_random_programs(tmp_path: Path) -> None:
    program, entries = of_torch(saved(tmp_path / "x.pt", {"a": torch.ones(4), "b": [1, 2.0, "c"]}))
    dice = torch.Generator().manual_seed(1)
    for at, value in torch.randint(0, 1 << 30, (800, 2), generator=dice).tolist():
        changed = bytearray(program)
        changed[at % len(program)] = value % 256
        try:
            read_pt(archive(tmp_path / "y.pt", bytes(changed), entries), trust=True)
        except PrunusError:
            continue
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    with pytest.raises(PrunusError):
        read_pt(archive(tmp_path / "y.pt", deep), trust=True)
    huge = b"\x80\x02\x8a" + struct.pack("<b", -1) + b"."
    with pytest.raises(PrunusError):
        read_pt(archive(tmp_path / "y.pt", huge), trust=True)
