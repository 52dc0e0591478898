"""What is asked of the whole list: each kind of sweep with its judge, its file of results and its part of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from tests.graph.networks.entry import Network


@dataclass
class Outcome:
    """What came of one network, in values that JSON can hold; kinds of sweep add fields.

    Attributes:
        outcome: one word of those that the kind of sweep knows; the runner adds `crash`, `timeout` and `too large`.
        reason: why it is not as it should be, in one line.
        seconds: CPU time that it took.
    """

    outcome: str
    reason: str = ""
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Self:
        """The inverse of `plain`."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return cls(**fields)


@dataclass(frozen=True)
class Kind:
    """One kind of sweep.

    Attributes:
        help: what it asks, in a line.
        judge: asks it of one network.
        verdict: what the judge returns.
        results: the file of results.
        asked: those of the list it is asked of, in the order in which they are taken.
        section: its part of the page.
        imports: modules that every process needs, imported once.
        outcomes: the words that verdicts use.
        bad: those of them that are bugs.
    """

    help: str
    judge: Callable[[Network], Any]
    verdict: type[Outcome]
    results: Path
    asked: Callable[[Sequence[Network]], list[Network]]
    section: Callable[[Sequence[Network], Mapping[str, Any]], str]
    outcomes: tuple[str, ...]
    bad: tuple[str, ...] = ("wrong", "crash")
    imports: tuple[str, ...] = ()


@cache
def sizes() -> dict[str, int]:
    """How many parameters the networks have, as the results of the list say."""
    from tests.graph import sweep

    return {name: verdict.params[0] for name, verdict in sweep.load().items()}
