"""Pooling: the scalar ``u`` that is nearest to ``n`` points, under a penalty of the residuals.

``minimize sum_i phi(u - x_i; alpha)``, where ``alpha`` separates inliers from outliers.
"""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.dedicated.pooling.scalar import robust_pool
from ddn_cvx.problems._entry import entry
from ddn_cvx.problems._sampling import Tensors, signs, subset, uniform

_CITATION = "Gould, Hartley and Campbell (2022), Deep declarative networks, 'Robust pooling'"


@entry(n=1)
def average_pooling(n: int = 10) -> Declaration:
    """The average: ``phi(z) = z^2 / 2``.

    The parameter is ``x`` ``(n,)``; the answer is the scalar ``u``.

    Args:
        n: number of points.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import average_pooling
        >>> average_pooling(n=3).closed_form(torch.tensor([[1.0, 2.0, 6.0]]))
        (tensor([3.]),)
    """
    import cvxpy as cp

    x, u = cp.Parameter(n, name="x"), cp.Variable(name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(u - x) / 2)),
        parameters=(x,),
        variables=(u,),
        summary="average of the points, as the minimizer of a quadratic penalty",
        citation=_CITATION,
        example=partial(_average_example, n),
        closed_form=_average,
    )


@entry(n=1)
def pseudo_huber_pooling(n: int = 10) -> Declaration:
    """The smooth robust mean: ``phi(z; alpha) = alpha^2 (sqrt(1 + (z / alpha)^2) - 1)``.

    The parameters are ``x`` ``(n,)`` and ``alpha``, a positive scalar; the answer is the scalar
    ``u``. The objective is written as the sum of ``|(alpha, u - x_i)|``, which is the sum of the
    penalties divided by ``alpha``, plus a constant: the same minimizer, and DPP. There is no closed
    form.

    Args:
        n: number of points.

    Example:
        >>> from ddn_cvx.problems import pseudo_huber_pooling
        >>> pseudo_huber_pooling(n=3).variables[0].shape
        ()
    """
    import cvxpy as cp

    x, alpha = cp.Parameter(n, name="x"), cp.Parameter(pos=True, name="alpha")
    u = cp.Variable(name="u")
    legs = cp.vstack([cp.promote(alpha, (n,)), u - x])  # (2, n)
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum(cp.norm2(legs, axis=0)))),
        parameters=(x, alpha),
        variables=(u,),
        summary="robust mean under the pseudo-Huber penalty",
        citation=_CITATION + "; the penalty: Hartley and Zisserman (2004), Multiple View "
        "Geometry, appendix A6.8",
        example=partial(_example, n),
        dedicated=partial(_robust_pool, "pseudo_huber"),
    )


@entry(n=1)
def huber_pooling(n: int = 10) -> Declaration:
    """The robust mean: ``phi(z; alpha) = z^2 / 2``, beyond ``alpha``: ``alpha (|z| - alpha / 2)``.

    The parameters are ``x`` ``(n,)`` and ``alpha``, a positive scalar; the answer is the scalar
    ``u``. Where the minimizers are an interval, the closed form gives its midpoint.

    Args:
        n: number of points.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import huber_pooling
        >>> x, alpha = torch.tensor([[0.0, 1.0, 50.0]]), torch.tensor([2.0])
        >>> huber_pooling(n=3).closed_form(x, alpha)
        (tensor([1.5000]),)
    """
    import cvxpy as cp

    x, alpha = cp.Parameter(n, name="x"), cp.Parameter(pos=True, name="alpha")
    u = cp.Variable(name="u")
    penalties = cp.huber(u - x, alpha) / 2  # type: ignore[arg-type]  # cvxpy says int, takes this
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum(penalties))),
        parameters=(x, alpha),
        variables=(u,),
        summary="robust mean under the Huber penalty",
        citation=_CITATION + "; the penalty: Huber (1964), Robust estimation of a location "
        "parameter",
        example=partial(_example, n),
        dedicated=partial(_robust_pool, "huber"),
        closed_form=_huber_mean,
    )


@entry(n=1)
def welsch_pooling(n: int = 10) -> Declaration:
    """The robust mean that forgets outliers: ``phi(z; alpha) = 1 - exp(-z^2 / (2 alpha^2))``.

    The parameters are ``x`` ``(n,)`` and ``alpha``, a positive scalar; the answer is the scalar
    ``u``. The objective is not convex: a local minimum is found, near the median of the points.

    Args:
        n: number of points.

    Example:
        >>> from ddn_cvx.problems import welsch_pooling
        >>> welsch_pooling(n=3).problem.is_dcp()
        False
    """
    import cvxpy as cp

    x, alpha = cp.Parameter(n, name="x"), cp.Parameter(pos=True, name="alpha")
    u = cp.Variable(name="u")
    penalties = 1 - cp.exp(-cp.square(u - x) / (2 * cp.square(alpha)))
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum(penalties))),
        parameters=(x, alpha),
        variables=(u,),
        summary="robust mean under the Welsch penalty",
        citation=_CITATION + "; the penalty: Dennis and Welsch (1978), Techniques for nonlinear "
        "least squares and robust regression",
        example=partial(_example, n),
        dedicated=partial(_robust_pool, "welsch"),
        start=_median,
    )


@entry(n=1)
def truncated_quadratic_pooling(n: int = 10) -> Declaration:
    """The mean of the most inliers: ``phi(z; alpha) = min(z^2, alpha^2) / 2``.

    The parameters are ``x`` ``(n,)`` and ``alpha``, a positive scalar; the answer is the scalar
    ``u``, the global minimizer. The objective is neither convex nor smooth; iterative solvers find
    a local minimum, near the median of the points.

    Args:
        n: number of points.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import truncated_quadratic_pooling
        >>> x, alpha = torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([2.0])
        >>> truncated_quadratic_pooling(n=3).dedicated(x, alpha)
        (tensor([0.5000]),)
    """
    import cvxpy as cp

    x, alpha = cp.Parameter(n, name="x"), cp.Parameter(pos=True, name="alpha")
    u = cp.Variable(name="u")
    penalties = cp.minimum(cp.square(u - x), cp.square(alpha)) / 2
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum(penalties))),
        parameters=(x, alpha),
        variables=(u,),
        summary="robust mean under the truncated quadratic penalty",
        citation=_CITATION + "; the penalty: Blake and Zisserman (1987), Visual Reconstruction",
        example=partial(_example, n),
        dedicated=partial(_robust_pool, "truncated_quadratic"),
        start=_median,
    )


def _robust_pool(penalty: str, x: torch.Tensor, alpha: torch.Tensor) -> Tensors:
    return (robust_pool(x, penalty, alpha),)


def _median(x: torch.Tensor, alpha: torch.Tensor) -> Tensors:
    return (x.median(dim=-1).values,)


def _average(x: torch.Tensor) -> Tensors:
    return (x.mean(dim=-1),)


def _huber_mean(x: torch.Tensor, alpha: torch.Tensor) -> Tensors:
    """Root of ``g(u) = sum_i clamp(u - x_i, -alpha, alpha)``.

    Args:
        x: ``(..., n)``.
        alpha: ``(...)``.

    The answer has shape ``(...)``. ``g`` is nondecreasing and linear between the sorted knots
    ``x_i - alpha`` (a point becomes an inlier) and ``x_i + alpha`` (it ceases to be one); its slope
    is the number of inliers. On the piece that holds the root, ``g(u) = 0`` reads

        inliers * u = (sum of the inliers) + alpha * (points above - points below).
    """
    n = x.shape[-1]
    alpha = alpha.unsqueeze(-1)
    knots, order = torch.cat([x - alpha, x + alpha], dim=-1).sort(dim=-1, stable=True)  # (..., 2n)
    inliers = torch.where(order < n, 1, -1).cumsum(dim=-1)  # (..., 2n), right of each knot
    # Stopping after n knots without an inlier means n/2 points on either side: g = 0 between
    # the knots n and n + 1, exactly.
    flat = inliers[..., n - 1] == 0
    midpoint = (knots[..., n - 1] + knots[..., n]) / 2

    with torch.no_grad():
        rise = (inliers[..., :-1] * knots.diff(dim=-1)).cumsum(dim=-1)
        at_knots = torch.cat([torch.zeros_like(alpha), rise], dim=-1) - n * alpha  # g(knots)
        # The root lies to the right of the knots 0, ..., passed - 1, and of no other.
        passed = (at_knots <= 0).sum(dim=-1, keepdim=True).clamp(max=2 * n - 1)
    rank = order.argsort(dim=-1)  # of the knots x - alpha, then of the knots x + alpha
    above, below = rank[..., :n] >= passed, rank[..., n:] < passed
    inlier = ~(above | below)
    pull = above.sum(dim=-1) - below.sum(dim=-1)
    root = (x * inlier).sum(dim=-1) + alpha.squeeze(-1) * pull
    root = root / inlier.sum(dim=-1).clamp(min=1)  # none only if flat, where the root is not used
    return (torch.where(flat, midpoint, root),)


def _average_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    return (_example(n, batch, generator)[0],)


def _example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    """Outliers lie beyond 2 ``alpha`` from the Huber mean, inliers within 0.84 ``alpha``."""
    outlier = subset(generator, batch, n, n // 4)
    side = signs(generator, batch, n) * outlier  # (B, n)
    far = side * uniform(generator, batch, n, low=2.0, high=4.0)
    near = uniform(generator, batch, n, low=-0.25, high=0.25) * ~outlier
    # The inliers' sum balances the outliers' pull: the Huber mean is at the centre.
    excess = (near + side).sum(dim=1, keepdim=True) / (n - n // 4)
    alpha, centre = uniform(generator, batch, 1), uniform(generator, batch, 1, low=-2.0, high=2.0)
    return centre + alpha * (far + near - excess * ~outlier), alpha.squeeze(1)
