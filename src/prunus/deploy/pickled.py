"""Weights out of a `.pt` file, without unpickling it.

PyTorch's files are zip archives with a pickle that says how tensors are made of the other entries. A pickle is a
program; here its instructions are looked at one by one, and only those that build dictionaries, lists, numbers, text
and tensors are followed. Nothing it names is imported or called.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.core.errors import SpecError, VerificationError, listed
from prunus.deploy.tensors import open_plain

LIMIT = 1 << 40
_PROGRAM = 256 << 20
_ENTRIES = 1_000_000
_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
_DTYPES = {
    n: getattr(torch, n) for n in ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float32", "bfloat16")
}
_TENSORS = ("_rebuild_tensor_v2", "_rebuild_tensor_v3")


class _Broken(ValueError):
    """What no file of weights says."""


# What Python's zip archives and lists of instructions raise where bits are wrong.
_DAMAGE = (
    ValueError, IndexError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError, OSError, EOFError,
    struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class _Named:
    """A class or function that the program names; it stays a name."""

    module: str
    name: str


@dataclass(frozen=True, eq=False)
class _Storage:
    dtype: torch.dtype | None
    key: str


def read_pt(path: str | Path, *, trust: bool = False, key: str | None = None, limit: int = LIMIT) -> dict[str, Tensor]:
    """The tensors of a `.pt` file that `torch.save` wrote.

    Args:
        path: the file.
        trust: must be True: say that you know where the file is from. The format has no digest, so that nothing tells
            whether the weights are what somebody saved.
        key: the entry that holds the state, where the file holds more (`"state_dict"`, `"model"`).
        limit: bytes that all entries may have together.

    Refused: files of before 2020 (no zip archive), compressed or encrypted entries, entries that together are longer
        than the file, tensors that reach beyond their storage or repeat it, and everything that is no tensor, number,
        text or collection of these: whole models, optimizers with objects of their own.
    Cost: the file's bytes, once. Errors: `SpecError` where it is not trusted or has no such key; `VerificationError`.
    """
    path = Path(path)
    if not trust:
        raise SpecError(
            f"{path} is a file of torch.save, which has no digest and can hold programs: get safetensors, or, where "
            f"you know who wrote it, call read_pt(path, trust=True), which runs none of them"
        )
    try:
        with open_plain(path) as file, zipfile.ZipFile(file) as archive:
            plain = _checked(path, archive, limit)
            found = _Machine(lambda name: _entry(archive, plain, name)).run(_entry(archive, plain, "data.pkl"))
    except zipfile.BadZipFile as error:
        raise VerificationError(
            f"{path} is no zip archive ({error}): it was cut off, or written before PyTorch 1.6; save it again"
        ) from error
    except _DAMAGE as error:
        raise VerificationError(f"{path} is no file of weights: {error}") from error
    return _state(path, found, key)


def _checked(path: Path, archive: zipfile.ZipFile, limit: int) -> dict[str, zipfile.ZipInfo]:
    """Entries by their name below the archive's one folder, after all were looked at."""
    entries, size = archive.infolist(), path.stat().st_size
    total = sum(e.file_size for e in entries)
    if len(entries) > _ENTRIES or total > min(limit, size):
        raise _Broken(f"{len(entries)} entries of {total:,} bytes in a file of {size:,}, with a limit of {limit:,}")
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        root, _, name = entry.filename.partition("/")
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        if not stored or entry.flag_bits & 1:
            raise _Broken(f"{entry.filename!r} is compressed or encrypted, which torch.save does not do")
        if not root or not name or ".." in name.split("/") or name in found or "\\" in name:
            raise _Broken(f"{entry.filename!r} is no name of an entry")
        found[name] = entry
    if len({e.filename.partition("/")[0] for e in entries}) != 1 or "data.pkl" not in found:
        raise _Broken("it holds no data.pkl in a folder of its own")
    if found["data.pkl"].file_size > _PROGRAM:
        raise _Broken(f"its program has {found['data.pkl'].file_size:,} bytes")
    if "byteorder" in found and archive.read(found["byteorder"]) != b"little":
        raise _Broken("its bytes are in another order than this machine's")
    return found


def _entry(archive: zipfile.ZipFile, plain: Mapping[str, zipfile.ZipInfo], name: str) -> bytes:
    if name not in plain:
        raise _Broken(f"there is no entry {name!r}")
    content = archive.read(plain[name])  # compares the entry's checksum
    if len(content) != plain[name].file_size:
        raise _Broken(f"{name!r} is shorter than the archive says")
    return content


def _state(path: Path, found: Any, key: str | None) -> dict[str, Tensor]:
    """The mapping of names to tensors."""
    if key is not None:
        if not isinstance(found, dict) or key not in found:
            raise SpecError(f"{path} has no entry {key!r}: it holds {_told(found)}")
        found = found[key]
    odd = [str(n) for n, t in found.items() if not isinstance(t, Tensor)] if isinstance(found, dict) else [""]
    if odd:
        raise SpecError(f"{path} holds {_told(found)}: name the entry that is a state of tensors with key=")
    return {str(n): t for n, t in found.items()}


def _told(found: Any) -> str:
    return f"a {type(found).__name__}" if not isinstance(found, dict) else listed([repr(n) for n in found], 8)


@dataclass(eq=False)
class _Machine:
    """Follows the instructions that build data."""

    read: Callable[[str], bytes]
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, Tensor] = field(default_factory=dict)

    def run(self, program: bytes) -> Any:
        """What the program builds. Errors: `_Broken` for an instruction that does anything else."""
        for code, argument, _ in pickletools.genops(program):
            if code.name == "STOP":
                return self.stack.pop()
            if code.name in _PUSHED:
                self.stack.append(argument)
            elif code.name in _MADE:
                self.stack.append(_MADE[code.name]())
            elif code.name in _STEPS:
                _STEPS[code.name](self, argument)
            elif code.name not in ("PROTO", "FRAME"):
                raise _Broken(f"its program has a {code.name}, which no file of weights needs")
        raise _Broken("its program has no end")

    def marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        at = self.marks.pop()
        found, self.stack[at:] = self.stack[at:], []
        return found

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def put(self, place: Any) -> None:
        self.memo[len(self.memo) if place is None else int(place)] = self.stack[-1]

    def get(self, place: Any) -> None:
        self.stack.append(self.memo[int(place)])

    def join(self, size: int) -> None:
        """The last `size` things as a tuple, or those since the mark."""
        if size < 0:
            self.stack.append(tuple(self.marked()))
        else:
            self.stack[len(self.stack) - size :] = [tuple(self.stack[len(self.stack) - size :])]

    def extend(self, found: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise _Broken("it appends to what is no list")
        self.stack[-1].extend(found)

    def update(self, found: list[Any]) -> None:
        if type(self.stack[-1]) is not dict or len(found) % 2:
            raise _Broken("it sets items of what is no dictionary")
        for name, value in zip(found[::2], found[1::2], strict=True):
            if type(name) not in (str, int):
                raise _Broken(f"a dictionary has a {type(name).__name__} as a name")
            self.stack[-1][name] = value

    def name(self, argument: Any) -> None:
        """A class or function by its name."""
        if argument is None:
            name, module = self.stack.pop(), self.stack.pop()
        else:
            module, _, name = str(argument).partition(" ")
        self.stack.append(_Named(str(module), str(name)))

    def persistent(self, _: Any) -> None:
        kind, named, key, _where, _count = self.stack.pop()
        if kind != "storage" or not isinstance(named, _Named) or named.module not in ("torch", "torch.storage"):
            raise _Broken(f"it refers to {kind!r}")
        if named.name != "UntypedStorage" and named.name not in _STORAGES:
            raise _Broken(f"it has a storage of the kind {named.name!r}")
        self.stack.append(_Storage(_STORAGES.get(named.name), str(key)))

    def call(self, _: Any) -> None:
        given, what = self.stack.pop(), self.stack.pop()
        if what == _Named("collections", "OrderedDict") and given == ():
            self.stack.append({})
        elif what == _Named("torch._utils", "_rebuild_parameter") and isinstance(given[0], Tensor):
            self.stack.append(given[0])
        elif isinstance(what, _Named) and what.module == "torch._utils" and what.name in _TENSORS:
            self.stack.append(self.tensor(what.name, *given))
        else:
            raise _Broken(f"it calls {what.module}.{what.name}" if isinstance(what, _Named) else "it calls a value")

    def build(self, _: Any) -> None:
        """The attributes of a state's dictionary (versions of modules): left out."""
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise _Broken("it sets attributes of an object")

    def tensor(self, how: str, storage: Any, offset: int, size: Any, stride: Any, _grad: Any, *more: Any) -> Tensor:
        """A tensor over a storage, after its sizes were checked."""
        dtype = storage.dtype
        if how == "_rebuild_tensor_v3":
            named = more[1]
            dtype = _DTYPES.get(named.name) if named.module == "torch" else None
        if dtype is None:
            raise _Broken("a tensor has no known type")
        if storage.key not in self.storages:
            content = self.read(f"data/{storage.key}")
            self.storages[storage.key] = (
                torch.frombuffer(bytearray(content), dtype=torch.uint8)
                if content
                else (torch.empty(0, dtype=torch.uint8))
            )
        flat = self.storages[storage.key].view(dtype)
        numbers = (offset, *size, *stride)
        if any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride):
            raise _Broken("a tensor has sizes that are no numbers")
        count, last = 1, offset
        for n, step in zip(size, stride, strict=True):
            count, last = count * n, last + max(0, n - 1) * step
        if count and (count > flat.numel() or last >= flat.numel()):
            raise _Broken(f"a tensor of {tuple(size)} reaches beyond its storage of {flat.numel()}")
        return flat.as_strided(size, stride, offset) if count else torch.empty(size, dtype=dtype)


_PUSHED = (
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINBYTES",
    "SHORT_BINBYTES",
)  # fmt: skip
_MADE: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "NONE": lambda: None, "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}  # fmt: skip
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put, "LONG_BINPUT": _Machine.put, "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get, "LONG_BINGET": _Machine.get,
    "TUPLE": lambda m, _: m.join(-1), "TUPLE1": lambda m, _: m.join(1),
    "TUPLE2": lambda m, _: m.join(2), "TUPLE3": lambda m, _: m.join(3),
    "APPEND": lambda m, _: m.extend([m.stack.pop()]), "APPENDS": lambda m, _: m.extend(m.marked()),
    "SETITEM": lambda m, _: m.update([m.stack.pop(-2), m.stack.pop()]), "SETITEMS": lambda m, _: m.update(m.marked()),
    "GLOBAL": _Machine.name, "STACK_GLOBAL": _Machine.name,
    "BINPERSID": _Machine.persistent, "REDUCE": _Machine.call, "BUILD": _Machine.build,
}  # fmt: skip
