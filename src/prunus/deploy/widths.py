"""How many channels runtimes like: multiples by precision, or what staircases say that were measured here, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from prunus.core.errors import SpecError, UnknownNameError
from prunus.deploy import runtimes as registry
from prunus.deploy.rounding import Staircase, staircase
from prunus.deploy.runtimes.base import Precision
from prunus.measure.kept import read_kept, unusable, write_kept
from prunus.measure.machine import cache_folder, machine

MULTIPLES: dict[Precision, tuple[int, ...]] = {
    "float32": (16, 8, 4),
    "bfloat16": (32, 16, 8),
    "int8": (32, 16, 8),
}
"""The width of registers and tiles, and what small groups take instead (see `Coupled.round_to`)."""

FILES = ("onnx", "torch", "executorch")
FORMAT = 1
LAYERS = ("conv3x3", "conv1x1")
WIDTHS = (48, 50, 52, 56, 60, 62, 63, 64, 66, 68, 72, 76, 80, 88, 96)
AMONG = (4, 8, 16, 32)
LEAST = 4  # no group is rounded to less


def multiples(target: str) -> tuple[int, ...]:
    """What kept channels are to be multiples of for a target: a runtime's title, or a kind of file.

    What `prunus doctor` measured for a runtime on this machine, where it did (`learned`); else `MULTIPLES`. A
    file may run anywhere and goes by the latter. The first number is for groups that have room for it, the others for
    smaller ones; pass it as `Channel(round_to=...)`. Errors: `UnknownNameError`.
    """
    if target in FILES:
        return MULTIPLES["float32"]
    every = registry.known()
    if target not in every:
        raise UnknownNameError("target", target, [*every, *FILES])
    known = learned(target)
    return MULTIPLES[every[target].precision] if known is None else known.steps


@dataclass(frozen=True)
class Liked:
    """What a runtime likes here.

    Attributes:
        multiple: the least multiple that costs no layer more than 3 % of its best rate.
        stairs: what was measured, a staircase a layer.
    """

    runtime: str
    multiple: int
    stairs: tuple[Staircase, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """The multiple, and what small groups take instead."""
        return tuple(m for m in (self.multiple >> i for i in range(3)) if m >= LEAST)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def learn(runtime: str, widths: Sequence[int] = WIDTHS, *, layers: Sequence[str] = LAYERS) -> Liked | None:
    """Measure what widths a runtime likes on this machine, and keep it for `multiples` and `prunus prune --for`.

    Everything is measured twice, with one thread; where the two come to different multiples, as on a busy machine,
    nothing is kept and None is returned. Cost: twice that of `staircase` for each layer.
    Errors: those of `staircase`; `PrunusError` where the file cannot be written.
    """
    once, again = ([staircase(runtime, layer, widths) for layer in layers] for _ in range(2))
    found, other = (max(s.multiple(AMONG) for s in stairs) for stairs in (once, again))
    if found != other:
        return None
    liked = Liked(runtime, found, tuple(again))
    write_kept(where(runtime), {"format": FORMAT, "machine": machine().to_dict(), **liked.to_dict()})
    return liked


def learned(runtime: str) -> Liked | None:
    """What `learn` kept for a runtime; None where it did not, or where the file cannot be used, which is said."""
    path = where(runtime)
    told = read_kept(path, form=FORMAT, what="widths")
    if told is None:
        return None
    try:
        stairs = tuple(
            Staircase(
                str(s["runtime"]),
                str(s["layer"]),
                tuple(int(w) for w in s["widths"]),
                tuple(float(t) for t in s["ms"]),
                tuple(float(r) for r in s["rate"]),
                int(s["threads"]),
            )
            for s in told["stairs"]
        )
        if (multiple := int(told["multiple"])) not in AMONG:
            raise SpecError(f"it rounds to multiples of {multiple}")
        return Liked(runtime, multiple, stairs)
    except (KeyError, TypeError, ValueError) as error:
        unusable(path, "widths", error)
        return None


def where(runtime: str) -> Path:
    """The file of a runtime: it changes with the machine and with the versions of PyTorch and of the runtime.

    Errors: `UnknownNameError`.
    """
    library = registry.named(runtime).library
    try:
        version = metadata.version(library) if library else ""
    except metadata.PackageNotFoundError:
        version = ""
    digest = machine().digest(runtime=runtime, version=version, what="widths")
    return cache_folder() / "latency" / f"widths-{runtime}-{digest}.json"
