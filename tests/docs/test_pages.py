"""Links resolve, command lines parse, and nothing on a page belongs to one machine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from prunus.cli.app import app
from tests.docs.pages import PAGES, ROOT, anchors, blocks, code_spans, command_lines, links, name

LINES = [(page, line) for page in PAGES for line in command_lines(page.read_text(encoding="utf-8"))]
# What a wrong command line raises; typer brings its own copy of click or uses the installed one.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
# Paths of somebody's machine, and hosts that only an installation should know.
MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|opt|mnt|Users|srv)/|(?<!\w)[A-Z]:\\", re.ASCII)
# An address of a package index, of whatever host, or of this machine.
HOSTS = re.compile(r"//[^/\s]*/simple\b|index-url|\.whl\b|localhost|127\.0\.0\.1", re.IGNORECASE)


@cache
def headings(target: Path) -> frozenset[str]:
    """The anchors of a page as it lies there, read once."""
    return frozenset(anchors(target.read_text(encoding="utf-8")))


def broken(page: Path, text: str) -> list[str]:
    """Relative links of a page whose file or heading does not exist."""
    found, own = [], anchors(text)
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = target.is_relative_to(ROOT)
        if (
            not inside
            or not target.exists()
            or (anchor and target.suffix == ".md" and anchor not in (own if target == page else headings(target)))
        ):
            found.append(link)
    return found


def parsed(line: str) -> dict[str, Any]:
    """The parameters of a `prunus ...` line as the command would get them; a wrong one raises."""
    words = shlex.split(line)[1:]
    group = typer.main.get_command(app)
    if not words or words[0].startswith("-"):
        known = {option for parameter in group.params for option in parameter.opts} | {"--help"}
        assert set(words) <= known, f"{line}: no such option"
        return {}
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    if words[1:] == ["--help"]:
        return {}
    return dict(command.make_context(words[0], words[1:]).params)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path) -> None:
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_seen() -> None:
    page = ROOT / "docs" / "choose.md"
    text = "# One heading\n[a](nowhere.md) [b](#one-heading) [c](#two)"
    text += " [d](methods.md#snip) [e](methods.md#snap) [f](../../x)"
    assert broken(page, text) == ["nowhere.md", "#two", "methods.md#snap", "../../x"]


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{name(p)}: {line}" for p, line in LINES])
def test_command_lines_parse(page: Path, line: str) -> None:
    words = shlex.split(line)
    # In a sentence, `prunus prune` alone is the command's name.
    if len(words) == 2 and words[1] in commands():
        return
    parsed(line)


def commands() -> set[str]:
    """Names of all commands."""
    return set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_every_command_is_shown() -> None:
    shown = {shlex.split(line)[1] for page, line in LINES if page.name == "README.md" and " " in line}
    assert shown >= commands()


@pytest.mark.parametrize(
    "line",
    [
        "prunus prune resnet20 --sparsty 0.9",
        "prunus prun resnet20",
        "prunus prune",
        "prunus methods --when",
        "prunus --vers",
    ],
)
def test_a_wrong_line_is_seen(line: str) -> None:
    with pytest.raises((AssertionError, KeyError, UsageError)):
        parsed(line)


def test_what_costs_little_is_run() -> None:
    calls = [["prunus", command, "--help"] for command in commands()]
    for _, line in LINES:
        words = ["snip" if word == "NAME" else word for word in shlex.split(line)]
        if len(words) > 2 and words[1] in ("methods", "compare"):
            calls.append([*words, "--dry-run"] if words[1] == "compare" else words)
    assert {call[1] for call in calls if "--help" not in call} == {"methods", "compare"}
    # One interpreter for all of them; a command must end by itself or with exit code 0.
    code = (
        "import sys\nfrom prunus.cli import main\n"
        f"for sys.argv in {calls!r}:\n"
        "    try:\n        main()\n"
        "    except SystemExit as stop:\n        assert not stop.code, (sys.argv, stop.code)\n"
    )
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 0, done.stderr


def test_methods_named_in_commands_exist() -> None:
    from prunus import methods

    named = set()
    for _, line in LINES:
        words = shlex.split(line)
        for option, value in pairwise(words):
            if option in ("--method", "-m", "--methods"):
                named |= set(value.split(","))
    assert named
    assert named <= set(methods.names())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_nothing_belongs_to_one_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [match[0] for match in MACHINE.finditer(text)] == []
    assert [match[0] for match in HOSTS.finditer(text)] == []


def test_a_machine_path_is_seen() -> None:
    assert MACHINE.search("see /home/someone/x")
    assert MACHINE.search("(/tmp/x)")
    assert not MACHINE.search("https://example.org/home/x")
    assert HOSTS.search("https://packages.example.org/simple")


SOURCES = sorted((ROOT / "src").rglob("*.py"))
WORDS = {word for file in SOURCES for word in re.findall(r"[A-Za-z_]\w+", file.read_text(encoding="utf-8"))}
FILES = {part for file in SOURCES for part in file.relative_to(ROOT / "src").with_suffix("").parts}


def unknown_names(text: str) -> list[str]:
    """Code spans that look like a name of the package and occur nowhere in it."""
    found = []
    for span in code_spans(text):
        match = re.fullmatch(r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)(\(.*\))?", span)
        if match is not None and not set(match[1].split(".")) <= WORDS | FILES | {"docs", "tests", "py", "json"}:
            found.append(span)
    return found


@pytest.mark.parametrize("page", ["engine", "precision", "choose", "add-a-criterion"])
def test_names_on_a_page_are_in_the_source(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    own = {word for block in blocks(text, "python") for word in re.findall(r"\w+", block)}
    assert [span for span in unknown_names(text) if span not in own] == []


def test_an_unknown_name_is_seen() -> None:
    assert unknown_names("`Session.attach` and `prunus.save(x)`, `Session.attache` or `prunus.sav(x)`") == [
        "Session.attache",
        "prunus.sav(x)",
    ]
