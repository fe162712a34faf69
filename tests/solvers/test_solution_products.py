"""Products and outer products of a solution, by dense blocks and by stored values."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from test_interior_point import (
    Case,
    Layer,
    dense_quadratic,
    program_of,
    second_order,
)

from ddn_cvx.engine.engine import Engine
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.linalg.products import cholesky_solve, matmul_narrow, matvec
from ddn_cvx.problems import quadratic_program
from ddn_cvx.programs.cone.instance import products
from ddn_cvx.programs.cone.program import ConeData, ConeProgram
from ddn_cvx.solvers.cone.interior_point.solver import InteriorPoint


def data_of(layer: Layer, program: ConeProgram, tensors: list[torch.Tensor]) -> ConeData:
    assert isinstance(layer._engine, Engine)
    stacked = torch.cat([tensor.flatten(1) for tensor in tensors], 1).double()
    return program.data(stacked).detach()


@pytest.mark.parametrize("case", [dense_quadratic, second_order])
def test_products_that_come_with_a_solution_are_the_stored_values(
    case: Callable[[], Case],
) -> None:
    """The residual that is checked is that of the program, not of what was made of it."""
    problem, parameters, variables, tensors = case()
    layer = Layer(problem, parameters, variables, solver="INTERIOR")
    program = program_of(layer)
    data = data_of(layer, program, tensors)
    raw = InteriorPoint().solve(program, data, {})
    assert raw.products is not None
    expected = products(program, data, raw.primal, raw.dual)[1:]
    for found, value in zip(raw.products, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-13, atol=1e-13)


def test_products_where_nothing_is_substituted() -> None:
    declaration = quadratic_program(n=5, m=4, p=2)
    layer = Layer(declaration, solver="INTERIOR")
    program, tensors = program_of(layer), list(declaration.inputs(batch=3, seed=0))
    data = data_of(layer, program, tensors)
    raw = InteriorPoint().solve(program, data, {})
    assert raw.products is not None
    expected = products(program, data, raw.primal, raw.dual)[1:]
    for found, value in zip(raw.products, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-13, atol=1e-13)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 7),
    st.integers(0, 7),
    st.sampled_from([0.0, 0.15, 0.5, 0.9, 1.0]),
    st.integers(1, 3),
    st.integers(0, 10**6),
)
def test_outer_products_at_stored_places(
    m: int, n: int, share: float, pairs: int, seed: int
) -> None:
    """Filled columns, columns with few entries, and both, in whatever order they come."""
    generator = np.random.default_rng(seed)
    stored = generator.random((m, n)) < share * generator.integers(0, 2, n)
    matrix = scipy.sparse.csc_matrix(stored.astype(float))
    pattern = Pattern(matrix.indices, matrix.indptr, (m, n))
    vectors = [(draw(2, m, seed=k), draw(2, n, seed=k + 9)) for k in range(pairs)]
    found = pattern.outer_products(*vectors)
    whole = sum(u.unsqueeze(2) * v.unsqueeze(1) for u, v in vectors)
    assert isinstance(whole, torch.Tensor)
    expected = whole[:, pattern.rows, pattern.columns]
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 3), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
def test_few_columns(batch: int, m: int, n: int, columns: int) -> None:
    matrix, right = draw(batch, m, n), draw(batch, n, columns, seed=1)
    torch.testing.assert_close(matmul_narrow(matrix, right), matrix @ right)
    torch.testing.assert_close(matvec(matrix, right[..., 0]), (matrix @ right)[..., 0])
    square = matrix.mT @ matrix + torch.eye(n, dtype=torch.float64)
    factor = torch.linalg.cholesky(square)
    torch.testing.assert_close(square @ cholesky_solve(factor, right), right)
