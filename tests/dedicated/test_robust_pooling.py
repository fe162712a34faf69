"""Robust pooling of scalars: global minimizers, exact derivatives, ties and masks."""

import math

import pytest
import torch
from helpers import assert_derivatives, draw
from hypothesis import given, settings
from hypothesis import strategies as st

from ddn_cvx.dedicated.pooling.penalties import PENALTIES
from ddn_cvx.dedicated.pooling.scalar import robust_pool, solve_pool

DOUBLE = torch.float64
NONCONVEX = ("welsch", "truncated_quadratic")
CONVEX = ("quadratic", "pseudo_huber", "huber")
KINDS = ("clusters", "modes", "one-sided", "ties", "uniform")


def points(kind: str, rows: int, n: int, generator: torch.Generator) -> torch.Tensor:
    """Rows of ``n`` points that robust estimators find hard."""
    x = torch.randn(rows, n, generator=generator, dtype=DOUBLE)
    chance = torch.rand(rows, n, generator=generator, dtype=DOUBLE)
    if kind == "clusters":
        return 0.5 * x + 6 * (chance < 0.4)
    if kind == "modes":
        return 0.4 * x + 3 * (chance > 0.34) + 4 * (chance > 0.67)
    if kind == "one-sided":
        return 0.3 * x + (chance < 0.6) * 20 * torch.rand(
            rows, n, generator=generator, dtype=DOUBLE
        )
    if kind == "ties":
        return (3 * x).round() / 2
    return 20 * chance


def lowest(penalty: str, x: torch.Tensor, alpha: float) -> torch.Tensor:
    """The global minimum, by brute force, shape ``(R,)``."""
    scale = torch.tensor(alpha, dtype=DOUBLE)
    phi = PENALTIES[penalty]

    def height(u: torch.Tensor) -> torch.Tensor:  # (R, k) -> (R, k)
        return phi.value(u.unsqueeze(2) - x.unsqueeze(1), scale).sum(2)

    if penalty == "truncated_quadratic":
        # The mean of what is inside, between all pairs of neighbouring breakpoints.
        breaks = torch.cat([x - alpha, x + alpha], 1).sort(1).values
        middle = torch.cat([(breaks[:, 1:] + breaks[:, :-1]) / 2, x], 1)
        inside = ((middle.unsqueeze(2) - x.unsqueeze(1)).abs() <= alpha).to(DOUBLE)
        means = (inside * x.unsqueeze(1)).sum(2) / inside.sum(2).clamp_min(1)
        return height(means).amin(1)
    low, high = float(x.min()), float(x.max())
    grid = torch.linspace(low, high, 2 + int(12 * (high - low) / alpha), dtype=DOUBLE)
    heights = height(grid.expand(len(x), -1))
    padded = torch.nn.functional.pad(heights, (1, 1), value=math.inf)
    valley = (heights <= padded[:, :-2]) & (heights <= padded[:, 2:])
    chosen = torch.where(valley, heights, math.inf).topk(min(4, len(grid)), 1, largest=False)
    u = grid[chosen.indices]
    for _ in range(40):  # mean shift, then Newton
        z = u.unsqueeze(2) - x.unsqueeze(1)
        slope, curvature = phi.slope(z, scale).sum(2), phi.curvature(z, scale).sum(2)
        step = slope / curvature
        u = torch.where((curvature > 0) & (step.abs() < alpha / 4), u - step, u)
    return torch.minimum(height(u).amin(1), heights.amin(1))


def assert_global(
    penalty: str, kind: str, rows: int, n: int, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = points(kind, rows, n, generator).to(dtype).to(DOUBLE)
    alpha = (0.5, 1.0, 2.0)[seed % 3]
    found = solve_pool(x, penalty, alpha)
    reference = lowest(penalty, x, alpha)
    gap = (found.objective - reference) / reference.clamp_min(1e-300)
    tiny = reference < 1e-20  # all points are one
    assert bool(((gap <= 1e-12) | tiny).all()), (float(gap.max()), kind, n, seed)
    assert bool((found.certificate <= 1e-12 * n).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", NONCONVEX)
def test_the_minimum_is_global(penalty: str, kind: str) -> None:
    for seed, n in enumerate((1, 2, 3, 5, 8, 13, 40, 100, 200)):
        dtype = (torch.float32, DOUBLE)[seed % 2]
        assert_global(penalty, kind, max(10, 1500 // n), n, seed, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", NONCONVEX)
def test_the_minimum_is_global_on_100000_rows(penalty: str, kind: str) -> None:
    done = 0
    seed = 100
    generator = torch.Generator().manual_seed(0)
    while done < 20_000:  # of each of five kinds
        n = int(torch.randint(1, 201, (1,), generator=generator))
        assert_global(penalty, kind, 100, n, seed, (torch.float32, DOUBLE)[seed % 2])
        done, seed = done + 100, seed + 1


def assert_sign_changes(penalty: str, kind: str, rows: int) -> None:
    phi = PENALTIES[penalty]
    for seed, n in enumerate((1, 2, 5, 17, 60, 200)):
        x = points(kind, rows, n, torch.Generator().manual_seed(seed))
        w = torch.rand(rows, n, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
        alpha = torch.tensor((0.3, 1.0, 3.0)[seed % 3], dtype=DOUBLE)
        for weights in (None, w):
            u = solve_pool(x, penalty, alpha, weights).u
            near = 1e-12 * (1 + x.abs().amax(1))
            mass = torch.ones_like(x) if weights is None else weights
            below, above = (
                (mass * phi.slope((u + side * near).unsqueeze(1) - x, alpha)).sum(1)
                for side in (-1, 1)
            )
            assert bool((below <= 0).all())
            assert bool((above >= 0).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", CONVEX)
def test_the_derivative_changes_sign_at_a_convex_minimum(penalty: str, kind: str) -> None:
    assert_sign_changes(penalty, kind, 500)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", CONVEX)
def test_the_derivative_changes_sign_on_100000_rows(penalty: str, kind: str) -> None:
    assert_sign_changes(penalty, kind, 3400)  # of six lengths and five kinds


@pytest.mark.parametrize("penalty", PENALTIES)
def test_first_and_second_derivatives(penalty: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 7, generator=generator, dtype=DOUBLE)
    x[:, 5:] += 4
    inputs = (
        x.requires_grad_(),
        torch.tensor([1.0, 0.8, 1.7], dtype=DOUBLE).requires_grad_(),
        (0.5 + torch.rand(3, 7, generator=generator, dtype=DOUBLE)).requires_grad_(),
    )

    def pooled(x: torch.Tensor, alpha: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return robust_pool(x, penalty, alpha, weights)

    assert_derivatives(pooled, inputs, first=(1e-6, 1e-3))
    mapped = torch.func.vmap(lambda x: robust_pool(x, penalty))(x.detach())
    torch.testing.assert_close(mapped, robust_pool(x.detach(), penalty))
    rows = torch.func.vmap(torch.func.grad(lambda x: robust_pool(x, penalty)))(x.detach())
    whole = torch.func.grad(lambda x: robust_pool(x, penalty).sum())(x.detach())
    torch.testing.assert_close(rows, whole)
    hessian = torch.func.hessian(lambda x: robust_pool(x, penalty).sum())(x.detach())
    assert bool(hessian.isfinite().all())


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(sorted(PENALTIES)),
    st.integers(1, 12),
    st.integers(0, 10_000),
    st.floats(-100, 100),
    st.floats(0.01, 100),
)
def test_invariances(penalty: str, n: int, seed: int, shift: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(4, n, generator=generator, dtype=DOUBLE)
    order = torch.randperm(n, generator=generator)
    first = solve_pool(x, penalty, 1.0)
    moved = solve_pool(shift + scale * x[:, order], penalty, scale)
    unit = 1.0 if penalty == "welsch" else scale**2
    torch.testing.assert_close(moved.objective / unit, first.objective, rtol=1e-9, atol=1e-9)
    one_by_one = torch.cat([solve_pool(row[None], penalty, 1.0).u for row in x])
    torch.testing.assert_close(one_by_one, first.u, rtol=0, atol=1e-12)
    doubled = solve_pool(torch.cat([x, x], 1), penalty, 1.0)
    weighted = solve_pool(x, penalty, 1.0, torch.full_like(x, 2.0))
    torch.testing.assert_close(doubled.objective, weighted.objective, rtol=1e-9, atol=1e-12)


def test_the_derivative_for_a_large_scale_has_all_digits() -> None:
    """``du/dalpha = -sum phi_za / sum phi_zz``, of which the former is ``t^3 / (1 + t^2)^1.5``."""
    x = draw(9)
    for size in (1e2, 1e4, 1e6):
        alpha = torch.tensor(size, dtype=DOUBLE, requires_grad=True)
        u = robust_pool(x, "pseudo_huber", alpha)
        (found,) = torch.autograd.grad(u, alpha)
        t = (u.detach() - x) / size
        expected = -(t**3 / (1 + t * t) ** 1.5).sum() / ((1 + t * t) ** -1.5).sum()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_a_mask_is_a_weight_of_zero() -> None:
    x = torch.tensor([[0.0, 1.0, 2.0, 9.0], [5.0, torch.nan, 7.0, torch.inf]], dtype=DOUBLE)
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 0, 1, 0]], dtype=DOUBLE)
    for penalty in PENALTIES:
        leaf = x.clone().requires_grad_()
        pooled = robust_pool(leaf, penalty, 2.0, mask)
        alone = torch.stack(
            [robust_pool(x[0, :3], penalty, 2.0), robust_pool(x[1, ::2], penalty, 2.0)]
        )
        torch.testing.assert_close(pooled.detach(), alone, rtol=0, atol=1e-12)
        (gradient,) = torch.autograd.grad(pooled.sum(), leaf)
        assert bool((gradient[mask == 0] == 0).all())


def test_bad_rows_are_nan_and_cost_the_others_nothing() -> None:
    x = draw(5, 6)
    alpha = torch.tensor([1.0, 1.0, -1.0, 1.0, torch.nan], dtype=DOUBLE)
    weights = torch.ones(5, 6, dtype=DOUBLE)
    x[1, 2] = torch.nan
    weights[3] = 0
    for penalty in PENALTIES:
        leaf = x.clone().requires_grad_()
        pooled = robust_pool(leaf, penalty, alpha, weights)
        assert pooled.isnan().tolist() == [False, True, True, True, True]
        (gradient,) = torch.autograd.grad(pooled[0], leaf)
        torch.testing.assert_close(pooled[0], robust_pool(x[0], penalty, 1.0))
        assert bool(gradient.isfinite().all())
        assert bool((gradient[1:] == 0).all())
    with pytest.raises(ValueError, match="alpha"):
        robust_pool(x, "huber", 0.0)
    with pytest.raises(ValueError, match="Unknown penalty"):
        robust_pool(x, "cauchy")
    with pytest.raises(ValueError, match="broadcast"):
        robust_pool(x, "huber", torch.ones(4))


def test_the_middle_of_hubers_flat_interval() -> None:
    x = torch.tensor([0.0, 1.0, 10.0, 11.0], dtype=DOUBLE).requires_grad_()
    pooled = robust_pool(x, "huber", 1.0)
    assert float(pooled.detach()) == pytest.approx(5.5, abs=1e-14)
    (gradient,) = torch.autograd.grad(pooled, x)
    torch.testing.assert_close(gradient, torch.tensor([0, 0.5, 0.5, 0], dtype=DOUBLE))
    assert bool(solve_pool(x.detach(), "huber", 1.0).degenerate)
    # One-sided by an inlier: it is unique again.
    assert not bool(solve_pool(torch.cat([x.detach(), x.detach()[:1]]), "huber", 1.0).degenerate)


def test_of_two_equal_modes_one_is_returned_and_flagged() -> None:
    x = torch.tensor([-10.0, -10.2, 10.0, 10.2], dtype=DOUBLE)
    for penalty in NONCONVEX:
        found = solve_pool(x, penalty, 1.0)
        assert float(found.u.abs()) == pytest.approx(10.1, abs=1e-9)
        assert float(found.runner_up) == pytest.approx(0.0, abs=1e-12)
        assert bool(found.degenerate)


def test_the_objective_of_a_bad_row_is_nan() -> None:
    x = torch.tensor([[0.0, 1.0], [torch.nan, 1.0]], dtype=DOUBLE)
    for penalty in PENALTIES:
        assert solve_pool(x, penalty).objective.isnan().tolist() == [False, True]


def test_the_runner_up_of_two_unequal_modes() -> None:
    x = torch.tensor([0.0, 0.1, 0.2, 8.0, 8.1], dtype=DOUBLE)
    for penalty in NONCONVEX:
        found = solve_pool(x, penalty, 1.0)
        assert float(found.u) == pytest.approx(0.1, abs=1e-9)
        scale = torch.tensor(1.0, dtype=DOUBLE)
        other = PENALTIES[penalty].value(8.05 - x, scale).sum()
        assert float(found.runner_up) == pytest.approx(float(other - found.objective), abs=1e-9)


def test_pooled_dimensions_and_dtypes() -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    pooled = robust_pool(x, "welsch", torch.tensor([1.0, 2.0, 0.5]), dim=(-2, -1))
    assert pooled.shape == (2, 3)
    assert pooled.dtype == torch.float32
    expected = robust_pool(x[1, 2].reshape(-1), "welsch", 0.5)
    torch.testing.assert_close(pooled[1, 2], expected)
    assert robust_pool(x, "huber", dim=1).shape == (2, 4, 5)
    assert robust_pool(x[:0], "welsch", dim=(-2, -1)).shape == (0, 3)
    local = robust_pool(x, "welsch", 1.0, dim=(-2, -1), search="local")
    glob = solve_pool(x, "welsch", 1.0, dim=(-2, -1))
    height = (
        PENALTIES["welsch"]
        .value(local[..., None, None].double() - x.double(), torch.tensor(1.0, dtype=DOUBLE))
        .sum((-2, -1))
    )
    assert bool((height >= glob.objective - 1e-6).all())
