"""Draw the pictures of docs/inspect.md from real networks, or check that they are up to date.

    python docs/draw_inspect.py            writes docs/inspect/*.svg
    python docs/draw_inspect.py --check    changes nothing; exits with 1 and names what is out of date

The same as `prunus inspect NETWORK --picture FILE`, for each of NETWORKS.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prunus.cli.inspect_ import inspected
from prunus.cli.networks import Built
from prunus.report.coupling_picture import picture

FOLDER = Path(__file__).resolve().parent / "inspect"
NETWORKS = ("resnet8", "vit_tiny_cifar")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/inspect.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a picture is out of date")
    check = parser.parse_args(arguments).check
    stale = 0
    for name in NETWORKS:
        file = FOLDER / f"{name}.svg"
        text = picture(inspected(Built(name, {})))
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if check:
            print(f"docs/inspect/{file.name} is out of date: run python docs/draw_inspect.py", file=sys.stderr)
        else:
            FOLDER.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
            print(f"written: docs/inspect/{file.name}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
