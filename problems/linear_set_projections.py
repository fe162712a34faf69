"""Euclidean projections onto sets that linear equalities and inequalities describe."""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.dedicated.projections.affine import halfspace, hyperplane
from ddn_cvx.dedicated.projections.birkhoff import birkhoff_polytope
from ddn_cvx.dedicated.projections.monotone import monotone_cone
from ddn_cvx.problems._entry import entry
from ddn_cvx.problems._sampling import Tensors, alternating, normal, subset, uniform


@entry(n=1, solution=hyperplane)
def hyperplane_projection(n: int = 10) -> Declaration:
    """Project ``x`` ``(n,)`` onto the hyperplane ``{u : normal' u = offset}``.

    The parameters are ``x``, ``normal`` ``(n,)``, not zero, and ``offset``, a scalar.

    Args:
        n: length of ``x``.

    Example:
        >>> from ddn_cvx.problems import hyperplane_projection
        >>> [parameter.name() for parameter in hyperplane_projection(n=2).parameters]
        ['x', 'normal', 'offset']
    """
    import cvxpy as cp

    x, normal_ = cp.Parameter(n, name="x"), cp.Parameter(n, name="normal")
    offset, u = cp.Parameter(name="offset"), cp.Variable(n, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [normal_ @ u == offset]),
        parameters=(x, normal_, offset),
        variables=(u,),
        summary="Euclidean projection onto a hyperplane",
        citation="Beck (2017), First-Order Methods in Optimization, section 6.4",
        example=partial(_hyperplane_example, n),
    )


@entry(n=1, solution=halfspace)
def halfspace_projection(n: int = 10) -> Declaration:
    """Project ``x`` ``(n,)`` onto the halfspace ``{u : normal' u <= offset}``.

    The parameters are ``x``, ``normal`` ``(n,)``, not zero, and ``offset``, a scalar.

    Args:
        n: length of ``x``.

    Example:
        >>> from ddn_cvx.problems import halfspace_projection
        >>> halfspace_projection(n=3).variables[0].shape
        (3,)
    """
    import cvxpy as cp

    x, normal_ = cp.Parameter(n, name="x"), cp.Parameter(n, name="normal")
    offset, u = cp.Parameter(name="offset"), cp.Variable(n, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [normal_ @ u <= offset]),
        parameters=(x, normal_, offset),
        variables=(u,),
        summary="Euclidean projection onto a halfspace",
        citation="Beck (2017), First-Order Methods in Optimization, section 6.4",
        example=partial(_halfspace_example, n),
    )


@entry(n=1, solution=monotone_cone)
def isotonic_regression(n: int = 10) -> Declaration:
    """Project ``x`` ``(n,)`` onto the monotone cone ``{u : u_1 <= ... <= u_n}``.

    Args:
        n: length of ``x``.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import isotonic_regression
        >>> isotonic_regression(n=3).closed_form(torch.tensor([[2.0, 1.0, 4.0]]))
        (tensor([[1.5000, 1.5000, 4.0000]]),)
    """
    import cvxpy as cp

    x, u = cp.Parameter(n, name="x"), cp.Variable(n, name="u")
    ordered = [u[:-1] <= u[1:]] if n > 1 else []
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(u - x)), ordered),
        parameters=(x,),
        variables=(u,),
        summary="Euclidean projection onto the nondecreasing sequences",
        citation="Best and Chakravarti (1990), Active set algorithms for isotonic regression; a "
        "unifying framework",
        example=partial(_isotonic_example, n),
    )


@entry(n=1, solution=birkhoff_polytope)
def birkhoff_projection(n: int = 4) -> Declaration:
    """Project ``X`` ``(n, n)`` onto the doubly stochastic matrices, the Birkhoff polytope.

    Args:
        n: size of ``X``.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import birkhoff_projection
        >>> birkhoff_projection(n=2).closed_form(torch.zeros(1, 2, 2))
        (tensor([[[0.5000, 0.5000],
                 [0.5000, 0.5000]]]),)
    """
    import cvxpy as cp

    X, U = cp.Parameter((n, n), name="X"), cp.Variable((n, n), name="U")
    sums = [cp.sum(U, axis=0) == 1, cp.sum(U, axis=1) == 1]
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(U - X)), [U >= 0, *sums]),
        parameters=(X,),
        variables=(U,),
        summary="Euclidean projection onto the doubly stochastic matrices",
        citation="Li, Sun and Toh (2020), On the efficient computation of a generalized Jacobian "
        "of the projector over the Birkhoff polytope",
        example=partial(_birkhoff_example, n),
    )


def _hyperplane_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    x, direction = normal(generator, batch, n), normal(generator, batch, n)
    return x, direction, normal(generator, batch)


def _halfspace_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    x, direction = normal(generator, batch, n), normal(generator, batch, n)
    # The odd elements are inside.
    slack = uniform(generator, batch) * alternating(batch, even=-1.0, odd=1.0)
    return x, direction, (direction * x).sum(dim=1) + slack


def _isotonic_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    # Pairs of neighbours: half of them in the wrong order, all apart from the next pair.
    pairs = (n + 1) // 2
    level = (2 * uniform(generator, batch, pairs)).cumsum(dim=1)
    wrong = subset(generator, batch, pairs, (pairs + 1) // 2)
    half = uniform(generator, batch, pairs, low=0.1, high=0.4)
    half = torch.where(wrong, half, -half)
    x = torch.stack([level + half, level - half], dim=2).flatten(1)
    return (x[:, :n],)


def _birkhoff_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    # The answer's support is a cycle, which connects all rows and columns.
    share = uniform(generator, batch, 1, 1, low=0.3, high=0.7)
    identity = torch.eye(n, dtype=torch.float64)
    U = share * identity + (1 - share) * identity.roll(1, dims=1)
    multiplier = uniform(generator, batch, n, n) * (U == 0)
    return (U + normal(generator, batch, n, 1) + normal(generator, batch, 1, n) - multiplier,)
