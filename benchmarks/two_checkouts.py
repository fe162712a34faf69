"""Two checkouts of this package beside each other: answers, numbers of calls, and times.

The evidence that a change of the code changes no behaviour. One script runs in a process of its own
in each checkout, with the same interpreter, and imports that checkout's ``ddn_cvx``; it uses the
public surface only, so that modules may move in between.

By default, answers on the same inputs, with the same seeds: each problem of the catalogue and of
``checkouts/problems.py`` (every kind of cone, nonconvex, degenerate, infeasible and unbounded ones)
by each solver and adjoint that takes it, in several batch sizes and in a batch with bad elements,
and the modules of ``ddn_cvx.nn``. Compared are statuses, values, multipliers, residuals, flags,
certificates, gradients, second derivatives, tangents of forward mode, and refusals. The table has
the largest relative difference of each problem and kind; whatever is above rounding is listed by
name. A difference is relative to the largest number of its kind in the batch element.

``--calls`` counts calls of functions of the package during one warm forward and one warm backward
pass of one element. ``--times`` lets two processes take turns, a few steps at a time, so that
whatever else the machine does falls on both alike; the ratios are the second's time over the
first's, and below one the second is faster.

``--suite`` runs the nonlinear problems, the certificates or the Maros-Meszaros programs by each
checkout's own script, one item after the other, and compares the items that both have by then.

Run: ``python benchmarks/two_checkouts.py FIRST SECOND [--names simplex ...] [--save FOLDER]``, with
``--solvers`` and ``--batches`` to choose answers, or with ``--calls``, ``--times`` or ``--suite
nonlinear``. In the place of a checkout, answers and suites take the file that a run saved.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from checkouts.differences import Difference, differences
from common import Ratio, markdown_table

# Kinds of one column of the table of answers.
COLUMNS = {
    "refusal": ("case", "layer", "solution", "inputs"),
    "status": ("status", "solver", "failure"),
    "value": ("output", "primal", "objective", "single precision", "vmap"),
    "dual": ("dual",),
    "gradient": ("gradient", "parameters"),
    "gauge": ("gauge",),
    "second": ("second",),
    "tangent": ("tangent",),
    "residual": ("residual", "stationarity", "complementarity", "violation"),
    "certificate": ("certificate", "certificate residual"),
    "flags": ("degenerate", "degeneracy", "runner_up"),
    "iterations": ("iterations",),
    "other": (),
}
FIRST, SECOND = "first", "second"


def start(checkout: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The worker of a checkout; one thread, warnings off."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    environment["PYTHONPATH"] = os.pathsep.join([str(checkout), str(Path(__file__).parent)])
    command = [sys.executable, "-P", "-m", "checkouts.worker", str(checkout), *arguments]
    return subprocess.Popen(
        command, cwd=checkout, env=environment, text=True, stdout=subprocess.PIPE, **options
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Standard output of the worker.

    Raises:
        SystemExit: the worker failed.
    """
    printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the worker failed: {process.args!r}")
    return printed


def named(checkout: Path) -> str:
    """Path and commit."""
    if checkout.is_file():
        return str(checkout)
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return f"{checkout} at {commit or 'no commit'}"


@contextmanager
def folders(arguments: argparse.Namespace) -> Iterator[list[Path]]:
    """A folder for each side, kept where it was asked for."""
    with tempfile.TemporaryDirectory() as scratch:
        found = [(arguments.save or Path(scratch)) / side for side in (FIRST, SECOND)]
        for folder in found:
            folder.mkdir(parents=True, exist_ok=True)
        yield found


# -- answers ---------------------------------------------------------------------------------------


def answers(checkout: Path, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Records of a checkout, or of a file."""
    path = checkout
    if checkout.is_dir():
        path = folder / "answers.pt"
        with path.with_suffix(".log").open("a" if options["resume"] else "w") as log:
            finish(start(checkout, "answers", str(path), json.dumps(options), stderr=log))
    records: dict[str, Any] = torch.load(path)["records"]
    return records


def column_of(kind: str) -> str:
    """The column of a kind."""
    return next((name for name, kinds in COLUMNS.items() if kind in kinds), "other")


def table_of(found: list[Difference]) -> str:
    """The largest difference by problem and column."""
    cells: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(lambda: -1.0))
    for difference in found:
        row, column = cells[difference.problem], column_of(difference.kind)
        row[column] = max(row[column], difference.size)

    def shown(size: float) -> str:
        if size < 0:
            return ""
        return "0" if size == 0 else "differs" if math.isinf(size) else f"{size:.0e}"

    rows = [
        (problem, *(shown(row[column]) for column in COLUMNS)) for problem, row in cells.items()
    ]
    return markdown_table(["problem", *COLUMNS], rows)


def report_of_answers(found: list[Difference], tolerance: float) -> str:
    """The table, and everything above the tolerance."""
    above = [difference for difference in found if difference.size > tolerance]
    equal = sum(difference.size == 0 for difference in found)
    listed = markdown_table(
        ["case", "batch", "kind", "difference", ""],
        [(d.case, d.mark, d.kind, f"{d.size:.1e}", d.text) for d in above],
    )
    cases = len({difference.case for difference in found})
    counts = (
        f"{len(found)} comparisons of {cases} cases: {equal} are equal to the last bit, "
        f"{len(found) - equal - len(above)} differ by at most {tolerance:.0e}, {len(above)} by more"
    )
    return f"{table_of(found)}\n\n{counts}{':' if above else '.'}\n\n{listed if above else ''}"


def compare_answers(arguments: argparse.Namespace) -> str:
    """Run both, a process each, and compare."""
    keys = ("names", "solvers", "batches", "thorough", "resume")
    options = {key: getattr(arguments, key) for key in keys}
    sides = (arguments.first, arguments.second)
    with folders(arguments) as places, ThreadPoolExecutor(2 if arguments.together else 1) as pool:
        one, other = pool.map(answers, sides, [options] * 2, places)
    note = ""
    if any(side.is_file() for side in sides):  # of a run that may have had other options
        common = [name for name in one if name in other]
        note = f"Of {len(one)} and {len(other)} cases, the {len(common)} that both have.\n\n"
        one, other = ({name: side[name] for name in common} for side in (one, other))
    return note + report_of_answers(list(differences(one, other)), arguments.tolerance)


# -- calls -----------------------------------------------------------------------------------------


def compare_calls(arguments: argparse.Namespace) -> str:
    """Numbers of calls, and the functions whose number differs most."""
    counted = [
        json.loads(finish(start(checkout, "calls")))
        for checkout in (arguments.first, arguments.second)
    ]
    rows, changes = [], []
    for name, passes in counted[0].items():
        for which, one in passes.items():
            other = counted[1][name][which]
            before, after = sum(one.values()), sum(other.values())
            rows.append((name, which, before, after, f"{after / before - 1:+.0%}"))
            for function in sorted(one.keys() | other.keys()):
                change = (one.get(function, 0), other.get(function, 0))
                changes.append((name, which, function, *change))
    changes.sort(key=lambda row: (row[0], row[1], -max(row[3:])))
    shown = [row for row in changes if arguments.functions or row[3] != row[4]]
    table = markdown_table(["step", "pass", FIRST, SECOND, "change"], rows)
    functions = markdown_table(["step", "pass", "function", FIRST, SECOND], shown)
    return f"{table}\n\n{functions if shown else ''}"


# -- times -----------------------------------------------------------------------------------------


class Worker:
    """A process that runs steps on command."""

    def __init__(self, checkout: Path) -> None:
        self._process = start(checkout, "times", stdin=subprocess.PIPE)

    def ask(self, **command: Any) -> dict[str, float]:
        """Send a command, wait for the answer."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(command) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker ended: {process.args!r}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def end(self) -> None:
        """No more commands."""
        finish(self._process)


def ratios_of(name: str, workers: list[Worker], pairs: int) -> dict[str, Ratio]:
    """The second's time over the first's, in pairs whose order alternates."""
    from checkouts.steps import repeats_for

    seconds = max(worker.ask(prepare=name)["seconds"] for worker in workers)
    count = repeats_for(seconds)
    found: dict[str, list[float]] = defaultdict(list)
    for pair in range(pairs):
        order = (0, 1) if pair % 2 == 0 else (1, 0)
        taken = {which: workers[which].ask(run=name, count=count) for which in order}
        for kind, value in taken[1].items():
            found[kind].append(value / taken[0][kind])
    for worker in workers:
        worker.ask(forget=name)
    ratios = {}
    for kind, values in found.items():
        low, median, high = statistics.quantiles(values, n=4)
        ratios[kind] = Ratio(median, low, high, pairs)
    return ratios


def timed(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Ratio]]]:
    """Ratios of each case."""
    from checkouts.benchmark_steps import benchmark_steps
    from checkouts.steps import TIMED
    from rich.progress import track

    workers = [Worker(checkout) for checkout in (arguments.first, arguments.second)]
    names = [
        name
        for name in (benchmark_steps() if arguments.benchmarks else TIMED)
        if not arguments.names or any(part in name for part in arguments.names)
    ]
    for name in track(names, "Steps", transient=True):
        yield name, ratios_of(name, workers, arguments.pairs)
    for worker in workers:
        worker.end()


def compare_times(arguments: argparse.Namespace) -> str:
    """Medians and quartiles of pairwise ratios."""
    kinds = {"wall": "step", "processor": "its processor time"}
    kinds |= {"forward": "forward", "backward": "backward"}
    found = list(timed(arguments))
    rows = [(name, *(str(ratios[kind]) for kind in kinds)) for name, ratios in found]
    slower = [name for name, ratios in found if ratios["processor"].median > 1.05]
    middle = statistics.median(ratios["processor"].median for _, ratios in found)
    return (
        f"{markdown_table(['step', *kinds.values()], rows)}\n\nMedian of the processor times' "
        f"ratios: {middle:.3f}. Slower by more than 5 %: {', '.join(slower) or 'none'}."
    )


# -- suites ----------------------------------------------------------------------------------------


def suite(checkout: Path, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Results of a suite by item, from a checkout or from a file."""
    path = checkout
    if checkout.is_dir():
        path = folder / f"{arguments.suite}.jsonl"
        data = str(arguments.data.resolve()) if arguments.data else ""
        options = json.dumps({"names": arguments.names, "data": data, "resume": arguments.resume})
        finish(start(checkout, "suite", arguments.suite, str(path), options))
    lines = map(json.loads, path.read_text().splitlines())
    return {line.pop("name"): line for line in lines}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and text of nested lists and dictionaries, with its place."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        place = f"{path}/{key}" if path else str(key)
        if isinstance(part, dict | list):
            yield from leaves(part, place)
        else:
            yield place, part


def apart(one: Any, other: Any) -> float:
    """Relative difference of two numbers, absolute below one; infinity for anything else."""
    if one == other or (one != one and other != other):
        return 0.0
    if not all(isinstance(value, int | float) for value in (one, other)):
        return math.inf
    size = abs(one - other) / max(1.0, abs(one), abs(other))
    return math.inf if math.isnan(size) else size


def compare_suite(arguments: argparse.Namespace) -> str:
    """Items whose results differ, and the processor time of all."""
    with folders(arguments) as (one_folder, other_folder):
        one = suite(arguments.first, arguments, one_folder)
        other = suite(arguments.second, arguments, other_folder)
    both = [name for name in one if name in other]
    seconds = [sum(side[name].pop("seconds") for name in both) for side in (one, other)]
    rows, largest = [], 0.0
    for name in both:
        before, after = dict(leaves(one[name])), dict(leaves(other[name]))
        for place in before | after:
            size = apart(before.get(place), after.get(place))
            if size > arguments.tolerance:
                rows.append((name, place, before.get(place), after.get(place), f"{size:.0e}"))
            else:
                largest = max(largest, size)
    table = markdown_table(["item", "what", FIRST, SECOND, "difference"], rows)
    return (
        f"{len(both)} items, {len(one)} of the first and {len(other)} of the second, took "
        f"{seconds[0]:.0f} and {seconds[1]:.0f} seconds of processor time. {len(rows)} of their "
        f"numbers differ by more than {arguments.tolerance:.0e}, the others by at most "
        f"{largest:.0e}.\n\n{table if rows else ''}"
    )


def main() -> None:
    """Run, print, and save where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, help="a checkout, or a file with its answers")
    parser.add_argument("second", type=Path, help="another one")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--calls", action="store_true", help="count calls")
    mode.add_argument("--times", action="store_true", help="compare times")
    mode.add_argument("--suite", choices=("nonlinear", "certificates", "maros"))
    parser.add_argument("--names", nargs="+", default=[], help="parts of names of cases")
    parser.add_argument("--solvers", nargs="+", default=[], help="with 'default' for no choice")
    parser.add_argument("--batches", nargs="+", type=int, default=[], help="batch sizes")
    parser.add_argument("--thorough", action="store_true", help="convex problems by TORCH, too")
    parser.add_argument("--resume", action="store_true", help="go on with what --save has")
    parser.add_argument("--tolerance", type=float, default=1e-9, help="what rounding may change")
    parser.add_argument("--pairs", type=int, default=21, help="pairs of timed runs")
    parser.add_argument("--benchmarks", action="store_true", help="with --times, six benchmarks")
    parser.add_argument("--functions", action="store_true", help="calls of every function")
    parser.add_argument("--together", action="store_true", help="both at once, for answers")
    parser.add_argument("--data", type=Path, help="piqp-0.7.0.tar.gz, for --suite maros")
    parser.add_argument("--save", type=Path, help="folder for the report and the answers")
    arguments = parser.parse_args()
    arguments.first, arguments.second = arguments.first.resolve(), arguments.second.resolve()
    name = next((key for key in ("calls", "times", "suite") if getattr(arguments, key)), "answers")
    body = globals()[f"compare_{name}"](arguments)
    title = f"First: {named(arguments.first)}. Second: {named(arguments.second)}."
    print(f"{title}\n\n{body}")
    if arguments.save:
        arguments.save.mkdir(parents=True, exist_ok=True)
        (arguments.save / f"{arguments.suite or name}.md").write_text(f"{title}\n\n{body}\n")


if __name__ == "__main__":
    main()
