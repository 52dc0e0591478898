"""`prunus inspect`: layers, costs, what is coupled to what, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from prunus.cli.output import DryRun, Json, Seed, emit, planned, say
from prunus.core.errors import SpecError

if TYPE_CHECKING:
    from torch import nn

    from prunus.graph import Structure
    from prunus.report.coupling import Coupling


def inspect(
    network: Network,
    checkpoint: Checkpoint = None,
    shape: Input = None,
    classes: Classes = None,
    width: Width = None,
    option: Options = None,
    members: Annotated[bool, typer.Option("--members/--no-members", help="List every slice of every group.")] = True,
    why: Annotated[
        list[str] | None,
        typer.Option(
            "--why",
            metavar="PARAM",
            help="Only say why this parameter is coupled or stays whole; given twice: the chain between the two.",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="Draw the network and its groups into a .html or .svg file."),
    ] = None,
    dry_run: DryRun = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Print a network's layers with their costs, its coupled groups as a tree, and why the rest stays whole.

    With --why, print the chain of operations that ties two parameters. With --picture, also draw the network.
    """
    _check(why, picture)
    built = Built(network, options_of(classes, width, option), checkpoint=checkpoint, seed=seed)
    model, example = built.model(), example_for(built, shape, seed)
    count = sum(p.numel() for p in model.parameters())
    if dry_run:
        shapes = [list(t.shape) for t in example]
        draw = f" and write {picture}" if picture is not None else ""
        planned(
            json,
            {"network": built.name, "params": count, "input": shapes, "picture": picture and str(picture)},
            f"would trace {built.name} ({count:,} parameters) with an input of {shapes[0]}{draw}",
        )
        return
    from prunus.cli.inspect_tree import as_json, show, show_why, why_as_json

    found = _found(built.name, model, example)
    if picture is not None:
        _draw(found, picture)
    if why:
        names = [found.named(name) for name in why]
        emit(why_as_json(found, names)) if json else show_why(found, names)
    elif json:
        emit(as_json(found))
    else:
        show(found, members)


def inspected(built: Built, shape: str | None = None, seed: int = 0) -> Coupling:
    """What `prunus inspect` finds in a network, traced with one input of a shape (default: the network's own)."""
    return _found(built.name, built.model(), example_for(built, shape, seed))


def _found(name: str, model: nn.Module, example: tuple[Any, ...]) -> Coupling:
    from prunus.graph import trace

    with _noting(model) as order:
        tried(model, name, example)
    return coupling_of(name, model, trace(model, example), order())


def coupling_of(network: str, model: nn.Module, structure: Structure, order: list[str]) -> Coupling:
    """What was found in a network, in the form that is shown; `order` names its parameters by first use."""
    from prunus.report.coupling import Coupling, Weight

    parameters = dict(model.named_parameters())
    weights = tuple(
        Weight(n, tuple(parameters[n].shape), structure.macs.get(n, 0), structure.frozen.get(n)) for n in order
    )
    names = {other: name for name, every in structure.aliases.items() for other in every}
    return Coupling(network, weights, structure.groups, structure.links, structure.fixed_macs, names)


def _check(why: list[str] | None, picture: Path | None) -> None:
    if why and len(why) > 2:
        raise SpecError(f"--why was given {len(why)} times: name one parameter, or two to see what ties them")
    if picture is not None:
        if picture.suffix not in (".html", ".svg"):
            raise SpecError(f"--picture {picture}: the file's name must end in .html or .svg")
        if picture.is_dir():
            raise SpecError(f"--picture {picture} is a folder: name a file in it")


def _draw(found: Coupling, file: Path) -> None:
    from prunus.report.files import write_together

    if file.suffix == ".html":
        from prunus.report.coupling_page import page as draw
    else:
        from prunus.report.coupling_picture import picture as draw
    text = draw(found)
    write_together(file.parent, {file.name: text})
    say(f"written: {file}")


@contextmanager
def _noting(model: nn.Module) -> Iterator[Callable[[], list[str]]]:
    """While active, notes in which order modules start to run; the result names the parameters by first use."""
    started: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            started.setdefault(name, len(started))

        return hook

    from prunus.graph.running import takes_hooks

    python = ((n, m) for n, m in model.named_modules() if takes_hooks(m))
    handles = [module.register_forward_pre_hook(note(name)) for name, module in python]

    def first(parameter: str) -> int:
        # Weights that another module uses (those of attention's projections) count as used when that one starts.
        owner = parameter.rpartition(".")[0]
        while owner and owner not in started:
            owner = owner.rpartition(".")[0]
        return started.get(owner, 0)

    try:
        yield lambda: sorted((name for name, _ in model.named_parameters()), key=first)
    finally:
        for handle in handles:
            handle.remove()
