"""Training configurations that were measured, so that nobody has to search for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A network and the training that brings it to a known accuracy on a data set.

    Attributes:
        dataset: Name for `prunus.lab.data.load`.
        network: Name for `prunus.lab.zoo.build`.
        options: What else `build` is told.
        epochs: Passes over the training split.
        batch_size: Images per step.
        lr: Largest learning rate.
        lr_schedule: See `prunus.lab.trainer.factor`.
        weight_decay: Of weights; vectors do not decay.
        fine_tune: Steps of fine-tuning after pruning, as a fraction of the steps of this training.
        expected: Lowest and highest test accuracy that was measured, over the seeds named in `measured`.
        measured: How that was measured.
    """

    dataset: str
    network: str
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int
    batch_size: int
    lr: float
    lr_schedule: str = "one-cycle"
    weight_decay: float = 5e-4
    fine_tune: float = 0.25
    expected: tuple[float, float]
    measured: str


QUICKSTART: Mapping[str, Preset] = MappingProxyType(
    {
        # Half as wide, and with a strided stem, so that the rest of the quickstart has time too.
        "fashion-mnist": Preset(
            dataset="fashion-mnist",
            network="resnet20",
            options=MappingProxyType({"width": 0.5, "stem_stride": 2}),
            epochs=2,
            batch_size=128,
            lr=0.1,
            expected=(0.8919, 0.8973),
            measured="seeds 0 to 2, float32, 73 to 87 s of processor time on one 2.5 GHz core with AVX-512",
        ),
        "digits": Preset(
            dataset="digits",
            network="resnet20",
            epochs=15,
            batch_size=64,
            lr=0.1,
            expected=(0.9944, 1.0),
            measured="seeds 0 to 2, float32, 14 to 16 s of processor time on one 2.5 GHz core with AVX-512",
        ),
    }
)
