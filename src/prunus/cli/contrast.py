"""prunus contrast: the survey's comparisons, listed, run and reported."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunus.cli.bundles import bundled
from prunus.cli.output import DryRun, Json, console, emit, guarded, progress, say
from prunus.core.errors import SpecError

if TYPE_CHECKING:
    from prunus.lab.contrast import Contrast, Sheet, Tier
    from prunus.lab.contrast.sweep import OnStep
    from prunus.lab.contrast.trial import Record, Spec

app = typer.Typer(no_args_is_help=True, help="The survey's comparisons: list them, run them, report what they say.")

StoreAt = Annotated[
    str, typer.Option("--store", help="File of runs, or the URL of a PostgreSQL database.", show_default=True)
]
Names = Annotated[list[str] | None, typer.Argument(help="Contrasts; all of them when left out.", show_default=False)]
Environment = Annotated[str | None, typer.Option(help="Report the runs of this environment (see `prunus runs list`).")]


@dataclass(frozen=True)
class Level:
    """The options by which a tier is chosen, or a problem of the user's own."""

    tier: Annotated[str, typer.Option("--tier", "-t", help="smoke, desk, desk-full or paper.")] = "smoke"
    problem: Annotated[
        list[str] | None, typer.Option("--problem", help="Only these problems of the tier (repeat the option).")
    ] = None
    network: Annotated[
        str | None, typer.Option(help="Your own problem instead of a tier's: a network, or module:factory.")
    ] = None
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="The data of your own problem: a name or a path.")
    ] = None
    images: Annotated[int | None, typer.Option(min=1, help="First so many training images of your own problem.")] = None
    epochs: Annotated[int, typer.Option(min=1, help="Passes of a training of your own problem.")] = 10
    tune: Annotated[
        int | None, typer.Option(min=1, help="Passes of a fine-tuning; half of --epochs when left out.")
    ] = None
    lr: Annotated[str, typer.Option("--lr", help="Learning rates that are tried, separated by commas.")] = "0.1,0.02"
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Examples per step of your own problem.")] = 128
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds, from 0; the tier's own when left out.")] = (
        None
    )

    def chosen(self) -> Tier:
        """The tier that is asked for, or one of the user's own problem."""
        from prunus.lab.contrast import tier as named
        from prunus.lab.contrast.problem import only

        if (self.network is None) != (self.data is None):
            raise SpecError("your own problem takes both --network and --data")
        found = only(named(self.tier), tuple(self.problem or ())) if self.network is None else self._own()
        return found.model_copy(update={"seeds": tuple(range(self.seeds))}) if self.seeds else found

    def _own(self) -> Tier:
        from pydantic import ValidationError

        from prunus.lab.contrast import Problem, Tier

        try:
            own = Problem(
                name=f"{self.network}-{self.data}",
                network=str(self.network),
                data=str(self.data),
                images=self.images,
                epochs=self.epochs,
                tune=self.tune or max(1, self.epochs // 2),
                batch=self.batch_size,
                rates=tuple(float(r) for r in self.lr.split(",") if r.strip()),
            )
        except (ValueError, ValidationError) as error:
            raise SpecError(f"--lr {self.lr}: give learning rates separated by commas, such as 0.1,0.02") from error
        return Tier(name="own", problems=(own,), seeds=(0, 1, 2), says="your own problem")


SMOKE = Level()


@app.command("list")
@guarded
def list_(json: Json = False) -> None:
    """The contrasts: what each asks, its arms and its claims."""
    from prunus.lab import contrast

    found = [contrast.get(n) for n in contrast.names()]
    if json:
        emit(
            {
                "contrasts": [_told(c) for c in found],
                "missing": dict(contrast.MISSING),
                "tiers": [t.model_dump(mode="json") for t in contrast.TIERS.values()],
            }
        )
        return
    from rich.table import Table

    table = Table("contrast", "survey", "question", "arms", "claims")
    for c in found:
        table.add_row(c.name, c.section, c.question, str(len(c.arms)), str(len(c.claims)))
    console().print(table)
    for what, why in contrast.MISSING.items():
        console().print(f"[bold]none[/] for {what}: {why}")
    for tier in contrast.TIERS.values():
        problems = ", ".join(p.name for p in tier.problems)
        console().print(f"[bold]{tier.name}[/]: {problems}; {len(tier.seeds)} seed(s); {tier.says}")


@app.command()
@guarded
@bundled
def run(
    names: Names = None,
    level: Level = SMOKE,
    store: StoreAt = "runs.db",
    engine: Annotated[
        str, typer.Option(help="here: one after the other; ray: --jobs at a time, or a cluster.")
    ] = "here",
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time with --engine ray.")] = 2,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster; one is started when left out.")] = None,
    minutes: Annotated[float, typer.Option(help="Begin no run after these.")] = float("inf"),
    threads: Annotated[int, typer.Option(min=1, help="Threads per run.")] = 1,
    device: Annotated[str, typer.Option(help="Where runs are made: cpu, cuda, cuda:1.")] = "cpu",
    retry: Annotated[bool, typer.Option("--retry", help="Make failed runs again.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make the runs that are missing. Interrupt it, or start it several times at once: nothing is run twice."""
    from prunus.lab.contrast.sweep import sheet, sweep
    from prunus.lab.contrast.trial import here
    from prunus.lab.store import Store

    chosen, tier = _chosen(names), level.chosen()
    if engine not in ("here", "ray"):
        raise SpecError(f"--engine {engine}: here or ray")
    if dry_run:
        _plan(chosen, tier, store, json)
        return
    import torch

    torch.set_num_threads(threads)
    place = here(device)
    kept, bars = Store(store), ExitStack()
    try:
        if retry:
            failed = [r.key for r in kept.rows(place.key, "failed")]
            say(f"{kept.retry(failed, place.key)} failed runs will be made again")
        counts = sweep(
            chosen,
            tier,
            kept,
            engine="ray" if engine == "ray" else "here",
            jobs=jobs,
            address=address,
            minutes=minutes,
            told=_tell,
            on_step=_watched(bars) if sys.stderr.isatty() else None,
            device=device,
        )
        sheets = [sheet(c, tier, kept, place.key) for c in chosen]
    finally:
        bars.close()
        kept.close()
    if json:
        verdicts = {s.contrast.name: _verdicts(s) for s in sheets}
        made = {"done": counts.done, "failed": counts.failed, "found": counts.found, "errors": counts.errors}
        emit(
            {"store": store, "environment": place.model_dump() | {"key": place.key}, "runs": made, "verdicts": verdicts}
        )
        return
    say(f"{counts.done} runs made, {counts.failed} failed, {counts.found} were there before")
    _print(sheets, tier)


@app.command()
@guarded
@bundled
def report(
    names: Names = None,
    level: Level = SMOKE,
    store: StoreAt = "runs.db",
    environment: Environment = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for pages, Markdown, JSON and data.")] = None,
    json: Json = False,
) -> None:
    """The verdicts of the runs that there are, and with --out a site of pages; nothing is run."""
    from prunus.lab.contrast.summary import summary
    from prunus.lab.contrast.sweep import environment as environment_of
    from prunus.lab.contrast.sweep import sheet, unpacked
    from prunus.lab.store import Store

    chosen, tier = _chosen(names), level.chosen()
    if "://" not in store and not Path(store).expanduser().is_file():
        raise SpecError(f"there is no store {store}: prunus contrast run makes one")
    kept = Store(store)
    try:
        place = environment_of(kept, environment)
        sheets, facts, rows = [sheet(c, tier, kept, place) for c in chosen], kept.facts(), kept.rows()
        counts = Counter(r.environment for r in rows if r.status == "done")
        written: list[Path] = []
        if out is not None:
            from prunus.report import contrasts

            def masks(key: str) -> Any:
                found = kept.blob(key, place, "masks")
                return None if found is None else unpacked(found)

            command = _command(tier, store)
            records = [summary(s, rows, place, facts, masks=masks, command=command) for s in sheets]
            written = contrasts.write(records, out)
    finally:
        kept.close()
    if json:
        verdicts = {s.contrast.name: _verdicts(s) for s in sheets}
        about = {"tier": tier.name, "environment": facts.get(place), "runs": dict(counts)}
        emit({**about, "verdicts": verdicts, "written": [str(w) for w in written]})
        return
    if written:
        say(f"written: {len(written)} files; begin with {written[0].parent / 'index.html'}")
    _print(sheets, tier)
    for key, count in counts.items():
        made = f"{count} runs by prunus {facts[key]['prunus']}, torch {facts[key]['torch']}, {facts[key]['processor']}"
        say(f"{key}: {made}{'' if key == place else ' (not mixed in; --environment shows them)'}")


def _chosen(names: list[str] | None) -> list[Contrast]:
    from prunus.lab import contrast

    return [contrast.with_baselines(contrast.get(n)) for n in names or contrast.names()]


def _command(tier: Tier, store: str) -> str:
    """What makes these runs."""
    if tier.name != "own":
        return f"prunus contrast run --tier {tier.name} --store {store}"
    (p,) = tier.problems
    lr = ",".join(f"{r:g}" for r in p.rates)
    images = "" if p.images is None else f" --images {p.images}"
    return (
        f"prunus contrast run --network {p.network} --data {p.data}{images} --epochs {p.epochs} --tune {p.tune} "
        f"--lr {lr} --batch-size {p.batch} --seeds {len(tier.seeds)} --store {store}"
    )


def _plan(chosen: list[Contrast], tier: Tier, store: str, json: bool) -> None:
    """What would be run, as far as it can be known."""
    from prunus.lab.contrast import Sheet

    rows = [{"contrast": c.name, "arms": len(c.arms), "runs_at_most": Sheet(c, tier, {}).planned} for c in chosen]
    plan: dict[str, Any] = {"tier": tier.name, "problems": [p.name for p in tier.problems], "store": store}
    if json:
        emit({"dry_run": True, **plan, "contrasts": rows})
        return
    out = console()
    out.print(
        f"tier {tier.name}: {', '.join(plan['problems'])}; {len(tier.seeds)} seed(s); store {store}", markup=False
    )
    for row in rows:
        out.print(f"  {row['contrast']}: {row['arms']} arms, at most {row['runs_at_most']} runs", markup=False)
    out.print("Runs that several contrasts need are made once. Nothing was changed (dry run).")


def _told(c: Contrast) -> dict[str, Any]:
    arms = [{"name": a.name, "training": a.training, "recipe": a.recipe and a.recipe.to_dict()} for a in c.arms]
    claims = [{"id": k.id, "claim": k.text, "survey": k.survey} for k in c.claims]
    return {
        "name": c.name,
        "title": c.title,
        "section": c.section,
        "question": c.question,
        "arms": arms,
        "claims": claims,
    }


def _tell(spec: Spec, record: Record | None, trace: str) -> None:
    what = f"{spec.problem.name}, {spec.method} at {spec.keep:g}, seed {spec.seed}, rate {spec.rate:g}"
    say(f"{what}: {trace}" if record is None else f"{what}: {record.test:.4f} in {record.seconds:.0f} s")


def _watched(bars: ExitStack) -> Callable[[Spec], OnStep]:
    """A bar over the steps of each run, for whoever sits at the terminal; it goes when the next one comes."""

    def bar(spec: Spec) -> OnStep:
        bars.close()
        steps = spec.epochs * spec.problem.steps_per_epoch
        advance = bars.enter_context(progress(steps, f"{spec.method} at {spec.keep:g}"))
        return lambda done, _steps, loss: advance(done, loss)

    return bar


def _verdicts(found: Sheet) -> list[dict[str, Any]]:
    said = [(c, found.judged(c)) for c in found.contrast.claims]
    return [
        {"id": c.id, "claim": c.text, "verdict": v.word, "found": v.told, "seeds": v.seeds, "survey": c.survey}
        for c, v in said
    ]


def _print(sheets: list[Sheet], tier: Tier) -> None:
    from rich.table import Table

    from prunus.lab.contrast.fairness import warnings

    said: dict[str, list[str]] = {}
    for one in sheets:
        table = Table(
            "claim", "found", "verdict", "seeds", title=f"{one.contrast.title} (survey {one.contrast.section})"
        )
        for row in _verdicts(one):
            table.add_row(row["claim"], row["found"], row["verdict"], str(row["seeds"]))
        console().print(table)
        for line in (*one.unequal(), *warnings(one.contrast, tier)):
            said.setdefault(line, []).append(one.contrast.name)
    for line, about in said.items():
        which = "" if len(about) == len(sheets) else f" ({', '.join(about)})"
        say(f"warning: {line}{which}")
    say(f"tier {tier.name}: {tier.says}")
