"""Robust pooling of vectors: low objectives, exact derivatives, invariances, bad rows."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_derivatives, assert_jacobians, draw
from scipy.optimize import minimize

from ddn_cvx.dedicated.pooling.penalties import PENALTIES
from ddn_cvx.dedicated.pooling.scalar import robust_pool
from ddn_cvx.dedicated.pooling.vector import solve_vector, vector_pool

DOUBLE = torch.float64
NONCONVEX = ("welsch", "truncated_quadratic")


def hard(n: int, m: int, seed: int) -> torch.Tensor:
    """``n`` points: a cluster, a second one or scattered outliers, and noise."""
    x, generator = draw(n, m, seed=seed), np.random.default_rng(seed)
    other = torch.from_numpy(generator.random(n) < 0.45)
    far = draw(1, m, seed=seed + 1) if seed % 2 else draw(n, m, seed=seed + 1)
    return 0.6 * x + other.unsqueeze(1) * 3 * far


def objective(penalty: str, x: np.ndarray, w: np.ndarray, u: np.ndarray) -> tuple[float, Any]:
    """At ``alpha = 1``, with its gradient; numpy alone."""
    r = u - x
    s = (r * r).sum(1)
    z = np.sqrt(s)
    inside = z <= 1
    far = np.maximum(z, 1e-300)
    value, pull = {
        "quadratic": (s / 2, np.ones_like(s)),
        "pseudo_huber": (np.sqrt(1 + s) - 1, 1 / np.sqrt(1 + s)),
        "huber": (np.where(inside, s / 2, z - 0.5), np.where(inside, 1.0, 1 / far)),
        "welsch": (1 - np.exp(-s / 2), np.exp(-s / 2)),
        "truncated_quadratic": (np.minimum(s, 1) / 2, inside.astype(float)),
    }[penalty]
    return float(w @ value), (w * pull) @ r


def lowest_of_restarts(penalty: str, x: np.ndarray, w: np.ndarray, seed: int) -> float:
    """The best of ten runs of L-BFGS, from data points moved a little."""
    generator = np.random.default_rng(seed)
    best = np.inf
    for _ in range(10):
        start = x[generator.integers(len(x))] + 0.3 * generator.standard_normal(x.shape[1])
        found = minimize(
            lambda u: objective(penalty, x, w, u), start, jac=True, method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-10},
        )  # fmt: skip
        best = min(best, float(found.fun))
    return best


def compare_with_restarts(penalty: str, seeds: range) -> float:
    """Our largest excess over the restarts, relative."""
    worst = -np.inf
    for seed in seeds:
        generator = np.random.default_rng(seed)
        n, m = int(generator.integers(2, 61)), int(generator.integers(2, 17))
        x = hard(n, m, seed)
        w = torch.from_numpy(generator.uniform(0.2, 1.5, n))
        ours = solve_vector(x, penalty, 1.0, w)
        assert bool(ours.converged)
        value = objective(penalty, x.numpy(), w.numpy(), ours.u.numpy())[0]
        assert value == pytest.approx(float(ours.objective), rel=1e-12, abs=1e-12)
        theirs = lowest_of_restarts(penalty, x.numpy(), w.numpy(), seed)
        worst = max(worst, (value - theirs) / max(theirs, 1e-9))
    return worst


@pytest.mark.parametrize("penalty", PENALTIES)
def test_no_restart_of_lbfgs_is_lower(penalty: str) -> None:
    assert compare_with_restarts(penalty, range(12)) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("penalty", PENALTIES)
def test_no_restart_of_lbfgs_is_lower_in_1000_cases(penalty: str) -> None:
    count = 350 if penalty in NONCONVEX else 100
    assert compare_with_restarts(penalty, range(100, 100 + count)) < 1e-9


@pytest.mark.parametrize(("n", "m"), [(7, 3), (3, 6), (1, 2), (5, 1)])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_derivatives_of_both_orders(penalty: str, n: int, m: int) -> None:
    inputs = (
        (1.3 * draw(2, n, m)).requires_grad_(),
        torch.tensor([1.2, 2.0], dtype=DOUBLE, requires_grad=True),
        (0.2 + draw(2, n, seed=1).abs()).requires_grad_(),
    )

    def pooled(x: torch.Tensor, alpha: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return vector_pool(x, penalty, alpha, w)

    assert_jacobians(pooled, [value[0] for value in inputs])
    assert_derivatives(pooled, inputs, fast=True)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_one_dimension_is_scalar_pooling(penalty: str) -> None:
    x, w = 2 * draw(20, 9, 1), 0.1 + draw(20, 9, seed=1).abs()
    expected = robust_pool(x.squeeze(-1), penalty, 0.8, w)
    torch.testing.assert_close(vector_pool(x, penalty, 0.8, w).squeeze(-1), expected)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_invariances(penalty: str) -> None:
    x, w = torch.stack([hard(12, 4, seed) for seed in range(5)]), draw(5, 12, seed=9).abs()
    u = vector_pool(x, penalty, 1.0, w)

    def same(v: torch.Tensor, expected: torch.Tensor = u) -> None:
        torch.testing.assert_close(v, expected, rtol=1e-8, atol=1e-8)

    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    same(vector_pool(x[:, order], penalty, 1.0, w[:, order]))
    Q, shift = torch.linalg.qr(draw(4, 4, seed=3)).Q, 1e3 * draw(4, seed=4)
    same(vector_pool(x @ Q + shift, penalty, 1.0, w), u @ Q + shift)
    same(vector_pool(40 * x, penalty, 40.0, w), 40 * u)
    same(vector_pool(x, penalty, 1.0, 7 * w))
    same(torch.stack([vector_pool(x[k], penalty, 1.0, w[k]) for k in range(5)]))
    same(torch.func.vmap(lambda x, w: vector_pool(x, penalty, 1.0, w))(x, w))
    # More dimensions than points: the same in a larger space.
    wide = torch.cat([x, torch.zeros(5, 12, 20, dtype=DOUBLE)], -1)
    same(vector_pool(wide, penalty, 1.0, w)[..., :4])


@pytest.mark.parametrize("penalty", PENALTIES)
def test_removed_points_and_bad_rows(penalty: str) -> None:
    # Near enough to one another that no minimum ties with another.
    x, w = 0.4 * draw(5, 6, 3), torch.ones(5, 6, dtype=DOUBLE)
    w[:, 4:] = 0
    x[:, 5] = torch.nan
    kept = vector_pool(x[:, :4], penalty, 1.0)
    x[1, 2, 0], w[2], w[3, 0] = torch.inf, 0.0, -1.0
    x.requires_grad_()
    w.requires_grad_()
    u = vector_pool(x, penalty, 1.0, w)
    torch.testing.assert_close(u[[0, 4]], kept[[0, 4]])
    assert bool(u[[1, 2, 3]].isnan().all())
    for gradient in torch.autograd.grad(u.nan_to_num().sum(), (x, w)):
        assert bool(gradient.isfinite().all())
        assert bool((gradient[[1, 2, 3]] == 0).all())
    alpha = torch.tensor([1.0, -1.0, 0.0, torch.nan, 1.0])
    v = vector_pool(draw(5, 6, 3), penalty, alpha)
    assert v.isnan().any(1).tolist() == [False, True, True, True, False]


def test_many_dimensions_have_the_dense_derivative() -> None:
    """Fewer points than dimensions: the inverse of a small matrix serves for the large one."""
    n, m = 4, 30
    x, alpha = draw(n, m).requires_grad_(), torch.tensor(6.0, dtype=DOUBLE)
    for penalty in ("pseudo_huber", "welsch"):
        incoming = draw(m, seed=1)
        u = vector_pool(x, penalty, alpha)
        (gradient,) = torch.autograd.grad(u, x, incoming)
        phi = PENALTIES[penalty]

        def total(u: torch.Tensor, x: torch.Tensor, phi: Any = phi) -> torch.Tensor:
            value: torch.Tensor = phi.of_square((u - x).square().sum(-1), alpha).sum()
            return value

        at = (u.detach(), x.detach())
        H = torch.func.hessian(total, argnums=0)(*at)
        mixed = torch.func.jacfwd(torch.func.grad(total, argnums=0), argnums=1)(*at)
        expected = -torch.einsum("i,inm->nm", torch.linalg.solve(H, incoming), mixed)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)


def test_a_tie_and_a_flat_minimum_are_flagged_and_finite() -> None:
    x = torch.tensor([[0.0, 0.0], [9.0, 0.0]], dtype=DOUBLE, requires_grad=True)
    tie = solve_vector(x, "truncated_quadratic", 1.0)
    assert bool(tie.degenerate)
    assert float(tie.gap) == 0.0
    flat = solve_vector(x, "huber", 1.0)  # all between the two are minimizers
    assert bool(flat.degenerate)
    for pooled in (tie, flat):
        (gradient,) = torch.autograd.grad(pooled.u.sum(), x)
        assert bool(gradient.isfinite().all())
    clear = solve_vector(draw(9, 2), "pseudo_huber", 1.0)
    assert not bool(clear.degenerate)


def test_bad_arguments_are_named() -> None:
    x = draw(4, 2)
    with pytest.raises(ValueError, match="Unknown penalty 'cauchy'"):
        vector_pool(x, "cauchy", 1.0)
    with pytest.raises(ValueError, match="alpha must be positive; got -1"):
        vector_pool(x, "huber", -1.0)
    with pytest.raises(ValueError, match=r"not \(\*batch, n, m\)"):
        vector_pool(x[0], "huber", 1.0)
    with pytest.raises(ValueError, match="last axis must have size 4"):
        vector_pool(x, "huber", 1.0, torch.ones(3))
