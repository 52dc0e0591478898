"""What a person should know before choosing a method."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """The prose that belongs to a recipe; everything else about it is derived.

    Attributes:
        title: the method's usual name.
        use_when: completes "use it when ...".
        avoid_when: completes "avoid it when ...".
        deviations: how the recipe differs from the paper or its official code; empty where it does not.
        formula: what is computed, in one line, where the parts do not say it themselves (a procedure).
        rows: the numbers of the systems in `docs/systems.json` that this method stands for.
    """

    title: str
    use_when: str
    avoid_when: str
    deviations: str = ""
    formula: str = ""
    rows: tuple[int, ...] = ()
