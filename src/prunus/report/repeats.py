"""Groups that are alike but for the numbers in their names: the same layer again, further down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prunus.core.groups import Group

Form = tuple[object, ...]


def relative(path: str, origin: str) -> tuple[str | int, ...]:
    """`path` as it looks from `origin`: where their parts are numbers, their difference stands for the number.

    `blocks.4.mlp.down` seen from `blocks.3.mlp.up` is `(blocks, 1, mlp, down)`. Beyond the first part in which they
    differ otherwise, the path is taken as it is.
    """
    seen: list[str | int] = []
    here = origin.split(".")
    same = True
    for i, part in enumerate(path.split(".")):
        base = here[i] if same and i < len(here) else ""
        if part.isdecimal() and base.isdecimal():
            seen.append(int(part) - int(base))
        else:
            same = same and part == base
            seen.append(part)
    return tuple(seen)


def form(group: Group) -> Form:
    """What a group looks like without the numbers in its name; equal forms are the same thing in another layer."""

    def of(name: str) -> tuple[str | int, ...]:
        return relative(name, group.name)

    members = tuple(
        (of(m.param), m.dim, m.role, None if m.index is None else tuple(m.index.shape)) for m in group.members
    )
    sizes = tuple(of(m.param) for m in getattr(group, "sizes", ()))
    return of(group.name), group.shape, group.kind, group.multiple, group.at_least, group.weight, members, sizes


def alike(groups: Sequence[Group]) -> list[list[Group]]:
    """The groups by form, in the order of the first of each."""
    found: dict[Form, list[Group]] = {}
    for group in groups:
        found.setdefault(form(group), []).append(group)
    return list(found.values())


def summed(names: Iterable[str]) -> str:
    """`blocks.{0-5}.mlp.up` for names that differ in numbers only and are every combination of them; else a list."""
    names = list(names)
    parts = [name.split(".") for name in names]
    if len({len(p) for p in parts}) != 1:
        return ", ".join(names)
    columns = [list(dict.fromkeys(column)) for column in zip(*parts, strict=True)]
    count = 1
    for column in columns:
        count *= len(column)
    plain = all(len(c) == 1 or all(part.isdecimal() for part in c) for c in columns)
    if not plain or count != len(set(names)):
        return ", ".join(names)
    return ".".join(c[0] if len(c) == 1 else "{" + ranges(int(n) for n in c) + "}" for c in columns)


def ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 -> `0-2,5`."""
    told: list[list[int]] = []
    for n in sorted(numbers):
        if told and n == told[-1][1] + 1:
            told[-1][1] = n
        else:
            told.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in told)
