"""Euclidean projections: the point of a convex set that is nearest to the input ``x``."""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.dedicated.projections import box, l1_ball, l2_ball, l2_sphere, linf_ball, simplex
from ddn_cvx.problems._entry import check_size, entry
from ddn_cvx.problems._sampling import Tensors, alternating, normal, signs, subset, times, uniform


@entry(n=1, solution=torch.relu)
def orthant_projection(n: int = 10) -> Declaration:
    """Project ``x`` ``(n,)`` onto the nonnegative orthant ``{u : u >= 0}``.

    Args:
        n: length of ``x``.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import orthant_projection
        >>> orthant_projection(n=2).closed_form(torch.tensor([[-1.0, 3.0]]))
        (tensor([[0., 3.]]),)
    """
    import cvxpy as cp

    x, u = cp.Parameter(n, name="x"), cp.Variable(n, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0]),
        parameters=(x,),
        variables=(u,),
        summary="Euclidean projection onto the nonnegative orthant",
        citation="Beck (2017), First-Order Methods in Optimization, section 6.4; as a layer (the "
        "rectified linear unit): Agrawal et al. (2019), Differentiable convex optimization layers",
        example=partial(_orthant_example, n),
    )


@entry(n=1, solution=box)
def box_projection(n: int = 10) -> Declaration:
    """Project ``x`` ``(n,)`` onto the box ``{u : lower <= u <= upper}``.

    The parameters are ``x``, ``lower`` and ``upper``, each ``(n,)``.

    Args:
        n: length of ``x``.

    Example:
        >>> from ddn_cvx.problems import box_projection
        >>> [parameter.name() for parameter in box_projection(n=2).parameters]
        ['x', 'lower', 'upper']
    """
    import cvxpy as cp

    x = cp.Parameter(n, name="x")
    lower, upper = cp.Parameter(n, name="lower"), cp.Parameter(n, name="upper")
    u = cp.Variable(n, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [lower <= u, u <= upper]),
        parameters=(x, lower, upper),
        variables=(u,),
        summary="Euclidean projection onto a box whose bounds are parameters",
        citation="Boyd and Vandenberghe (2004), Convex Optimization, section 8.1.1",
        example=partial(_box_example, n),
    )


@entry(n=1, solution=linf_ball)
def linf_ball_projection(n: int = 10) -> Declaration:
    """Project ``x`` ``(n,)`` onto the max-norm ball ``{u : max |u_i| <= radius}``.

    The parameters are ``x`` and ``radius``, a nonnegative scalar.

    Args:
        n: length of ``x``.

    Example:
        >>> from ddn_cvx.problems import linf_ball_projection
        >>> linf_ball_projection(n=3).variables[0].shape
        (3,)
    """
    import cvxpy as cp

    x, radius = cp.Parameter(n, name="x"), cp.Parameter(nonneg=True, name="radius")
    u = cp.Variable(n, name="u")
    return Declaration(
        # Two-sided bounds rather than cp.norm_inf: its epigraph variable is not unique inside.
        cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [-radius <= u, u <= radius]),
        parameters=(x, radius),
        variables=(u,),
        summary="Euclidean projection onto the max-norm ball",
        citation="Boyd and Vandenberghe (2004), Convex Optimization, section 8.1.1",
        example=partial(_linf_ball_example, n),
    )


@entry(n=1, solution=l2_ball)
def l2_ball_projection(n: int = 10) -> Declaration:
    """Project ``x`` ``(n,)`` onto the Euclidean ball ``{u : |u| <= radius}``.

    The parameters are ``x`` and ``radius``, a nonnegative scalar.

    Args:
        n: length of ``x``.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import l2_ball_projection
        >>> x, radius = torch.tensor([[3.0, 4.0]]), torch.tensor([10.0])
        >>> l2_ball_projection(n=2).closed_form(x, radius)
        (tensor([[3., 4.]]),)
    """
    import cvxpy as cp

    x, radius = cp.Parameter(n, name="x"), cp.Parameter(nonneg=True, name="radius")
    u = cp.Variable(n, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [cp.norm2(u) <= radius]),
        parameters=(x, radius),
        variables=(u,),
        summary="Euclidean projection onto the Euclidean ball",
        citation="Beck (2017), First-Order Methods in Optimization, section 6.4",
        example=partial(_l2_ball_example, n),
    )


@entry(n=1, solution=l1_ball)
def l1_ball_projection(n: int = 10) -> Declaration:
    """Project ``x`` ``(n,)`` onto the cross-polytope ``{u : sum |u_i| <= radius}``.

    The parameters are ``x`` and ``radius``, a nonnegative scalar.

    Args:
        n: length of ``x``.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import l1_ball_projection
        >>> x, radius = torch.tensor([[3.0, -1.0]]), torch.tensor([2.0])
        >>> l1_ball_projection(n=2).closed_form(x, radius)
        (tensor([[2., -0.]]),)
    """
    import cvxpy as cp

    x, radius = cp.Parameter(n, name="x"), cp.Parameter(nonneg=True, name="radius")
    u = cp.Variable(n, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [cp.norm1(u) <= radius]),
        parameters=(x, radius),
        variables=(u,),
        summary="Euclidean projection onto the L1 ball",
        citation="Duchi, Shalev-Shwartz, Singer and Chandra (2008), Efficient projections onto "
        "the l1-ball for learning in high dimensions, section 4",
        example=partial(_l1_ball_example, n),
    )


@entry(n=1, solution=simplex)
def simplex_projection(n: int = 10) -> Declaration:
    """Project ``x`` ``(n,)`` onto the simplex ``{u : u >= 0, sum(u) = radius}``.

    The parameters are ``x`` and ``radius``, a nonnegative scalar: one for probabilities.

    Args:
        n: length of ``x``.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import simplex_projection
        >>> simplex_projection(n=2).closed_form(torch.tensor([[3.0, 3.0]]), torch.tensor([1.0]))
        (tensor([[0.5000, 0.5000]]),)
    """
    import cvxpy as cp

    x, radius = cp.Parameter(n, name="x"), cp.Parameter(nonneg=True, name="radius")
    u = cp.Variable(n, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0, cp.sum(u) == radius]),
        parameters=(x, radius),
        variables=(u,),
        summary="Euclidean projection onto the simplex",
        citation="Held, Wolfe and Crowder (1974), Validation of subgradient optimization; Duchi, "
        "Shalev-Shwartz, Singer and Chandra (2008), figure 1",
        example=partial(_simplex_example, n),
    )


@entry(n=1, m=1)
def polyhedron_projection(n: int = 10, m: int = 15, p: int = 0) -> Declaration:
    """Project ``x`` ``(n,)`` onto the polyhedron ``{u : G u <= h}``, or ``{A u = b, G u <= h}``.

    The parameters are ``x``, ``G`` ``(m, n)``, ``h`` ``(m,)`` and, if there are equalities, ``A``
    ``(p, n)`` and ``b`` ``(p,)``. There is no closed form.

    Args:
        n: length of ``x``.
        m: number of halfspaces.
        p: number of equalities, less than ``n``.

    Example:
        >>> from ddn_cvx.problems import polyhedron_projection
        >>> [tuple(tensor.shape) for tensor in polyhedron_projection(n=2, m=3).inputs(batch=4)]
        [(4, 2), (4, 3, 2), (4, 3)]
    """
    import cvxpy as cp

    check_size("p", p, minimum=0, maximum=max(n - 1, 0))
    x = cp.Parameter(n, name="x")
    G, h = cp.Parameter((m, n), name="G"), cp.Parameter(m, name="h")
    u = cp.Variable(n, name="u")
    parameters: tuple[cp.Parameter, ...] = (x, G, h)
    constraints: list[cp.Constraint] = [G @ u <= h]
    if p:
        A, b = cp.Parameter((p, n), name="A"), cp.Parameter(p, name="b")
        parameters += (A, b)
        constraints.append(A @ u == b)
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(u - x)), constraints),
        parameters=parameters,
        variables=(u,),
        summary="Euclidean projection onto a polyhedron whose halfspaces are parameters",
        citation="Boyd and Vandenberghe (2004), Convex Optimization, section 8.1.1",
        example=partial(_polyhedron_example, n, m, p),
    )


def _orthant_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    return (signs(generator, batch, n) * uniform(generator, batch, n),)


def _off_boundary(n: int, batch: int, generator: torch.Generator) -> torch.Tensor:
    """``(batch, n)``: half of the magnitudes clearly below one, the others clearly above."""
    outside = subset(generator, batch, n, (n + 1) // 2)
    magnitude = uniform(generator, batch, n, low=0.2, high=0.8) + outside
    return signs(generator, batch, n) * magnitude


def _box_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    centre, halfwidth = normal(generator, batch, n), uniform(generator, batch, n)
    x = centre + halfwidth * _off_boundary(n, batch, generator)
    return x, centre - halfwidth, centre + halfwidth


def _linf_ball_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    radius = uniform(generator, batch)
    return radius.unsqueeze(1) * _off_boundary(n, batch, generator), radius


def _l2_ball_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    x = signs(generator, batch, n) * uniform(generator, batch, n)
    return x, torch.linalg.vector_norm(x, dim=1) * alternating(batch, even=0.5, odd=1.5)


def _l1_ball_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    support = subset(generator, batch, n, (n + 1) // 2)
    u = uniform(generator, batch, n) * support
    threshold = uniform(generator, batch, 1)
    below_threshold = uniform(generator, batch, n, low=0.2, high=0.8)
    magnitude = u + threshold * torch.where(support, 1.0, below_threshold)
    # The odd elements are inside the ball.
    inside = alternating(batch, even=0.0, odd=1.0) > 0
    radius = torch.where(inside, 1.5 * magnitude.sum(dim=1), u.sum(dim=1))
    return signs(generator, batch, n) * magnitude, radius


def _simplex_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    support = subset(generator, batch, n, (n + 1) // 2)
    u = uniform(generator, batch, n) * support
    multiplier = uniform(generator, batch, n) * ~support
    return u - multiplier + normal(generator, batch, 1), u.sum(dim=1)


def _polyhedron_example(n: int, m: int, p: int, batch: int, generator: torch.Generator) -> Tensors:
    active = subset(generator, batch, m, (min(m, n - p) + 1) // 2)
    multiplier = uniform(generator, batch, m) * active
    slack = uniform(generator, batch, m) * ~active
    u, G = normal(generator, batch, n), normal(generator, batch, m, n)
    x, h = u + times(G.mT, multiplier), times(G, u) + slack
    if p == 0:
        return x, G, h
    A = normal(generator, batch, p, n)
    return x + times(A.mT, normal(generator, batch, p)), G, h, A, times(A, u)


@entry(n=1, solution=l2_sphere)
def sphere_projection(n: int = 10) -> Declaration:
    """Project ``x`` ``(n,)`` onto the unit sphere ``{u : |u| = 1}``, which is not convex.

    Args:
        n: length of ``x``.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import sphere_projection
        >>> sphere_projection(n=2).closed_form(torch.tensor([[3.0, 4.0]]))
        (tensor([[0.6000, 0.8000]]),)
    """
    import cvxpy as cp

    x, u = cp.Parameter(n, name="x"), cp.Variable(n, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [cp.sum_squares(u) == 1]),
        parameters=(x,),
        variables=(u,),
        summary="Euclidean projection onto the unit sphere",
        citation="Gould, Hartley and Campbell (2022), Deep declarative networks, section 5.2",
        example=partial(_sphere_example, n),
        start=_itself,
    )


def _itself(x: torch.Tensor) -> Tensors:
    return (x,)


def _sphere_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    x = normal(generator, batch, n)
    return (uniform(generator, batch, 1) * x / x.norm(dim=1, keepdim=True),)
