"""Shapes in signatures are checked in every eighth test here: the same functions run with the check in the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.shapes import sampled, shapes


@pytest.fixture(autouse=True)
def _shapes_of_some(request: pytest.FixtureRequest) -> Iterator[None]:
    with shapes(sampled(request)):
        yield
