"""What an experiment ran on, in labelled facts for its report: the data, the network, the machine, the time."""

from __future__ import annotations

import os
import platform
from datetime import datetime
from pathlib import Path

import torch

from prunus import __version__, measure
from prunus.lab.data import Dataset
from prunus.lab.experiment import Setup

Facts = dict[str, str | int | float]


def dataset_facts(dataset: Dataset) -> Facts:
    """The data set: sizes of its parts, where it lies, its digest."""
    shape = f"{dataset.in_channels}x{dataset.size}x{dataset.size}"
    return {
        "name": dataset.name,
        "train": len(dataset.train),
        "valid": len(dataset.valid),
        "test": len(dataset.test),
        "classes": dataset.num_classes,
        "input": shape if dataset.kind == "image" else f"{dataset.size} tokens",
        "where": dataset.where,
        "sha256": dataset.digest,
    }


def network_facts(setup: Setup) -> Facts:
    """The dense network: its name, the options it was built with, and its costs."""
    model = setup.build()
    options = {k: v for k, v in setup.options.items() if isinstance(v, str | int | float)}
    return {
        "name": setup.network,
        **options,
        "parameters": measure.params(model).total,
        "MACs per input": measure.macs(model, setup.example).total,
    }


def environment() -> Facts:
    """The machine and libraries that a measurement was made on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "prunus": __version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def now() -> str:
    """The time in ISO form, to the second, with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
