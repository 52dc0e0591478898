"""Try the groups out: what does not come out equal when units are removed is taken off the list."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from prunus.core.errors import DataError, StructureError, VerificationError
from prunus.core.groups import Group
from prunus.core.task import Example
from prunus.graph.compact import compact
from prunus.graph.verify import NARROW, differ, masked_, noise_like, outputs, precise, randomized_, reference, typed


def sift(
    model: nn.Module, groups: list[Group], example: Example | Tensor, seed: int
) -> tuple[list[Group], list[tuple[Group, str]]]:
    """Those of `groups` from which units can be removed exactly, and the others with the reason.

    All are tried at once; only where that fails, halves are tried, so b bad ones of n cost about `2 b log2(n / b)`
    trials of one compaction and one run.
    """
    generator = torch.Generator().manual_seed(seed)
    masks = {group.name: some(group, generator) for group in groups}
    found = _setting(model, example, seed, groups, masks)
    if found is None:
        finite = _finite(model, example, seed, groups, masks)
        why = f"cannot be proved: {'with units of it at zero, ' if finite else ''}the model's output is not a number"
        kept, others = sift(model, finite, example, seed) if finite else ([], [])
        return kept, others + [(group, why) for group in groups if group not in finite]
    # `twin` is masked in all groups. What a part of them removes from it are zeros, so one reference does for all.
    twin, inputs, wide, expected = found
    tolerance = 1e-9 if wide else NARROW

    def attempt(part: list[Group], base: nn.Module, expected: list[Tensor]) -> str | None:
        own = {group.name: masks[group.name] for group in part}
        try:
            small, _ = compact(base, part, own, verify=False)
            compared = reference(base, part, own)
            error = differ(expected if compared is base else outputs(compared, inputs), small, inputs)
        except (DataError, StructureError, VerificationError) as failure:
            return str(failure)
        return None if error <= tolerance else f"removing units changes the output by {error:.1e}"

    reason = attempt(groups, twin, expected)
    if reason is None:
        return groups, []
    bad: list[tuple[Group, str]] = []

    def good(part: list[Group], reason: str | None) -> list[Group]:
        if reason is None:
            return part
        if len(part) == 1:
            bad.append((part[0], f"tried and found not removable: {reason}"))
            return []
        middle = len(part) // 2
        halves = part[:middle], part[middle:]
        return [group for half in halves for group in good(half, attempt(half, twin, expected))]

    kept = good(groups, reason)
    while kept and len(kept) < len(groups):
        base = masked_(randomized_(precise(model, wide), seed), kept, {group.name: masks[group.name] for group in kept})
        reason = attempt(kept, base, outputs(base, inputs))
        if reason is None:
            break
        # Each is fine alone but not all together: keep a beginning that is fine.
        bad.append((kept[-1], f"tried and found not removable together with others: {reason}"))
        kept = kept[:-1]
    return kept, bad


def _finite(
    model: nn.Module,
    example: Example | Tensor,
    seed: int,
    groups: list[Group],
    masks: dict[str, Bool[Tensor, "units"]],
) -> list[Group]:
    """Those of some groups whose masks leave the output a number, unlike those of all together."""

    def good(part: list[Group]) -> list[Group]:
        if _setting(model, example, seed, part, masks) is not None:
            return part
        middle = len(part) // 2
        return [group for half in (part[:middle], part[middle:]) if half for group in good(half)] if middle else []

    if _setting(model, example, seed, [], masks) is None:
        return []
    kept = good(groups[: len(groups) // 2]) + good(groups[len(groups) // 2 :]) if len(groups) > 1 else []
    while kept and _setting(model, example, seed, kept, masks) is None:  # each is fine, but not all together
        kept = kept[:-1]
    return kept


def _setting(
    model: nn.Module,
    example: Example | Tensor,
    seed: int,
    groups: list[Group],
    masks: dict[str, Bool[Tensor, "units"]],
) -> tuple[nn.Module, Example | Tensor, bool, list[Tensor]] | None:
    """A masked float64 copy (in its own type where it runs in no other), inputs that give numbers, its output."""
    for wide in (True, False):
        twin = masked_(randomized_(precise(model, wide), seed), groups, masks)
        for inputs in (noise_like(example, seed, wide), typed(example, wide)):
            try:
                found = outputs(twin, inputs)
            except DataError:  # inputs that must be positive, sorted or otherwise special: try the user's own
                continue
            if not any(bool(t.isnan().any()) for t in found):
                return twin, inputs, wide, found
    return None


def some(group: Group, generator: torch.Generator) -> Bool[Tensor, "units"]:
    """A random mask that removes about 40 % of the units, at least one, and never all (none if that cannot be)."""
    most = group.units - max(group.at_least, 1)
    count = min(max(round(0.4 * group.units), 1), most)
    if group.multiple > 1:
        kept = max(round((group.units - count) / group.multiple), 1) * group.multiple
        count = max(group.units - kept, 0)
    keep = torch.ones(group.units, dtype=torch.bool)
    keep[torch.randperm(group.units, generator=generator)[:count]] = False
    return keep
