"""A network whose making kills the process, as a system does that is short of memory."""

import os
import signal

from torch import nn


def network(num_classes: int) -> nn.Module:
    """Never returns."""
    os.kill(os.getpid(), signal.SIGKILL)
    return nn.Linear(1, num_classes)
