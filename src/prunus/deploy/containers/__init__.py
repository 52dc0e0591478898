"""Sparse containers: a tensor's zeros left out, without loss, as byte streams that lie in plain safetensors files.

A container is a block size and a coding, and every pair of the two is one: the tensor is looked at as a matrix
`[first axis, the rest]`, cut into blocks, and the coding says which blocks hold anything; their values follow.

>>> from prunus.deploy.containers import pack, unpack
>>> packed = pack(weight)                                        # doctest: +SKIP
>>> packed.spec.coding, packed.size, packed.spec.bound()         # doctest: +SKIP
>>> unpack(packed.spec, packed.streams(), packed.spec.shape)     # doctest: +SKIP
"""

from prunus.deploy.containers.choice import choose
from prunus.deploy.containers.packing import Packed, pack, unpack
from prunus.deploy.containers.spec import CODINGS, Spec

__all__ = ["CODINGS", "Packed", "Spec", "choose", "pack", "unpack"]
