"""The devices that a folder is pruned on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunus.core.errors import SpecError
from prunus.engine.agreement import distributed


def devices_of(device: str | Sequence[str]) -> tuple[str, ...]:
    """Their names: those that are given, separated by commas or as a list, the first being where blocks are loaded.

    `cuda` alone is all GPUs of the machine; of several processes, each one's own.
    Errors: `SpecError` for what is no device of this machine, or several of them in each of several processes.
    """
    names = [d.strip() for d in device.split(",")] if isinstance(device, str) else list(device)
    if names == ["cuda"] and not distributed() and torch.cuda.device_count() > 1:
        names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    for name in names or [""]:
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            raise SpecError(f"device={name!r} cannot be used here ({str(error).splitlines()[0]})") from None
    if len(names) > 1 and distributed():
        raise SpecError(
            f"{', '.join(names)}: several devices are for one process; of several processes (torchrun) each has its "
            f"own (device='cuda')"
        )
    return tuple(names)
