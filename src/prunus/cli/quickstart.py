"""`prunus quickstart`: the whole way, once, on real data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli.output import INTERRUPTED, DryRun, Json, Seed, console, emit, progress, say, told_warnings
from prunus.core.errors import SpecError


def quickstart(
    data: Annotated[str | None, typer.Option("--data", help="fashion-mnist or digits; default: what is there.")] = None,
    root: Annotated[Path | None, typer.Option("--root", help="Folder to look for the data in.")] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch Fashion-MNIST through torchvision if it is not here.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for report and models.")] = Path("prunus-quickstart"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run finished.")] = False,
    dry_run: DryRun = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train a real network, prune it four ways, compact, prove, time, and explain it in a report.

    Every finished part is kept in the output folder: after an interruption the same command goes on where it stopped.
    """
    from prunus.deploy.atomic import check_writable
    from prunus.lab import quickstart as steps
    from prunus.report.tables import print_table

    check_writable(out)
    plan = steps.plan(data, root, download=download, seed=seed)
    if dry_run:
        _plan(plan.to_dict() | {"out": str(out)}, json)
        return
    if fresh and out.exists():
        _forget(out)
    say(plan.reason)
    say(str(plan.dataset))
    try:
        with told_warnings():
            report = steps.run(plan, out, progress=progress, say=say)
    except KeyboardInterrupt as interrupt:
        say(f"interrupted: what was finished is in {out}, and the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from interrupt
    if json:
        emit(report.model_dump(mode="json"))
        return
    print_table(report, console())
    say(f"open {out / 'report.html'} in a browser; the models, dense and pruned, are in {out / 'models'}")
    options = "".join(f" -O {k}={v}" for k, v in plan.preset.options.items())
    weights = f"-c {out / steps.DENSE} -d {plan.dataset.name}{f' --root {root}' if root else ''}"
    say(f"more methods on this network: prunus compare {plan.preset.network}{options} {weights} -m lamp,synflow")


def _plan(plan: dict[str, Any], json: bool) -> None:
    if json:
        emit({"dry_run": True, **plan})
        return
    low, high = plan["expected_accuracy"]
    options = "".join(f", {k} {v}" for k, v in plan["options"].items())
    lines = [
        plan["reason"],
        plan["data"],
        (
            f"would train {plan['network']}{options} for {plan['dense_steps']} steps (measured before: {low:.1%} to "
            f"{high:.1%} test accuracy), then prune it:"
        ),
        *(f"  {m['name']}: {m['budget']}, then {m['steps']} steps of training" for m in plan["methods"]),
        f"would write {plan['out']} (dry run: nothing was changed)",
    ]
    console().print("\n".join(lines), markup=False, soft_wrap=True)


def _forget(out: Path) -> None:
    """Remove an earlier run's folder, and nothing that does not look like one."""
    own = {"training", "models", "curves", "report.html", "report.md", "report.json"}
    if not out.is_dir() or {p.name for p in out.iterdir()} - own:
        raise SpecError(f"{out} holds more than a quickstart's files: remove it by hand, or choose another --out")
    shutil.rmtree(out)
