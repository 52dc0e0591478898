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
    """

    title: str
    use_when: str
    avoid_when: str
    deviations: str = ""
