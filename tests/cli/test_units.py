"""`prunus prune --unit`: what one unit is, in place of the method's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunus import methods
from prunus.cli.prune import with_unit
from prunus.core.errors import PrunusError
from prunus.parts.granularity import Block, Channel, Head
from tests.cli.test_commands import call, told


def test_the_granularity_is_replaced_and_its_fields_are_set() -> None:
    recipe = methods.l1_filter
    assert with_unit(recipe, None, None) is recipe
    assert with_unit(recipe, "head", None).granularity == Head()
    assert with_unit(recipe, "Block", ["at_least=2"]).granularity == Block(at_least=2)
    assert with_unit(recipe, None, ["round_to=8"]).granularity == Channel(round_to=8, reduce=recipe.granularity.reduce)
    edited = with_unit(recipe, "channel", ['exclude=["fc*"]', "exact=false"])
    assert edited.granularity == Channel(exclude=("fc*",), exact=False, reduce=recipe.granularity.reduce)
    assert edited.name == recipe.name


@pytest.mark.parametrize(("unit", "options"), [("heads", None), ("head", ["rounds=8"]), ("head", ["round_to"])])
def test_what_does_not_exist_is_refused(unit: str, options: list[str] | None) -> None:
    with pytest.raises(PrunusError):
        with_unit(methods.l1_filter, unit, options)


def test_blocks_of_a_network_go(tmp_path: Path) -> None:
    asked = ("prune", "resnet20", "-d", "digits", "-m", "l1_filter", "--unit", "block", "--sparsity", 0.5)
    plan = told(*asked, "--dry-run")
    assert plan["kept"]["params"] < 0.9
    call(*asked, "-o", tmp_path / "out")
    (record,) = json.loads((tmp_path / "out" / "report.json").read_text())["methods"]
    assert record["params_kept"] < record["params_dense"] and record["verified_error"] < 1e-9
