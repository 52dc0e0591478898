"""Contrasts written down: a page each, an index over them, Markdown and JSON of the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from prunus.report import contrast_markdown, contrast_page
from prunus.report.contrast_records import ContrastRecord
from prunus.report.files import write_together


def write(reports: Sequence[ContrastRecord], folder: str | Path) -> list[Path]:
    """Write `<name>.html`, `.md` and `.json` of every contrast, and index.html and index.md; returns the paths.

    Two tiers of one contrast are told apart by the tier's name. All files are complete on the disk before the first
    one gets its name. Fails: `PrunusError` if the folder cannot be made or written.
    """
    named = dict(zip(names(reports), reports, strict=True))
    pages = {f"{name}.html": record for name, record in named.items()}
    texts = {"index.html": contrast_page.index(pages), "index.md": contrast_markdown.index(named)}
    for name, record in named.items():
        texts[f"{name}.html"] = contrast_page.page(record)
        texts[f"{name}.md"] = contrast_markdown.document(record)
        texts[f"{name}.json"] = record.to_json()
    write_together(Path(folder), texts)
    return [Path(folder) / name for name in texts]


def names(reports: Sequence[ContrastRecord]) -> list[str]:
    """A file name, without ending, for each; unique, and safe on any file system."""
    often = Counter(r.name for r in reports)
    found: list[str] = []
    for r in reports:
        wanted = r.name if often[r.name] == 1 else f"{r.name}-{r.tier}"
        safe = re.sub(r"[^A-Za-z0-9_-]+", "-", wanted).strip("-") or "contrast"
        safe = f"{safe}-page" if safe == "index" else safe
        found.append(safe if safe not in found else f"{safe}-{len(found) + 1}")
    return found
