"""What is coupled and why, by hand-made structures of which the answer is known; and how it is drawn."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations, pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from prunus.core.errors import SpecError, UnknownNameError
from prunus.core.groups import Group, Member, Role
from prunus.report import coupling_page, coupling_picture
from prunus.report.coupling import Axis, Coupling, Weight, in_words, reason_in_words
from prunus.report.coupling_rows import Fold, Layout, Row, block_of, layout
from prunus.report.repeats import alike, ranges, relative, summed

SVG = "{http://www.w3.org/2000/svg}"


class Link(NamedTuple):
    one: Axis
    other: Axis
    operation: str


def members(*axes: tuple[str, int, Role]) -> tuple[Member, ...]:
    return tuple(Member(name, dim, None, role) for name, dim, role in axes)


def chain_of_blocks(blocks: int, channels: int = 4, network: str = "net") -> Coupling:
    """stem, then residual blocks of two layers, then a head: x + b(a(x))."""
    weights = [Weight("stem.weight", (channels, 3), 12, None)]
    links = [Link(("stem.weight", 0), ("norm.weight", 0), "native_batch_norm in norm")]
    stream = [("stem.weight", 0, "out")]
    groups = []
    before = "stem.weight"
    for i in range(blocks):
        a, b = f"blocks.{i}.a.weight", f"blocks.{i}.b.weight"
        weights += [Weight(a, (8, channels), 32, None), Weight(b, (channels, 8), 32, None)]
        links += [
            Link((before, 0), (a, 1), f"addmm in blocks.{i}.a"),
            Link((a, 0), (b, 1), f"addmm in blocks.{i}.b"),
            Link((before, 0), (b, 0), f"add in blocks.{i}"),
        ]
        stream += [(b, 0, "out"), (a, 1, "in")]
        groups.append(Group(f"blocks.{i}.a", (8,), members((a, 0, "out"), (b, 1, "in")), kind="neuron"))
        before = b
    weights.append(Weight("head.weight", (5, channels), 20, "an output of the model"))
    links.append(Link((before, 0), ("head.weight", 1), "addmm in head"))
    weights.append(Weight("norm.weight", (channels,), 0, None))
    stream.sort(key=lambda m: m[2] != "out")
    own = members(*stream, ("norm.weight", 0, "scale"), ("head.weight", 1, "in"))  # type: ignore[arg-type]
    groups.insert(0, Group("stem", (channels,), own))
    return Coupling(network, tuple(weights), tuple(groups), tuple(links))


def frozen_stream() -> Coupling:
    """Two producers tied to a table that no rule names, all of them frozen; a reader that is tied by its own module."""
    reason = "native_layer_norm in norm: its statistics run over this axis"
    weights = (
        Weight("table", (1, 9, 4), 0, None),
        Weight("up.weight", (4, 3), 12, reason),
        Weight("down.weight", (4, 3), 12, reason),
        Weight("head.weight", (2, 4), 8, "an output of the model"),
    )
    links = (
        Link(("table", 2), ("up.weight", 0), "cat in the model"),
        Link(("table", 2), ("down.weight", 0), "add in the model"),
        Link(("down.weight", 0), ("head.weight", 1), "addmm in head"),
    )
    return Coupling("frozen", weights, (), links)


def test_a_tree_reaches_every_member_and_parents_come_first() -> None:
    found = chain_of_blocks(3)
    group = found.groups[0]
    ties = found.tree(group)
    reached = [("stem.weight", 0)]
    for tie in ties:
        assert tie.parent in reached and tie.child not in reached
        reached.append(tie.child)
    assert set(reached) == {(m.param, m.dim) for m in group.members}
    assert all(tie.operation for tie in ties)


def test_the_chain_between_two_weights_is_the_shortest() -> None:
    found = chain_of_blocks(4)
    (chain,) = found.between("stem.weight", "blocks.2.b.weight")
    assert [t.operation for t in chain.ties] == ["add in blocks.0", "add in blocks.1", "add in blocks.2"]
    assert chain.start == ("stem.weight", 0) and chain.end == ("blocks.2.b.weight", 0)
    assert all(a.child == b.parent for a, b in pairwise(chain.ties))
    links = (*found.links, Link(("stem.weight", 0), ("blocks.2.b.weight", 0), "mul in shortcut"))
    direct = Coupling("net", found.weights, found.groups, links)
    (chain,) = direct.between("blocks.2.b.weight", "stem.weight")
    assert [t.operation for t in chain.ties] == ["mul in shortcut"]


def test_a_chain_stays_inside_its_group() -> None:
    found = chain_of_blocks(1)
    (way,) = found.ways("blocks.0.b.weight")[:1]
    assert way.group == "stem" and [t.operation for t in way.ties] == ["add in blocks.0"]
    # An axis outside of the group would make a shorter way: it is no reason.
    weights = (*found.weights, Weight("other.weight", (4, 4), 0, None))
    links = [link for link in found.links if link.operation != "add in blocks.0"]
    links += [
        Link(("stem.weight", 0), ("other.weight", 0), "x"),
        Link(("other.weight", 0), ("blocks.0.b.weight", 0), "x"),
    ]
    apart = Coupling("net", weights, found.groups, tuple(links))
    assert not apart.between("stem.weight", "blocks.0.b.weight")[0].known


def test_weights_of_different_groups_have_no_chain() -> None:
    found = chain_of_blocks(2)
    assert found.between("stem.weight", "blocks.0.a.weight")[0].end == ("blocks.0.a.weight", 1)
    weights = (*found.weights, Weight("far.weight", (2, 2), 0, None))
    assert Coupling("net", weights, found.groups, found.links).between("far.weight", "stem.weight") == []
    with pytest.raises(SpecError, match="named twice"):
        found.between("stem.weight", "stem.weight")


def test_what_stays_whole_has_a_chain_too() -> None:
    found = frozen_stream()
    (chain,) = found.between("up.weight", "down.weight")
    assert chain.group is None
    assert [t.operation for t in chain.ties] == ["cat in the model", "add in the model"]
    whole = found.to_whole("table")
    assert whole is not None and whole.end[0] == "up.weight"
    assert list(found.frozen.values()) == [["up.weight", "down.weight"], ["head.weight"]]


def test_names_are_found_by_module_and_alias() -> None:
    found = chain_of_blocks(1)
    assert found.named("stem") == found.named("stem.weight") == "stem.weight"
    tied = Coupling("net", found.weights, found.groups, aliases={"tied.weight": "stem.weight"})
    assert tied.named("tied") == "stem.weight"
    with pytest.raises(UnknownNameError, match=r"did you mean .*stem\.weight"):
        found.named("stem.wight")


def test_a_group_governs_what_would_go_with_it() -> None:
    found = chain_of_blocks(1)
    # stem 12, a and b 32 each, norm 4, head 20: all of them have an axis of four in this group.
    assert found.governs(found.groups[0]) == (12 + 32 + 32 + 4 + 20, 12 + 32 + 32 + 20)
    half = Group("half", (2,), (Member("w", 0, torch.tensor([[0], [1]])), Member("w", 1, torch.tensor([[2], [3]]))))
    # Half of the rows and half of the columns: three quarters of a square.
    assert Coupling("net", (Weight("w", (4, 4), 160, None),), (half,)).governs(half) == (12, 120)


def test_operations_are_called_by_their_usual_names() -> None:
    assert in_words("native_batch_norm in bn1") == "batch norm in bn1"
    assert in_words("_scaled_dot_product_flash_attention_for_cpu in blocks.0") == "attention in blocks.0"
    assert in_words("addmm in fc") == "matrix product in fc"
    reason = "2 of 4 positions: native_layer_norm in n: its statistics run over this axis"
    assert reason_in_words(reason) == "2 of 4 positions: layer norm in n: its statistics run over this axis"
    assert reason_in_words("an output of the model") == "an output of the model"


def test_paths_are_seen_from_where_one_stands() -> None:
    assert relative("blocks.4.mlp.down", "blocks.3.mlp.up") == ("blocks", 1, "mlp", "down")
    assert relative("blocks.3.x", "blocks.3.x") == ("blocks", 0, "x")
    assert relative("other.3.x", "blocks.3.x") == ("other", "3", "x")
    assert ranges([5, 0, 1, 2]) == "0-2,5"
    assert summed(["a.0.x", "a.1.x", "a.3.x"]) == "a.{0-1,3}.x"
    assert summed(["a.0.b.0", "a.0.b.1", "a.1.b.0", "a.1.b.1"]) == "a.{0-1}.b.{0-1}"
    assert summed(["a.0.b.0", "a.1.b.1"]) == "a.0.b.0, a.1.b.1"
    assert summed(["a.x", "a.y"]) == "a.x, a.y"


def test_groups_that_differ_in_their_numbers_only_are_alike() -> None:
    found = chain_of_blocks(3)
    assert [len(same) for same in alike(found.groups)] == [1, 3]
    wider = Group("blocks.9.a", (9,), found.groups[1].members, kind="neuron")
    crossed = Group("blocks.1.a", (8,), found.groups[1].members, kind="neuron")  # its members lie in another block
    assert len(alike([*found.groups, wider])) == 3 and len(alike([found.groups[1], crossed])) == 2


def test_blocks_are_the_innermost_numbered_modules() -> None:
    assert block_of("stages.0.1.conv1.weight") == "stages.0.1"
    assert block_of("features.3.layers.0.weight") == "features.3"
    assert block_of("layer.0.attention.self.query.weight") == "layer.0"
    assert block_of("conv1.weight") == block_of("features.0.weight") == ""


def stations(plan: Layout) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, row in enumerate(plan.rows):
        if isinstance(row, Row):
            for key in row.reads:
                found.setdefault(key, []).append(2 * i)
            for key in row.makes:
                found.setdefault(key, []).append(2 * i + 1)
    return found


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("blocks", [1, 2, 6])
def test_lanes_reach_their_stations_and_never_share_a_place(blocks: int, fold: bool) -> None:
    plan = layout(chain_of_blocks(blocks), fold)
    seen = stations(plan)
    assert {lane.key for lane in plan.lanes} == set(seen)
    for lane in plan.lanes:
        assert lane.top <= min(seen[lane.key]) and max(seen[lane.key]) <= lane.bottom
    for one, other in combinations(plan.lanes, 2):
        if one.column == other.column:
            assert one.bottom < other.top or other.bottom < one.top
        elif one.top <= other.bottom and other.top <= one.bottom:
            assert one.colour != other.colour


def test_repeated_blocks_are_folded_when_there_are_many_rows() -> None:
    small, large = layout(chain_of_blocks(4)), layout(chain_of_blocks(30))
    assert not small.folded and len(small.rows) == 2 + 2 * 4
    assert [type(row).__name__ for row in large.rows] == ["Row", "Row", "Row", "Fold", "Row"]
    fold = next(row for row in large.rows if isinstance(row, Fold))
    assert fold.names == tuple(f"blocks.{i}" for i in range(1, 30)) and len(fold.rows) == 58
    assert not layout(chain_of_blocks(30), fold=False).folded
    stream = next(lane for lane in large.lanes if lane.group is not None and lane.group.name == "stem")
    assert (stream.top, stream.bottom) == (1, 8)  # from the stem through the fold to the head


def test_a_block_that_differs_is_not_folded_away() -> None:
    found = chain_of_blocks(8)
    odd = [w if w.name != "blocks.4.a.weight" else Weight(w.name, (8, 4), w.macs, "odd") for w in found.weights]
    plan = layout(Coupling("net", tuple(odd), found.groups, found.links), fold=True)
    shown = [row.weight.name for row in plan.rows if isinstance(row, Row)]
    assert "blocks.4.a.weight" in shown and [len(r.names) for r in plan.rows if isinstance(r, Fold)] == [3, 2]


def test_outputs_that_stay_whole_share_a_lane_that_no_reader_joins() -> None:
    plan = layout(frozen_stream())
    (lane,) = plan.lanes
    assert lane.group is None and lane.reason.startswith("native_layer_norm")
    makers = [row.weight.name for row in plan.rows if isinstance(row, Row) and row.makes]
    assert makers == ["table", "up.weight", "down.weight"]
    assert lane.joins["up.weight"][0] == "table" and lane.joins["up.weight"][1].operation == "cat in the model"


def test_a_table_that_goes_with_the_units_is_named_beside_what_makes_them() -> None:
    axes = members(("attn.q.weight", 0, "out"), ("attn.table", 1, "other"), ("attn.q.bias", 0, "bias"))
    weights = (Weight("attn.q.weight", (4, 4), 16, None), Weight("attn.table", (9, 4), 0, None))
    links = (Link(("attn.q.weight", 0), ("attn.table", 1), "add in attn"),)
    (row,) = layout(Coupling("net", weights, (Group("attn.q", (4,), axes, kind="head"),), links)).rows
    assert isinstance(row, Row) and row.follow == ("attn.table",)


def test_a_weight_in_no_group_says_so() -> None:
    lonely = Coupling("net", (Weight("w", (2, 2), 4, None),), ())
    assert "in no group" in coupling_picture.picture(lonely)
    assert "in no group" not in coupling_picture.picture(chain_of_blocks(1))


def titles(text: str) -> list[str]:
    return [t.text or "" for t in ElementTree.fromstring(text.encode()).iter(f"{SVG}title")]


def test_the_picture_is_a_file_of_its_own_with_a_box_per_weight() -> None:
    text = coupling_picture.picture(chain_of_blocks(2))
    assert text.count("http") == 1  # the namespace
    assert "prefers-color-scheme:dark" in text
    root = ElementTree.fromstring(text.encode())
    assert len([g for g in root.iter(f"{SVG}g") if g.get("class") == "weight"]) == 6
    told = titles(text)
    assert "blocks.1.b is tied to blocks.0.b by add in blocks.1: 4 channels of stem" in told
    assert "blocks.0.b reads 8 neurons of blocks.0.a" in told
    assert any("its output stays whole: an output of the model" in t for t in told)


def test_everything_lies_inside_the_picture() -> None:
    root = ElementTree.fromstring(coupling_picture.picture(chain_of_blocks(40)).encode())
    left, top, width, height = map(float, root.get("viewBox", "").split())
    for circle in root.iter(f"{SVG}circle"):
        if circle.get("cy") != "0":
            assert left < float(circle.get("cx", "nan")) < left + width
            assert top < float(circle.get("cy", "nan")) < top + height
    for told in root.iter(f"{SVG}text"):
        assert float(told.get("x", "nan")) + 4 * len("".join(told.itertext())) < left + width


@pytest.mark.parametrize(
    "found", [chain_of_blocks(3), chain_of_blocks(30), frozen_stream()], ids=["few", "many", "none"]
)
def test_the_page_needs_nothing_from_outside(found: Coupling) -> None:
    text = coupling_page.page(found)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text) and "@import" not in text
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="(.*?)"', text)[0])
    assert "default-src 'none'" in policy and f"script-src 'sha256-{allowed}'" in policy
    assert text.count("<figure") == (2 if len(found.weights) > 24 else 1)
    assert all(f"<b>{same[0].name}</b>" in text for same in alike(found.groups))
    keys = set(re.findall(r'data-g="(g\d+)"', text))
    assert {f"g{i}" for i in range(len(found.groups))} >= keys


def test_names_cannot_inject_markup() -> None:
    found = chain_of_blocks(2, network="<script>alert(1)</script>")
    weights = (*found.weights, Weight("<b>.weight", (2, 2), 0, "<i>why</i>"))
    hostile = Coupling(found.network, weights, found.groups, found.links)
    page = coupling_page.page(hostile)
    assert "<script>alert" not in page and "<b>.w" not in page and "<i>why" not in page
    assert "<b>.weight 2×2, 4 parameters\nits output stays whole: <i>why</i>" in titles(
        coupling_picture.picture(hostile)
    )


def test_the_committed_pictures_are_up_to_date() -> None:
    import importlib.util

    file = Path(__file__).resolve().parents[2] / "docs" / "draw_inspect.py"
    spec = importlib.util.spec_from_file_location("draw_inspect", file)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main(["--check"]) == 0
