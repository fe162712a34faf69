"""Standard nonlinear test problems: this package's batched solvers beside UNO and IPOPT.

Every problem from its published start, one solve, no settings. Solved means a relative KKT residual
of at most 1e-6; as good means an objective no higher than the best that UNO or IPOPT found, to a
relative 1e-6. What UNO and IPOPT found is read from ``results/nonlinear_oracles.json``, which
``nonlinear/oracles.py`` writes.

Run: ``python benchmarks/nonlinear_problems.py [--only hs71 ...]``
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import dataclass

import torch
from common import RESULTS, markdown_table, save
from nonlinear.problems import PROBLEMS, NonlinearProblem

_SOLVED = 1e-6
_CLOSE = 1e-6
_FEASIBLE = 1e-6


@dataclass
class Line:
    """Result of one problem."""

    name: str
    method: str
    status: str
    residual: float
    iterations: int
    objective: float
    best: float | None
    solved: bool
    as_good: bool


def solve(problem: NonlinearProblem, best: float | None) -> Line:
    """One problem by the layer."""
    import cvxpy as cp

    import ddn_cvx as ddn

    built = problem.build()
    layer = ddn.DeclarativeLayer(
        built, [], list(built.variables()), solver="TORCH", on_failure="nan"
    )
    solution = layer.solve()
    assert solution._certificate is not None
    objective = float(solution._certificate.objective()[0])
    sign = -1.0 if isinstance(built.objective, cp.Maximize) else 1.0
    residual = float(solution.residual)
    status = ddn.Status(int(solution.status))
    solved = status == ddn.Status.SOLVED and residual <= _SOLVED
    as_good = best is not None and objective <= sign * best + _CLOSE * (1 + abs(best))
    (method,) = [
        line.split("(")[1]
        for line in repr(layer).splitlines()
        if line.strip().startswith("solver=")
    ]
    return Line(
        problem.name,
        method.split(":")[0],
        status.name,
        residual,
        int(solution.iterations),
        sign * objective,
        best,
        solved,
        solved and as_good,
    )


def oracle_best(record: dict[str, dict[str, object]], published: float) -> float | None:
    """The lowest objective at a feasible answer that UNO or IPOPT calls optimal."""
    values = [
        float(found["objective"])  # type: ignore[arg-type]
        for found in record.values()
        if found["status"] in ("optimal", "optimal_inaccurate")
        and found["violation"] is not None
        and float(found["violation"]) <= _FEASIBLE  # type: ignore[arg-type]
    ]
    return min(values) if values else None


def main() -> None:
    """Solve, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="names of problems")
    chosen = parser.parse_args().only
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    oracles = json.loads((RESULTS / "nonlinear_oracles.json").read_text())["problems"]
    problems = [p for p in PROBLEMS if chosen is None or p.name in chosen]
    lines = [solve(p, oracle_best(oracles[p.name]["solvers"], p.objective)) for p in problems]
    counted = [line for line in lines if line.best is not None]
    good = [line for line in counted if line.as_good]
    others = [line for line in lines if not line.as_good]
    table = markdown_table(
        ["problem", "method", "status", "KKT residual", "iterations", "objective", "UNO or IPOPT"],
        [
            (
                line.name, line.method, line.status, f"{line.residual:.0e}", line.iterations,
                f"{line.objective:.8g}", "none" if line.best is None else f"{line.best:.8g}",
            )
            for line in others
        ],
    )  # fmt: skip
    solved = sum(line.solved for line in lines)
    text = (
        f"{len(lines)} problems from their published starts. UNO or IPOPT solves {len(counted)}; "
        f"of those, {len(good)} ({len(good) / max(1, len(counted)):.1%}) are solved here to a "
        f"relative KKT residual of {_SOLVED:.0e} with an objective as good as the better of the "
        f"two, and {sum(line.solved for line in counted)} to that residual at some local solution. "
        f"In all, {solved} are solved. The others:\n\n{table}\n\n"
        "Target, at least 95% of those that UNO or IPOPT solves, as good or better: "
        f"{'met' if len(good) >= 0.95 * len(counted) else 'NOT met'}."
    )
    if chosen is None:
        save("nonlinear_problems", "Standard nonlinear test problems", text, lines)
    else:
        print(text)


if __name__ == "__main__":
    main()
