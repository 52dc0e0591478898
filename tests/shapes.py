"""With or without the check of the shapes in signatures, which takes as long as everything else together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

import jaxtyping
import pytest


@contextmanager
def shapes(checked: bool) -> Iterator[None]:
    """Check them, or not, until the end."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", not checked)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def sampled(request: pytest.FixtureRequest) -> bool:
    """Every eighth test, by its name; all of them where the slow tests run too."""
    return request.config.option.markexpr != "not slow" or crc32(request.node.nodeid.encode()) % 8 == 0
