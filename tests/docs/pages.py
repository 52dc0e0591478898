"""The pages of the documentation, and the parts of them that can be checked."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!\\)\[[^\]\n]*\]\(([^)\s]+)\)")
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def name(page: Path) -> str:
    """The page's path as tests show it."""
    return page.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return [body for kind, body in FENCE.findall(text) if kind == language]


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """What a link may name after `#`: the headings, as GitHub turns them into anchors."""
    headings = re.findall(r"^#+ +(.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    """The targets of all links outside of code."""
    return LINK.findall(INLINE.sub("", prose(text)))


def command_lines(text: str) -> list[str]:
    """Everything that starts with `prunus` in shell blocks and in code spans, comments cut off."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    lines += code_spans(text)
    cut = [line.split("#")[0].strip() for line in lines]
    return list(dict.fromkeys(line for line in cut if re.match(r"prunus( |$)", line)))


def code_spans(text: str) -> list[str]:
    """What stands between single backticks in the prose."""
    return INLINE.findall(prose(text))
