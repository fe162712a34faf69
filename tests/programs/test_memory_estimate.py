"""The memory that compiling takes is foretold within a factor of four, in no time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

from ddn_cvx import Declaration
from ddn_cvx.errors import DeclarationError
from ddn_cvx.problems import catalogue
from ddn_cvx.programs.cone import compile as cone_compile
from ddn_cvx.programs.diagnosis import available, estimate, memory, refuse_if_too_large


def quadratic_program(n: int) -> cp.Problem:
    """All data are parameters."""
    P, q = cp.Parameter((n, n), PSD=True), cp.Parameter(n)
    A, b = cp.Parameter((n // 2, n)), cp.Parameter(n // 2)
    G, h = cp.Parameter((n, n)), cp.Parameter(n)
    u = cp.Variable(n)
    return cp.Problem(cp.Minimize(cp.quad_form(u, P) / 2 + q @ u), [A @ u == b, G @ u <= h])


def matrix_least_squares(n: int) -> cp.Problem:
    A, B, X = cp.Parameter((n, n)), cp.Parameter((n, n)), cp.Variable((n, n))
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ X - B)), [X >= 0])


def semidefinite_program(n: int) -> cp.Problem:
    X, C, b = cp.Variable((n, n), symmetric=True), cp.Parameter((n, n)), cp.Parameter()
    A = cp.Parameter((n, n))
    return cp.Problem(cp.Minimize(cp.trace(C @ X)), [X >> 0, cp.trace(A @ X) == b])


def constant_regression(n: int) -> cp.Problem:
    A = np.random.default_rng(0).standard_normal((4 * n, n))
    u, b = cp.Variable(n), cp.Parameter(4 * n)
    return cp.Problem(cp.Minimize(cp.norm(A @ u - b, 1)), [u >= 0])


def transport(n: int) -> cp.Problem:
    C, X = cp.Parameter((n, n)), cp.Variable((n, n))
    a, b = cp.Parameter(n), cp.Parameter(n)
    cost = cp.sum(cp.multiply(C, X)) - cp.sum(cp.entr(X))
    return cp.Problem(cp.Minimize(cost), [cp.sum(X, axis=0) == a, cp.sum(X, axis=1) == b])


def weighted_sum(n: int) -> cp.Problem:
    W, X = cp.Parameter((n, n)), cp.Variable((n, n))
    return cp.Problem(cp.Minimize(cp.sum(cp.multiply(W, X))), [cp.sum(X, axis=0) == 1, X >= 0])


PROBLEMS: dict[str, tuple[Callable[[int], cp.Problem], tuple[int, ...]]] = {
    "quadratic program": (quadratic_program, (200, 400, 800)),
    "matrix least squares": (matrix_least_squares, (40, 80)),
    "semidefinite program": (semidefinite_program, (40, 60)),
    "constant regression": (constant_regression, (200, 400)),
    "transport": (transport, (30, 50)),
    "weighted sum": (weighted_sum, (50, 70)),
}


def measure() -> None:
    """Print the growth of the resident set while compiling each problem. Run in a process apart."""
    import ctypes
    import warnings

    import ddn_cvx

    warnings.simplefilter("ignore")
    library = ctypes.CDLL(None)
    status = Path("/proc/self/status")

    def resident(line: str) -> int:
        found = next(entry for entry in status.read_text().splitlines() if entry.startswith(line))
        return int(found.split()[1]) * 1024

    def compile_problem(problem: cp.Problem) -> None:
        ddn_cvx.DeclarativeLayer(problem, problem.parameters(), problem.variables())

    rows = []
    for name, (build, sizes) in PROBLEMS.items():
        compile_problem(build(4))  # what is imported on first use
        for size in sizes:
            problem = build(size)
            library.malloc_trim(0)
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            compile_problem(problem)
            rows.append((name, size, resident("VmHWM") - before, estimate(problem)))
    print(json.dumps(rows))  # noqa: T201


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux's /proc is needed")
def test_within_a_factor_of_four_of_the_measured_peak() -> None:
    code = "import test_memory_estimate; test_memory_estimate.measure()"
    path = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name, size, measured, estimated in json.loads(run.stdout.splitlines()[-1]):
        assert measured / 4 < estimated < 4 * measured, (name, size, measured, estimated)


ENORMOUS: dict[str, Callable[[], cp.Problem]] = {
    "product of matrices": lambda: matrix_least_squares(2000),
    "entrywise product": lambda: weighted_sum(2000),
    "cones": lambda: transport(1500),
    "trace": lambda: semidefinite_program(1500),
}


@pytest.mark.parametrize("name", ENORMOUS)
def test_terabytes_are_refused_in_milliseconds(name: str) -> None:
    problem = ENORMOUS[name]()
    elapsed = []
    for _ in range(5):
        start = time.perf_counter()
        assert estimate(problem) > 2**40
        elapsed.append(time.perf_counter() - start)
    assert min(elapsed) < 0.01
    with pytest.raises(DeclarationError, match="GiB"):
        refuse_if_too_large(problem)


def test_the_message_names_the_product_and_what_to_do() -> None:
    A, X = cp.Parameter((2000, 2000), name="A"), cp.Variable((2000, 2000), name="X")
    B = cp.Parameter((2000, 2000), name="B")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ X - B)))
    with pytest.raises(DeclarationError) as caught:
        refuse_if_too_large(problem)
    message = str(caught.value)
    for phrase in ("GiB of memory", "are available", "A @ X", "columns the batch", "constants"):
        assert phrase in message, message


def test_a_refused_reservation_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """cvxpy reserves variables x parameters for a quadratic objective, and touches little of it."""
    assert estimate(quadratic_program(2000)) < 2**33

    def allocate(*_: Any) -> None:
        raise MemoryError("Unable to allocate 149. GiB for an array")

    monkeypatch.setattr(cone_compile, "_canonicalised", allocate)
    problem = quadratic_program(4)
    declaration = Declaration(problem, problem.parameters(), problem.variables())
    with pytest.raises(DeclarationError, match=r"(?s)allocate 149.*constants"):
        cone_compile.compile_program(declaration)


def test_the_catalogue_passes() -> None:
    for constructor in catalogue().values():
        problem = constructor().problem
        assert estimate(problem) < 2**30
        refuse_if_too_large(problem)


def test_entries_of_a_product_are_rows_by_inner_by_columns() -> None:
    """The estimate grows with m k n, whichever factor is the parameter."""
    for m, k, n in ((10, 20, 30), (30, 5, 50)):
        left, right = cp.Parameter((m, k)), cp.Variable((k, n))
        expression = left @ right
        assert memory._entries(expression, memory.Tally(0, 0)) == m * k * n
        expression = right.T @ left.T
        assert memory._entries(expression, memory.Tally(0, 0)) == m * k * n


def test_sparse_constants_count_their_nonzeros() -> None:
    import scipy.sparse

    u = cp.Variable(10_000)
    identity = scipy.sparse.eye_array(10_000, format="csr")
    problem = cp.Problem(cp.Minimize(cp.norm(identity @ u - cp.Parameter(10_000), 1)))
    assert estimate(problem) < 2**25


def test_available_memory_is_plausible() -> None:
    assert 2**20 < available() < 2**50
