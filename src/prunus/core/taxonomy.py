"""Where a method sits in the survey's taxonomy, whoever says it."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Placed(Protocol):
    """A method that can say where it sits: a recipe derives it from its parts, a procedure is told."""

    @property
    def structure(self) -> str: ...

    @property
    def when(self) -> str: ...

    @property
    def how(self) -> str: ...

    @property
    def pace(self) -> str: ...

    @property
    def scope(self) -> str: ...

    @property
    def reads(self) -> str: ...

    @property
    def on(self) -> str: ...


def taxonomy(method: Placed) -> dict[str, str]:
    """Axis -> value."""
    return {
        "structure": method.structure,
        "when": method.when,
        "how": method.how,
        "pace": method.pace,
        "scope": method.scope,
        "data": method.reads,
        "weights": method.on,
    }
