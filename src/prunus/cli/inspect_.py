"""`prunus inspect`: layers, costs, and what is coupled to what."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from prunus.cli.networks import (
    Built,
    Checkpoint,
    Classes,
    Input,
    Network,
    Options,
    Width,
    example_for,
    options_of,
    tried,
)
from prunus.cli.output import DryRun, Json, Seed, console, emit, planned


def inspect(
    network: Network,
    checkpoint: Checkpoint = None,
    shape: Input = None,
    classes: Classes = None,
    width: Width = None,
    option: Options = None,
    members: Annotated[bool, typer.Option("--members/--no-members", help="List every slice of every group.")] = True,
    dry_run: DryRun = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Print a network's layers with their costs, its coupled groups as a tree, and why the rest stays whole."""
    from prunus.graph import trace

    built = Built(network, options_of(classes, width, option), checkpoint=checkpoint, seed=seed)
    model, example = built.model(), example_for(built, shape, seed)
    parameters = dict(model.named_parameters())
    count = sum(p.numel() for p in parameters.values())
    if dry_run:
        shapes = [list(t.shape) for t in example]
        planned(
            json,
            {"network": built.name, "params": count, "input": shapes},
            f"would trace {built.name} ({count:,} parameters) with an input of {shapes[0]}",
        )
        return
    tried(model, built.name, example)
    structure = trace(model, example)
    layers = [
        {
            "weight": n,
            "shape": list(p.shape),
            "params": p.numel(),
            "macs": structure.macs.get(n, 0),
            "frozen": structure.frozen.get(n),
        }
        for n, p in parameters.items()
        if p.ndim >= 2
    ]
    groups = [
        {
            "name": g.name,
            "units": g.units,
            "kind": g.kind,
            "members": [{"param": m.param, "axis": m.dim, "role": m.role, "buffer": m.buffer} for m in g.members],
        }
        for g in structure.groups
    ]
    totals = {
        "params": count,
        "macs": sum(structure.macs.values()) + structure.fixed_macs,
        "groups": len(groups),
    }
    if json:
        emit({"network": built.name, "totals": totals, "layers": layers, "groups": groups})
        return
    _show(built.name, totals, layers, groups, members)


def _show(
    network: str, totals: dict[str, int], layers: list[dict[str, Any]], groups: list[dict[str, Any]], members: bool
) -> None:
    from rich.markup import escape
    from rich.table import Table
    from rich.tree import Tree

    out = console()
    table = Table(
        title=f"{network}: {totals['params']:,} parameters, {totals['macs']:,} MACs per input", title_justify="left"
    )
    table.add_column("weight", overflow="fold")
    table.add_column("shape", justify="right")
    table.add_column("params", justify="right")
    table.add_column("MACs", justify="right")
    table.add_column("share of MACs", justify="right")
    for layer in layers:
        shape = "x".join(map(str, layer["shape"]))
        share = layer["macs"] / totals["macs"] if totals["macs"] else 0.0
        table.add_row(escape(layer["weight"]), shape, f"{layer['params']:,}", f"{layer['macs']:,}", f"{share:.1%}")
    out.print(table)
    out.print()
    tree = Tree(f"{len(groups)} groups of units that live and die together")
    for group in groups:
        branch = tree.add(f"[bold]{escape(group['name'])}[/]  {group['units']} {group['kind']}s")
        for m in group["members"] if members else []:
            branch.add(f"{escape(m['param'])} axis {m['axis']} ({m['role']}{', buffer' if m['buffer'] else ''})")
    out.print(tree)
    whole = [layer for layer in layers if layer["frozen"]]
    if whole:
        out.print()
        rest = Tree(f"{len(whole)} weights whose output stays whole")
        for layer in whole:
            rest.add(f"{escape(layer['weight'])}: {escape(layer['frozen'])}")
        out.print(rest)
