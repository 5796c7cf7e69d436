"""Runs every benchmark, each in a process of its own, and writes their tables to ``benchmarks/results/``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Runs them all; the exit status is 1 if one failed."""
    failed = []
    for name, *arguments in (
        ("recalibrate",),
        ("check",),
        ("tolerance",),
        ("layers",),
        ("trainer",),
        ("moments", "cost"),  # its other parts train networks, which takes hours
    ):
        print(f"== {name}", flush=True)
        command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
