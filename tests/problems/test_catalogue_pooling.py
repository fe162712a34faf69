"""Pooling: invariances, and the Huber mean's closed form where it is hard."""

import pytest
import torch
from helpers import row
from hypothesis import given, settings
from hypothesis import strategies as st

from ddn_cvx import DeclarativeLayer
from ddn_cvx.problems import average_pooling, huber_pooling, pseudo_huber_pooling

Tensor = torch.Tensor


def huber_mean(x: Tensor, alpha: Tensor) -> Tensor:
    closed_form = huber_pooling(n=x.shape[1]).closed_form
    assert closed_form is not None
    (u,) = closed_form(x, alpha)
    return u


def derivative_of_the_objective(u: Tensor, x: Tensor, alpha: Tensor) -> Tensor:
    """``sum_i phi'(u - x_i; alpha)`` of the Huber penalty; ``(B,)``."""
    bound = alpha.unsqueeze(1)
    return torch.clamp(u.unsqueeze(1) - x, -bound, bound).sum(dim=1)


def scalar(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@st.composite
def points_and_scale(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """``x`` ``(B, n)`` and ``alpha`` ``(B,)``. Small integers, so that ties are common."""
    batch, n = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    values = st.one_of(st.integers(-3, 3).map(float), st.floats(-50, 50, allow_nan=False, width=32))
    scales = st.one_of(st.sampled_from([0.5, 1.0, 2.0]), st.floats(0.125, 100, width=32))
    x = draw(st.lists(values, min_size=batch * n, max_size=batch * n))
    alpha = draw(st.lists(scales, min_size=batch, max_size=batch))
    return (
        torch.tensor(x, dtype=torch.float64).reshape(batch, n),
        torch.tensor(alpha, dtype=torch.float64),
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(drawn=points_and_scale())
def test_the_huber_mean_is_stationary(drawn: tuple[Tensor, Tensor]) -> None:
    x, alpha = drawn
    slope = derivative_of_the_objective(huber_mean(x, alpha), x, alpha)
    assert (slope.abs() < 1e-12 * (1 + x.abs().max() + alpha.max())).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(drawn=points_and_scale(), shift=st.integers(-8, 8))
def test_the_huber_mean_moves_with_its_points(drawn: tuple[Tensor, Tensor], shift: int) -> None:
    x, alpha = drawn
    u = huber_mean(x, alpha)
    torch.testing.assert_close(huber_mean(x.flip(1), alpha), u, rtol=0, atol=1e-12)
    torch.testing.assert_close(huber_mean(-x, alpha), -u, rtol=0, atol=1e-12)
    torch.testing.assert_close(huber_mean(2 * x, 2 * alpha), 2 * u, rtol=0, atol=1e-12)
    torch.testing.assert_close(huber_mean(x + shift, alpha), u + shift, rtol=0, atol=1e-11)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(drawn=points_and_scale())
def test_the_huber_mean_has_finite_gradients_everywhere(drawn: tuple[Tensor, Tensor]) -> None:
    x, alpha = (tensor.requires_grad_() for tensor in drawn)
    of_x, of_alpha = torch.autograd.grad(huber_mean(x, alpha).sum(), (x, alpha))
    assert of_alpha.isfinite().all()
    # A common shift of the points moves the mean by as much.
    torch.testing.assert_close(of_x.sum(dim=1), torch.ones_like(alpha))


def test_a_large_scale_gives_the_average() -> None:
    x = row(-1.0, 2.0, 8.0)
    torch.testing.assert_close(huber_mean(x, scalar(100.0)), x.mean(dim=1))


def test_a_small_scale_gives_the_median() -> None:
    assert abs(huber_mean(row(-1.0, 2.0, 800.0), scalar(1e-9)).item() - 2.0) <= 1e-9


def test_one_point_is_its_own_mean() -> None:
    assert huber_mean(row(3.0), scalar(0.1)).item() == 3.0


def test_equal_points_are_their_own_mean() -> None:
    torch.testing.assert_close(huber_mean(row(0.1, 0.1, 0.1, 0.1), scalar(0.3)), scalar(0.1))


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_two_far_groups_of_equal_size_meet_in_the_middle(alpha: float) -> None:
    # Every point of an interval is a minimizer; the middle is taken, and follows both its ends.
    x = row(-5.0, -4.0, 4.0, 6.0).requires_grad_()
    u = huber_mean(x, scalar(alpha))
    torch.testing.assert_close(u, scalar(0.0))
    (gradient,) = torch.autograd.grad(u.sum(), x)
    torch.testing.assert_close(gradient, row(0.0, 0.5, 0.5, 0.0))


def test_the_interval_of_minimizers_may_shrink_to_a_point() -> None:
    assert huber_mean(row(-1.0, 1.0), scalar(1.0)).item() == 0.0


def test_an_outlier_has_no_influence() -> None:
    x = row(0.0, 1.0, 50.0).requires_grad_()
    (gradient,) = torch.autograd.grad(huber_mean(x, scalar(2.0)).sum(), x)
    torch.testing.assert_close(gradient, row(0.5, 0.5, 0.0))


POOLINGS = {
    "average": average_pooling,
    "huber": huber_pooling,
    "pseudo-huber": pseudo_huber_pooling,
}


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_ignores_order_and_moves_with_its_points(name: str) -> None:
    declaration = POOLINGS[name](n=6)
    layer = DeclarativeLayer(declaration)
    x, *scale = declaration.inputs(batch=3, seed=1)
    (u,) = layer(x, *scale)
    (of_permuted,) = layer(x[:, [3, 1, 5, 0, 2, 4]], *scale)
    (of_shifted,) = layer(x + 10.0, *scale)
    torch.testing.assert_close(of_permuted, u, rtol=0, atol=1e-9)
    torch.testing.assert_close(of_shifted, u + 10.0, rtol=0, atol=1e-9)


def test_pseudo_huber_pooling_lies_between_the_median_and_the_average() -> None:
    """The scale decides: a large one gives the average, a small one the median."""
    layer = DeclarativeLayer(pseudo_huber_pooling(n=3))
    x = row(-1.0, 2.0, 8.0)
    assert abs(layer(x, scalar(1e4))[0].item() - 3.0) < 1e-5
    assert abs(layer(x, scalar(1e-3))[0].item() - 2.0) < 1e-3
