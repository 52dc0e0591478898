"""The picture of a network as a page that holds everything it needs: hover over a weight, and its group lights up."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from prunus.core.groups import Group
from prunus.report import offline
from prunus.report.coupling import Coupling, axis_name, in_words, integers, reason_in_words
from prunus.report.coupling_picture import DARK_BAND, LIGHT_BAND, STYLE, colour_of, drawn, signs, units_of
from prunus.report.coupling_rows import Fold, layout
from prunus.report.figures import percent
from prunus.report.repeats import alike, summed
from prunus.report.svg import STYLE as PLOT_STYLE
from prunus.report.svg import el, variables


@dataclass(frozen=True)
class _Entry:
    """What the page says about a group, and about those that are like it."""

    keys: str
    colour: str
    name: str
    units: str
    times: int
    names: str
    share: str
    facts: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def page(found: Coupling) -> str:
    """The whole document. It is complete without JavaScript, which only lights groups up and switches the colours."""
    environment = offline.environment()
    script, policy = offline.script(environment, "coupling.js")
    short, full = layout(found), layout(found, fold=False)
    colours = {lane.key: colour_of(lane) for lane in full.lanes}
    return environment.get_template("coupling.html").render(
        found=found,
        policy=policy,
        script=script,
        style=Markup(PLOT_STYLE + STYLE),
        light=Markup(f"{variables()};{LIGHT_BAND}"),
        dark=Markup(f"{variables(dark=True)};{DARK_BAND}"),
        signs=[
            (el("svg", sign, viewBox="-9 -9 18 18", width=18, height=18, class_="plot"), text)
            for sign, text in signs(found, full)
        ],
        short=Markup(drawn(found, short, page=True)) if short.folded else None,
        full=Markup(drawn(found, full, page=True)),
        hidden=sum(len(row.rows) for row in short.rows if isinstance(row, Fold)),
        shown=len(full.rows),
        entries=_entries(found, colours),
        whole=[(reason_in_words(reason), names) for reason, names in found.frozen.items()],
    )


def _entries(found: Coupling, colours: dict[str, str]) -> list[_Entry]:
    keys = {group.name: f"g{i}" for i, group in enumerate(found.groups)}
    entries = []
    for same in alike(found.groups):
        group = same[0]
        params, macs = found.governs(group)
        share = f"{percent(params / found.params, 1)} of the parameters" if found.params else ""
        share += f", {percent(macs / found.macs, 1)} of the MACs" if found.macs else ""
        entries.append(
            _Entry(
                keys=" ".join(keys[g.name] for g in same),
                colour=colours.get(keys[group.name], "g"),
                name=group.name,
                units=units_of(group),
                times=len(same),
                names=summed(g.name for g in same),
                share=share,
                facts=tuple(_facts(found, group)),
            )
        )
    return entries


def _facts(found: Coupling, group: Group) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """Headings, each with (name, why it is there)."""
    ties = {tie.child: tie for tie in found.tree(group)}

    def because(axis: tuple[str, int | None]) -> str:
        tie = ties.get(axis)
        return "" if tie is None else f"{in_words(tie.operation)}, with {tie.parent[0]}"

    told = []
    for title, roles in (
        ("Produced by", ("out",)),
        ("Read by", ("in",)),
        ("With them go", ("scale", "shift", "bias", "other")),
    ):
        own = [(m.param, m.dim) for m in group.members if m.role in roles]
        if own:
            told.append((title, tuple((axis_name(axis), because(axis)) for axis in own)))
    if whole := integers(group):
        told.append(("Integers that are repaired", tuple((m.param, because((m.param, None))) for m in whole)))
    rules = [(f"at least {group.at_least} are kept", "")] if group.at_least > 1 else []
    rules += [(f"a multiple of {group.multiple} is kept", "")] if group.multiple > 1 else []
    if rules:
        told.append(("Constraints", tuple(rules)))
    return told
