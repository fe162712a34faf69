"""The projections' closed forms: the truths that define a projection, and the degenerate cases.

``u`` is the projection of ``x`` onto a closed convex set if and only if ``u`` is in the set and
``<x - u, z - u> <= 0`` for every ``z`` in the set (Boyd and Vandenberghe 2004, section 8.1).
"""

from collections.abc import Callable

import pytest
import torch
from helpers import row
from hypothesis import given, settings
from hypothesis import strategies as st

from ddn_cvx.problems import (
    box_projection,
    l1_ball_projection,
    l2_ball_projection,
    linf_ball_projection,
    orthant_projection,
    simplex_projection,
)

Tensor = torch.Tensor

ENTRIES = {
    "orthant": orthant_projection,
    "box": box_projection,
    "simplex": simplex_projection,
    "l1 ball": l1_ball_projection,
    "l2 ball": l2_ball_projection,
    "linf ball": linf_ball_projection,
}
BALL_NORM = {"l1 ball": 1.0, "l2 ball": 2.0, "linf ball": float("inf")}


def project(kind: str, x: Tensor, *data: Tensor) -> Tensor:
    """The closed form of an entry, for ``x`` of shape ``(B, n)``."""
    closed_form = ENTRIES[kind](n=x.shape[1]).closed_form
    assert closed_form is not None
    (u,) = closed_form(x, *data)
    return u


def distance_to_set(kind: str, u: Tensor, *data: Tensor) -> Tensor:
    """How far ``u`` violates the set's definition; ``(B,)``."""
    if kind == "orthant":
        return torch.relu(-u).amax(dim=1)
    if kind == "box":
        lower, upper = data
        return torch.maximum(lower - u, u - upper).relu().amax(dim=1)
    (radius,) = data
    if kind == "simplex":
        return torch.maximum(torch.relu(-u).amax(dim=1), (u.sum(dim=1) - radius).abs())
    return torch.relu(torch.linalg.vector_norm(u, ord=BALL_NORM[kind], dim=1) - radius)


@st.composite
def inputs(draw: st.DrawFn) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, ...]]]:
    """``x`` and ``z`` ``(B, n)``, and each set's data. Small integers, so that ties are common."""
    batch, n = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    values = st.one_of(
        st.integers(-3, 3).map(float), st.floats(-100, 100, allow_nan=False, width=32)
    )

    def matrix() -> Tensor:
        rows = draw(st.lists(values, min_size=batch * n, max_size=batch * n))
        return torch.tensor(rows, dtype=torch.float64).reshape(batch, n)

    x, z, corner, opposite = matrix(), matrix(), matrix(), matrix()
    radius = matrix()[:, 0].abs()
    data: dict[str, tuple[Tensor, ...]] = dict.fromkeys(ENTRIES, (radius,))
    data["orthant"] = ()
    data["box"] = (torch.minimum(corner, opposite), torch.maximum(corner, opposite))
    return x, z, data


@pytest.mark.parametrize("kind", ENTRIES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn=inputs())
def test_the_projection_is_the_nearest_point_of_the_set(
    kind: str, drawn: tuple[Tensor, Tensor, dict[str, tuple[Tensor, ...]]]
) -> None:
    x, z, data = drawn
    u = project(kind, x, *data[kind])
    member = project(kind, z, *data[kind])
    assert (distance_to_set(kind, u, *data[kind]) < 1e-12 * (1 + x.abs().max())).all()
    scale = 1 + x.abs().max() ** 2 + z.abs().max() ** 2
    assert (((x - u) * (member - u)).sum(dim=1) < 1e-12 * scale).all()


@pytest.mark.parametrize("kind", ENTRIES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn=inputs())
def test_the_projection_is_idempotent_and_nonexpansive(
    kind: str, drawn: tuple[Tensor, Tensor, dict[str, tuple[Tensor, ...]]]
) -> None:
    x, z, data = drawn
    u, v = project(kind, x, *data[kind]), project(kind, z, *data[kind])
    torch.testing.assert_close(project(kind, u, *data[kind]), u, rtol=0, atol=1e-12)
    apart = torch.linalg.vector_norm(x - z, dim=1)
    assert (torch.linalg.vector_norm(u - v, dim=1) <= apart + 1e-11).all()


@pytest.mark.parametrize("kind", ENTRIES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(drawn=inputs())
def test_values_and_gradients_are_finite_everywhere(
    kind: str, drawn: tuple[Tensor, Tensor, dict[str, tuple[Tensor, ...]]]
) -> None:
    x, _, data = drawn
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *data[kind])]
    u = project(kind, *leaves)
    assert u.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(u.sum(), leaves))


def jacobian(kind: str, x: Tensor, *data: Tensor) -> Tensor:
    """Derivative of the projection of one point, ``(1, n)`` to ``(n, n)``."""
    x = x.clone().requires_grad_()
    u = project(kind, x, *data)[0]
    rows = [torch.autograd.grad(entry, x, retain_graph=True)[0][0] for entry in u]
    return torch.stack(rows)


def scalar(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize("kind", ["l1 ball", "l2 ball", "linf ball"])
def test_a_point_inside_the_ball_stays_and_has_the_identity_as_derivative(kind: str) -> None:
    x = row(0.25, 0.0, -0.5)
    assert torch.equal(project(kind, x, scalar(1.0)), x)
    assert torch.equal(jacobian(kind, x, scalar(1.0)), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["l1 ball", "l2 ball", "linf ball"])
def test_the_centre_of_the_ball_stays_and_has_the_identity_as_derivative(kind: str) -> None:
    x = row(0.0, 0.0)
    assert torch.equal(project(kind, x, scalar(1.0)), x)
    assert torch.equal(jacobian(kind, x, scalar(1.0)), torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["simplex", "l1 ball", "l2 ball", "linf ball"])
def test_radius_zero_gives_the_origin(kind: str) -> None:
    for x in (row(1.0, -2.0, 1.0), row(0.0, 0.0, 0.0), row(-1.0, -1.0, -1.0)):
        assert torch.equal(project(kind, x, scalar(0.0)).abs(), row(0.0, 0.0, 0.0))


@pytest.mark.parametrize("kind", ["l1 ball", "l2 ball", "linf ball"])
def test_a_point_on_the_boundary_stays(kind: str) -> None:
    x = {"l1 ball": row(1.0, -4.0), "l2 ball": row(3.0, -4.0), "linf ball": row(5.0, -5.0)}[kind]
    torch.testing.assert_close(project(kind, x, scalar(5.0)), x, rtol=1e-15, atol=0)


def test_a_point_of_the_simplex_stays() -> None:
    x = row(0.5, 0.0, 0.25, 0.25)
    assert torch.equal(project("simplex", x, scalar(1.0)), x)


def test_a_vertex_of_the_simplex_is_the_answer_far_beyond_it() -> None:
    assert torch.equal(project("simplex", row(7.0, 1.0, -3.0), scalar(1.0)), row(1.0, 0.0, 0.0))


def test_equal_entries_share_the_simplex_equally() -> None:
    x = row(3.0, 3.0, 3.0, -9.0)
    torch.testing.assert_close(project("simplex", x, scalar(1.0)), row(1, 1, 1, 0) / 3)


def test_an_entry_exactly_at_the_threshold_is_zero() -> None:
    # The threshold of (1, 0) is 0: the second entry ties with it.
    assert torch.equal(project("simplex", row(1.0, 0.0), scalar(1.0)), row(1.0, 0.0))
    assert torch.equal(project("l1 ball", row(-2.0, 1.0), scalar(1.0)), row(-1.0, 0.0))


def test_a_common_shift_of_a_large_size_costs_the_simplex_no_accuracy() -> None:
    x = row(0.75, 0.5, -2.0)
    shifted = project("simplex", x + 2.0**30, scalar(1.0))
    torch.testing.assert_close(shifted, project("simplex", x, scalar(1.0)), rtol=0, atol=1e-15)


def test_the_l1_ball_keeps_signs_and_equal_magnitudes_equal() -> None:
    u = project("l1 ball", row(2.0, -2.0, 2.0), scalar(3.0))
    torch.testing.assert_close(u, row(1.0, -1.0, 1.0))


def test_the_l2_ball_scales_what_is_outside() -> None:
    torch.testing.assert_close(project("l2 ball", row(6.0, -8.0), scalar(5.0)), row(3.0, -4.0))


def test_a_box_of_no_width_has_one_point() -> None:
    corner = row(1.0, -2.0)
    for x in (row(5.0, 5.0), corner, row(-5.0, -5.0)):
        assert torch.equal(project("box", x, corner, corner), corner)


def test_a_point_on_a_face_of_the_box_stays() -> None:
    x = row(-1.0, 0.0, 1.0)
    assert torch.equal(project("box", x, row(-1.0, -1.0, -1.0), row(1.0, 1.0, 1.0)), x)


@pytest.mark.parametrize(
    ("factor", "transform"),
    [(1.0, lambda x: x.flip(1)), (3.0, lambda x: 3.0 * x)],
    ids=["permutation", "scaling"],
)
@pytest.mark.parametrize("kind", ["simplex", "l1 ball", "l2 ball", "linf ball"])
def test_permutation_and_scaling_pass_through(
    kind: str, factor: float, transform: Callable[[Tensor], Tensor]
) -> None:
    x, radius = ENTRIES[kind](n=6).inputs(batch=5, seed=1)
    torch.testing.assert_close(
        project(kind, transform(x), factor * radius), transform(project(kind, x, radius))
    )
