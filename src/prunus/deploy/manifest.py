"""`pruning.json`: what lies beside a pruned model's weights, checked before anything is believed."""

import hashlib
import json
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prunus.core.errors import SpecError, VerificationError
from prunus.deploy.atomic import MARK
from prunus.deploy.containers import Packed, Spec
from prunus.deploy.tensors import open_plain
from prunus.graph import Edit
from prunus.graph.depth.nothing import checked

FORMAT_VERSION: Final = 2
READS: Final = (1, 2)
LIMIT = 64 << 20
_UNSEALED = "0" * 64
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0, strict=True)]
Sizes = Size | tuple[Size, ...]
# Names along a path, those of modules any text: nothing that Python has a meaning for. The last may be an entry of a
# sequence.
_PATH = re.compile(r"((?!__)[^.\x00-\x1f]+\.)*(?!__)[^.\[\]\x00-\x1f]+(\[\d+\])?")
Finite = Annotated[float, Field(allow_inf_nan=False)]
Small = Annotated[float, Field(gt=0, lt=1, strict=True, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Record):
    """A file of the folder."""

    sha256: Digest
    bytes: Size


class SliceRecord(_Record):
    """Positions of one axis of a parameter or buffer that stay: sorted half-open ranges within its size."""

    target: str
    dim: Size
    size: Size
    keep: tuple[tuple[Size, Size], ...]

    @model_validator(mode="after")
    def _inside(self) -> "SliceRecord":
        ends = [0, *(end for span in self.keep for end in span), self.size]
        if any(a > b for a, b in pairwise(ends)) or any(a == b for a, b in self.keep):
            raise ValueError(f"{self.target}: the ranges {self.keep} are no part of an axis of {self.size}")
        return self


class NothingRecord(_Record):
    """A module that was removed (`layers.3.attn.*`), and what is returned in its place."""

    target: str
    dim: Literal[0]
    size: Size
    keep: tuple[()]
    new: tuple[Any, ...]

    @model_validator(mode="after")
    def _harmless(self) -> "NothingRecord":
        try:
            checked(self.new)
        except SpecError as error:
            raise ValueError(f"{self.target}: {error}") from error
        return self


class SizeRecord(_Record):
    """An attribute of a module that repeats a size (`conv1.groups`): a whole number, or a tuple of them."""

    target: str
    old: Sizes
    new: Sizes

    @model_validator(mode="after")
    def _harmless(self) -> "SizeRecord":
        if not _PATH.fullmatch(self.target):
            raise ValueError(f"{self.target!r} is not the name of a size of a module")
        old, new = (v if isinstance(v, tuple) else (v,) for v in (self.old, self.new))
        alike = isinstance(self.old, tuple) == isinstance(self.new, tuple) and len(old) == len(new)
        if not alike or any(b > a for a, b in zip(old, new, strict=True)):
            raise ValueError(f"{self.target}: {self.new!r} is not a smaller {self.old!r}")
        return self


class EpsilonRecord(_Record):
    """The epsilon of a normalization (`norm.eps`) whose axis became shorter: it grows by the same factor."""

    target: str
    old: Small
    new: Small

    @model_validator(mode="after")
    def _harmless(self) -> "EpsilonRecord":
        if not _PATH.fullmatch(self.target) or self.new < self.old:
            raise ValueError(f"{self.target!r}: {self.new} is no epsilon that grew from {self.old}")
        return self


class TensorRecord(_Record):
    """A tensor that is packed: its container (`containers.Spec`), and what came of it.

    Attributes:
        pattern: in words.
        sparsity: entries that are not stored over all.
        bytes: of its streams.
        bound: what its pattern and values cannot do without.
    """

    shape: tuple[Size, ...]
    dtype: str
    coding: Literal["bitmask", "gaps", "csr", "n_of_m"]
    block: tuple[Size, Size]
    kept: Size
    parameter: tuple[Size, ...]
    pattern: str
    sparsity: Annotated[float, Field(ge=0, le=1)]
    bytes: Size
    bound: Size

    @model_validator(mode="after")
    def _fits(self) -> "TensorRecord":
        self.spec()
        return self

    def spec(self) -> Spec:
        """The container."""
        return Spec(self.shape, self.dtype, self.coding, self.block, self.kept, self.parameter)

    @classmethod
    def of(cls, made: Packed) -> "TensorRecord":
        """What is to be said of a container."""
        spec = made.spec
        told = {"pattern": spec.pattern, "sparsity": 1 - spec.values / spec.count, "bytes": made.size}
        return cls.model_validate(spec.to_dict() | told | {"bound": spec.bound()})


class SizesRecord(_Record):
    """Bytes of all weights: dense, as they are stored, and what their patterns and values cannot do without. Headers
    are not counted.
    """

    dense: Size
    stored: Size
    bound: Size


class MetricRecord(_Record):
    """A measured number before and after pruning, as far as it is known."""

    before: Finite | None = None
    after: Finite | None = None


class Manifest(_Record):
    """What `pruning.json` holds.

    Attributes:
        sha256: of the file's own bytes, with this field as 64 zeros. It finds accidents; it is no signature.
        format, format_version: which rules the folder follows.
        prunus, torch: the versions that wrote it.
        compacted: whether the weights are those of the physically smaller model.
        result: `Result.to_dict()`.
        edits: what `graph.replay_` does to a fresh dense model before the weights fit.
        aliases: names of tied tensors, each with the name that its values are stored under.
        masks: group name -> shape of its mask.
        files: digest and size of every other file that is read back.
        notes: what the caller wanted to travel along.
        tensors: name -> the container of each tensor that is packed; all others are dense.
        sizes: bytes of the weights.
        mask_of: group name -> the tensor whose entries other than zero are its mask, which is then not stored.
        parent: SHA-256 of the dense model (`files.digest_of`).
        metrics: measured before and after.
        denormals: tensor -> how many of its numbers are too small for full precision. They are kept as they are, and
            slow to compute with (`flush_denormals_`).

    Version 1 knew the fields up to `notes`; all tensors are dense then. `model.safetensors` holds a packed tensor as
    its streams, `conv1.weight.bitmask` and `conv1.weight.values`.
    """

    sha256: Digest = _UNSEALED
    format: Literal["prunus"] = "prunus"
    format_version: Literal[1, 2] = FORMAT_VERSION
    prunus: str
    torch: str
    compacted: bool
    result: dict[str, Any]
    edits: tuple[SliceRecord | NothingRecord | SizeRecord | EpsilonRecord, ...]
    aliases: dict[str, str]
    masks: dict[str, tuple[Size, ...]]
    files: dict[Literal["model.safetensors", "masks.safetensors"], FileRecord]
    notes: dict[str, Any] = {}
    tensors: dict[str, TensorRecord] = {}
    sizes: SizesRecord | None = None
    mask_of: dict[str, str] = {}
    parent: Digest | None = None
    metrics: dict[str, MetricRecord] = {}
    denormals: dict[str, Size] = {}

    @model_validator(mode="after")
    def _complete(self) -> "Manifest":
        if len(self.files) != 2:
            raise ValueError("files must name model.safetensors and masks.safetensors")
        if not self.mask_of.keys() <= self.masks.keys():
            raise ValueError("mask_of names groups that have no mask")
        return self

    def sealed(self) -> bytes:
        """The file's content, its own digest filled in."""
        plain = (self.model_copy(update={"sha256": _UNSEALED}).model_dump_json(indent=1) + "\n").encode()
        return plain.replace(_UNSEALED.encode(), hashlib.sha256(plain).hexdigest().encode(), 1)

    def structure(self) -> list[Edit]:
        """The edits, as the dependency engine replays them."""
        return [Edit.from_dict(e.model_dump()) for e in self.edits]

    def sizes_changed(self) -> list[str]:
        """Paths of the attributes that the edits write."""
        return [e.target for e in self.edits if isinstance(e, SizeRecord)]


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a saved folder, complete, unchanged since it was written, and harmless.

    Errors: `SpecError` where there is none or it is of another version; `VerificationError` where it is not what was
    written, or says what no manifest says.
    """
    file = Path(folder) / MARK
    if not file.is_file():
        raise SpecError(f"{folder} is no saved model: it has no {MARK}")
    with open_plain(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > LIMIT:
            raise VerificationError(f"{file} is {size:,} bytes; no manifest is that large")
        content = stream.read()
    try:
        plain = json.loads(content)
        if b"\\ud" in content.lower() or b"\xed" in content:  # where half a character may hide
            json.dumps(plain, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise VerificationError(
            f"{file} is not JSON ({error}): it was cut off or changed; save the model again"
        ) from error
    if not isinstance(plain, dict) or plain.get("format") != "prunus":
        raise VerificationError(f"{file} is not a manifest of prunus")
    version = plain.get("format_version")
    if type(version) is int and version not in READS and _intact(content, plain.get("sha256")):
        raise SpecError(
            f"{file} has format version {version}, this prunus reads {FORMAT_VERSION} and before: "
            f"install the version that wrote it ({plain.get('prunus')})"
        )
    if not _intact(content, plain.get("sha256")):
        raise VerificationError(
            f"{file} was changed after it was written: its digest does not fit; save the model again"
        )
    try:
        return Manifest.model_validate(plain)
    except (ValidationError, RecursionError) as error:
        raise VerificationError(f"{file} is not a valid manifest: {_first(error)}") from error


def sha256_of(file: Path, *, links: bool = False) -> str:
    """SHA-256 of a file's bytes; of a symbolic link's only if `links` says so."""
    with open_plain(file, links=links) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _intact(content: bytes, digest: Any) -> bool:
    if not isinstance(digest, str):
        return False
    plain = content.replace(digest.encode(errors="surrogatepass"), _UNSEALED.encode(), 1)
    return hashlib.sha256(plain).hexdigest() == digest


def _first(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    one = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}"
