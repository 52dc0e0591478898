"""Every construct."""

from __future__ import annotations

from tests.graph.constructs_blocks import BLOCKS
from tests.graph.constructs_heads import HEADS
from tests.graph.constructs_layers import LAYERS
from tests.graph.constructs_maths import MATHS
from tests.graph.constructs_moves import MOVES
from tests.graph.constructs_recurrent import RECURRENT
from tests.graph.constructs_routing import ROUTING
from tests.graph.constructs_sums import SUMS
from tests.graph.constructs_weights import WEIGHTS

CASES = [*LAYERS, *MOVES, *WEIGHTS, *MATHS, *ROUTING, *BLOCKS, *RECURRENT, *SUMS, *HEADS]
