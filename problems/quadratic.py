"""The convex quadratic program, all of its data parameters."""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.problems._entry import check_size, entry
from ddn_cvx.problems._sampling import Tensors, normal, subset, times, uniform


@entry(n=1, m=1)
def quadratic_program(n: int = 10, m: int = 5, p: int = 2) -> Declaration:
    """Minimize ``1/2 u' P u + q' u`` subject to ``A u = b`` and ``G u <= h``.

    The parameters are ``P`` ``(n, n)``, symmetric positive semidefinite, ``q`` ``(n,)``,
    ``A`` ``(p, n)``, ``b`` ``(p,)``, ``G`` ``(m, n)`` and ``h`` ``(m,)``; the answer is ``u``
    ``(n,)``. cvxpy calls the problem DPP only within ``quad_form_dpp_scope``, because ``P`` is a
    parameter.

    Args:
        n: number of variables.
        m: number of inequalities.
        p: number of equalities, at most ``n``.

    Example:
        >>> from ddn_cvx.problems import quadratic_program
        >>> [parameter.name() for parameter in quadratic_program(n=3, m=2, p=1).parameters]
        ['P', 'q', 'A', 'b', 'G', 'h']
    """
    import cvxpy as cp

    check_size("p", p, maximum=n)
    P = cp.Parameter((n, n), PSD=True, name="P")
    q = cp.Parameter(n, name="q")
    A, b = cp.Parameter((p, n), name="A"), cp.Parameter(p, name="b")
    G, h = cp.Parameter((m, n), name="G"), cp.Parameter(m, name="h")
    u = cp.Variable(n, name="u")
    objective = cp.Minimize(cp.quad_form(u, P) / 2 + q @ u)
    return Declaration(
        cp.Problem(objective, [A @ u == b, G @ u <= h]),
        parameters=(P, q, A, b, G, h),
        variables=(u,),
        summary="convex quadratic program with equalities and inequalities, all data parameters",
        citation="Boyd and Vandenberghe (2004), Convex Optimization, problem (4.34); as a layer: "
        "Amos and Kolter (2017), OptNet, equation (2)",
        example=partial(_example, n, m, p),
    )


def _example(n: int, m: int, p: int, batch: int, generator: torch.Generator) -> Tensors:
    factor = normal(generator, batch, n, n)
    P = factor @ factor.mT / n + 0.5 * torch.eye(n, dtype=torch.float64)  # (B, n, n)
    A, G = normal(generator, batch, p, n), normal(generator, batch, m, n)
    u, equality_dual = normal(generator, batch, n), normal(generator, batch, p)
    # p + active <= n: the active constraints are linearly independent, so multipliers are unique.
    active = subset(generator, batch, m, (min(m, n - p) + 1) // 2)  # (B, m)
    inequality_dual = uniform(generator, batch, m) * active
    slack = uniform(generator, batch, m) * ~active
    q = -times(P, u) - times(A.mT, equality_dual) - times(G.mT, inequality_dual)
    return P, q, A, times(A, u), G, times(G, u) + slack
