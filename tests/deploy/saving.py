"""What tests that kill, watch or starve a save do in a process of its own."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import prunus
from prunus import Result

KILLS = ("open", "os.", "shutil.")
"""What a save asks of the system, by the names that Python's audit gives them."""


def wide(seed: int) -> nn.Module:
    """A network whose file takes more than one write."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 10))


def result(seed: int) -> Result:
    return prunus.prune(wide(seed), None, "magnitude", sparsity=0.6)


def killed(save: Callable[[], object], at: int) -> bool:
    """Run in a fork, killed as by `kill -9` when it asks the system for the `at`-th thing. Whether it came so far."""
    pid = os.fork()
    if pid:
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    left = [at]

    def watch(event: str, _: object) -> None:
        if event.startswith(KILLS):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(watch)
        save()
    finally:
        os._exit(0)


def killed_after(save: Callable[[], object], seconds: float) -> bool:
    """The same after some time."""
    pid = os.fork()
    if not pid:
        try:
            save()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def storm(path: Path, kills: int, *, seed: int = 0) -> tuple[int, int, int]:
    """Save two models in turn into one folder, each time killed somewhere, and read it after each kill.

    Returns: how many died, how often the folder was the old one, how often the new one. Asserts that it was never
    anything else.
    """
    results = [result(0), result(1)]
    states = [r.model.state_dict() for r in results]
    began = time.monotonic()
    prunus.save(results[0], path)
    took, dice = time.monotonic() - began, random.Random(seed)
    there, died, old, new = 0, 0, 0, 0
    for i in range(kills):
        other = 1 - there
        if i % 2:
            died += killed_after(lambda o=other: prunus.save(results[o], path), dice.uniform(0, 1.3 * took))  # type: ignore[misc]
        else:
            died += killed(lambda o=other: prunus.save(results[o], path), 1 + i // 2 * 60 // max(1, kills // 2))  # type: ignore[misc]
        state = prunus.load(path, lambda: wide(7)).state_dict()
        found = [all(torch.equal(state[n], t) for n, t in s.items()) for s in states]
        assert sum(found) == 1, "neither the old model nor the new one"
        old, new = old + found[there], new + found[other]
        there = found.index(True)
    prunus.save(results[0], path)
    assert [p.name for p in path.parent.iterdir()] == [path.name], "what killed processes left is still there"
    return died, old, new


PEAK = """
import sys, torch, prunus
from pathlib import Path
from prunus.deploy.tensors import write_tensors
from prunus.deploy.weights import lay

def status(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024

rows, columns, count, kind = 3072, 4096, 3, sys.argv[1]

def made(name):
    generator = torch.Generator().manual_seed(int(name))
    tensor = torch.empty(rows, columns, dtype=torch.bfloat16)
    for piece in tensor.split(256):  # so that making it needs no more than it has
        kept = torch.rand(piece.shape, generator=generator) < 0.4
        piece.copy_(torch.randn(piece.shape, generator=generator) * kept)
    return tensor

class Lazy(dict):
    def __getitem__(self, name):
        return made(name)

out = Path(sys.argv[2])
warm = torch.randn(64, 64) * (torch.rand(64, 64) < 0.3)
write_tensors(out.with_suffix(".warm"), lay({"a": warm}).entries, {})
if kind == "lazy":
    work = lambda: write_tensors(out, lay(Lazy.fromkeys(map(str, range(count)))).entries, {})
else:
    model = torch.nn.ModuleList(torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16) for _ in range(count))
    for i, layer in enumerate(model):
        layer.weight.data = made(str(i))
    result = prunus.prune(model, None, "magnitude_uniform", sparsity=0.7)
    del model
    work = lambda: prunus.save(result, out)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
work()
print(status("VmHWM") - before, rows * columns * 2)
"""
"""Prints by how many bytes the resident size rose at most, and the bytes of one tensor of three."""
