"""Shared by the benchmarks: one quadratic program, its exact derivative, fair timing, tables."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    import cvxpy as cp

RESULTS = Path(__file__).parent / "results"
# Rounds in which rows of a guessed active set change sides.
_EXCHANGES = 20

Tensors = tuple[torch.Tensor, ...]
Layer = Callable[..., Tensors]


# -- the problem ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuadraticProgram:
    """``min 1/2 |F u|^2 + q' u`` subject to ``G u <= h`` and ``A u = b``.

    The quadratic term is a ``sum_squares`` of a matrix parameter, not ``quad_form``, so that both
    cvxpylayers' diffcp interface and this package accept it.

    Attributes:
        n, m, p: number of variables, inequalities, equalities.
    """

    n: int
    m: int
    p: int

    def problem(self) -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
        """The problem, its parameters ``F, q, G, h, A, b`` and its variable ``u``."""
        import cvxpy as cp

        u = cp.Variable(self.n, name="u")
        F = cp.Parameter((self.n, self.n), name="F")
        q = cp.Parameter(self.n, name="q")
        G, h = cp.Parameter((self.m, self.n), name="G"), cp.Parameter(self.m, name="h")
        A, b = cp.Parameter((self.p, self.n), name="A"), cp.Parameter(self.p, name="b")
        objective = cp.Minimize(0.5 * cp.sum_squares(F @ u) + q @ u)
        problem = cp.Problem(objective, [G @ u <= h, A @ u == b])
        return problem, [F, q, G, h, A, b], [u]

    def draw(self, batch: int, seed: int) -> Tensors:
        """Feasible random data, shapes ``(batch, *parameter.shape)``, float64."""
        generator = np.random.default_rng(seed)
        n, m, p = self.n, self.m, self.p
        F = np.eye(n) + generator.standard_normal((batch, n, n)) / np.sqrt(n)
        q = generator.standard_normal((batch, n))
        G = generator.standard_normal((batch, m, n)) / np.sqrt(n)
        A = generator.standard_normal((batch, p, n)) / np.sqrt(n)
        feasible = generator.standard_normal((batch, n))
        h = np.einsum("bmn,bn->bm", G, feasible) + generator.uniform(0.0, 1.0, (batch, m))
        b = np.einsum("bpn,bn->bp", A, feasible)
        return tuple(torch.from_numpy(array) for array in (F, q, G, h, A, b))


@dataclass(frozen=True)
class Reference:
    """The exact derivative at one solution, and whether it exists.

    Attributes:
        solution: the polished solution, shape ``(n,)``.
        gradients: of ``weights' u*``, one array for each parameter.
        margin: the smallest of the active multipliers and inactive slacks; zero means degenerate.
        condition: condition number of the active-set KKT matrix.
    """

    solution: np.ndarray
    gradients: tuple[np.ndarray, ...]
    margin: float
    condition: float

    @property
    def is_regular(self) -> bool:
        """Strictly complementary, with independent active constraints: differentiable."""
        return self.margin > 1e-4 and self.condition < 1e7


def exact_reference(data: Sequence[np.ndarray], weights: np.ndarray) -> Reference:
    """Solution and derivative by the active set, in numpy alone; nothing of the package is used.

    At a strictly complementary solution the active inequalities hold as equalities nearby, so that

        K (u, y) = (-q, h_I, b),   K = [[F'F, G_I', A'], [G_I, 0, 0], [A, 0, 0]],

    defines the solution, and with ``K (r, s, t) = (weights, 0, 0)`` the gradient is
    ``dq = -r``, ``dF = -(F u r' + F r u')``, ``dG_I = -(y_I r' + s u')``, ``dh_I = s`` and so on
    (Amos and Kolter 2017, equation 8). The active set is that of an interior-point solution, and
    is confirmed by the signs of the multipliers and slacks of the polished one.

    Args:
        data: ``F, q, G, h, A, b`` of one element.
        weights: the loss is their inner product with the solution, shape ``(n,)``.

    Raises:
        ArithmeticError: the polished point is not optimal, that is, the active set was wrong.
    """
    F, q, G, h, A, b = data
    active = _active_set(data)
    n, m = len(q), len(h)
    for _ in range(_EXCHANGES):
        rows = np.concatenate([G[active], A])
        k = len(rows)
        K = np.block([[F.T @ F, rows.T], [rows, np.zeros((k, k))]])
        point = _refined_solve(K, np.concatenate([-q, h[active], b]))
        u, multipliers = point[:n], point[n:]
        count = int(active.sum())
        signs = h - G @ u
        signs[active] = multipliers[:count]
        margin = float(signs.min(initial=np.inf))
        if margin >= -1e-9:
            break
        active = active ^ (signs < -1e-9)  # nearly degenerate: a row on the wrong side
    else:
        raise ArithmeticError(f"the active set is wrong: margin {margin:.1e}")
    adjoint = _refined_solve(K, np.concatenate([weights, np.zeros(k)]))
    r, s = adjoint[:n], adjoint[n:]
    of_rows = -(np.outer(multipliers, r) + np.outer(s, u))
    dG, dh = np.zeros((m, n)), np.zeros(m)
    dG[active], dh[active] = of_rows[:count], s[:count]
    gradients = (
        -(np.outer(F @ u, r) + np.outer(F @ r, u)),
        -r,
        dG,
        dh,
        of_rows[count:],
        s[count:],
    )
    return Reference(u, gradients, margin, float(np.linalg.cond(K)))


def _refined_solve(K: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``K^-1 right``, refined in extended precision."""
    answer = np.linalg.solve(K, right)
    for _ in range(3):
        residual = right.astype(np.longdouble) - K.astype(np.longdouble) @ answer
        answer = answer + np.linalg.solve(K, residual.astype(np.float64))
    return answer


def _active_set(data: Sequence[np.ndarray]) -> np.ndarray:
    import clarabel
    import scipy.sparse

    F, q, G, h, A, b = data
    options = clarabel.DefaultSettings()
    options.verbose = False
    options.tol_gap_abs = options.tol_gap_rel = options.tol_feas = 1e-9
    cones = [clarabel.NonnegativeConeT(len(h)), clarabel.ZeroConeT(len(b))]
    solver = clarabel.DefaultSolver(
        scipy.sparse.csc_matrix(np.triu(F.T @ F)),
        q,
        scipy.sparse.csc_matrix(np.concatenate([G, A])),
        np.concatenate([h, b]),
        cones,
        options,
    )
    solution = solver.solve()
    return np.array(solution.z[: len(h)]) > np.array(solution.s[: len(h)])


# -- gradients ------------------------------------------------------------------------------------


def gradients(layer: Layer, data: Tensors, weights: torch.Tensor, **call: Any) -> Tensors:
    """Gradients of ``weights' u*`` with respect to every parameter."""
    inputs = tuple(tensor.clone().requires_grad_() for tensor in data)
    (solution,) = layer(*inputs, **call)
    (solution * weights).sum().backward()
    return tuple(tensor.grad for tensor in inputs if tensor.grad is not None)


def relative_error(found: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """The largest of the parameters' relative gradient errors.

    Euclidean norms; a parameter whose exact gradient is zero (no inequality is active) is measured
    against the norm of all gradients together.
    """
    whole = np.sqrt(sum(float(np.sum(exact**2)) for exact in reference))
    errors = []
    for gradient, exact in zip(found, reference, strict=True):
        size = float(np.linalg.norm(exact)) or whole
        error = float(np.linalg.norm(gradient - exact)) / size
        errors.append(error if np.isfinite(error) else np.inf)
    return max(errors)


def batch_errors(found: Tensors, references: Sequence[Reference]) -> list[float]:
    """Relative gradient error of each element of a batch."""
    return [
        relative_error([g[element].numpy() for g in found], reference.gradients)
        for element, reference in enumerate(references)
    ]


# -- timing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """How long one contender took relative to another, over interleaved repeats.

    Attributes:
        median: of the pairwise ratios.
        low, high: their quartiles.
        repeats: number of pairs.
    """

    median: float
    low: float
    high: float
    repeats: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def interleaved_ratios(
    ours: Callable[[], object],
    others: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warm: int = 2,
) -> dict[str, Ratio]:
    """Time of ``ours`` over the time of each of the ``others``.

    One repeat runs every contender once, in an order that rotates, so that whatever else the
    machine does falls on all alike.
    """
    contenders = {"": ours, **others}
    names = list(contenders)
    for _ in range(warm):
        for run in contenders.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - start)
    ratios = {}
    for name in others:
        pairs = [mine / theirs for mine, theirs in zip(seconds[""], seconds[name], strict=True)]
        low, median, high = statistics.quantiles(pairs, n=4)
        ratios[name] = Ratio(median, low, high, repeats)
    return ratios


# -- reports --------------------------------------------------------------------------------------


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A GitHub-flavoured table."""
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def save(name: str, title: str, text: str, record: Any) -> None:
    """Print the report, and write it to ``results/NAME.md`` and ``results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    document = f"# {title}\n\n{text}\n"
    (RESULTS / f"{name}.md").write_text(document)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1, default=_plain) + "\n")
    print(document)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
