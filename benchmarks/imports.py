"""What importing costs: `import prunus` against `import torch`, and how long `prunus --help` takes to answer.

    python benchmarks/imports.py [--json] [--rounds 9]

Each is a fresh interpreter; they take turns, and medians of wall-clock and of processor seconds (with all children) are
given. The ratio is that of the processor times, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median

COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import prunus": [sys.executable, "-c", "import prunus"],
    "import prunus and use it": [
        sys.executable,
        "-c",
        "import prunus; prunus.prune, prunus.Session, prunus.methods.snip",
    ],
    "prunus --help": [
        sys.executable,
        "-c",
        "import sys; sys.argv = ['prunus', '--help']; from prunus.cli import main; main()",
    ],
}


def seconds(command: list[str]) -> tuple[float, float]:
    """Wall-clock and processor seconds of one run."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=9, help="timed repetitions of each (at least 9)")
    given = parser.parse_args()
    rounds = max(9, given.rounds)
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for i in range(rounds + 1):
        for name, command in COMMANDS.items():
            found = seconds(command)
            if i:  # the first round reads the files from disk
                runs[name].append(found)
    wall = {name: median(w for w, _ in both) for name, both in runs.items()}
    used = {name: median(u for _, u in both) for name, both in runs.items()}
    ratios = {name: used[name] / used["import torch"] for name in COMMANDS}
    if given.json:
        print(json.dumps({"rounds": rounds, "wall_seconds": wall, "cpu_seconds": used, "over_import_torch": ratios}))
        return
    print(f"medians of {rounds} fresh interpreters")
    for name in COMMANDS:
        print(f"{name:26s} {wall[name]:6.2f} s wall, {used[name]:6.2f} s cpu, {ratios[name]:5.2f} x import torch")


if __name__ == "__main__":
    main()
