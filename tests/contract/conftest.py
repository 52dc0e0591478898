"""Which of the checks `make test` runs: every recipe on one network, some on two, and all of it with `make test-all`.

With a hundred recipes the whole table takes longer than anyone waits before a commit. Each recipe is checked on the
network with convolutions, where it runs there, and every fourth on one of the others as well; which these are is
decided by the names, so that all five networks see recipes of every kind. What is left is marked slow.

Of the checks that train or prune more than once (`HALVED`) a recipe gets every other one, by its name and theirs.

Shapes in signatures are checked where a recipe runs for the first time (`one_shot` and `trained`, which the other
checks compare with), and in every eighth of the others: the check takes as long as everything else together. Whatever
is run without `-m 'not slow'` is checked throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

import pytest

from tests.contract.runs import PAIRS
from tests.shapes import sampled, shapes

# What runs the network once for every unit, or solves an integer program, is checked for its masks here, and in full
# with the slow tests; the oracles look at all of it.
HEAVY = {
    *("activation_distilled", "calpa_net", "car", "dcp", "gfs", "information_concentration", "itpruner", "kwon", "mdp"),
    *("biprop", "bonsai", "deeplift", "halp", "sensitivity_scan", "snap_it"),
}

# Checks that take longest. Each is run for half of the recipes here, and for all with the slow tests.
HALVED = {
    "test_zero_stays_zero_under_momentum_and_weight_decay",
    "test_masks_only_shrink_unless_the_recipe_revives",
    "test_a_run_that_was_interrupted_goes_on_bit_by_bit",
    "test_prune_trains_a_copy_and_ends_sparse",
    "test_a_second_run_leaves_the_callers_model_alone_and_gives_the_same_masks",
    "test_the_seed_matters_to_random_recipes_and_to_no_others",
    "test_asking_again_for_the_same_density_removes_nothing_more",
    "test_an_exception_in_the_users_model_leaves_no_trace",
}


def halved(item: pytest.Item, name: str) -> bool:
    """Whether a check is left to the slow tests for this recipe."""
    test = getattr(item, "originalname", "")
    return test in HALVED and crc32(f"{test} {name}".encode()) % 2 == 1


def due() -> set[tuple[str, str]]:
    """The (recipe, network) pairs that are always run."""
    networks: dict[str, list[str]] = {}
    for name, network in PAIRS:
        networks.setdefault(name, []).append(network)
    found = set()
    for name, there in networks.items():
        first = "cnn" if "cnn" in there else there[0]
        rest = [n for n in there if n != first]
        found.add((name, first))
        chance = crc32(name.encode())
        if rest and chance % 4 == 0:
            found.add((name, rest[chance // 4 % len(rest)]))
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what is not due."""
    later = set(PAIRS) - due()
    for item in items:
        given = getattr(item, "callspec", None)
        if given is None or "contract" not in item.path.parts:
            continue
        pair = (given.params.get("name"), given.params.get("network"))
        heavy = pair[0] in HEAVY and item.path.stem != "test_masks"
        if pair in later or heavy or halved(item, str(pair[0])):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _shapes_of_some(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shapes are checked in all tests, or in those that the names decide."""
    with shapes(sampled(request)):
        yield
