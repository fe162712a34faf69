"""Linear algebra of KKT systems, against dense solves and scipy."""

from __future__ import annotations

import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddn_cvx.linalg.block_diagonal import (
    block_structure,
    positive_definite_solve,
)
from ddn_cvx.linalg.minres import Multiply, minres
from ddn_cvx.linalg.nonnegative_least_squares import nonnegative_least_squares

FLOAT = torch.float64
seeds = st.integers(0, 2**31 - 1)
quick = settings(derandomize=True, deadline=None, max_examples=25)


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=FLOAT)


def uniform(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=generator, dtype=FLOAT)


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def product(matrix: torch.Tensor) -> Multiply:
    return lambda vector: (matrix @ vector.unsqueeze(2)).squeeze(2)


def definite(generator: torch.Generator, batch: int, size: int) -> torch.Tensor:
    root = normal(generator, batch, size, size)
    return root @ root.mT / size + 0.1 * torch.eye(size, dtype=FLOAT)


def symmetric(
    generator: torch.Generator, eigenvalues: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A symmetric matrix with these eigenvalues, ``(B, N)``, and its eigenvectors."""
    batch, size = eigenvalues.shape
    Q = torch.linalg.qr(normal(generator, batch, size, size)).Q
    matrix = (Q * eigenvalues.unsqueeze(1)) @ Q.mT
    return (matrix + matrix.mT) / 2, Q


def kkt(generator: torch.Generator, batch: int, n: int, m: int) -> torch.Tensor:
    A = normal(generator, batch, m, n)
    corner = torch.zeros(batch, m, m, dtype=FLOAT)
    return torch.cat(
        [torch.cat([definite(generator, batch, n), A.mT], 2), torch.cat([A, corner], 2)], 1
    )


def family(name: str, generator: torch.Generator, batch: int, size: int) -> torch.Tensor:
    if name == "definite":
        return definite(generator, batch, size)
    if name == "indefinite":
        sign = torch.where(uniform(generator, batch, size) < 0.4, -1.0, 1.0)
        return symmetric(generator, sign * 10 ** (4 * uniform(generator, batch, size) - 2))[0]
    m = size // 3
    return kkt(generator, batch, size - m, m)


def residual(matrix: torch.Tensor, solution: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (product(matrix)(solution) - right).abs().amax(1) / right.abs().amax(1)


class TestMinres:
    @pytest.mark.parametrize("size", [1, 2, 5, 40, 200])
    @pytest.mark.parametrize("name", ["definite", "indefinite", "kkt"])
    def test_against_dense(self, name: str, size: int) -> None:
        generator = generator_of(size)
        matrix = family(name, generator, 4, size)
        right = normal(generator, 4, size)
        solution, relative = minres(product(matrix), right)
        expected = torch.linalg.solve(matrix, right)
        assert relative.max() <= 1e-10
        torch.testing.assert_close(relative, residual(matrix, solution, right))
        error = (solution - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.max() <= 1e-10 * torch.linalg.cond(matrix).max()

    @quick
    @given(seeds, st.integers(1, 30), st.integers(0, 10))
    def test_singular_consistent(self, seed: int, size: int, nullity: int) -> None:
        generator = generator_of(seed)
        sign = torch.where(uniform(generator, 3, size) < 0.5, -1.0, 1.0)
        eigenvalues = sign * 10 ** (2 * uniform(generator, 3, size) - 1)
        eigenvalues[:, : min(nullity, size)] = 0
        matrix, Q = symmetric(generator, eigenvalues)
        exact = product(Q * (eigenvalues != 0).unsqueeze(1))(normal(generator, 3, size))
        right = product(matrix)(exact)
        solution, relative = minres(product(matrix), right)
        if nullity >= size:
            assert solution.abs().max() < 1e-10
            return
        assert relative.max() <= 1e-10
        torch.testing.assert_close(solution, exact, rtol=1e-7, atol=1e-7)

    def test_redundant_constraints(self) -> None:
        generator = generator_of(0)
        matrix = kkt(generator, 3, 12, 4)
        repeat = torch.cat([torch.arange(16), torch.arange(12, 16)])
        matrix = matrix[:, repeat][:, :, repeat]
        right = product(matrix)(normal(generator, 3, 20))
        solution, relative = minres(product(matrix), right)
        assert relative.max() <= 1e-10
        torch.testing.assert_close(solution, product(torch.linalg.pinv(matrix))(right))

    @pytest.mark.parametrize("seed", [0, 1, 4, 35, 44])
    def test_inconsistent_gives_least_squares(self, seed: int) -> None:
        generator = generator_of(seed)
        eigenvalues = torch.tensor([[0.0, 0.0, 1.0, 2.0, -3.0, 4.0]], dtype=FLOAT)
        matrix, Q = symmetric(generator, eigenvalues)
        right = normal(generator, 1, 6)
        solution, relative = minres(product(matrix), right)
        rest = right - product(matrix)(solution)
        torch.testing.assert_close(rest, product(Q[:, :, :2] @ Q[:, :, :2].mT)(right))
        assert relative.item() == pytest.approx((rest.abs().max() / right.abs().max()).item())

    def test_zero_matrix(self) -> None:
        right = torch.ones(2, 3, dtype=FLOAT)
        solution, relative = minres(torch.zeros_like, right)
        assert (solution == 0).all()
        assert (relative == 1).all()

    def test_zero_right_hand_side(self) -> None:
        matrix = definite(generator_of(2), 3, 5)
        right = torch.zeros(3, 5, dtype=FLOAT)
        right[1] = 1
        solution, relative = minres(product(matrix), right)
        assert (solution[[0, 2]] == 0).all()
        assert (relative[[0, 2]] == 0).all()
        assert relative[1] <= 1e-10

    def test_identity_is_exact_in_one_product(self) -> None:
        right = normal(generator_of(3), 4, 6)
        calls = []

        def identity(vector: torch.Tensor) -> torch.Tensor:
            calls.append(vector)
            return vector.clone()

        solution, relative = minres(identity, right)
        assert len(calls) == 2  # one step, and the true residual
        torch.testing.assert_close(solution, right)
        assert relative.max() <= 1e-15

    def test_elements_do_not_depend_on_each_other(self) -> None:
        generator = generator_of(4)
        matrix = torch.cat([family(name, generator, 3, 30) for name in ("definite", "kkt")])
        matrix[1] = torch.eye(30, dtype=FLOAT)
        right = normal(generator, 6, 30)
        right[4] = 0
        solution, relative = minres(product(matrix), right)
        order = torch.tensor([5, 3, 1, 0, 2, 4])
        permuted, permuted_relative = minres(product(matrix[order]), right[order])
        torch.testing.assert_close(permuted, solution[order], rtol=1e-8, atol=1e-8)
        assert permuted_relative.max() <= 1e-10
        for element in range(6):
            alone, _ = minres(product(matrix[element : element + 1]), right[element : element + 1])
            torch.testing.assert_close(alone[0], solution[element], rtol=1e-8, atol=1e-8)
        assert relative.max() <= 1e-10

    def test_nan_stays_in_its_element(self) -> None:
        generator = generator_of(5)
        matrix, right = definite(generator, 3, 8), normal(generator, 3, 8)
        matrix[0, 2, 2] = torch.nan
        right[1, 0] = torch.nan
        solution, relative = minres(product(matrix), right)
        assert not (relative[:2] <= 1e-10).any()
        assert relative[2] <= 1e-10
        torch.testing.assert_close(solution[2], torch.linalg.solve(matrix[2], right[2]))

    def test_refinement_beats_one_cycle(self) -> None:
        generator = generator_of(7)
        matrix = family("indefinite", generator, 2, 100)
        right = normal(generator, 2, 100)
        _, relative = minres(product(matrix), right, tolerance=1e-12)
        assert relative.max() <= 1e-12

    def test_unreachable_tolerance_stops(self) -> None:
        matrix, right = definite(generator_of(8), 2, 20), torch.ones(2, 20, dtype=FLOAT)
        _, relative = minres(product(matrix), right, tolerance=0.0)
        assert relative.max() <= 1e-13

    def test_empty(self) -> None:
        for shape in ((0, 3), (2, 0)):
            solution, relative = minres(torch.clone, torch.zeros(shape, dtype=FLOAT))
            assert solution.shape == shape
            assert relative.shape == shape[:1]


def check_nonnegative(
    matrix: torch.Tensor, right: torch.Tensor, free: torch.Tensor, allowed: torch.Tensor
) -> torch.Tensor:
    """Signs, KKT conditions, and the objective of scipy's solver, element by element."""
    y = nonnegative_least_squares(matrix, right, free, allowed)
    signed = allowed & ~free
    assert (y[~allowed] == 0).all()
    assert (y[signed] >= 0).all()
    rest = right - product(matrix)(y)
    gain = product(matrix.mT)(rest)
    size = matrix.norm(dim=1).amax(1) * right.norm(dim=1)
    unit = size.clamp_min(1e-300).unsqueeze(1)
    assert ((gain / unit)[signed] <= 1e-10).all()
    assert ((gain / unit).abs()[(free & allowed) | (signed & (y > 0))] <= 1e-10).all()
    for e in range(len(matrix)):
        split = torch.cat([matrix[e][:, allowed[e]], -matrix[e][:, allowed[e] & free[e]]], 1)
        if not split.shape[1]:
            continue
        _, objective = scipy.optimize.nnls(split.numpy(), right[e].numpy(), maxiter=10_000)
        assert rest[e].norm().item() <= objective + 1e-10 * (1 + right[e].norm().item())
    return y


class TestNonnegativeLeastSquares:
    @quick
    @given(seeds, st.integers(1, 15), st.integers(1, 15), st.floats(0, 1), st.floats(0, 1))
    def test_against_scipy(self, seed: int, n: int, m: int, frees: float, allows: float) -> None:
        generator = generator_of(seed)
        matrix, right = normal(generator, 4, n, m), normal(generator, 4, n)
        free, allowed = uniform(generator, 4, m) < frees, uniform(generator, 4, m) < allows
        check_nonnegative(matrix, right, free, allowed)

    @quick
    @given(seeds, st.integers(1, 12), st.integers(1, 8), st.booleans())
    def test_redundant_columns(self, seed: int, n: int, m: int, consistent: bool) -> None:
        generator = generator_of(seed)
        matrix = normal(generator, 4, n, m)
        matrix = torch.cat([matrix, matrix, 3 * matrix[:, :, :1], 0 * matrix[:, :, :1]], 2)
        columns = matrix.shape[2]
        right = normal(generator, 4, n)
        if consistent:
            right = product(matrix)(uniform(generator, 4, columns))
        nothing = torch.zeros(4, columns, dtype=torch.bool)
        y = check_nonnegative(matrix, right, nothing, ~nothing)
        if consistent:
            torch.testing.assert_close(product(matrix)(y), right, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize(("n", "m"), [(60, 100), (100, 60)])
    def test_larger(self, n: int, m: int) -> None:
        generator = generator_of(n)
        matrix, right = normal(generator, 2, n, m), normal(generator, 2, n)
        check_nonnegative(
            matrix, right, uniform(generator, 2, m) < 0.1, uniform(generator, 2, m) < 0.9
        )

    @pytest.mark.parametrize(("n", "m"), [(9, 5), (5, 9)])
    def test_free_is_least_squares(self, n: int, m: int) -> None:
        generator = generator_of(m)
        matrix, right = normal(generator, 3, n, m), normal(generator, 3, n)
        every = torch.ones(3, m, dtype=torch.bool)
        y = nonnegative_least_squares(matrix, right, every, every)
        expected = torch.linalg.lstsq(matrix, right.unsqueeze(2), driver="gelsd").solution
        torch.testing.assert_close(y, expected.squeeze(2))

    def test_nothing_allowed_and_zero_right(self) -> None:
        generator = generator_of(1)
        matrix, right = normal(generator, 3, 6, 4), normal(generator, 3, 6)
        none = torch.zeros(3, 4, dtype=torch.bool)
        assert (nonnegative_least_squares(matrix, right, ~none, none) == 0).all()
        assert (nonnegative_least_squares(matrix, 0 * right, none, ~none) == 0).all()

    def test_elements_do_not_depend_on_each_other(self) -> None:
        generator = generator_of(2)
        matrix, right = normal(generator, 6, 8, 10), normal(generator, 6, 8)
        free, allowed = uniform(generator, 6, 10) < 0.3, uniform(generator, 6, 10) < 0.8
        y = nonnegative_least_squares(matrix, right, free, allowed)
        for e in range(6):
            part = slice(e, e + 1)
            alone = nonnegative_least_squares(matrix[part], right[part], free[part], allowed[part])
            torch.testing.assert_close(alone[0], y[e], rtol=1e-9, atol=1e-9)


def permuted_blocks(
    generator: torch.Generator, batch: int, sizes: list[int]
) -> tuple[torch.Tensor, list[list[int]]]:
    """Positive definite matrices with these blocks in a random order of rows, and the blocks."""
    total = sum(sizes)
    matrix = torch.zeros(batch, total, total, dtype=FLOAT)
    place = torch.randperm(total, generator=generator)
    blocks = []
    for index in place.split(sizes):
        matrix[:, index.unsqueeze(1), index] = definite(generator, batch, len(index))
        blocks.append(sorted(index.tolist()))
    return matrix, sorted(blocks)


sizes_of_blocks = st.lists(st.integers(1, 6), min_size=2, max_size=6)


class TestStructure:
    @quick
    @given(seeds, sizes_of_blocks)
    def test_blocks_are_found(self, seed: int, sizes: list[int]) -> None:
        matrix, expected = permuted_blocks(generator_of(seed), 3, sizes)
        blocks = block_structure(matrix)
        assert blocks is not None
        assert [block.tolist() for block in blocks] == expected

    def test_pattern_is_the_unions(self) -> None:
        matrix = torch.eye(4, dtype=FLOAT).repeat(2, 1, 1)
        matrix[0, 0, 2] = matrix[0, 2, 0] = 0.5
        matrix[1, 2, 3] = matrix[1, 3, 2] = 0.5
        blocks = block_structure(matrix)
        assert blocks is not None
        assert [block.tolist() for block in blocks] == [[0, 2, 3], [1]]

    def test_diagonal_dense_and_tiny(self) -> None:
        blocks = block_structure(torch.zeros(2, 3, 3, dtype=FLOAT))
        assert blocks is not None
        assert [block.tolist() for block in blocks] == [[0], [1], [2]]
        assert block_structure(torch.ones(2, 3, 3, dtype=FLOAT)) is None
        chain = torch.diag_embed(torch.ones(2, 3, dtype=FLOAT), 1)
        assert block_structure(chain + chain.mT) is None
        assert block_structure(torch.ones(2, 1, 1, dtype=FLOAT)) is None
        assert block_structure(torch.full((1, 2, 2), torch.nan, dtype=FLOAT)) is None

    @quick
    @given(seeds, sizes_of_blocks)
    def test_block_solve(self, seed: int, sizes: list[int]) -> None:
        generator = generator_of(seed)
        matrix, _ = permuted_blocks(generator, 3, sizes)
        right = normal(generator, 3, sum(sizes))
        solution, ok = positive_definite_solve(matrix, right)
        assert ok.all()
        torch.testing.assert_close(solution, torch.linalg.solve(matrix, right))

    @pytest.mark.parametrize("structure", ["dense", "blocks", "diagonal"])
    def test_flags(self, structure: str) -> None:
        generator = generator_of(3)
        sizes = {"dense": [6], "blocks": [2, 2, 1, 1], "diagonal": [1] * 6}[structure]
        matrix, _ = permuted_blocks(generator, 5, sizes)
        vector = torch.eye(6, dtype=FLOAT)[3]
        matrix[1] -= 100 * torch.outer(vector, vector)  # indefinite
        matrix[2, 3] = matrix[2, :, 3] = 0  # singular
        matrix[3, 3, 3] = torch.nan
        right = normal(generator, 5, 6)
        solution, ok = positive_definite_solve(matrix, right)
        assert ok.tolist() == [True, False, False, False, True]
        good = torch.tensor([0, 4])
        torch.testing.assert_close(solution[good], torch.linalg.solve(matrix[good], right[good]))
        assert solution[1:4].isnan().all()

    @quick
    @given(seeds, st.integers(2, 40))
    def test_semidefinite_is_not_definite(self, seed: int, size: int) -> None:
        generator = generator_of(seed)
        weight = 0.5 + uniform(generator, 4, size, size)
        weight = weight + weight.mT
        laplacian = torch.diag_embed(weight.sum(2)) - weight
        units = 10 ** (4 * uniform(generator, 4, size))
        matrix = laplacian * units.unsqueeze(1) * units.unsqueeze(2)
        _, ok = positive_definite_solve(matrix, torch.ones(4, size, dtype=FLOAT))
        assert not ok.any()

    def test_refined_and_indifferent_to_units(self) -> None:
        generator = generator_of(4)
        units = 10 ** (16 * uniform(generator, 3, 20) - 8)
        matrix = definite(generator, 3, 20) * units.unsqueeze(1) * units.unsqueeze(2)
        exact = normal(generator, 3, 20) / units
        solution, ok = positive_definite_solve(matrix, product(matrix)(exact))
        assert ok.all()
        torch.testing.assert_close(solution * units, exact * units, rtol=1e-10, atol=1e-10)

    def test_elements_of_a_dense_batch(self) -> None:
        generator = generator_of(5)
        matrix, right = definite(generator, 4, 7), normal(generator, 4, 7)
        matrix[2] *= -1
        solution, _ = positive_definite_solve(matrix, right)
        for e in (0, 1, 3):
            alone, _ = positive_definite_solve(matrix[e : e + 1], right[e : e + 1])
            torch.testing.assert_close(alone[0], solution[e], rtol=1e-12, atol=1e-12)
