"""Standard nonlinear test problems, from their published starts, without any settings."""

import json
import warnings
from pathlib import Path

import pytest
import torch

import ddn_cvx as ddn
from benchmarks.nonlinear.problems import PROBLEMS, NonlinearProblem

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
BY_NAME = {problem.name: problem for problem in PROBLEMS}

# One or more of each kind: equalities, inequalities, both, bounds, sums of squares, saddle starts,
# dependent constraints, power flow, packing, second-order and trigonometric functions.
DEFAULT = [
    "hs6", "hs7", "hs10", "hs14", "hs22", "hs26", "hs27", "hs35", "hs39", "hs40", "hs43", "hs48",
    "hs56", "hs61", "hs65", "hs71", "hs73", "hs77", "hs78", "hs80", "hs93", "hs108", "hs113",
]  # fmt: skip


def solve(problem: NonlinearProblem) -> tuple[ddn.Solution, float]:
    built = problem.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # cvxpy, about signs of denominators
        layer = ddn.DeclarativeLayer(
            built, [], list(built.variables()), solver="TORCH", on_failure="nan"
        )
        solution = layer.solve()
        return solution, float(solution.objective())


def is_as_published(problem: NonlinearProblem) -> bool:
    """KKT residual, feasibility, and an objective that is the published one or a known other."""
    solution, objective = solve(problem)
    known = (problem.objective, *problem.others)
    return (
        bool(solution.solved)
        and float(solution.residual) <= 1e-6
        and float(solution.violation()) <= 1e-6
        and any(abs(objective - value) <= 1e-4 * (1 + abs(value)) for value in known)
    )


@pytest.mark.parametrize("name", [name for name in DEFAULT if name in BY_NAME])
def test_a_problem_is_solved_from_its_published_start(name: str) -> None:
    assert is_as_published(BY_NAME[name])


@pytest.mark.slow
def test_at_least_95_percent_of_all_are_solved() -> None:
    torch.manual_seed(0)
    missed = [problem.name for problem in PROBLEMS if not is_as_published(problem)]
    assert len(missed) <= 0.05 * len(PROBLEMS), missed


def test_the_saved_comparison_meets_its_target() -> None:
    lines = json.loads((RESULTS / "nonlinear_problems.json").read_text())
    counted = [line for line in lines if line["best"] is not None]
    assert len(counted) >= 60
    assert sum(line["as_good"] for line in counted) >= 0.95 * len(counted)
