"""Pruning of models that need not fit into memory: one block at a time, from shards to shards."""

from prunus.stream.folder import prune_folder
from prunus.stream.result import Streamed
from prunus.stream.shrunk import Shrunk

__all__ = ["Shrunk", "Streamed", "prune_folder"]
