"""Pruning of models that need not fit into memory: one block at a time, from shards to shards."""

from prunus.stream.folder import prune_folder
from prunus.stream.result import Streamed
from prunus.stream.shrunk import Shrunk
from prunus.stream.towers import by_tower

__all__ = ["Shrunk", "Streamed", "by_tower", "prune_folder"]
