"""The convex engine against its peers: forward and backward pass, and accuracy of the gradient.

Every layer gets the same batch in float64 and the same incoming gradient, at its own defaults.
Peers: cvxpylayers as it comes, with Clarabel and diffcp's dense mode, and with Moreau; for
quadratic programs also qpth and proxsuite's QPLayer. Diffcp's dense mode is left out where a
matrix of one element would take gigabytes. The gradient's error is the largest over the parameters
and the regular elements of the relative error against the exact derivative from the active set
(``common.exact_reference``), for quadratic programs.

Run: ``pip install proxsuite``, then ``python benchmarks/convex_engine.py [--qpth PYTHON]``, where
PYTHON is that of an environment with torch, ``numpy<2`` and qpth, which takes turns as a process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from common import (
    QuadraticProgram,
    Tensors,
    batch_errors,
    exact_reference,
    gradients,
    markdown_table,
    save,
)

if TYPE_CHECKING:
    import cvxpy as cp

SIZES = (
    (1000, 10, 10, 2),
    (64, 50, 50, 10),
    (64, 100, 100, 20),
    (256, 50, 50, 10),
    (1, 200, 200, 50),
)
JUDGED = 32
REPEATS = 7
# A contender that takes longer than this for one run is not timed again.
PATIENCE = 5.0
OURS = "ddn_cvx"
WHY = (
    "Where a peer wins: for a single quadratic program of two hundred unknowns proxsuite, which is "
    "compiled, takes less time than the calls of torch around our seven factorisations; the calls "
    "are about half of our time there. On batches of dense quadratic programs a third of our time "
    "is Cholesky factors and triangular systems, which torch works through one after the other. On "
    "programs with exponential cones Moreau, compiled, solves the batch at once; ours come from "
    "Clarabel one by one, and are then refined to all digits, as our own batched method for them "
    "takes longer still on a host."
)


@dataclass
class Case:
    """A problem with data: parameters, variables, inputs; small enough for dense derivatives."""

    name: str
    problem: cp.Problem
    parameters: list[cp.Parameter]
    variables: list[cp.Variable]
    inputs: Tensors
    weights: torch.Tensor
    program: QuadraticProgram | None = None
    small: bool = True


@dataclass
class Line:
    """One contender on one case: times over ours, and its gradient's error."""

    case: str
    peer: str
    ratio: float | None
    low: float | None
    high: float | None
    error: float | None
    note: str = ""


# -- cases -----------------------------------------------------------------------------------------


def cases() -> Iterator[Case]:
    """Dense quadratic programs, projections, pooling, a second-order cone program, a sparse one."""
    import cvxpy as cp

    for batch, n, m, p in SIZES:
        program = QuadraticProgram(n, m, p)
        problem, parameters, variables = program.problem()
        inputs = program.draw(batch, seed=0)
        name = f"QP B={batch}, n={n}, m={m}, p={p}"
        yield Case(name, problem, parameters, variables, inputs, normal(1, batch, n), program)
    n, batch = 100, 256
    sets: dict[str, Callable[[Any], list[Any]]] = {
        "simplex": lambda u: [cp.sum(u) == 1, u >= 0],
        "L1 ball": lambda u: [cp.norm1(u) <= 1],
        "L2 ball": lambda u: [cp.norm(u) <= 1],
    }
    for name, constraints in sets.items():
        u, x = cp.Variable(n), cp.Parameter(n)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), constraints(u))
        yield Case(name, problem, [x], [u], (normal(2, batch, n),), normal(1, batch, n))
    y, x = cp.Variable(1), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.huber(y - x))))
    inputs = (3 * normal(3, batch, n),)
    yield Case("Huber pooling", problem, [x], [y], inputs, normal(1, batch, 1))
    yield second_order(batch)
    yield from semidefinite()
    yield from exponential()
    n, batch = 2000, 8
    u, x = cp.Variable(n), cp.Parameter(n)
    smooth = cp.sum_squares(u - x) + 10 * cp.sum_squares(cp.diff(u))
    problem = cp.Problem(cp.Minimize(smooth), [u >= -1, u <= 1])
    name = "sparse QP, n=2000"
    inputs = (2 * normal(4, batch, n),)
    yield Case(name, problem, [x], [u], inputs, normal(1, batch, n), small=False)


def second_order(batch: int) -> Case:
    """A linear objective over five second-order cones and a ball, feasible at zero."""
    import cvxpy as cp

    n, rows, count = 20, 6, 5
    u, c = cp.Variable(n), cp.Parameter(n)
    matrices = [cp.Parameter((rows, n)) for _ in range(count)]
    constraints = [cp.norm(A @ u) <= 1 + u[k] for k, A in enumerate(matrices)]
    problem = cp.Problem(cp.Minimize(c @ u), [*constraints, cp.norm(u) <= 10])
    inputs = (normal(5, batch, n), *(normal(6 + k, batch, rows, n) for k in range(count)))
    parameters = [c, *matrices]
    return Case("SOCP, n=20, 6 cones", problem, parameters, [u], inputs, normal(1, batch, n))


def semidefinite() -> Iterator[Case]:
    """The nearest correlation matrix, and a matrix of few unknowns with a small eigenvalue."""
    import cvxpy as cp

    side, batch = 10, 128
    U, C = cp.Variable((side, side), symmetric=True), cp.Parameter((side, side), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(U - C)), [U >> 0, cp.diag(U) == 1])
    root, weights = normal(12, batch, side, side), normal(1, batch, side, side)
    yield Case(f"correlation, side {side}", problem, [C], [U], (root + root.mT,), weights)
    side, batch = 20, 32
    u, C = cp.Variable(side), cp.Parameter((side, side), symmetric=True)
    basis = normal(13, side, side, side)
    combined = sum(u[k] * (matrix + matrix.T) for k, matrix in enumerate(basis.numpy()))
    problem = cp.Problem(cp.Minimize(cp.lambda_max(C + combined) + cp.sum_squares(u)))
    root = normal(14, batch, side, side)
    inputs = (root + root.mT,)
    yield Case(f"eigenvalue, side {side}", problem, [C], [u], inputs, normal(1, batch, side))


def exponential() -> Iterator[Case]:
    """An entropy, and logistic regression with a ridge."""
    import cvxpy as cp

    n, batch = 20, 64
    u, c = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Maximize(c @ u + cp.sum(cp.entr(u))), [cp.sum(u) == 1])
    inputs: Tensors = (normal(15, batch, n),)
    yield Case(f"entropy, n={n}", problem, [c], [u], inputs, normal(1, batch, n))
    n, rows = 10, 40
    u, A = cp.Variable(n), cp.Parameter((rows, n))
    problem = cp.Problem(cp.Minimize(cp.sum(cp.logistic(A @ u)) + cp.sum_squares(u) / 2))
    inputs = (normal(16, batch, rows, n),)
    name = f"logistic regression, n={n}"
    yield Case(name, problem, [A], [u], inputs, normal(1, batch, n))


def normal(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


# -- contenders ------------------------------------------------------------------------------------

Run = Callable[[Tensors, torch.Tensor], Tensors]


def contenders(case: Case, qpth: Worker | None) -> Iterator[tuple[str, Run]]:
    """Ours and the peers that take the problem; each returns gradients."""
    from cvxpylayers.torch import CvxpyLayer

    import ddn_cvx

    arguments = (case.problem, case.parameters, case.variables)

    def layer(built: Any, **call: Any) -> Run:
        return lambda inputs, weights: gradients(built, inputs, weights, **call)

    yield OURS, layer(ddn_cvx.DeclarativeLayer(*arguments))
    yield "cvxpylayers, default", layer(CvxpyLayer(*arguments))
    clarabel = {"solve_method": "Clarabel", "mode": "dense"}
    if case.small:
        yield "cvxpylayers, Clarabel, dense", layer(CvxpyLayer(*arguments), solver_args=clarabel)
    yield "cvxpylayers, Moreau", layer(CvxpyLayer(*arguments, solver="MOREAU"))
    if case.program is not None:
        yield "proxsuite QPLayer", proxsuite_gradients
        if qpth is not None:
            yield "qpth", qpth.gradients


def proxsuite_gradients(inputs: Tensors, weights: torch.Tensor) -> Tensors:
    """By proxsuite's QPLayer."""
    from proxsuite.torch.qplayer import QPFunction

    F, q, G, h, A, b = leaves = tuple(tensor.clone().requires_grad_() for tensor in inputs)
    low = torch.full_like(h, -1e20)
    solution = QPFunction(structural_feasibility=True)(F.mT @ F, q, A, b, G, low, h)[0]
    (solution * weights).sum().backward()
    return tuple(leaf.grad for leaf in leaves if leaf.grad is not None)


class Worker:
    """qpth in an environment of its own, which takes turns with the others.

    Its process reads a file of inputs, and at each line from here runs once and writes its time.
    """

    PROGRAM = """
import sys, time, torch
from qpth.qp import QPFunction
torch.set_num_threads(int(sys.argv[1]))
def run(inputs, weights):
    F, q, G, h, A, b = leaves = [t.clone().requires_grad_() for t in inputs]
    u = QPFunction(verbose=-1)(F.mT @ F, q, G, h, A, b)
    (u * weights).sum().backward()
    return [leaf.grad for leaf in leaves]
for line in sys.stdin:
    path = line.strip()
    *inputs, weights = torch.load(path)
    start = time.perf_counter()
    try:
        found = run(inputs, weights)
    except Exception as error:
        print("failed", type(error).__name__, flush=True)
        continue
    seconds = time.perf_counter() - start
    torch.save(found, path)
    print(seconds, flush=True)
"""

    def __init__(self, python: str) -> None:
        threads = str(torch.get_num_threads())
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [python, "-c", self.PROGRAM, threads], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.seconds = 0.0

    def gradients(self, inputs: Tensors, weights: torch.Tensor) -> Tensors:
        """One run; its own time without the files' is in ``seconds``."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "data.pt")
            torch.save([*inputs, weights], path)
            process.stdin.write(path + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            if not answer or answer.startswith("failed"):
                raise RuntimeError(answer or "qpth's process ended")
            self.seconds = float(answer)
            return tuple(torch.load(path))


# -- measuring -------------------------------------------------------------------------------------


@dataclass
class Times:
    """Seconds of each run, or why there is none."""

    seconds: list[float] = field(default_factory=list)
    reason: str = ""


def measure(case: Case, qpth: Worker | None, repeats: int) -> list[Line]:
    """All contenders by turns."""
    runs = dict(contenders(case, qpth))
    times = {name: Times() for name in runs}
    for repeat in range(-1, repeats):  # the first one warms up
        names = list(runs)
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            taken = times[name]
            slow = bool(taken.seconds) and taken.seconds[0] > PATIENCE
            if taken.reason or slow:
                continue
            start = time.perf_counter()
            try:
                runs[name](case.inputs, case.weights)
            except Exception as error:
                taken.reason = f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
                continue
            seconds = time.perf_counter() - start
            if name == "qpth" and qpth is not None:
                seconds = qpth.seconds
            if repeat >= 0 or seconds > PATIENCE:
                taken.seconds.append(seconds)
    ours = times[OURS].seconds
    lines = []
    for name in runs:
        theirs = times[name].seconds
        line = Line(
            case.name, name, None, None, None, error_of(case, runs[name]), times[name].reason
        )
        pairs = [mine / other for mine, other in zip(ours, theirs, strict=False)]
        if len(pairs) > 1:
            line.low, line.ratio, line.high = statistics.quantiles(pairs, n=4)
        elif pairs:
            line.ratio = statistics.median(ours) / theirs[0]
        lines.append(line)
    return lines


def error_of(case: Case, run: Run) -> float | None:
    """The worst relative gradient error over regular elements."""
    if case.program is None:
        return None
    count = min(JUDGED, len(case.weights))
    inputs = tuple(tensor[:count] for tensor in case.inputs)
    weights = case.weights[:count]
    try:
        found = run(inputs, weights)
    except Exception:
        return None
    references = [
        exact_reference([tensor[e].numpy() for tensor in inputs], weights[e].numpy())
        for e in range(count)
    ]
    errors = batch_errors(found, references)
    pairs = zip(errors, references, strict=True)
    return max((error for error, reference in pairs if reference.is_regular), default=None)


def shown(line: Line) -> tuple[str, str, str, str]:
    """One row of the table."""
    error = "" if line.error is None else f"{line.error:.0e}"
    if line.ratio is None:
        return line.case, line.peer, line.note, error
    ratio = f"{line.ratio:.3f}" if line.ratio < 0.1 else f"{line.ratio:.2f}"
    if line.low is not None:
        ratio += f" ({line.low:.3f} to {line.high:.3f})"
    return line.case, line.peer, "1" if line.peer == OURS else ratio, error


def main() -> None:
    """Measure, print and save."""
    from rich.progress import track

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qpth", help="python of an environment that has qpth")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    qpth = Worker(arguments.qpth) if arguments.qpth else None
    chosen = [case for case in cases() if arguments.only in case.name]
    lines: list[Line] = []
    for case in track(chosen, "Cases", transient=True):
        lines += measure(case, qpth, arguments.repeats)
        for line in lines[-6:]:
            if line.case == case.name:
                print(*shown(line), sep=" | ", file=sys.stderr)
    table = markdown_table(
        ["problem", "layer", "our time / its time", "gradient error"], [shown(x) for x in lines]
    )
    text = (
        "Forward and backward pass of a batch in float64 with respect to every parameter, on "
        f"{torch.get_num_threads()} threads, each layer at its defaults. Below one, ours is "
        "faster; medians over interleaved runs with quartiles, or one run where the peer takes "
        f"over {PATIENCE:.0f} seconds. The gradient's error is the worst relative one over the "
        f"regular elements of the first {JUDGED}, against the exact derivative.\n\n{table}\n\n{WHY}"
    )
    save("convex_engine", "The convex engine against its peers", text, lines)


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
