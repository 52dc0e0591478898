"""What a measurement of speed was made on: the processor, what it can do, how much of it this process may use."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

WORTH_KNOWING = {
    "AVX2": ("avx2",),
    "FMA": ("fma",),
    "AVX-512": ("avx512f",),
    "AVX-512 VNNI": ("avx512_vnni",),
    "AVX-512 BF16": ("avx512_bf16",),
    "AVX-512 FP16": ("avx512_fp16",),
    "AVX-VNNI": ("avx_vnni",),
    "AMX BF16": ("amx_bf16",),
    "AMX INT8": ("amx_int8",),
    "NEON": ("asimd", "neon"),
    "NEON dot product": ("asimddp",),
    "NEON BF16": ("bf16",),
    "NEON INT8": ("i8mm",),
    "SVE": ("sve",),
}
"""What speeds up networks, and the names that the system has for it."""


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA card as PyTorch sees it. `two_four`: whether its tensor cores skip the zeros of 2:4 (Ampere on)."""

    name: str
    capability: str
    memory: int
    two_four: bool


@dataclass(frozen=True)
class Machine:
    """A computer, as far as the speed of a network hangs on it.

    Attributes:
        cpu: the processor's name; `architecture` its instruction set.
        flags: all that the system says it can do, sorted.
        cores: logical cores that this process may run on.
        quota: how many cores' worth of time the control group grants; None for no limit.
        memory: bytes of the whole machine; 0 where the system does not say.
        memory_limit: bytes that the control group grants; None for no limit.
        gpus: NVIDIA cards.
    """

    cpu: str
    architecture: str
    system: str
    flags: tuple[str, ...]
    cores: int
    quota: float | None
    memory: int
    memory_limit: int | None
    gpus: tuple[Gpu, ...] = ()

    @property
    def features(self) -> dict[str, bool]:
        """What of `WORTH_KNOWING` of this architecture the processor has."""
        arm = self.architecture.startswith(("arm", "aarch"))
        return {
            title: any(name in self.flags for name in names)
            for title, names in WORTH_KNOWING.items()
            if title.startswith(("NEON", "SVE")) == arm
        }

    @property
    def usable(self) -> float:
        """Cores that this process can keep busy."""
        return float(self.cores) if self.quota is None else min(float(self.cores), self.quota)

    def digest(self, **more: Any) -> str:
        """16 hexadecimal digits that change with the machine, with PyTorch's version and with `more`.

        Cards do not enter (what was timed on one names it in `more`), nor does the kernel; memory counts in GiB.
        """
        told = {k: v for k, v in asdict(self).items() if k not in ("gpus", "system")}
        told |= {"memory": round(self.memory / 2**30), "torch": torch.__version__} | more
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"flags": list(self.flags), "features": self.features, "usable_cores": self.usable}


@cache
def machine() -> Machine:
    """This machine; looked at once per process."""
    names, flags = _processor()
    quota, limit = _granted()
    return Machine(
        cpu=names,
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        flags=flags,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        quota=quota,
        memory=_memory(),
        memory_limit=limit,
        gpus=_cards(),
    )


def cache_folder() -> Path:
    """Where measurements of this machine lie: `$PRUNUS_CACHE`, else `prunus` in the user's cache folder."""
    if chosen := os.environ.get("PRUNUS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prunus"


def _processor() -> tuple[str, tuple[str, ...]]:
    """The name and the flags of the first processor."""
    text = _read("/proc/cpuinfo")
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    name = found.get("model name") or found.get("Hardware") or platform.processor() or "unknown"
    flags = found.get("flags") or found.get("Features") or torch.backends.cpu.get_cpu_capability().lower()
    return name, tuple(sorted(flags.split()))


def _granted() -> tuple[float | None, int | None]:
    """Cores' worth of time and bytes of memory that the control group grants, of both of its versions."""
    base = "/sys/fs/cgroup"
    quota = _read(f"{base}/cpu.max").split() or [
        _read(f"{base}/cpu/cpu.cfs_quota_us").strip(),
        _read(f"{base}/cpu/cpu.cfs_period_us").strip(),
    ]
    cores = int(quota[0]) / int(quota[1]) if len(quota) == 2 and all(q.isdigit() and int(q) for q in quota) else None
    limit = (_read(f"{base}/memory.max") or _read(f"{base}/memory/memory.limit_in_bytes")).strip()
    # The first version writes a huge number where there is no limit.
    return cores, int(limit) if limit.isdigit() and int(limit) < 1 << 60 else None


def _memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def _cards() -> tuple[Gpu, ...]:
    if not torch.cuda.is_available():
        return ()
    found = []
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        nvidia = torch.version.cuda is not None
        found.append(
            Gpu(card.name, f"{card.major}.{card.minor}", int(card.total_memory), nvidia and (card.major, 0) >= (8, 0))
        )
    return tuple(found)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
