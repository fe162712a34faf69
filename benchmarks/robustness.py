"""Quiet wrong numbers: drawn variants of what broke, against known solutions, by kind.

Each family is drawn again and again, in batches of 1, 3 and 64, and each element gets one verdict
(``robustness_cases/judged.py``): right, told (a status or a flag), inexact, wrong, or an error.

Run: ``python benchmarks/robustness.py [--elements 300] [--families sphere ...]``; with another
checkout first on PYTHONPATH, the same draws are judged there.
"""

from __future__ import annotations

import argparse
from itertools import cycle

import torch
from common import markdown_table
from robustness_cases import units
from robustness_cases.judged import Tally, judge

import ddn_cvx

BATCHES = (1, 3, 64)
KINDS = {"units": units.FAMILIES}


def main() -> None:
    """Draw, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=300, help="of each family")
    parser.add_argument("--families", nargs="+", default=[], help="parts of their names")
    options = parser.parse_args()
    rows = []
    for kind, families in KINDS.items():
        for number, family in enumerate(families):
            if options.families and not any(f in family.__name__ for f in options.families):
                continue
            generator = torch.Generator().manual_seed(number)
            tally, sizes, left = Tally(), cycle(BATCHES), options.elements
            while left > 0:
                batch = min(next(sizes), left)
                left -= batch
                judge(family(generator, batch), tally)
            counts = [tally.counts[v] for v in ("right", "told", "inexact", "wrong", "error")]
            rows.append((kind, family.__name__, *counts, f"{tally.worst:.0e}", tally.example))
            print(rows[-1], flush=True)
    columns = ["kind", "family", "right", "told", "inexact", "wrong", "error", "worst", "example"]
    print(f"{ddn_cvx.__file__}\n\n{markdown_table(columns, rows)}")


if __name__ == "__main__":
    main()
