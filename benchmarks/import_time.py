"""How long ``import ddn_cvx`` takes, as a multiple of ``import torch``.

Each import runs in a fresh interpreter and times itself there, so that the interpreter's own start
does not count. The two take turns; the ratio is that of the medians.

Run: ``python benchmarks/import_time.py [--repeats 15]``
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGET = 1.3


def seconds(module: str) -> float:
    """One import in a fresh interpreter, which finds the checkout first."""
    code = (
        "from time import perf_counter; start = perf_counter(); "
        f"import {module}; print(perf_counter() - start)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return float(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    for module in ("torch", "ddn_cvx"):  # fills the file system's cache
        seconds(module)
    pairs = [(seconds("torch"), seconds("ddn_cvx")) for _ in range(repeats)]
    torch, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    single = sorted(mine / theirs for theirs, mine in pairs)
    print(
        f"import ddn_cvx / import torch = {ours / torch:.2f} (medians of {repeats}; "
        f"single pairs from {single[0]:.2f} to {single[-1]:.2f}; target at most {TARGET})"
    )


if __name__ == "__main__":
    main()
