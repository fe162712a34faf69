"""Solutions by UNO and IPOPT of the nonlinear test problems, each from its published start.

IPOPT takes part where ``cyipopt`` can be imported. Each solve runs in a process of its own, which
is ended at a time limit.

Run: ``python benchmarks/nonlinear/oracles.py [--limit 20] [--only hs71 meyer]``
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import time
import warnings
from dataclasses import asdict, dataclass
from importlib.metadata import packages_distributions, version
from multiprocessing.connection import Connection
from pathlib import Path

import cvxpy as cp  # noqa: TID253
import numpy as np

from problems import PROBLEMS, NonlinearProblem

RESULTS = Path(__file__).parents[1] / "results" / "nonlinear_oracles.json"
SOLVERS = {"UNO": "unopy", "IPOPT": "cyipopt"}

# A value agrees within VALUE_TOLERANCE, relative to the published one, plus SMALL.
VALUE_TOLERANCE = 1e-4
SMALL = 1e-6
VIOLATION_TOLERANCE = 1e-6


@dataclass
class Outcome:
    """Result of a solver."""

    status: str
    objective: float | None = None
    violation: float | None = None
    seconds: float | None = None
    note: str = ""


def violation(problem: cp.Problem) -> float:
    """The largest violation of a constraint, or of a sign that a variable declares."""
    signs = [-v.value for v in problem.variables() if v.is_nonneg()]
    gaps = [np.max(c.violation()) for c in problem.constraints] + [np.max(s) for s in signs]
    return max(0.0, *map(float, gaps)) if gaps else 0.0


def solve(problem: NonlinearProblem, solver: str) -> Outcome:
    """One solve, in this process."""
    program = problem.build()
    start = time.perf_counter()
    try:
        program.solve(nlp=True, solver=solver)
    except Exception as error:  # a solver may fail in any way
        return Outcome(f"{type(error).__name__}: {error}".splitlines()[0][:200])
    seconds = round(time.perf_counter() - start, 3)
    if any(variable.value is None for variable in program.variables()):
        return Outcome(program.status, seconds=seconds)
    value = float(program.objective.value)
    return Outcome(program.status, value, violation(program), seconds, judge(problem, program))


def judge(problem: NonlinearProblem, program: cp.Problem) -> str:
    """Compares with the published value: empty where the solver agrees."""
    if violation(program) > VIOLATION_TOLERANCE:
        return "infeasible"
    value = float(program.objective.value)
    if agree(value, problem.objective):
        return ""
    if any(agree(value, other) for other in problem.others):
        return "another stationary point"
    better = value > problem.objective
    if isinstance(program.objective, cp.Minimize):
        better = value < problem.objective
    return "better than published" if better else "worse than published"


def agree(value: float, published: float) -> bool:
    return abs(value - published) <= VALUE_TOLERANCE * abs(published) + SMALL


def worker(problem: NonlinearProblem, solver: str, connection: Connection) -> None:
    """Solves with the solver's prints and cvxpy's warnings thrown away."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    warnings.simplefilter("ignore")
    connection.send(solve(problem, solver))


def limited(problem: NonlinearProblem, solver: str, limit: float) -> Outcome:
    """One solve in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=worker, args=(problem, solver, sender))
    process.start()
    sender.close()
    outcome = Outcome("time limit")
    try:
        if receiver.poll(limit):
            outcome = receiver.recv()
    except EOFError:
        outcome = Outcome("crash")
    process.kill()
    process.join()
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds per solve")
    parser.add_argument("--only", nargs="*", help="names of problems; prints, does not save")
    arguments = parser.parse_args()
    solvers = [name for name, module in SOLVERS.items() if importlib.util.find_spec(module)]
    importable = packages_distributions()
    distributions = [importable[SOLVERS[solver]][0] for solver in solvers]
    chosen = [p for p in PROBLEMS if not arguments.only or p.name in arguments.only]
    table = {}
    for problem in chosen:
        outcomes = {solver: limited(problem, solver, arguments.limit) for solver in solvers}
        table[problem.name] = {
            "published": problem.objective,
            "kind": problem.kind,
            "source": problem.source,
            "note": problem.note,
            "others": problem.others,
            "solvers": {solver: asdict(outcome) for solver, outcome in outcomes.items()},
        }
        for solver, o in outcomes.items():
            verdict = f"{o.status:20s} {o.objective} {o.violation} {o.note}"
            print(
                f"{problem.name:28s} {solver:6s} {problem.objective:<14.9g} {verdict}", flush=True
            )
    for solver in solvers:
        notes = [row["solvers"][solver]["note"] for row in table.values()]
        statuses = [row["solvers"][solver]["status"] for row in table.values()]
        agreeing = sum(s == "optimal" and not n for s, n in zip(statuses, notes, strict=True))
        elsewhere = notes.count("another stationary point")
        print(f"{solver}: {agreeing} of {len(table)} as published, {elsewhere} elsewhere")
    if not arguments.only:
        versions = {"versions": {name: version(name) for name in ("cvxpy", *distributions)}}
        RESULTS.write_text(json.dumps({**versions, "problems": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
