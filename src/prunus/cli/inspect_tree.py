"""What `prunus inspect` prints: the groups as a tree, the chains behind them, and the same as plain data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from prunus.cli.output import console
from prunus.core.groups import Group, Member
from prunus.report.coupling import Axis, Chain, Coupling, Tie, axes_of, axis_name, in_words, integers, reason_in_words
from prunus.report.repeats import alike, summed

ROLES: dict[str, tuple[str, ...]] = {
    "produced by": ("out",),
    "followed by": ("scale", "shift", "bias", "other"),
    "read by": ("in",),
}


def as_json(found: Coupling) -> dict[str, Any]:
    """Everything that the tree shows, and all links."""
    matrices = [w for w in found.weights if len(w.shape) >= 2]
    first = {g.name: same[0].name for same in alike(found.groups) for g in same}
    return {
        "network": found.network,
        "totals": {"params": found.params, "macs": found.macs, "groups": len(found.groups)},
        "layers": [
            {"weight": w.name, "shape": list(w.shape), "params": w.params, "macs": w.macs, "frozen": w.frozen}
            for w in matrices
        ],
        "groups": [_group_json(found, g, first[g.name]) for g in found.groups],
        "frozen": [{"reason": reason, "weights": names} for reason, names in found.frozen.items()],
        "links": [_tie_json(Tie(*link), "one", "other") for link in found.links],
    }


def _group_json(found: Coupling, group: Group, like: str) -> dict[str, Any]:
    params, macs = found.governs(group)
    return {
        "name": group.name,
        "units": group.units,
        "kind": group.kind,
        "params": params,
        "macs": macs,
        "multiple": group.multiple,
        "at_least": group.at_least,
        "like": like,
        "members": [
            {"param": m.param, "axis": m.dim, "role": m.role, "buffer": m.buffer, "positions": _each(group, m)}
            for m in group.members
        ],
        "integers": [m.param for m in integers(group)],
        "ties": [_tie_json(t, "from", "to") for t in found.tree(group)],
    }


def _axis_json(axis: Axis) -> dict[str, Any]:
    return {"param": axis[0], "axis": axis[1]}


def _tie_json(tie: Tie, one: str, other: str) -> dict[str, Any]:
    return {one: _axis_json(tie.parent), other: _axis_json(tie.child), "operation": tie.operation}


def why_as_json(found: Coupling, names: Sequence[str]) -> dict[str, Any]:
    """The chains between two parameters, or those that lead to one."""
    chains = found.between(*names) if len(names) == 2 else found.ways(names[0])
    return {
        "network": found.network,
        "why": list(names),
        "frozen": {name: w.frozen for name in names if (w := found.by_name.get(name)) is not None},
        "chains": [
            {
                "group": c.group,
                "from": _axis_json(c.start),
                "to": _axis_json(c.end),
                "known": c.known,
                "ties": [_tie_json(t, "from", "to") for t in c.ties],
            }
            for c in chains
        ],
    }


def _each(group: Group, member: Member) -> int | None:
    """How many positions of a member each unit owns."""
    return None if member.dim is None else int(member.positions(group.units).shape[1])


def show(found: Coupling, members: bool) -> None:
    """Print the table of layers, the tree of groups, and what stays whole."""
    from rich.markup import escape
    from rich.table import Table
    from rich.tree import Tree

    out = console()
    title = f"{found.network}: {found.params:,} parameters, {found.macs:,} MACs per input"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("weight", overflow="fold")
    for column in ("shape", "params", "MACs", "share of MACs"):
        table.add_column(column, justify="right")
    for w in found.weights:
        if len(w.shape) >= 2:
            shape = "x".join(map(str, w.shape))
            table.add_row(escape(w.name), shape, f"{w.params:,}", f"{w.macs:,}", _share(w.macs, found.macs))
    out.print(table)
    out.print()
    tree = Tree(f"{len(found.groups)} groups of units that live and die together")
    for same in alike(found.groups):
        _branch(found, tree, same, members)
    out.print(tree)
    if found.groups:
        out.print(
            "[dim]A weight belongs to one group along its output and to another along its input: shares overlap.[/]"
        )
    if found.frozen:
        out.print()
        count = sum(map(len, found.frozen.values()))
        rest = Tree(f"{count} weight{'s'[: count != 1]} whose output stays whole")
        for reason, names in _reasons(found):
            branch = rest.add(escape(reason_in_words(reason)))
            for line in _families(names):
                branch.add(escape(line))
        out.print(rest)


def _branch(found: Coupling, tree: Any, same: Sequence[Group], members: bool) -> None:
    from rich.markup import escape

    group = same[0]
    params, macs = found.governs(group)
    share = f"{_share(params, found.params)} of the parameters, {_share(macs, found.macs)} of the MACs"
    times = f" [bold]x {len(same)} like this[/]" if len(same) > 1 else ""
    each = " each" if len(same) > 1 else ""
    branch = tree.add(f"[bold]{escape(group.name)}[/]  {_units(group)}{times}  [dim]governs {share}{each}[/]")
    if len(same) > 1:
        branch.add(f"like this: {escape(summed(g.name for g in same))}")
    ties = {t.child: t for t in found.tree(group)}
    for title, roles in ROLES.items():
        own = [m for m in group.members if m.role in roles]
        if not own:
            continue
        if not members:
            branch.add(f"{title} {escape(_modules(own))}")
            continue
        under, said = branch.add(title), ""
        for m in own:
            because = _because(ties.get((m.param, m.dim)))
            # What one operation tied together is explained once.
            more = f"  [dim]{escape(because)}[/]" if because and because != said else ""
            under.add(escape(_slice(group, m)) + more)
            said = because
    for m in integers(group):
        because = _because(ties.get((m.param, None)))
        branch.add(f"repairs the integer {escape(m.param)}  [dim]{escape(because)}[/]")
    rules = [f"keeps at least {group.at_least}"] if group.at_least > 1 else []
    rules += [f"keeps a multiple of {group.multiple}"] if group.multiple > 1 else []
    if rules:
        branch.add(", ".join(rules))


def _units(group: Group) -> str:
    return f"{group.units} {group.kind}{'s'[: group.units != 1]}"


def _slice(group: Group, m: Member) -> str:
    each = _each(group, m)
    own = f", {each} positions each" if each is not None and each > 1 else ""
    role = f" ({m.role}{', buffer' if m.buffer else ''})" if m.role not in ("out", "in") else ""
    return f"{axis_name((m.param, m.dim))}{own}{role}"


def _because(tie: Tie | None) -> str:
    return "" if tie is None else f"by {in_words(tie.operation)}, with {tie.parent[0]}"


def _modules(members: Iterable[Member]) -> str:
    """Modules instead of their parameters."""
    return ", ".join(dict.fromkeys(m.param.rpartition(".")[0] or m.param for m in members))


def _share(part: int, whole: int) -> str:
    return f"{part / whole if whole else 0.0:.1%}"


def _reasons(found: Coupling) -> list[tuple[str, list[str]]]:
    """Reasons that differ in the numbers of a path only are one."""
    merged: dict[str, dict[str, list[str]]] = {}
    for reason, names in found.frozen.items():
        merged.setdefault(re.sub(r"(?<=\.)\d+(?=\W|$)", "#", reason), {})[reason] = names
    told = []
    for reasons in merged.values():
        head = next(iter(reasons))
        more = f" (and so in {len(reasons) - 1} other place{'s'[: len(reasons) != 2]})" if len(reasons) > 1 else ""
        told.append((head + more, [name for names in reasons.values() for name in names]))
    return told


def _families(names: Iterable[str]) -> list[str]:
    """Names that differ in numbers only are one line."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name), []).append(name)
    return [summed(own) + (f"  x {len(own)}" if len(own) > 1 else "") for own in found.values()]


def show_why(found: Coupling, names: Sequence[str]) -> None:
    """Print why one parameter is coupled or stays whole, or what ties two."""
    from rich.markup import escape
    from rich.tree import Tree

    out = console()
    two = len(names) == 2
    chains = found.between(*names) if two else found.ways(names[0])
    for chain in chains:
        out.print(_chain_tree(found, chain))
    if two and not chains:
        told = [f"{n} is in {', '.join(g.name for g in found.owners.get(n, [])) or 'no group'}" for n in names]
        out.print(escape(f"{names[0]} and {names[1]} are not coupled: {'; '.join(told)}."), soft_wrap=True)
    for name in names:
        weight = found.by_name.get(name)
        if weight is not None and weight.frozen is not None:
            stays = Tree(f"[bold]{escape(name)}[/] stays whole along its output")
            stays.add(escape(reason_in_words(weight.frozen)))
            for line in _families(n for n in found.frozen[weight.frozen] if n != name):
                stays.add(f"[dim]so does {escape(line)}[/]")
            out.print(stays)
        elif not two and not chains:
            out.print(escape(f"{name} is in no group: no unit that can be removed owns a part of it."), soft_wrap=True)
            if (whole := found.to_whole(name)) is not None:
                out.print(_chain_tree(found, whole))
                reason = found.by_name[whole.end[0]].frozen or ""
                out.print(escape(f"{whole.end[0]} stays whole: {reason_in_words(reason)}"), soft_wrap=True)


def _chain_tree(found: Coupling, chain: Chain) -> Any:
    from rich.markup import escape
    from rich.tree import Tree

    group = next((g for g in found.groups if g.name == chain.group), None)
    if group is None:
        head = f"[bold]{escape(axis_name(chain.start))}[/]  tied to {escape(chain.end[0])}; both stay whole"
    else:
        head = f"[bold]{escape(axis_name(chain.start))}[/]  group {escape(group.name)}, {_units(group)}"
    tree = Tree(head)
    at = tree
    for tie in chain.ties:
        at = at.add(f"[cyan]{escape(in_words(tie.operation))}[/]  ties it to  [bold]{escape(axis_name(tie.child))}[/]")
    if not chain.known:
        tree.add(f"one group with {escape(axis_name(chain.end))}; no single operation ties the axes as a whole")
    elif not chain.ties and group is not None:
        direct = [t for t in found.tree(group) if t.parent == chain.start]
        tree.add(f"this is where the group starts; {len(axes_of(group)) - 1} other axes go with it, directly")
        for tie in direct:
            tree.add(f"[cyan]{escape(in_words(tie.operation))}[/]  ties it to  {escape(axis_name(tie.child))}")
    return tree
