"""Maros-Meszaros QPs as layers: objectives, and whether everything that is SOLVED is solved.

The 73 problems of the test set with at most 1000 variables. ``P`` and the matrices are constants of
a cvxpy problem; the linear term, the right-hand sides and the finite bounds are its parameters.
``layer.solve`` with the default solver and with INTERIOR, beside Clarabel called directly at its
defaults. Whatever comes back is judged here, in numpy, on the problem's own data:

- violation: of each row, relative to one plus the sizes of the row's terms;
- stationarity: of each entry of ``P x + q + A' y``, relative to one plus the sizes of its terms;
- gap: ``|x'Px + q'x + b'y|`` relative to one plus the largest of its terms;
- objective error: ``|f - f*| / max(1, |f*|)``; ``f*`` is of the better of Clarabel's points at its
  defaults and at tolerances of 1e-9, and is compared with the published one, of 8 digits (Maros and
  Meszaros, "A repository of convex quadratic programming problems", 1999).

Run: ``python benchmarks/maros_meszaros.py [FOLDER or piqp-0.7.0.tar.gz] [--only HS21 ...]``

The data come with the source distribution of piqp 0.7.0, which pip downloads where none is given.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import markdown_table, save

_INFINITE = 1e20
_LARGEST = 1000
_CLOSE = 1e-6
_TARGET = 0.95
_LAYERS = {"default": None, "INTERIOR": "INTERIOR"}
_PUBLISHED = Path(__file__).parent / "maros_meszaros_optima.json"


@dataclass(frozen=True)
class Problem:
    """``min 1/2 x'Px + q'x`` subject to ``A x = b`` in the first rows, ``A x <= b`` in the others.

    Attributes:
        P, A: sparse.
        equalities: number of rows that are equations.
        blocks: for each block of rows, the matrix that cvxpy is to see (None for the identity's
            rows), the columns of such rows, the sign and the number of rows.
    """

    name: str
    P: Any
    q: np.ndarray
    A: Any
    b: np.ndarray
    equalities: int
    blocks: tuple[tuple[Any, np.ndarray, float, int], ...]


@dataclass
class Judgement:
    """One solver's result for one problem, and its accuracy."""

    status: str
    solver: str = ""
    residual: float = float("nan")
    objective: float = float("nan")
    error: float = float("nan")
    absolute_violation: float = float("nan")
    violation: float = float("nan")
    stationarity: float = float("nan")
    gap: float = float("nan")

    @property
    def worst(self) -> float:
        """The largest of the three conditions; infinity where there is no point."""
        values = [self.violation, self.stationarity, self.gap]
        return max(values) if np.isfinite(values).all() else np.inf

    @property
    def claims(self) -> bool:
        """The solver reports the problem as solved."""
        return self.status in ("SOLVED", "Solved")

    @property
    def good(self) -> bool:
        """Reported as solved, with the right objective."""
        return self.claims and self.error <= _CLOSE


# -- the problems ---------------------------------------------------------------------------------


def folder_with_data(given: Path | None, scratch: Path) -> Path:
    """The folder with the ``.mat`` files: given, unpacked, or downloaded first."""
    if given is not None and given.is_dir():
        return given
    if given is None:
        command = ["pip", "download", "--no-deps", "--no-binary", ":all:", "piqp==0.7.0"]
        subprocess.run([*command, "-d", str(scratch)], check=True)
        given = scratch / "piqp-0.7.0.tar.gz"
    with tarfile.open(given) as archive:
        archive.extractall(scratch, filter="data")
    return scratch / "piqp-0.7.0" / "tests" / "data" / "maros_meszaros"


def read(path: Path) -> Problem | None:
    """A problem; None if it is too large."""
    import scipy.io
    import scipy.sparse as sp

    data = scipy.io.loadmat(path)
    n = data["P"].shape[0]
    if n > _LARGEST:
        return None
    P, A, G = (sp.csc_matrix(data[key], dtype=np.float64) for key in "PAG")
    q, b, low, high, lower, upper = (
        data[key].astype(np.float64).reshape(-1) for key in ("c", "b", "h_l", "h_u", "x_l", "x_u")
    )
    everywhere, identity = np.arange(n), sp.eye(n, format="csc")
    fixed = lower == upper
    has_lower, has_upper = (lower > -_INFINITE) & ~fixed, (upper < _INFINITE) & ~fixed
    rows = sp.csr_matrix(G)
    parts = [
        (A, everywhere, 1.0, b),
        (None, everywhere[fixed], 1.0, lower[fixed]),
        (rows[high < _INFINITE], everywhere, 1.0, high[high < _INFINITE]),
        (rows[low > -_INFINITE], everywhere, -1.0, low[low > -_INFINITE]),
        (None, everywhere[has_upper], 1.0, upper[has_upper]),
        (None, everywhere[has_lower], -1.0, lower[has_lower]),
    ]
    stacked = [
        sign * (sp.csr_matrix(identity)[columns] if matrix is None else sp.csr_matrix(matrix))
        for matrix, columns, sign, _ in parts
    ]
    return Problem(
        path.stem,
        P,
        q,
        sp.csc_matrix(sp.vstack(stacked)),
        np.concatenate([sign * right for _, _, sign, right in parts]),
        len(b) + int(fixed.sum()),
        tuple((matrix, columns, sign, len(right)) for matrix, columns, sign, right in parts),
    )


# -- solving --------------------------------------------------------------------------------------


def by_layer(problem: Problem, solver: str | None) -> Judgement:
    """The problem as a layer."""
    import cvxpy as cp

    import ddn_cvx as ddn

    x, q = cp.Variable(len(problem.q)), cp.Parameter(len(problem.q))
    parameters, values, constraints, start = [q], [problem.q], [], 0
    for number, (matrix, columns, sign, count) in enumerate(problem.blocks):
        if count == 0:
            continue
        right = cp.Parameter(count)
        left = x[columns] if matrix is None else matrix @ x
        equal = number < 2
        constraints.append(left == right if equal else left <= right if sign > 0 else left >= right)
        parameters.append(right)
        values.append(sign * problem.b[start : start + count])
        start += count
    objective = 0.5 * cp.quad_form(x, cp.psd_wrap(problem.P)) + q @ x
    layer = ddn.DeclarativeLayer(
        cp.Problem(cp.Minimize(objective), constraints), parameters, [x], solver=solver
    )
    solution = layer.solve(*map(torch.from_numpy, values))
    status = ddn.Status(int(solution.status)).name
    point = solution.primal[0].numpy()
    duals = [np.atleast_1d(np.asarray(dual)) for dual in solution.dual]
    multipliers = np.concatenate([*duals, np.zeros(0)])
    judged = judge(problem, status, point, multipliers)
    judged.solver, judged.residual = solution.solver[0], float(solution.residual)
    return judged


def by_clarabel(problem: Problem, tolerance: float | None = None) -> Judgement:
    """Clarabel itself, at its defaults if no tolerance is given."""
    import clarabel
    import scipy.sparse as sp

    options = clarabel.DefaultSettings()
    options.verbose = False
    if tolerance is not None:
        options.tol_gap_abs = options.tol_gap_rel = options.tol_feas = tolerance
        options.max_iter = 500
    inequalities = len(problem.b) - problem.equalities
    cones = [clarabel.ZeroConeT(problem.equalities), clarabel.NonnegativeConeT(inequalities)]
    P = sp.triu(problem.P, format="csc")
    solver = clarabel.DefaultSolver(P, problem.q, problem.A, problem.b, cones, options)
    found = solver.solve()
    judged = judge(problem, str(found.status), np.array(found.x), np.array(found.z))
    judged.solver = "Clarabel"
    return judged


def judge(problem: Problem, status: str, x: np.ndarray, y: np.ndarray) -> Judgement:
    """Objective and optimality conditions of a point, row by row."""
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return Judgement(status)
    P, q, A, b = problem.P, problem.q, problem.A, problem.b
    equation = np.arange(len(b)) < problem.equalities
    Px, Ax, Aty = P @ x, A @ x, A.T @ y
    outside = np.where(equation, np.abs(Ax - b), np.maximum(Ax - b, 0.0))
    wrong_sign = np.where(equation, 0.0, np.maximum(-y, 0.0)) / (1 + np.abs(y).max(initial=0.0))
    of_rows = 1 + abs(A) @ np.abs(x) + np.abs(b)
    of_columns = 1 + abs(P) @ np.abs(x) + np.abs(q) + abs(A).T @ np.abs(y)
    terms = np.array([x @ Px, q @ x, b @ y])
    stationarity = (np.abs(Px + q + Aty) / of_columns).max()
    return Judgement(
        status,
        objective=float(0.5 * terms[0] + terms[1]),
        absolute_violation=float(outside.max(initial=0.0)),
        violation=float((outside / of_rows).max(initial=0.0)),
        stationarity=float(max(stationarity, wrong_sign.max(initial=0.0))),
        gap=float(abs(terms.sum()) / (1 + np.abs(terms).max())),
    )


# -- the report -----------------------------------------------------------------------------------


@dataclass
class Line:
    """One problem: its size, the reference, and what each solver made of it."""

    name: str
    n: int
    m: int
    entries: int
    optimum: float
    published: float
    found: dict[str, Judgement]

    @property
    def agrees(self) -> bool:
        """The reference is the published optimum."""
        return abs(self.optimum - self.published) <= _CLOSE * max(1.0, abs(self.published))


def line_of(problem: Problem, published: float) -> Line:
    """Solve one problem by everything."""
    found = {"Clarabel": by_clarabel(problem), "Clarabel, 1e-9": by_clarabel(problem, 1e-9)}
    best = min(found.values(), key=lambda judged: judged.worst)
    found |= {name: by_layer(problem, solver) for name, solver in _LAYERS.items()}
    for judged in found.values():
        judged.error = abs(judged.objective - best.objective) / max(1.0, abs(best.objective))
    entries = problem.P.nnz + problem.A.nnz
    return Line(
        problem.name, len(problem.q), len(problem.b), entries, best.objective, published, found
    )


def summary(lines: list[Line]) -> str:
    """The counts, the two claims, and the problems that miss or that another rung solved."""
    rows, verdicts, others = [], [], []
    for name in lines[0].found:
        everywhere = [line.found[name] for line in lines]
        peer = [line.found[name] for line in lines if line.found["Clarabel"].claims]
        claimed = [judged for judged in everywhere if judged.claims]
        wrong = [judged for judged in claimed if not judged.good or judged.worst > _CLOSE]
        rows.append(
            (
                name, len(claimed), f"{sum(judged.good for judged in peer)} of {len(peer)}",
                len(wrong), *(f"{max(values):.0e}" for values in _extremes(claimed)),
            )
        )  # fmt: skip
        if name in _LAYERS:
            share = sum(judged.good for judged in peer) / max(1, len(peer))
            met = "met" if share >= _TARGET and not wrong else "NOT met"
            verdicts.append(f"{met} by {name} ({share:.1%}, {len(wrong)} wrong)")
        for line in lines:
            judged = line.found[name]
            if name in _LAYERS and not (judged.good and judged.worst <= _CLOSE):
                others.append((line.name, name, judged))
    header = ["solver", "solved", "objective right, of what Clarabel solves", "wrongly solved"]
    header += ["objective error", "violation", "stationarity", "gap"]
    missing = "None misses." if not others else "These miss:\n\n" + markdown_table(
        ["problem", "layer", "status", "objective error", "KKT residual"],
        [
            (name, layer, judged.status, f"{judged.error:.0e}", f"{judged.worst:.0e}")
            for name, layer, judged in others
        ],
    )  # fmt: skip
    asked = [line.name for line in lines if line.found["INTERIOR"].solver != "INTERIOR"]
    agreeing = [line.name for line in lines if line.agrees]
    differing = [line.name for line in lines if not line.agrees]
    return (
        f"{len(lines)} problems of at most {_LARGEST} variables. Right is an objective within "
        f"{_CLOSE:.0e}, relative to the larger of one and itself; wrongly solved is an element "
        f"reported as solved whose objective is not right, or that misses a condition by more than "
        f"{_CLOSE:.0e}, row by row, which is stricter than the solvers' own measures. The last "
        "four columns are the worst of what is reported as solved.\n\n"
        f"{markdown_table([*header], rows)}\n\n{missing}\n\n"
        f"Claim, right on at least {_TARGET:.0%} of what Clarabel solves and nothing wrongly "
        f"solved: {'; '.join(verdicts)}.\n\n"
        f"The ladder's next rung answered in INTERIOR's place for {_listed(asked)}.\n\n"
        f"Of the references, {len(agreeing)} agree with the published optima. The others differ; "
        "the files leave out the objective's constant, which the published optima include: "
        f"{_listed(differing)}."
    )


def _extremes(claimed: list[Judgement]) -> list[list[float]]:
    names = ("error", "violation", "stationarity", "gap")
    return [[getattr(judged, name) for judged in claimed] or [float("nan")] for name in names]


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def main() -> None:
    """Solve, print and save."""
    from rich.progress import track

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", help="folder of .mat files, or the tar.gz")
    parser.add_argument("--only", nargs="+", help="names of problems")
    chosen = parser.parse_args()
    published = json.loads(_PUBLISHED.read_text())["optima"]
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder_with_data(chosen.data, Path(scratch))
        paths = [p for p in folder.glob("*.mat") if not chosen.only or p.stem in chosen.only]
        for path in track(sorted(paths), description="problems"):
            problem = read(path)
            if problem is not None:
                lines.append(line_of(problem, published.get(problem.name, float("nan"))))
    text = summary(lines)
    if chosen.only:
        print(text)
    else:
        save("maros_meszaros", "Maros-Meszaros QPs as layers", text, lines)


if __name__ == "__main__":
    main()
