"""Euclidean projections onto cones."""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.dedicated.projections.cones import (
    exponential_cone,
    positive_semidefinite_cone,
    second_order_cone,
)
from ddn_cvx.problems._entry import entry
from ddn_cvx.problems._sampling import Tensors, alternating, normal, signs, uniform


@entry(n=2, solution=second_order_cone)
def second_order_cone_projection(n: int = 6) -> Declaration:
    """Project ``x`` ``(n,)`` onto the second-order cone ``{(t, z) : |z| <= t}``, ``t`` first.

    Args:
        n: length of ``x``, at least 2.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import second_order_cone_projection
        >>> second_order_cone_projection(n=2).closed_form(torch.tensor([[0.0, 2.0]]))
        (tensor([[1., 1.]]),)
    """
    import cvxpy as cp

    x, u = cp.Parameter(n, name="x"), cp.Variable(n, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [cp.SOC(u[0], u[1:])]),
        parameters=(x,),
        variables=(u,),
        summary="Euclidean projection onto the second-order cone",
        citation="Parikh and Boyd (2014), Proximal algorithms, section 6.3.2",
        example=partial(_second_order_example, n),
    )


@entry(n=1, solution=positive_semidefinite_cone)
def semidefinite_cone_projection(n: int = 4) -> Declaration:
    """Project ``X`` ``(n, n)`` onto the positive semidefinite matrices.

    Args:
        n: size of ``X``; of which only the symmetric part matters.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import semidefinite_cone_projection
        >>> semidefinite_cone_projection(n=1).closed_form(torch.tensor([[[-2.0]]]))
        (tensor([[[0.]]]),)
    """
    import cvxpy as cp

    X, U = cp.Parameter((n, n), name="X"), cp.Variable((n, n), symmetric=True, name="U")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(U - X)), [U >> 0]),
        parameters=(X,),
        variables=(U,),
        summary="Euclidean projection onto the positive semidefinite matrices",
        citation="Higham (1988), Computing a nearest symmetric positive semidefinite matrix",
        example=partial(_semidefinite_example, n),
    )


@entry(n=1, solution=exponential_cone)
def exponential_cone_projection(n: int = 1) -> Declaration:
    """Project each row of ``x`` ``(n, 3)`` onto ``cl {(r, s, t) : s > 0, s exp(r / s) <= t}``.

    Args:
        n: number of cones.

    Example:
        >>> from ddn_cvx.problems import exponential_cone_projection
        >>> exponential_cone_projection(n=2).variables[0].shape
        (2, 3)
    """
    import cvxpy as cp

    x, u = cp.Parameter((n, 3), name="x"), cp.Variable((n, 3), name="u")
    cone = cp.ExpCone(u[:, 0], u[:, 1], u[:, 2])
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [cone]),
        parameters=(x,),
        variables=(u,),
        summary="Euclidean projection onto the exponential cone",
        citation="Friberg (2021), Projection onto the exponential cone: a univariate root-finding "
        "problem",
        example=partial(_exponential_example, n),
    )


def _second_order_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    z = normal(generator, batch, n - 1)
    z = z / z.norm(dim=1, keepdim=True)
    # The odd elements are inside.
    height = alternating(batch, even=0.3, odd=1.5).unsqueeze(1)
    return (uniform(generator, batch, 1) * torch.cat([height, z], dim=1),)


def _semidefinite_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    V = torch.linalg.qr(normal(generator, batch, n, n)).Q
    eigenvalues = uniform(generator, batch, n) * signs(generator, batch, n)
    return ((V * eigenvalues.unsqueeze(1)) @ V.mT,)


def _exponential_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    # A ray of the surface and its outer normal.
    ratio = uniform(generator, batch, n, low=-1.0, high=1.0)
    along, outward = uniform(generator, batch, n), uniform(generator, batch, n)
    r = along * ratio + outward
    s = along + outward * (1 - ratio)
    t = along * ratio.exp() - outward * (-ratio).exp()
    return (torch.stack([r, s, t], dim=2),)
