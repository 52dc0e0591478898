"""What holds for every test: no network, one thread, fixed seeds, and the shapes in the signatures checked.

``PRUNUS_TEST_TYPECHECK=0`` leaves the shape check out, to see a failure without it or to measure.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before anything else is

import numpy as np
import pytest
import torch


def _define_torchvision_operators() -> torch.library.Library | None:
    """Let torchvision be imported beside a torch build whose ABI its compiled operators do not fit.

    ``import torchvision`` attaches fake kernels to ``nms`` and ``qnms`` and fails where they do not exist: a CPU torch
    with the usual wheel of torchvision, built for CUDA. No network under test calls them, so their schemas are enough.
    Where the compiled operators do load, they define the schemas, and a second definition would be an error.
    """
    spec = importlib.util.find_spec("torchvision")  # looks for the package, does not run it
    if spec is None or spec.origin is None:
        return None
    for compiled in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(compiled)
        except OSError:
            continue
        return None
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


torch.set_num_threads(1)  # the suite runs in as many processes as there are cores
_TORCHVISION = _define_torchvision_operators()  # the definitions last as long as this object

if os.environ.get("PRUNUS_TEST_TYPECHECK", "1") != "0":
    from jaxtyping import install_import_hook

    install_import_hook("prunus", "beartype.beartype")


def _is_local(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """A test that reaches outside this machine fails there and then; servers on the loopback address are welcome."""
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def local_connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and not _is_local(address[0]):
            raise RuntimeError(f"the tests use no network, and this one connects to {address[0]}")
        connect(self, address)

    def local_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host):
            raise RuntimeError(f"the tests use no network, and this one looks up {host}")
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_connect)
        patch.setattr(socket, "getaddrinfo", local_getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test begins with the same global generators, whatever ran before it in this process."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test may still read it
    torch.manual_seed(0)
