"""Elements without a solution: how many are proven so, by a certificate that is returned.

Random batches of quadratic, linear and second-order cone programs of three sizes. In each batch a
fifth of the elements is feasible, with a known solution; the others are, in equal numbers,

- infeasible: multipliers ``y`` with ``A'y = 0``, ``y in K*``, ``b'y = -1`` exist by construction;
- just infeasible: feasible once ``b`` moves by 1e-4;
- unbounded: a direction ``d`` with ``P d = 0``, ``-A d in K``, ``q'd = -1`` exists by construction;
- just unbounded: bounded once ``q`` moves by 1e-4.

``layer.solve(...).certificate()`` is read through the problem's own constraints and variables and
checked here, in numpy. Multipliers count as a proof if, once moved into ``K*``, they exclude every
``x`` whose entries' absolute values add up to less than a million; a direction, if it misses its
conditions by less than a millionth of what the objective falls.

Run: ``python benchmarks/certificates.py [--batches 8]``
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from common import markdown_table, save

import ddn_cvx as ddn
from ddn_cvx.solvers.answer import SOLVED

_SIZES = (5, 20, 60)
_FAMILIES = ("QP", "LP", "SOCP")
_KINDS = ("feasible", "infeasible", "just infeasible", "unbounded", "just unbounded")
_SOLVERS = ("INTERIOR", "CLARABEL", None)
_EACH = 8
_JUST = 1e-4
_PROOF = 1e-6
_CLOSE = 1e-6
# Rows of a second-order cone.
_CONE = 4
_TARGET = 0.99

_EXPECTED = {
    "feasible": ddn.Status.SOLVED,
    "infeasible": ddn.Status.INFEASIBLE,
    "just infeasible": ddn.Status.INFEASIBLE,
    "unbounded": ddn.Status.UNBOUNDED,
    "just unbounded": ddn.Status.UNBOUNDED,
}
_CLAIMS = tuple(set(_EXPECTED.values()))


class Element(NamedTuple):
    """``min |F u|^2 / 2 + q'u`` subject to ``b - A u in K``, and the solution, NaN without one."""

    F: np.ndarray
    q: np.ndarray
    A: np.ndarray
    b: np.ndarray
    solution: np.ndarray


@dataclass(frozen=True)
class Shape:
    """Numbers of variables, equalities, inequalities and second-order cones of four rows."""

    n: int
    zero: int
    nonnegative: int
    cones: int
    quadratic: bool

    @classmethod
    def of(cls, family: str, n: int) -> Shape:
        """A family's at a number of variables."""
        cones = max(1, n // 5) if family == "SOCP" else 0
        return cls(n, n // 4, 2 * n, cones, family == "QP")

    @property
    def starts(self) -> range:
        """First row of each second-order cone."""
        start = self.zero + self.nonnegative
        return range(start, start + _CONE * self.cones, _CONE)

    def moved_inside(self, y: np.ndarray) -> np.ndarray:
        """The projection onto ``K*``, of which the zero cone's part is free."""
        y = y.copy()
        y[self.zero : self.zero + self.nonnegative].clip(0, out=y[self.zero :][: self.nonnegative])
        for start in self.starts:
            y[start : start + _CONE] = _onto_cone(y[start : start + _CONE])
        return y

    def outside(self, s: np.ndarray) -> float:
        """Distance from ``K``."""
        inside = self.moved_inside(s)
        inside[: self.zero] = 0
        return float(np.abs(s - inside).max())


def _onto_cone(v: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(v[1:])
    if size <= abs(v[0]):
        return v if v[0] >= 0 else np.zeros_like(v)
    half = (v[0] + size) / 2
    return np.concatenate([[half], half / size * v[1:]])


# -- the programs ---------------------------------------------------------------------------------


def draw(shape: Shape, kind: str, generator: np.random.Generator) -> Element:
    """One element of a kind."""
    n, m = shape.n, shape.zero + shape.nonnegative + _CONE * shape.cones
    F = np.eye(n) + generator.standard_normal((n, n)) / np.sqrt(n)
    F = F if shape.quadratic else np.zeros((0, n))
    A = generator.standard_normal((m, n)) / np.sqrt(n)
    x = generator.standard_normal(n)
    y, s = _complementary(shape, generator)
    if kind in ("infeasible", "just infeasible"):
        A -= np.outer(y, A.T @ y) / (y @ y)  # A'y = 0
        # Before it is moved, x is feasible and y's combination of the constraints holds with zero.
        margin = 1.0 if kind == "infeasible" else _JUST * np.linalg.norm(y)
        b = A @ x + s - margin * y / (y @ y)
        q = -F.T @ (F @ x) - A.T @ _complementary(shape, generator)[0]  # bounded, were it feasible
    elif kind in ("unbounded", "just unbounded"):
        d = generator.standard_normal(n)
        F -= np.outer(F @ d, d) / (d @ d)  # F d = 0
        A -= np.outer(A @ d + s, d) / (d @ d)  # -A d = s, in K and complementary to y
        margin = 1.0 if kind == "unbounded" else _JUST * np.linalg.norm(d)
        q = -F.T @ (F @ x) - A.T @ y - margin * d / (d @ d)
        b = A @ x + shape.moved_inside(generator.standard_normal(m))
        b[: shape.zero] = A[: shape.zero] @ x
    else:
        b, q = A @ x + s, -F.T @ (F @ x) - A.T @ y
    return Element(F, q, A, b, x if kind == "feasible" else np.full(n, np.nan))


def _complementary(shape: Shape, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``y in K*`` and ``s in K`` with ``y's = 0``; as many rows active as leave a solution."""
    y = generator.uniform(0.5, 1.5, shape.zero + shape.nonnegative + _CONE * shape.cones)
    s = generator.uniform(0.5, 1.5, len(y))
    y[: shape.zero] = generator.standard_normal(shape.zero)
    s[: shape.zero] = 0
    rows = shape.zero + generator.permutation(shape.nonnegative)
    active = (shape.n - shape.zero) - shape.cones
    s[rows[:active]] = 0
    y[rows[active:]] = 0
    for start in shape.starts:
        v = generator.standard_normal(_CONE - 1)
        size = np.linalg.norm(v)
        y[start : start + _CONE] = np.concatenate([[size], v])
        s[start : start + _CONE] = np.concatenate([[size], -v]) * generator.uniform(0.5, 1.5)
    return y, s


def layer_of(shape: Shape, solver: str | None) -> ddn.DeclarativeLayer:
    """All elements of a shape as one layer."""
    import cvxpy as cp

    u, q = cp.Variable(shape.n), cp.Parameter(shape.n)
    A, b = cp.Parameter((shape.zero, shape.n)), cp.Parameter(shape.zero)
    G, h = cp.Parameter((shape.nonnegative, shape.n)), cp.Parameter(shape.nonnegative)
    objective, parameters = q @ u, [q, A, b, G, h]
    constraints = [A @ u == b, G @ u <= h]
    for _ in range(shape.cones):
        C, f = cp.Parameter((_CONE, shape.n)), cp.Parameter(_CONE)
        parameters += [C, f]
        constraints.append(cp.SOC(f[0] - C[0] @ u, f[1:] - C[1:] @ u))
    if shape.quadratic:
        F = cp.Parameter((shape.n, shape.n))
        parameters.append(F)
        objective = objective + 0.5 * cp.sum_squares(F @ u)
    problem = cp.Problem(cp.Minimize(objective), constraints)
    return ddn.DeclarativeLayer(problem, parameters, [u], solver=solver)


def tensors_of(shape: Shape, elements: list[Element]) -> list[torch.Tensor]:
    """The layer's inputs."""
    blocks = [slice(0, shape.zero), slice(shape.zero, shape.zero + shape.nonnegative)]
    blocks += [slice(start, start + _CONE) for start in shape.starts]
    arrays = [[element.q for element in elements]]
    for block in blocks:
        arrays += [[element.A[block] for element in elements]]
        arrays += [[element.b[block] for element in elements]]
    if shape.quadratic:
        arrays.append([element.F for element in elements])
    return [torch.from_numpy(np.stack(array)) for array in arrays]


# -- what came back -------------------------------------------------------------------------------


def stacked(group: Any) -> np.ndarray:
    """Multipliers of a batch, one constraint's dual variables side by side, ``(B, rows)``."""
    parts = group if isinstance(group, tuple) else (group,)
    return np.concatenate([part.reshape(len(part), -1).numpy() for part in parts], 1)


def proves(shape: Shape, kind: str, element: Element, y: np.ndarray, d: np.ndarray) -> bool:
    """Whether the certificate proves what is the case."""
    if kind in ("infeasible", "just infeasible"):
        if not np.isfinite(y).all():
            return False
        y = shape.moved_inside(y)
        return float(np.abs(element.A.T @ y).max()) <= -_PROOF * float(element.b @ y)
    if not np.isfinite(d).all():
        return False
    missed = max(float(np.abs(element.F.T @ (element.F @ d)).max()), shape.outside(-element.A @ d))
    return missed <= -_PROOF * float(element.q @ d)


class Verdict(NamedTuple):
    """Of one element: proven, by which rung, and whether it is reported as what it is not.

    A feasible element counts as proven when its solution is right and it has no certificate.
    """

    proven: bool
    solver: str
    mistaken: bool


@dataclass
class Count:
    """Of one family, kind and solver: elements, those proven, also by the solver itself."""

    family: str
    kind: str
    solver: str
    elements: int = 0
    proven: int = 0
    own: int = 0
    mistaken: int = 0

    def add(self, found: Verdict) -> None:
        """One more element."""
        self.elements += 1
        self.proven += found.proven
        self.own += found.proven and found.solver == self.solver
        self.mistaken += found.mistaken


def judge(
    shape: Shape, kinds: list[str], elements: list[Element], solution: ddn.Solution
) -> list[Verdict]:
    """A verdict on each element."""
    certificate = solution.certificate()
    y = np.concatenate([stacked(group) for group in certificate.dual], 1)
    (d,) = (direction.numpy() for direction in certificate.direction)
    u = solution.primal[0].numpy()
    found = []
    for number, (kind, element) in enumerate(zip(kinds, elements, strict=True)):
        status = int(solution.status[number])
        if kind == "feasible":
            close = np.abs(u[number] - element.solution).max() <= _CLOSE
            proven = close and np.isnan(y[number]).all() and np.isnan(d[number]).all()
        else:
            proven = proves(shape, kind, element, y[number], d[number])
        proven = bool(proven) and status == _EXPECTED[kind]
        mistaken = status in _CLAIMS and status != _EXPECTED[kind]
        found.append(Verdict(proven, solution.solver[number], mistaken))
    return found


def main() -> None:
    """Solve, print and save."""
    from rich.progress import track

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=8, help="of each family and size")
    batches = parser.parse_args().batches
    torch.set_num_threads(1)
    counts = {
        (family, kind, solver): Count(family, kind, solver or "default")
        for family in _FAMILIES
        for kind in _KINDS
        for solver in _SOLVERS
    }
    runs = [(family, n) for family in _FAMILIES for n in _SIZES]
    for family, n in track(runs, description="families and sizes"):
        shape = Shape.of(family, n)
        layers = {solver: layer_of(shape, solver) for solver in _SOLVERS}
        for batch in range(batches):
            generator = np.random.default_rng([_FAMILIES.index(family), n, batch])
            kinds = list(generator.permutation(_KINDS * _EACH))
            elements = [draw(shape, kind, generator) for kind in kinds]
            tensors = tensors_of(shape, elements)
            for solver, layer in layers.items():
                found = judge(shape, kinds, elements, layer.solve(*tensors))
                for kind, verdict in zip(kinds, found, strict=True):
                    counts[family, kind, solver].add(verdict)
    found_counts = list(counts.values())
    save("certificates", "Elements without a solution", report(found_counts), found_counts)


def report(counts: list[Count]) -> str:
    """One row for each family and kind, one column for each solver, and the claim."""
    solvers = list(dict.fromkeys(count.solver for count in counts))
    groups = list(dict.fromkeys((count.family, count.kind) for count in counts))
    cells = {(count.family, count.kind, count.solver): count for count in counts}

    def cells_of(family: str, kind: str) -> list[str]:
        return [_cell(cells[family, kind, solver]) for solver in solvers]

    rows = [
        (family, kind, cells[family, kind, solvers[0]].elements, *cells_of(family, kind))
        for family, kind in groups
    ]
    verdicts = []
    for solver in solvers:
        own = [count for count in counts if count.solver == solver and count.kind != "feasible"]
        share = sum(count.proven for count in own) / sum(count.elements for count in own)
        met = "met" if share >= _TARGET else "NOT met"
        verdicts.append(f"{met} by {solver} ({share:.2%})")
    feasible = [count for count in counts if count.kind == "feasible"]
    kept, of = (sum(getattr(c, name) for c in feasible) for name in ("proven", "elements"))
    mistaken = sum(count.mistaken for count in counts)
    table = markdown_table(["family", "kind", "elements", *solvers], rows)
    return (
        f"Programs of {', '.join(map(str, _SIZES))} variables. Proven by each solver's ladder, and "
        "in parentheses those of them whose proof is the asked solver's own rather than a later "
        "rung's; of feasible elements, those with the right solution and no certificate.\n\n"
        f"{table}\n\n"
        f"Claim, at least {_TARGET:.0%} of the elements without a solution are proven so: "
        f"{'; '.join(verdicts)}. Of the feasible elements next to them, {kept} of {of} are right. "
        "Elements that are reported as solved without a solution, or with a claim that is false: "
        f"{mistaken}.\n\nCloser to feasible than the {SOLVED:.0e} "
        "to which an element counts as solved, the two cannot be told apart."
    )


def _cell(count: Count) -> str:
    own = "" if count.solver == "default" or count.kind == "feasible" else f" ({count.own})"
    return f"{count.proven}{own}"


if __name__ == "__main__":
    main()
