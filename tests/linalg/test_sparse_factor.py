"""Sparse factors against dense ones, and how much they fill in."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddn_cvx.linalg.sparse_batched import Elimination


def dense(rows: np.ndarray, columns: np.ndarray, values: torch.Tensor, size: int) -> torch.Tensor:
    matrix = torch.zeros(len(values), size, size, dtype=torch.float64)
    matrix[:, rows, columns] = values
    matrix[:, columns, rows] = values
    return matrix


def quasi_definite(
    n: int, m: int, share: float, batch: int, seed: int
) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """``[P, A'; A, -H]`` with positive definite ``P`` and ``H``, in a random order."""
    generator = np.random.default_rng(seed)
    pattern = np.tril(generator.random((n + m, n + m)) < share)
    pattern[n:, n:] = False
    np.fill_diagonal(pattern, True)
    rows, columns = pattern.nonzero()
    values = torch.from_numpy(generator.standard_normal((batch, len(rows))))
    diagonal = rows == columns
    values[:, diagonal] = torch.from_numpy(np.where(rows[diagonal] < n, n + m + 1.0, -1.0))
    order = generator.permutation(n + m)
    return order[rows], order[columns], values


@given(
    st.integers(1, 30), st.integers(0, 20), st.sampled_from([0.0, 0.05, 0.2, 0.9]),
    st.integers(1, 4), st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_factors_solve(n: int, m: int, share: float, batch: int, seed: int) -> None:
    rows, columns, values = quasi_definite(n, m, share, batch, seed)
    right = torch.randn(batch, n + m, dtype=torch.float64)
    found = Elimination(rows, columns, n + m).factor(values).solve(right)
    expected = torch.linalg.solve(dense(rows, columns, values, n + m), right)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_path_takes_rounds_like_its_logarithm() -> None:
    size = 1000
    diagonal = np.arange(size)
    rows, columns = (
        np.concatenate([diagonal, diagonal[1:]]),
        np.concatenate([diagonal, diagonal[:-1]]),
    )
    elimination = Elimination(rows, columns, size)
    assert len(elimination._rounds) <= 2 * math.log2(size)
    assert elimination.stored < 4 * size


def test_a_star_does_not_fill_in() -> None:
    size = 300
    others = np.arange(1, size)
    rows = np.concatenate([np.arange(size), others])
    columns = np.concatenate([np.arange(size), np.zeros(size - 1, dtype=np.int64)])
    elimination = Elimination(rows, columns, size)
    assert elimination.stored == len(rows)
    assert elimination.updates == size - 1


@pytest.mark.parametrize("size", [1, 2, 40])
def test_elements_do_not_depend_on_each_other(size: int) -> None:
    rows, columns, values = quasi_definite(size, size // 2, 0.1, 5, seed=size)
    right = torch.randn(5, size + size // 2, dtype=torch.float64)
    elimination = Elimination(rows, columns, right.shape[1])
    together = elimination.factor(values).solve(right)
    for element in range(5):
        part = slice(element, element + 1)
        alone = elimination.factor(values[part]).solve(right[part])
        torch.testing.assert_close(alone, together[part], rtol=1e-13, atol=1e-13)
