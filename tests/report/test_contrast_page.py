from __future__ import annotations

import base64
import hashlib
import itertools
import re
from pathlib import Path

import pytest

from prunus.core.errors import PrunusError
from prunus.report import contrast_data as data
from prunus.report import contrast_page, contrast_plots
from prunus.report.contrast_records import ContrastRecord
from prunus.report.contrasts import names, write
from tests.report.contrast_sample import LEVEL, bare, record
from tests.report.test_html import HOSTILE, Page


@pytest.fixture(scope="module")
def text() -> str:
    return contrast_page.page(record())


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


@pytest.fixture(scope="module")
def index() -> Page:
    return Page(contrast_page.index({"structure.html": record(), "pace.html": bare()}))


def hrefs(page: Page) -> list[str]:
    return [str(a["href"]) for a in page.named("a")]


def test_well_formed(page: Page, index: Page) -> None:
    for one in (page, index, Page(contrast_page.page(bare()))):
        assert one.stack == []
        assert len(one.named("h1")) == len(one.named("main")) == len(one.named("script")) == 1
        levels = [int(tag[1]) for tag, _ in one.tags if re.fullmatch(r"h[1-6]", tag)]
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
        assert len(one.named("caption")) == len(one.named("table"))


def test_nothing_is_loaded_from_anywhere(text: str, page: Page, index: Page) -> None:
    assert not re.search(r"https?://|@import|url\(", text)
    for one, pages in ((page, {"index.html"}), (index, {"structure.html", "pace.html"})):
        for tag, attrs in one.tags:
            for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                value = attrs.get(name)
                known = value is None or value.startswith(("#", "data:")) or value.split("#")[0] in pages
                assert known, f"<{tag} {name}={value!r}>"
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(m for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"]) and f"'sha256-{digest}'" in str(policy["content"])


def test_links_lead_somewhere(page: Page, index: Page) -> None:
    for one in (page, index):
        ids = [attrs["id"] for _, attrs in one.tags if "id" in attrs]
        assert len(ids) == len(set(ids))
        assert {h[1:] for h in hrefs(one) if h.startswith("#")} <= set(ids)
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert {h.partition("#")[2] for h in hrefs(index) if h.startswith("structure.html#")} <= ids


def test_downloads_hold_the_same_numbers(page: Page) -> None:
    links = {str(a["download"]): str(a["href"]) for a in page.named("a") if "download" in a}
    found = record()
    assert set(links) == {
        "structure-claims.csv",
        "structure-masks.csv",
        *(f"structure-{p}{kind}.csv" for p in ("mlp", "conv") for kind in ("", "-layers")),
    }

    def held(name: str) -> str:
        head, _, body = links[name].partition(",")
        assert head == "data:text/csv;charset=utf-8;base64"
        return base64.b64decode(body).decode()

    assert held("structure-mlp.csv") == data.runs_csv(found, "mlp")
    assert held("structure-conv-layers.csv") == data.layers_csv(found, "conv")
    assert held("structure-masks.csv") == data.similarity_csv(found)
    assert held("structure-claims.csv") == data.claims_csv(found)


def test_every_line_can_be_reached_by_the_keyboard(page: Page) -> None:
    arms = [a for tag, a in page.tags if tag == "g" and "arm" in str(a.get("class")).split()]
    pruned = [a for a in arms if "densities" not in str(a["class"])]
    pictures = 2 * 4  # problems; parameters or MACs, logarithmic or linear
    assert len(pruned) == pictures * len(LEVEL)
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in pruned)
    marks = [a for tag, a in page.tags if tag == "g" and a.get("class") == "pt"]
    assert len(marks) == pictures * (5 * len(LEVEL) + 1) and all(m["role"] == "img" for m in marks)
    boxes = {a["id"] for a in page.named("input")}
    assert {f"arm{i}" for i in range(len(LEVEL))} < boxes and "bases" in boxes
    assert len(page.named("label")) == len(page.named("input"))
    for svg in page.named("svg"):
        assert svg.get("aria-hidden") == "true" or (svg.get("role") in ("img", "group") and svg.get("aria-label"))
    for region in page.tags:
        if region[1].get("class") == "scroll":
            assert region[1]["tabindex"] == "0" and region[1]["aria-label"]


def test_what_a_reader_must_know_is_said(page: Page) -> None:
    for shown in (
        *("directions only", "2 problem(s): 3 or more are the rule", "1 run failed", "ValueError: no such thing"),
        *("7 runs of other code or another machine (deadbeef)", "4 runs of 130 are not there", "Some Processor"),
        *("supported", "refuted", "too few runs", "+1.20, 90 % interval +0.80 to +1.60", "93.84 / 93.74"),
        *("0.62", "Two random masks would come to 0.33 on average"),
        *("89.00 ± 0.10", "best 89.10", "93.58", "not run", "recipe_0", "ConnectionSensitivity()"),
    ):
        assert shown in page.text, shown
    unequal = Page(contrast_page.page(record(unequal=["mlp, seed 0: 2 different initial networks"])))
    assert "Nothing can be concluded" in unequal.text and "2 different initial networks" in unequal.text


def test_baselines_are_lighter_and_follow_their_arm() -> None:
    look = contrast_plots.looks(record())
    assert look["SNIP, weights, same layer shares"] == contrast_plots.Look(0, base=True, kin=True)
    assert look["random weights"].index == 2 and look["random weights"].base and "dense" not in look
    svg = contrast_plots.accuracy_svg(record(), "mlp")
    assert svg.count('class="arm a2 base"') == 1 and 'class="arm a3 base kin"' in svg
    assert svg.count('"band std') == svg.count('"band span') == len(LEVEL)


def test_bands_reach_as_far_as_the_runs() -> None:
    found = record()
    (one, *_) = found.found("mlp", "SNIP, weights")
    alone = found.model_copy(update={"points_found": [one, *found.found("mlp", "dense")]})
    svg = contrast_plots.accuracy_svg(alone, "mlp")
    assert "whisker" in svg and '"band std' not in svg
    single = one.model_copy(update={"runs": one.runs[:1]})
    assert "whisker" not in contrast_plots.accuracy_svg(found.model_copy(update={"points_found": [single]}), "mlp")


def test_empty_layers_are_crossed() -> None:
    found = record().found("mlp", "random weights")
    look = contrast_plots.Look(0)
    assert contrast_plots.layers_svg(found, look).count('class="gone"') == 1
    assert 'class="gone"' not in contrast_plots.layers_svg(found[:-1], look)


def test_a_baseline_follows_the_arm_with_the_longest_name() -> None:
    arms = record().arms
    longer = arms[1].model_copy(update={"name": "SNIP, weights, by layer"})
    its = arms[3].model_copy(update={"name": "SNIP, weights, by layer, same layer shares"})
    look = contrast_plots.looks(record(arms=[arms[0], longer, arms[3], its]))
    assert look[its.name].index == 1 and look[arms[3].name].index == 0


def test_pictures_of_layers_share_an_axis() -> None:
    assert contrast_plots.floor_of(record(), "mlp") == 0.01 and contrast_plots.floor_of(bare(), "mlp") == 0.1


def test_pictures_hold_numbers_only() -> None:
    for of, log in itertools.product(("params", "macs"), (True, False)):
        svg = contrast_plots.accuracy_svg(record(), "conv", of=of, log=log)
        assert not re.search(r'="[^"]*\b(nan|inf)\b', svg)
    everything_gone = record()
    worst = everything_gone.points_found[0]
    runs = [r.model_copy(update={"params_kept": 0, "macs_kept": 0}) for r in worst.runs]
    changed = [worst.model_copy(update={"runs": runs}), *everything_gone.points_found[1:]]
    shown = contrast_page.page(everything_gone.model_copy(update={"points_found": changed}))
    assert not any(re.search(r'="[^"]*\b(nan|inf)\b', svg) for svg in re.findall(r"<svg.*?</svg>", shown, re.S))
    assert "∞" in shown


def test_names_cannot_break_out() -> None:
    plain = record().to_json()
    found = ContrastRecord.from_json(plain)
    renamed = found.model_copy(
        update={
            "title": HOSTILE,
            "says": HOSTILE,
            "notes": [HOSTILE],
            "warnings": [HOSTILE],
            "arms": [a.model_copy(update={"name": HOSTILE}) if a.name == "random weights" else a for a in found.arms],
            "points_found": [
                p.model_copy(update={"arm": HOSTILE}) if p.arm == "random weights" else p for p in found.points_found
            ],
            "problems": [
                p.model_copy(update={"network": HOSTILE, "facts": {HOSTILE: HOSTILE}}) for p in found.problems
            ],
            "failed": [found.failed[0].model_copy(update={"error": HOSTILE})],
        }
    )
    for one in (Page(contrast_page.page(renamed)), Page(contrast_page.index({"structure.html": renamed}))):
        assert one.stack == []
        assert len(one.named("script")) == 1 and len(one.named("style")) == 1
        assert "alert(1)" in one.text and "{{ 7 * 7 }}" in one.text


def test_a_contrast_that_was_not_run_says_so() -> None:
    found = Page(contrast_page.page(bare()))
    assert "No run yet." in found.text and "This contrast claims nothing." in found.text
    assert "shows this as figure 7" in found.text and "None" not in found.text


def test_the_index_has_the_surveys_sections_tables_and_figures(index: Page) -> None:
    for shown in ("7.1", "7.6", "7.9", "Table 7", "Figure 7", "No contrast was run here.", "weights lose less"):
        assert shown in index.text, shown
    assert "structure.html#survey" in hrefs(index) and "pace.html#accuracy" in hrefs(index)
    assert contrast_page.by_section({"x": record(section="9.1")})[-1][1] == "Beyond section 7"


def test_files(tmp_path: Path) -> None:
    paths = write([record(), bare()], tmp_path / "site")
    assert sorted(p.name for p in paths) == sorted(
        [f"{n}.{e}" for n in ("structure", "pace") for e in ("html", "md", "json")] + ["index.html", "index.md"]
    )
    assert all(p.is_file() for p in paths) and len(list((tmp_path / "site").iterdir())) == len(paths)
    assert ContrastRecord.from_json((tmp_path / "site" / "structure.json").read_bytes()) == record()
    (tmp_path / "file").write_text("")
    with pytest.raises(PrunusError, match="not a folder"):
        write([record()], tmp_path / "file")


def test_file_names_are_safe_and_unique() -> None:
    given = [record(), record(tier="paper"), record(name="../../etc"), record(name="index"), record(name="¿?")]
    assert names(given) == ["structure-desk", "structure-paper", "etc", "index-page", "contrast"]
    assert len(set(names([record(), record()]))) == 2


def test_the_same_record_makes_the_same_page(text: str) -> None:
    assert contrast_page.page(record()) == text
