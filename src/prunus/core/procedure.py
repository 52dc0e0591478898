"""Methods that no timeline of parts can tell: an algorithm with the metadata of a recipe."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from prunus.core.errors import SpecError
from prunus.core.taxonomy import taxonomy


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """A pruning method that is an algorithm of its own: a search, a greedy construction, a run of several recipes.

    What it finds is told as an ordinary recipe, in the `recipe` of the `Result` that it returns. It is named and called
    as a recipe is, `prunus.prune(model, task, "legr", sparsity=0.5)`, but has no timeline, so no `Session` takes it.

    Attributes:
        name: the method's name, as in `prunus.methods`.
        source: paper, venue, arXiv number.
        run: `(model, task, budget, *, steps, seed, optimizer, **options) -> Result`. `model` is the user's own and is
            left as it is; `steps` are the training steps that may be spent in all.
        structure, when, how, pace, scope, reads, on: as a `Recipe` derives them; an algorithm has to say them.
    """

    name: str
    source: str
    run: Callable[..., Any]
    structure: Literal["unstructured", "semi-structured", "structured"]
    when: Literal["before", "during", "after"] = "after"
    how: Literal["criteria", "learned"] = "criteria"
    pace: Literal["one_shot", "iterative", "gradual", "prune_and_grow"] = "one_shot"
    scope: Literal["global", "local"] = "global"
    reads: Literal["nothing", "inputs", "labels"] = "labels"
    on: Literal["initialized", "pretrained"] = "pretrained"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)

    def taxonomy(self) -> dict[str, str]:
        """Where the method sits in the survey's taxonomy."""
        return taxonomy(self)


def procedure(**told: Any) -> Callable[[Callable[..., Any]], Procedure]:
    """Make a method of a function: `@procedure(source=..., structure=..., ...)`; its name is the function's.

    Errors: `SpecError` for a source that is missing.
    """
    if not told.get("source"):
        raise SpecError("a procedure names its source: @procedure(source='Author et al. 2020, arXiv:...')")

    def made(run: Callable[..., Any]) -> Procedure:
        return Procedure(name=run.__name__, run=run, **told)

    return made
