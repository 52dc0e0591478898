"""What every page has in common: it fetches nothing, runs no script but its own, and switches its colours."""

from __future__ import annotations

import base64
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup


def environment() -> Environment:
    """The templates of this package; what is put into them is escaped, what is missing raises."""
    return Environment(
        loader=PackageLoader("prunus.report", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def script(templates: Environment, *names: str) -> tuple[Markup, str]:
    """Our own scripts, after the switch of colours that all pages have, and the policy that lets only it run.

    Nothing may be fetched, and nothing else may run, whatever a name or a note on the page contains.
    """
    assert templates.loader is not None
    files = ("theme.js", *names)
    text = "\n".join(templates.loader.get_source(templates, file)[0].strip() for file in files)
    allowed = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
