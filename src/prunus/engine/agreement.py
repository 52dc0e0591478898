"""What the processes of a distributed run must have in common, checked before anything is changed."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from prunus.core.errors import PrunusError
from prunus.engine.shards import whole

ADVICE = {
    "seed": "give every rank the same seed",
    "order of layers": "some layers (experts) see only the data of some ranks: pass more of it, or run fewer processes",
    "weights": "load or seed the model alike on every rank, or wrap it in DistributedDataParallel before attach()",
}


def distributed() -> bool:
    """Whether this process is one of several."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def check_agreement(facts: Mapping[str, str], device: torch.device) -> None:
    """Fail on every rank alike, naming what differs, where the ranks do not hold the same facts.

    One collective of 32 bytes per fact; nothing on a single process.
    Errors: `PrunusError`, on all ranks, so that none is left waiting.
    """
    if not distributed():
        return
    digests = b"".join(hashlib.sha256(v.encode()).digest() for v in facts.values())
    own = torch.frombuffer(bytearray(digests), dtype=torch.uint8).to(device).reshape(len(facts), 32)
    gathered = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(gathered, own)
    together = torch.stack(gathered).cpu()
    differ = [name for i, name in enumerate(facts) if not bool((together[:, i] == together[:1, i]).all())]
    if differ:
        advice = "; ".join(ADVICE.get(name, f"give every rank the same {name}") for name in differ)
        here = ", ".join(f"{n}={facts[n][:60]}" for n in differ)
        raise PrunusError(
            f"the {len(gathered)} ranks of this run differ in their {', '.join(differ)} (rank "
            f"{torch.distributed.get_rank()} has {here}), so their masks would too: {advice}"
        )


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """A number that equal tensors share and diverged ones hardly ever do: a sum of their bits. Cost: one pass."""
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = 0
    for i, t in enumerate(whole(t).detach() for t in tensors.values()):
        plain = torch.view_as_real(t) if t.is_complex() else t
        total += (i + 1) * int(plain.view(bits[plain.element_size()]).sum(dtype=torch.int64))
    return str(total)
