"""An analysis as a page that holds everything it needs."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment
from markupsafe import Markup

from prunus import __version__
from prunus.report import contrast_data as data
from prunus.report import figures, offline
from prunus.report.analysis import Analysis
from prunus.report.analysis_plots import plot_svg
from prunus.report.svg import STYLE, variables


def page(found: Analysis) -> str:
    """The whole document: findings, plots, tables with their data to download, and how it was made."""
    environment = _environment()
    script, policy = offline.script(environment, "report.js")
    return environment.get_template("analysis.html").render(
        a=found,
        plots=[Markup(plot_svg(p, page=True)) for p in found.plots],
        policy=policy,
        script=script,
        style=Markup(STYLE),
        light=Markup(variables()),
        dark=Markup(variables(dark=True)),
        version=__version__,
    )


@cache
def _environment() -> Environment:
    environment = offline.environment()
    environment.globals.update(f=figures, data=data, moods={})
    return environment
