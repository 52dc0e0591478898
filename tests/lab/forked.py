"""Children that are forked from a test: whatever they run into, they end, and never go on as the test itself."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable


def forked(work: Callable[[], object]) -> int:
    """The process that does the work and ends: with 0, or with 1 after an exception or a False."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = int(work() is False)
    except BaseException:  # noqa: BLE001 - the child must not go on as the test
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """The code that a child ended with, once it has."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
