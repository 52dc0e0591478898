"""Every construct."""

from __future__ import annotations

from tests.graph.constructs_layers import LAYERS
from tests.graph.constructs_moves import MOVES

CASES = [*LAYERS, *MOVES]
