"""What a contrast is run on: problems (a network, its data, its training) and tiers (how much of it, for how long)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from prunus import measure
from prunus.core.errors import DataError, SpecError, UnknownNameError
from prunus.lab import data, zoo
from prunus.lab.contrast import unlabelled
from prunus.lab.contrast.unlabelled import Learns, Unlabelled
from prunus.lab.data import Augment, Dataset, Loader, Split


class Problem(BaseModel):
    """A network, the data it learns, and how it is trained: by SGD with Nesterov momentum, the same for every arm.

    Attributes:
        name: short and unique within a tier.
        network: name for `prunus.lab.zoo.build`, or `package.module:factory`.
        options: what else `build` is told.
        data: name or path for `prunus.lab.data.load`.
        images: the first so many training images; all of them where left out.
        epochs: passes over the data of a training from initial weights.
        tune: passes of a fine-tuning of trained weights.
        batch: examples per step.
        rates: learning rates that are tried (with the first seed, judged by held-out images).
        momentum, weight_decay, curve: of the optimizer; see `prunus.lab.trainer.factor` for the curves.
        shift, flip: augmentation: shifts of up to so many pixels, mirror images.
        calib: batches that recipes score with.
        bf16: train in bfloat16 autocast.
        classes: the classes that are learned, from this share of them to that one; they are numbered anew.
        thinned: every so manieth training image stands for those up to the next: fewer images, as many steps.
        learns: what training goes by: labels, or without them views or pixels of the images (`unlabelled`).
        resolution: images are made smaller (every pixel the mean of an area) until the dense network has at most this
            share of its multiply-accumulates; `side` says how small.
        channels_last: convolutions lie channels last in memory: faster on the CPU of docs/lab-cost.md.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    network: str
    options: Mapping[str, Any] = Field(default_factory=dict)
    data: str
    images: int | None = Field(default=None, ge=1)
    epochs: int = Field(ge=1)
    tune: int = Field(ge=1)
    batch: int = Field(default=128, ge=1)
    rates: tuple[float, ...] = Field(min_length=1)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    curve: str = "cosine"
    shift: int = 0
    flip: bool = False
    calib: int = Field(default=2, ge=1)
    bf16: bool = False
    classes: tuple[float, float] = (0.0, 1.0)
    thinned: int = Field(default=1, ge=1)
    learns: Learns = "labels"
    resolution: float = Field(default=1.0, gt=0.0, le=1.0)
    channels_last: bool = False

    def dataset(self) -> Dataset:
        """The data, read once per process."""
        side = self.side()
        return _dataset(self.data, self.classes) if side is None else _smaller(self.data, self.classes, side)

    def side(self) -> int | None:
        """The side of images that are made smaller; None where they are as they are."""
        return None if self.resolution == 1.0 else _side(self.model_dump_json(include=_SEEN), self.resolution)[0]

    def share(self) -> float:
        """The share of the dense network's multiply-accumulates that such images leave; 1 where they are as they are.

        Cost: a count for every side, once per process.
        """
        return 1.0 if self.resolution == 1.0 else _side(self.model_dump_json(include=_SEEN), self.resolution)[1]

    def train(self) -> Split:
        """The training examples that are used."""
        found = self.dataset().train
        found = found if self.images is None else found.head(self.images)
        if self.thinned == 1:
            return found
        return found.take(torch.arange(len(found)) // self.thinned * self.thinned)

    def edited(self, where: Mapping[str, Any]) -> Problem:
        """The problem with other settings; `options` are added to the network's own, another network has none."""
        if not where:
            return self
        options = {} if "network" in where else self.options
        edits = {**where, "options": {**options, **where.get("options", {})}}
        return Problem.model_validate(self.model_dump() | edits)

    def begins(self) -> str:
        """What initial weights depend on beside the seed and the data, in words: two that agree have the same."""
        width = "" if self.classes == (0.0, 1.0) else f", {self.classes[1] - self.classes[0]:.3g} of the classes"
        return f"{self.network} {dict(sorted(self.options.items()))}{width}, {self.learns}"

    def seen(self, loader: Loader) -> Loader | Unlabelled:
        """Batches as this problem learns from them."""
        return loader if self.learns == "labels" else Unlabelled(loader, self.learns)

    def loader(self, seed: int) -> Loader | Unlabelled:
        """Shuffled training batches; one seed, one order."""
        augment = Augment(self.shift, self.flip) if self.shift or self.flip else None
        return self.seen(Loader(self.train(), self.batch, seed=seed, shuffle=True, augment=augment, drop_last=True))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a pass over the data."""
        return len(self.train()) // self.batch

    def initial(self, seed: int) -> nn.Module:
        """The network with the initial weights of a seed; torch's generator is left as it was.

        Where labels are not learned, the last layer has other outputs; all others begin as they do with labels.
        """
        made = self._network(seed, self.learns)
        if self.learns != "labels":
            own, known = made.state_dict(), self._network(seed, "labels").state_dict()
            fits = {n: n in known and known[n].shape == t.shape for n, t in own.items()}
            made.load_state_dict({n: known[n] if fits[n] else t for n, t in own.items()})
        if self.channels_last:
            made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return made

    def _network(self, seed: int, learns: Learns) -> nn.Module:
        found = self.dataset()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            channels = found.in_channels if found.kind == "image" else None
            outputs = unlabelled.outputs(found, learns)
            return zoo.build(self.network, num_classes=outputs, in_channels=channels, **_fitted(self, found.size))

    def optimizer(self, parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        """SGD at this problem's settings; vectors (biases, normalization) do not decay."""
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(
            [g for g in groups if g["params"]], lr=rate, momentum=self.momentum, nesterov=self.momentum > 0
        )

    def inputs(self, split: Split, count: int) -> Tensor:
        """The first examples of a split, as the network takes them."""
        return split.inputs(split.x[:count])


class Tier(BaseModel):
    """How much of a contrast is run: on which problems, at how many seeds, with how many operating points.

    Attributes:
        name: smoke, desk, desk-full or paper.
        problems: what it is run on.
        seeds: of initial weights, order of data and everything random.
        most_points: operating points of a contrast that are kept, from its list's both ends inwards; 0 for all.
        tuned: the learning rate is chosen for every `cell` (arm and operating point), or for every `arm`, at the
            operating point in the middle.
        says: what its verdicts may be taken for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    problems: tuple[Problem, ...]
    seeds: tuple[int, ...]
    most_points: int = 0
    tuned: Literal["cell", "arm"] = "cell"
    says: str

    def points(self, given: tuple[float, ...]) -> tuple[float, ...]:
        """The operating points of this tier: all, or the ends and what lies evenly between them."""
        if not self.most_points or len(given) <= self.most_points:
            return given
        if self.most_points == 1:
            return (given[len(given) // 2],)
        last = len(given) - 1
        return tuple(given[round(i * last / (self.most_points - 1))] for i in range(self.most_points))


@cache
def _dataset(name: str, classes: tuple[float, float] = (0.0, 1.0)) -> Dataset:
    """A data set, or a part of its classes; where shares fall within a class, it is left out."""
    if classes == (0.0, 1.0):
        return data.load(name)
    found = _dataset(name)
    if found.kind != "image":
        raise DataError(f"{name} holds {found.kind}: only classes of images can be left out")
    first, last = (round(share * found.num_classes, 6) for share in classes)
    first, last = math.ceil(first), math.floor(last)
    if not 0 <= first < last <= found.num_classes:
        raise SpecError(f"classes={classes} of the {found.num_classes} of {name}: that is none")

    def part(split: Split) -> Split:
        left = split.take(((split.y >= first) & (split.y < last)).nonzero().flatten())
        return replace(left, y=left.y - first)

    return replace(
        found,
        name=f"{found.name}, classes {first} to {last - 1}",
        train=part(found.train),
        valid=part(found.valid),
        test=part(found.test),
        num_classes=last - first,
        digest=hashlib.sha256(f"{found.digest} {first} {last}".encode()).hexdigest(),
    )


_SEEN = {"name", "network", "options", "data", "classes", "epochs", "tune", "rates"}
"""What a problem's network and images follow from, and what no problem is without."""


@cache
def _side(problem: str, share: float) -> tuple[int, float]:
    """The largest side of images with at most this share of a dense network's multiply-accumulates, and the share."""
    whole = Problem.model_validate_json(problem)
    found, model = whole.dataset(), whole.initial(0).eval()
    if found.kind != "image":
        raise DataError(f"{whole.data} holds {found.kind}: only images can be made smaller")
    images = whole.inputs(found.test, 1)
    full = measure.macs(model, (images,)).total
    for side in range(found.size - 1, 0, -1):
        left = measure.macs(model, (interpolate(images, size=(side, side), mode="area"),)).total / full
        if left <= share:
            return side, left
    raise SpecError(f"{whole.network} has no images so small that {share:.3g} of its multiply-accumulates are left")


@cache
def _smaller(name: str, classes: tuple[float, float], side: int) -> Dataset:
    """A data set with smaller images; every pixel is the mean of the area that it stands for."""
    found = _dataset(name, classes)

    def part(split: Split) -> Split:
        # In pieces: the images as float32 would be four times as large.
        pieces = (interpolate(x.float(), size=(side, side), mode="area") for x in split.x.split(4096))
        return replace(split, x=torch.cat([p.round_().to(torch.uint8) for p in pieces]))

    return replace(
        found,
        name=f"{found.name}, {side} x {side}",
        train=part(found.train),
        valid=part(found.valid),
        test=part(found.test),
        size=side,
        digest=hashlib.sha256(f"{found.digest} {side}".encode()).hexdigest(),
    )


def _fitted(problem: Problem, size: int) -> dict[str, Any]:
    """The problem's options, with the side of the images where the network wants to know it."""
    import importlib
    import inspect

    options = dict(problem.options)
    if ":" not in problem.network:
        spec = zoo.spec(problem.network)
        takes = inspect.signature(getattr(importlib.import_module(spec.module), spec.factory)).parameters
        if spec.kind == "image" and "size" in takes:
            options.setdefault("size", size)
    return options


_LENET = partial(Problem, network="lenet300", data="fashion-mnist", rates=(0.3, 0.1, 0.03))
_TINY = partial(Problem, network="vgg_tiny", data="fashion-mnist", rates=(0.3, 0.1, 0.03), channels_last=True)
_QUALITATIVE = "directions of qualitative claims on small problems; no reproduction of any table"

TIERS: Mapping[str, Tier] = MappingProxyType(
    {
        "smoke": Tier(
            name="smoke",
            problems=(
                Problem(
                    name="mlp-digits",
                    network="mlp",
                    data="digits",
                    images=512,
                    epochs=2,
                    tune=1,
                    batch=64,
                    rates=(0.1,),
                ),
            ),
            seeds=(0,),
            most_points=2,
            says="that everything runs: one seed, two epochs, nothing can be concluded",
        ),
        "desk": Tier(
            name="desk",
            problems=(
                _LENET(name="lenet-fmnist", images=10_000, epochs=10, tune=5),
                _TINY(name="vgg-fmnist", images=5_000, epochs=6, tune=3),
            ),
            seeds=(0, 1, 2),
            tuned="arm",
            says=_QUALITATIVE,
        ),
        "desk-full": Tier(
            name="desk-full",
            problems=(
                _LENET(name="lenet-fmnist-full", epochs=160, tune=40),
                _TINY(name="vgg-fmnist-full", epochs=40, tune=10),
                Problem(
                    name="resnet20-fmnist-full",
                    network="resnet20",
                    data="fashion-mnist",
                    epochs=30,
                    tune=10,
                    rates=(0.1, 0.02),
                    bf16=True,
                ),
            ),
            seeds=(0, 1, 2, 3, 4),
            says=_QUALITATIVE,
        ),
        "paper": Tier(
            name="paper",
            problems=tuple(
                Problem(
                    name=f"{network}-{images}",
                    network=network,
                    data=images,
                    epochs=160,
                    tune=160,
                    rates=(0.1, 0.01),
                    weight_decay=1e-4,
                    curve="step",
                    shift=4,
                    flip=True,
                )
                for network, images in (
                    ("vgg16", "cifar10"),
                    ("vgg16", "cifar100"),
                    ("resnet32", "cifar10"),
                    ("vgg16", "svhn"),
                )
            ),
            seeds=(0, 1, 2),
            says="the survey's networks, data and number of epochs",
        ),
    }
)


def tier(name: str) -> Tier:
    """A tier by its name.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in TIERS:
        raise UnknownNameError("tier", name, TIERS)
    return TIERS[name]


def only(found: Tier, names: tuple[str, ...]) -> Tier:
    """The tier with these of its problems.

    Raises:
        SpecError: it has none of a name.
    """
    known = {p.name: p for p in found.problems}
    if missing := [n for n in names if n not in known]:
        raise SpecError(f"tier {found.name} has no problem {missing[0]!r}: it has {', '.join(known)}")
    return found.model_copy(update={"problems": tuple(known[n] for n in names)}) if names else found
