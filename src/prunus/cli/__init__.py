"""The command line: one file per command. Nothing here imports torch before a command runs."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of `prunus`. Exit codes: 0 done; 1 failed; 2 wrong use; 130 interrupted."""
    from prunus.cli.app import app

    try:
        app(prog_name="prunus")
    except BrokenPipeError:
        # The reader (head, less) has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
