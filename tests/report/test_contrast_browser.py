"""The page in a real browser; skipped where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunus.report.contrasts import write
from tests.report import browser as chromium
from tests.report.contrast_sample import bare, record

pytestmark = pytest.mark.skipif(chromium.PATH is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write([record(), bare()], folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Browser]:
    with chromium.Browser() as found:
        yield found


SHOWN = (
    "[...document.querySelectorAll('.contrast')].filter(s => s.getBoundingClientRect().width > 0)"
    ".map(s => s.getAttribute('class'))"
)
TIP = "(t => t.hidden ? null : t.textContent)(document.querySelector('#tip'))"
WIDTHS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"


def seen(selector: str) -> str:
    return f"document.querySelector('.contrast.params.log {selector}').getBoundingClientRect().width > 0"


def shown(browser: chromium.Browser) -> str:
    """The text of the tooltip, once it is there: pointers are dealt with at the next frame, keys nearly so."""
    for _ in range(100):
        if (text := browser.value(TIP)) is not None:
            return str(text)
        time.sleep(0.05)
    raise AssertionError("no tooltip within five seconds")


def test_keyboard_pointer_and_choices(browser: chromium.Browser, site: Path) -> None:
    browser.open(site / "structure.html")
    assert browser.value(SHOWN) == ["plot contrast params log"] * 2, "one picture per problem"
    # By the keyboard: a line by Tab, its points by the arrow keys.
    browser.value("document.querySelector('#band-std').focus()")
    for _ in range(12):
        browser.press("Tab")
        if browser.value("document.activeElement.matches('.contrast .arm')"):
            break
    assert browser.value("document.activeElement.matches('.arm[aria-label*=\"points\"]')")
    assert browser.value(TIP) is None
    browser.press("ArrowRight", 2)
    told = shown(browser)
    assert "25.0 % asked to be kept" in told and "3 seeds" in told
    assert told == browser.value("document.activeElement.getAttribute('aria-label')")
    browser.press("End")
    assert "3.0 % asked to be kept" in shown(browser)
    browser.press("Escape")
    assert browser.value(TIP) is None
    # By the pointer.
    mark = "document.querySelector('.contrast.params.log .a0 .pt:last-child .dot')"
    browser.value(f"{mark}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    for _ in range(20):  # a busy machine may still be scrolling
        x, y = browser.value(f"(b => [b.left + b.width / 2, b.top + b.height / 2])({mark}.getBoundingClientRect())")
        browser.point(x, y)
        if browser.value(f"{mark}.matches(':hover')"):
            break
        time.sleep(0.05)
    assert "SNIP, weights" in shown(browser)
    # What is shown is chosen without any script.
    assert browser.value(seen(".a0 .curve")) and browser.value(seen(".base .curve"))
    for choice in ("arm0", "bases", "scale-lin", "of-macs"):
        browser.value(f"document.querySelector('#{choice}').click()")
    assert browser.value(SHOWN) == ["plot contrast macs lin"] * 2
    for choice in ("scale-log", "of-params", "band-span"):
        browser.value(f"document.querySelector('#{choice}').click()")
    assert not browser.value(seen(".a0 .curve")) and not browser.value(seen(".base .curve"))
    assert browser.value(seen(".a1 .span")) and not browser.value(seen(".a1 .std"))
    assert browser.errors == []


@pytest.mark.parametrize("name", ["structure.html", "pace.html", "index.html"])
def test_no_page_is_wider_than_the_screen(browser: chromium.Browser, site: Path, name: str) -> None:
    try:
        for width in (1200, 380):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.call("Emulation.setDeviceMetricsOverride", **size)
            browser.open(site / name)
            inside, screen = browser.value(WIDTHS)
            assert inside <= screen <= width
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")
    assert browser.errors == []


def test_light_dark_and_paper(browser: chromium.Browser, site: Path, tmp_path: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.open(site / "structure.html")
    found = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.call("Emulation.setEmulatedMedia", media="", features=features)
        found.append(browser.value(ground))
    browser.value("document.querySelector('nav button').click()")
    assert found[0] != found[1] and browser.value(ground) == found[0]
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert browser.value("getComputedStyle(document.querySelector('.settings')).display") == "none"
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_data_can_be_downloaded(browser: chromium.Browser, site: Path, tmp_path: Path) -> None:
    browser.open(site / "structure.html")
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.value("document.querySelector('#accuracy a[download]').click()")
    browser.wait("Page.downloadProgress")
    for _ in range(40):
        if (tmp_path / "structure-mlp.csv").exists():
            break
        browser.value("new Promise(done => setTimeout(done, 100))")
    from prunus.report import contrast_data

    assert (tmp_path / "structure-mlp.csv").read_text() == contrast_data.runs_csv(record(), "mlp")
