"""What a run has done so far, on the disk after every block, so that a stopped one can go on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prunus.core.errors import SpecError
from prunus.deploy.atomic import write_text
from prunus.deploy.manifest import sha256_of

STATE = "state.json"


@dataclass(frozen=True)
class BlockRecord:
    """What was done to a block.

    Attributes:
        name: its path in the model.
        units: group -> how many units it has.
        kept: group -> how many stay.
        skipped: group -> why it was not scored, and stayed whole.
        masks: SHA-256 of the masks.
        shard: the file that holds the block, and `sha256` of it.
        seconds: how long it took, without what the model does between blocks.
    """

    name: str
    units: dict[str, int]
    kept: dict[str, int]
    skipped: dict[str, str]
    masks: str
    shard: str
    sha256: str
    seconds: float


@dataclass
class State:
    """What an unfinished run has done so far.

    Attributes:
        fingerprint: of the model, recipe, budget, seed and data.
        done: block -> what was done to it.
        foreseen: block -> evidence -> group -> what the allocation wanted to know ahead (`prunus.stream.ahead`).
    """

    fingerprint: str
    done: dict[str, BlockRecord] = field(default_factory=dict)
    foreseen: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    @property
    def numbers(self) -> str:
        """SHA-256 of what was foreseen, of this run: every block after it hangs on these numbers."""
        told = json.dumps(self.foreseen, sort_keys=True)
        return hashlib.sha256(f"{self.fingerprint} {told}".encode()).hexdigest()

    def write(self, folder: Path) -> None:
        done = {n: asdict(b) for n, b in self.done.items()}
        told = {"fingerprint": self.fingerprint, "foreseen": self.foreseen, "numbers": self.numbers, "done": done}
        write_text(folder / STATE, json.dumps(told, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> State:
        try:
            told = json.loads((folder / STATE).read_text(encoding="utf-8"))
            done = {n: BlockRecord(**b) for n, b in told["done"].items()}
            made, numbers = cls(str(told["fingerprint"]), done, dict(told["foreseen"])), told["numbers"]
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SpecError(f"{folder / STATE} is not readable ({error}): remove {folder} and start again") from None
        if made.numbers != numbers:
            raise SpecError(f"the numbers in {folder / STATE} are not what the unfinished run wrote: remove {folder}")
        return made


def begun(part: Path, fingerprint: str, resume: bool) -> State:
    """The state of the unfinished run at `part`, or a new one."""
    if not (part / STATE).exists():
        part.mkdir(parents=True, exist_ok=True)
        state = State(fingerprint)
        state.write(part)
        return state
    if not resume:
        raise SpecError(f"an unfinished run lies at {part}: go on with resume=True (--resume), or remove that folder")
    state = State.read(part)
    if state.fingerprint != fingerprint:
        raise SpecError(
            f"{part} is an unfinished run of another model, recipe, budget, seed or calibration data: pass the same "
            f"ones, or remove that folder"
        )
    for record in state.done.values():
        file = part / record.shard
        if not file.is_file() or sha256_of(file) != record.sha256:
            raise SpecError(f"{file} is not what the unfinished run wrote: remove {part} and start again")
    return state


@contextmanager
def kept_if_begun(part: Path, state: State) -> Iterator[None]:
    """Remove the folder of the unfinished run if it ends before a block was done."""
    try:
        yield
    except BaseException:
        if not state.done and not state.foreseen:
            shutil.rmtree(part, ignore_errors=True)
        raise
