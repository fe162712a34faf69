"""Dedicated projections: nearest points, exact derivatives, and what happens at ties and edges."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_derivatives, draw
from hypothesis import given, settings
from hypothesis import strategies as st

from ddn_cvx.dedicated.projections.affine import box, halfspace, hyperplane
from ddn_cvx.dedicated.projections.balls import (
    l1_ball,
    l1_sphere,
    l2_ball,
    l2_sphere,
    linf_ball,
    linf_sphere,
)
from ddn_cvx.dedicated.projections.birkhoff import birkhoff_polytope
from ddn_cvx.dedicated.projections.cones import (
    exponential_cone,
    positive_semidefinite_cone,
    second_order_cone,
)
from ddn_cvx.dedicated.projections.monotone import monotone_cone
from ddn_cvx.dedicated.projections.probability_simplex import simplex
from ddn_cvx.dedicated.projections.taut_string import total_variation

DOUBLE = torch.float64
Project = Callable[..., torch.Tensor]
BALLS: tuple[Project, ...] = (l1_ball, l2_ball, linf_ball)
SPHERES: tuple[Project, ...] = (l1_sphere, l2_sphere, linf_sphere)
WITH_RADIUS: tuple[Project, ...] = (*BALLS, *SPHERES, simplex, total_variation)


def norm(project: Project, u: torch.Tensor) -> torch.Tensor:
    order = {"l1": 1.0, "l2": 2.0, "linf": math.inf}[project.__name__.split("_")[0]]
    size: torch.Tensor = torch.linalg.vector_norm(u, ord=order, dim=-1)
    return size


def tied(rows: int, n: int, seed: int = 0) -> torch.Tensor:
    """Multiples of one half, zeros and repetitions among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (rows, n), generator=generator).to(DOUBLE) / 2


# -- nearest points --------------------------------------------------------------------------------


def distance_to_l1_sphere(x: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """The least over all faces of the cross-polytope, each onto its affine hull if that hits it."""
    n, best = x.shape[1], torch.full((len(x),), math.inf, dtype=DOUBLE)
    for pattern in itertools.product((-1.0, 0.0, 1.0), repeat=n):
        sign = torch.tensor(pattern, dtype=DOUBLE)
        if not bool(sign.any()):
            continue
        shift = (radius - x @ sign) / sign.abs().sum()
        u = sign.abs() * x + shift.unsqueeze(1) * sign
        on_face = (u * sign >= -1e-12).all(1)
        best = torch.where(on_face, torch.minimum(best, (u - x).norm(dim=1)), best)
    return best


def distance_to_linf_sphere(x: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """The least over the facets of the cube."""
    bound = radius.unsqueeze(1)
    best = torch.full((len(x),), math.inf, dtype=DOUBLE)
    for index in range(x.shape[1]):
        for sign in (-1.0, 1.0):
            u = torch.minimum(torch.maximum(x, -bound), bound)
            u[:, index] = sign * radius
            best = torch.minimum(best, (u - x).norm(dim=1))
    return best


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("project", SPHERES, ids=lambda project: project.__name__)
def test_sphere_projections_are_nearest_in_10000_tied_cases(project: Project, n: int) -> None:
    x = tied(2500, n, seed=n)
    radius = tied(2500, 1, seed=9).squeeze(1).abs()
    u = project(x, radius)
    torch.testing.assert_close(norm(project, u), radius, rtol=1e-14, atol=1e-14)
    if project is l2_sphere:
        nearest = (x.norm(dim=1) - radius).abs()
    else:
        faces = distance_to_l1_sphere if project is l1_sphere else distance_to_linf_sphere
        nearest = faces(x, radius)
    torch.testing.assert_close((u - x).norm(dim=1), nearest, rtol=1e-13, atol=1e-13)


def assert_nearest_in_convex_set(
    x: torch.Tensor, u: torch.Tensor, others: torch.Tensor, tolerance: float = 1e-11
) -> None:
    """``<x - u, v - u> <= 0`` for all ``v`` in the set; ``x``, ``u``, ``v`` of shape (R, n)."""
    angle = ((x - u) * (others - u)).sum(-1)
    size = 1 + x.abs().amax() * (1 + others.abs().amax())
    assert float(angle.max()) <= tolerance * float(size)


@pytest.mark.parametrize("source", ["ties", "normal"])
def test_convex_projections_satisfy_the_variational_inequality(source: str) -> None:
    x = tied(400, 5) if source == "ties" else 2 * draw(400, 5)
    v = draw(400, 5, seed=1)
    corners = torch.eye(5, dtype=DOUBLE)
    radius = torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=DOUBLE).repeat(100)
    for project in BALLS:
        u = project(x, radius)
        assert bool((norm(project, u) <= radius * (1 + 1e-14)).all())
        inside = radius.unsqueeze(1) * v / norm(project, v).unsqueeze(1)
        assert_nearest_in_convex_set(x, u, inside)
    u = simplex(x, radius)
    assert bool((u >= 0).all())
    torch.testing.assert_close(u.sum(1), radius, rtol=1e-14, atol=1e-14)
    for corner in corners:
        assert_nearest_in_convex_set(x, u, radius.unsqueeze(1) * corner)
    lower, upper = -v.abs(), v.abs()
    u = box(x, lower, upper)
    assert torch.equal(u, torch.minimum(torch.maximum(x, lower), upper))
    normal, offset = draw(400, 5, seed=2), draw(400, seed=3)
    for flat in (hyperplane, halfspace):
        u = flat(x, normal, offset)
        level = (normal * u).sum(1) - offset
        inside = (level < 0) & (u == x).all(1) & (flat is halfspace)
        assert bool(((level.abs() < 1e-12) | inside).all())
        # What is moved is moved along the normal.
        moved = (x - u) - ((x - u) * normal).sum(1, True) * normal / normal.square().sum(1, True)
        assert float(moved.abs().max()) < 1e-13


def test_cone_projections_split_a_point_as_moreau_says() -> None:
    """``x = u - w`` with ``u`` in the cone, ``w`` in its dual, and ``<u, w> = 0``."""
    x = torch.cat([draw(300, 4) * 3, tied(300, 4)])
    u = second_order_cone(x)
    for part in (u, u - x):
        assert bool((part[:, 1:].norm(dim=1) <= part[:, 0] + 1e-13).all())
    assert float(((u - x) * u).sum(1).abs().max()) < 1e-12

    X = draw(50, 5, 5)
    S = (X + X.mT) / 2
    U = positive_semidefinite_cone(X)
    for matrix in (U, U - S):
        assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-13
    assert float(((U - S) * U).sum((1, 2)).abs().max()) < 1e-12

    u = monotone_cone(x)
    assert bool((u[:, 1:] >= u[:, :-1] - 1e-14).all())
    excess = (x - u).cumsum(1)  # in the polar: nonnegative partial sums, zero in total
    assert float(excess.min()) > -1e-13
    assert float(excess[:, -1].abs().max()) < 1e-13
    assert float(((u - x) * u).sum(1).abs().max()) < 1e-12


def in_exponential_cone(u: torch.Tensor, tolerance: float) -> torch.Tensor:
    r, s, t = u.unbind(-1)
    positive = s > 0
    safe = torch.where(positive, s, 1.0)
    interior = positive & (safe * torch.exp((r / safe).clamp(max=700)) <= t + tolerance)
    return interior | ((s.abs() <= tolerance) & (r <= tolerance) & (t >= -tolerance))


def test_the_exponential_cone_s_projection_is_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 3, dtype=DOUBLE, generator=generator)
    x = x * torch.exp(2 * torch.randn(2000, 3, dtype=DOUBLE, generator=generator))
    x = torch.cat([x, tied(2000, 3)])
    u = exponential_cone(x)
    size = 1 + x.abs().amax(1)
    assert bool(in_exponential_cone(u / size.unsqueeze(1), 1e-13).all())
    assert float((((x - u) * u).sum(1) / size**2).abs().max()) < 1e-14
    # The rest has no part along any ray of the cone.
    ratio = torch.linspace(-40, 40, 4001, dtype=DOUBLE)
    rays = torch.stack([ratio, torch.ones_like(ratio), ratio.exp()], 1)
    rays = rays / rays.norm(dim=1, keepdim=True)
    assert float((((x - u) / size.unsqueeze(1)) @ rays.T).max()) < 1e-13


@pytest.mark.parametrize("n", [1, 2, 3, 7, 200])
@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0, 20.0])
def test_total_variation_satisfies_its_optimality_conditions(n: int, weight: float) -> None:
    x = torch.cat([draw(20, n), tied(20, n), draw(20, n).cumsum(1), 1e6 + draw(20, n)])
    u = total_variation(x, weight)
    size = 1e-12 * x.abs().amax()
    dual = (u - x).cumsum(1)
    assert float(dual[:, -1].abs().max()) < n * size
    between, jump = dual[:, :-1], u[:, 1:] - u[:, :-1]
    assert bool((between.abs() <= weight + n * size).all())
    jumps = jump.abs() > 1e-9  # runs that meet differ by rounding
    assert bool(((between - weight * jump.sign()).abs() <= n * size)[jumps].all())


@pytest.mark.parametrize(
    "kind", ["normal", "large", "near a vertex", "vertex", "uniform", "ties", "assignment"]
)
@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_birkhoff_projections_are_optimal(kind: str, n: int) -> None:
    noise, identity = draw(8, n, n), torch.eye(n, dtype=DOUBLE)
    X = {
        "normal": noise,
        "large": 50 * noise,
        "near a vertex": identity + 1e-7 * noise,
        "vertex": identity.expand(8, n, n),
        "uniform": torch.full((8, n, n), 1 / n, dtype=DOUBLE),
        "ties": (2 * noise).round(),
        "assignment": 1e5 * noise,
    }[kind]
    U = birkhoff_polytope(X)
    ones = torch.ones(8, n, dtype=DOUBLE)
    torch.testing.assert_close(U.sum(1), ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(U.sum(2), ones, rtol=0, atol=1e-12)
    assert float(U.min()) >= 0
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        vertex = identity[torch.randperm(n, generator=generator)]
        angle = ((X - U) * (vertex - U)).sum((1, 2))
        assert float(angle.max()) < 1e-11 * float(1 + X.abs().max()) * n


def test_isotonic_regression_of_hard_sequences_is_scipy_s() -> None:
    from scipy.optimize import isotonic_regression

    n = 300
    ramp = torch.arange(n, dtype=DOUBLE)
    last_low = ramp.clone()
    last_low[-1] = -1e4  # merges one neighbour a round: the rounds give up
    first_high = ramp.clone()
    first_high[0] = 1e4
    x = torch.stack([last_low, first_high, -ramp, ramp, 0 * ramp, draw(n), 1e9 + draw(n)])
    weights = 0.1 + draw(7, n, seed=1).abs()
    u = monotone_cone(x, weights)
    for row, mass, found in zip(x, weights, u, strict=True):
        expected = torch.from_numpy(isotonic_regression(row.numpy(), weights=mass.numpy()).x)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-10)
    torch.testing.assert_close(monotone_cone(x, decreasing=True), -monotone_cone(-x))
    torch.testing.assert_close(monotone_cone(x, 2.5), monotone_cone(x))


# -- derivatives -----------------------------------------------------------------------------------


def smooth(project: Project, *inputs: torch.Tensor) -> None:
    """First and second derivatives, reverse and forward mode, and under ``vmap``."""
    leaves = tuple(tensor.clone().requires_grad_() for tensor in inputs)
    assert_derivatives(project, leaves)
    whole = project(*inputs)
    mapped = torch.func.vmap(project, tuple(0 if len(t) == len(whole) else None for t in inputs))
    torch.testing.assert_close(mapped(*inputs), whole, rtol=1e-13, atol=1e-13)

    def energy(*at: torch.Tensor) -> torch.Tensor:
        return project(*at).pow(3).sum()

    double = torch.func.jacfwd(torch.func.jacrev(energy))(*inputs)
    reverse = torch.func.jacrev(torch.func.jacrev(energy))(*inputs)
    torch.testing.assert_close(double, reverse, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("project", WITH_RADIUS, ids=lambda project: project.__name__)
def test_derivatives_in_point_and_radius(project: Project) -> None:
    radius = torch.tensor([0.3, 1.0, 5.0, 2.0, 0.7, 9.0], dtype=DOUBLE)
    smooth(project, draw(6, 5), radius)


@pytest.mark.parametrize("project", [*BALLS, *SPHERES, simplex], ids=lambda f: f.__name__)
def test_one_radius_for_all_goes_by_a_kernel_with_the_same_derivatives(project: Project) -> None:
    """A number, or one learned radius: values and gradients are those of the formula."""
    x, radius = draw(6, 5).requires_grad_(), torch.tensor(1.3, dtype=DOUBLE, requires_grad=True)
    assert_derivatives(project, (x, radius))
    for n, round_to in itertools.product((1, 3, 100), (True, False)):
        points = (tied(40, n) if round_to else draw(40, n)).requires_grad_()
        before = points.detach().clone()
        incoming = draw(40, n, seed=5)
        for number in (0.0, 0.5, 3.0):
            given = torch.tensor(number, dtype=DOUBLE, requires_grad=True)
            mapped = torch.func.vmap(lambda row, given=given: project(row, given))  # the formula
            found, expected = project(points, given), mapped(points)
            torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
            torch.testing.assert_close(
                torch.autograd.grad(found, (points, given), incoming),
                torch.autograd.grad(expected, (points, given), incoming),
                rtol=1e-10,
                atol=1e-10,
            )
        assert torch.equal(points, before)
        half = project(points.detach().float(), 0.5)
        torch.testing.assert_close(half.double(), project(points.float().double(), 0.5).detach())


@pytest.mark.parametrize("project", [hyperplane, halfspace])
def test_one_plane_for_all_goes_by_a_kernel_with_the_same_derivatives(project: Project) -> None:
    normal, offset = draw(5, seed=1), torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    x, incoming = draw(9, 5).requires_grad_(), draw(9, 5, seed=2)

    def shared(x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return project(x, normal, offset)

    assert_derivatives(shared, (x, offset))
    found, expected = shared(x, offset), torch.func.vmap(lambda row: shared(row, offset))(x)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(
        torch.autograd.grad(found, (x, offset), incoming),
        torch.autograd.grad(expected, (x, offset), incoming),
    )


def test_derivatives_of_boxes_and_planes() -> None:
    x, bound = draw(4, 5), draw(4, 5, seed=1).abs()
    smooth(box, x, -bound, bound)
    for flat in (hyperplane, halfspace):
        smooth(flat, x, draw(4, 5, seed=2), draw(4, seed=3))


def test_derivatives_of_cones() -> None:
    smooth(second_order_cone, draw(6, 4))
    smooth(exponential_cone, draw(30, 3))
    smooth(positive_semidefinite_cone, draw(3, 4, 4))
    smooth(monotone_cone, draw(5, 7), 0.1 + draw(5, 7, seed=1).abs())


def test_derivatives_of_the_birkhoff_polytope() -> None:
    smooth(birkhoff_polytope, draw(3, 4, 4))
    near_vertex = torch.eye(4, dtype=DOUBLE) + 1e-3 * draw(2, 4, 4)
    smooth(birkhoff_polytope, near_vertex)
    vertex = (5 * torch.eye(4, dtype=DOUBLE)).requires_grad_()
    (gradient,) = torch.autograd.grad((birkhoff_polytope(vertex) * draw(4, 4)).sum(), vertex)
    assert float(gradient.abs().max()) < 1e-14


def test_repeated_eigenvalues_are_regular_points() -> None:
    V = torch.linalg.qr(draw(2, 5, 5)).Q
    values = torch.tensor([[1.0, 1.0, 1.0, -2.0, -2.0], [3.0, 3.0, -1.0, -1.0, -1.0]], dtype=DOUBLE)
    smooth(positive_semidefinite_cone, (V * values.unsqueeze(1)) @ V.mT)
    smooth(positive_semidefinite_cone, torch.eye(3, dtype=DOUBLE).expand(1, 3, 3))


# -- the irregular points, by name -----------------------------------------------------------------


def derivative(project: Project, x: torch.Tensor, move: torch.Tensor, *data: Any) -> torch.Tensor:
    change: torch.Tensor = torch.func.jvp(lambda at: project(at, *data), (x,), (move,))[1]
    return change


def one_sided(project: Project, x: torch.Tensor, move: torch.Tensor, *data: Any) -> torch.Tensor:
    step = 1e-7
    return (project(x + step * move, *data) - project(x, *data)) / step


def test_the_sphere_s_centre() -> None:
    origin = torch.zeros(4, dtype=DOUBLE, requires_grad=True)
    radius = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)
    first = torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=DOUBLE)
    expected = {
        l1_sphere: torch.full((4,), 0.5, dtype=DOUBLE),
        l2_sphere: first,
        linf_sphere: first,
    }
    for project, u in expected.items():
        found = project(origin, radius)
        torch.testing.assert_close(found, u)
        gradients = torch.autograd.grad(found.sum(), (origin, radius))
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        assert float(gradients[1]) == pytest.approx(float(u.sum()) / 2)
    assert torch.equal(derivative(l2_sphere, origin.detach(), draw(4)), torch.zeros(4).double())


def test_on_the_surface_the_derivative_is_the_one_from_inside() -> None:
    x = torch.tensor([[0.5, -0.5], [0.25, 0.75]], dtype=DOUBLE)
    for project in BALLS:
        on = x / norm(project, x).unsqueeze(1)
        inward = -on
        torch.testing.assert_close(project(on), on)
        torch.testing.assert_close(derivative(project, on, inward), inward)
        torch.testing.assert_close(one_sided(project, on, inward), inward)
    for project in SPHERES:
        on = x / norm(project, x).unsqueeze(1)
        torch.testing.assert_close(project(on), on)
        # Along the surface a point takes its projection with it.
        aside = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=DOUBLE) * 0.1
        if project is l1_sphere:
            torch.testing.assert_close(derivative(project, on, aside), aside)


def test_a_tied_largest_entry_of_the_cube_s_inside_is_raised_alone() -> None:
    x = torch.tensor([0.5, -0.5, 0.1], dtype=DOUBLE, requires_grad=True)
    u = linf_sphere(x)
    assert u.tolist() == [1.0, -0.5, 0.1]
    (gradient,) = torch.autograd.grad(u.sum(), x)
    assert gradient.tolist() == [0.0, 1.0, 1.0]


def test_an_entry_that_just_reaches_zero_stays_there() -> None:
    x = torch.tensor([1.0, 0.5, 0.0], dtype=DOUBLE)  # the threshold is 0.25 for two, 1/6 for three
    x[2] = 0.25
    assert simplex(x)[2] == 0
    down = torch.tensor([0.0, 0.0, -1.0], dtype=DOUBLE)
    torch.testing.assert_close(derivative(simplex, x, down), one_sided(simplex, x, down))
    x = torch.tensor([3.0, 1.0, 0.0], dtype=DOUBLE, requires_grad=True)
    radius = torch.zeros((), dtype=DOUBLE, requires_grad=True)
    _, by_radius = torch.autograd.grad((simplex(x, radius) * draw(3)).sum(), (x, radius))
    grown = (simplex(x.detach(), 1e-7) * draw(3)).sum() / 1e-7
    assert float(by_radius) == pytest.approx(float(grown), rel=1e-6)


def test_two_zero_eigenvalues_get_the_mean_of_both_sides() -> None:
    S = torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE))
    move = torch.diag(torch.tensor([0.0, 1.0, 0.0], dtype=DOUBLE))
    project = positive_semidefinite_cone
    mean = (one_sided(project, S, move) - one_sided(project, S, -move)) / 2
    torch.testing.assert_close(derivative(project, S, move), mean)


def test_neighbours_that_are_equal_stay_apart() -> None:
    x = torch.tensor([1.0, 1.0], dtype=DOUBLE)
    apart = torch.tensor([-1.0, 1.0], dtype=DOUBLE)
    torch.testing.assert_close(derivative(monotone_cone, x, apart), apart)
    torch.testing.assert_close(one_sided(monotone_cone, x, apart), apart)


@pytest.mark.parametrize("project", WITH_RADIUS, ids=lambda project: project.__name__)
def test_bad_rows_are_nan_and_cost_no_others(project: Project) -> None:
    x, radius = draw(6, 5), torch.full((6,), 0.7, dtype=DOUBLE)
    good = project(x, radius)
    x[1, 2], x[2, 0], radius[4] = torch.nan, torch.inf, -1.0
    x.requires_grad_()
    radius.requires_grad_()
    u = project(x, radius)
    kept = [0, 3, 5]
    assert torch.equal(u[kept], good[kept])
    assert bool(u[[1, 2, 4]].isnan().all())
    gradients = torch.autograd.grad(u.nan_to_num().sum(), (x, radius))
    for gradient in gradients:
        assert bool(gradient.isfinite().all())
        assert bool((gradient[[1, 2, 4]] == 0).all())


def test_empty_and_impossible_sets_are_nan() -> None:
    x = draw(2, 3)
    assert bool(box(x, torch.tensor([0.0, 2.0, 0.0]), 1.0).isnan().all())
    zero = torch.zeros(3)
    assert bool(hyperplane(x, zero, 1.0).isnan().all())
    assert bool(halfspace(x, zero, -1.0).isnan().all())
    assert torch.equal(halfspace(x, zero, 1.0), x)
    assert torch.equal(box(x, -math.inf, 0.0), x.clamp(max=0.0))
    assert bool(monotone_cone(x, torch.tensor([1.0, 0.0, 1.0])).isnan().all())
    assert bool(birkhoff_polytope(torch.full((2, 2), torch.nan)).isnan().all())


def test_bad_arguments_are_named() -> None:
    x = draw(2, 3)
    with pytest.raises(ValueError, match="radius must not be negative"):
        l1_ball(x, -1.0)
    with pytest.raises(ValueError, match=r"radius of shape \(4,\) does not broadcast"):
        l1_ball(x, torch.ones(4))
    with pytest.raises(ValueError, match=r"normal has shape \(2,\); its last dimension must be 3"):
        halfspace(x, torch.ones(2), 0.0)
    with pytest.raises(TypeError, match="real floating-point"):
        simplex(torch.ones(3, dtype=torch.long))
    with pytest.raises(ValueError, match="n, n"):
        birkhoff_polytope(x)
    with pytest.raises(ValueError, match="n, n"):
        positive_semidefinite_cone(x)
    with pytest.raises(ValueError, match="3 entries"):
        exponential_cone(draw(2, 4))
    with pytest.raises(ValueError, match="weights must be positive"):
        monotone_cone(x, 0.0)
    with pytest.raises(ValueError, match="is empty"):
        simplex(torch.ones(2, 0))


# -- invariances -----------------------------------------------------------------------------------

FLOATS = st.floats(-10, 10, allow_subnormal=False, width=32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(FLOATS, min_size=4, max_size=4), min_size=1, max_size=5),
    st.floats(0.0, 5.0),
    st.floats(0.1, 10.0),
)
def test_scaling_permuting_and_batching_change_nothing(
    rows: list[list[float]], radius: float, scale: float
) -> None:
    x = torch.tensor(rows, dtype=DOUBLE)
    order = torch.tensor([2, 0, 3, 1])
    for project in (*BALLS, *SPHERES, simplex):
        u = project(x, radius)
        scaled = project(scale * x, scale * radius)
        torch.testing.assert_close(scaled, scale * u, rtol=1e-9, atol=1e-9)
        alone = torch.stack([project(row, radius) for row in x])
        torch.testing.assert_close(alone, u, rtol=1e-15, atol=1e-15)
        torch.testing.assert_close(project(x.T, radius, dim=0), u.T, rtol=1e-15, atol=1e-15)
        again = project(u, radius)
        torch.testing.assert_close(again, u, rtol=1e-12, atol=1e-12)
        distance = (project(x[:, order], radius) - x[:, order]).norm(dim=1)
        torch.testing.assert_close(distance, (u - x).norm(dim=1), rtol=1e-9, atol=1e-9)


def test_shapes_dtypes_and_large_shifts() -> None:
    x = draw(2, 3, 4, 5).float()
    for project in (*WITH_RADIUS, second_order_cone, monotone_cone):
        assert project(x).shape == x.shape
        assert project(x).dtype == torch.float32
        assert project(x, dim=1).shape == x.shape
        assert project(x[:0]).shape == x[:0].shape
    assert positive_semidefinite_cone(x[..., :4]).shape == (2, 3, 4, 4)
    assert birkhoff_polytope(x[..., :4]).shape == (2, 3, 4, 4)
    shifted = simplex(draw(7, 9) + 1e8)
    torch.testing.assert_close(shifted, simplex(draw(7, 9)), rtol=0, atol=1e-7)
    tiny, huge = l2_sphere(1e-200 * draw(3, 4)), l2_sphere(1e200 * draw(3, 4))
    torch.testing.assert_close(tiny, huge)


def test_a_large_batch_in_one_call() -> None:
    x = draw(4096, 1000).float()
    u = l1_ball(x, 10.0)
    torch.testing.assert_close(u.abs().sum(1), torch.full((4096,), 10.0))
