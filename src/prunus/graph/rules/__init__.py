"""What operations do to atoms: importing this package registers the rules."""

from prunus.graph.rules import attention, contract, index, math, move, recurrent, space

__all__ = ["attention", "contract", "index", "math", "move", "recurrent", "space"]
