"""Problems with an entropy or a logarithmic barrier in the objective."""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.problems._entry import check_size, entry
from ddn_cvx.problems._sampling import Tensors, normal, times, uniform


@entry(n=1)
def entropic_linear_program(n: int = 8, m: int = 3) -> Declaration:
    """Minimize ``c' u + gamma sum_i u_i log(u_i)`` subject to ``A u = b``.

    A linear program with nonnegative variables, smoothed: ``u >= 0`` is the entropy's domain, and
    every ``u_i`` is positive. The parameters are ``A`` ``(m, n)``, ``b`` ``(m,)``, ``c`` ``(n,)``
    and ``gamma``, a positive scalar; the answer is ``u`` ``(n,)``. There is no closed form, except
    for :func:`softmax`, where ``A`` is a row of ones.

    Args:
        n: number of variables.
        m: number of equalities, at most ``n``.

    Example:
        >>> from ddn_cvx.problems import entropic_linear_program
        >>> [parameter.name() for parameter in entropic_linear_program(n=3, m=1).parameters]
        ['A', 'b', 'c', 'gamma']
    """
    import cvxpy as cp

    check_size("m", m, maximum=n)
    A, b = cp.Parameter((m, n), name="A"), cp.Parameter(m, name="b")
    c, gamma = cp.Parameter(n, name="c"), cp.Parameter(pos=True, name="gamma")
    u = cp.Variable(n, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(c @ u - gamma * cp.sum(cp.entr(u))), [A @ u == b]),
        parameters=(A, b, c, gamma),
        variables=(u,),
        summary="linear program in standard form with an entropy regularisation",
        citation="Fang, Rajasekera and Tsao (1997), Entropy Optimization and Mathematical "
        "Programming; for transport: Cuturi (2013), Sinkhorn distances",
        example=partial(_entropic_example, n, m),
        start=partial(_ones, n),
    )


@entry(n=1)
def softmax(n: int = 10) -> Declaration:
    """The softmax of ``x / gamma``: maximize ``x' u + gamma entropy(u)`` on the simplex.

    The parameters are ``x`` ``(n,)`` and ``gamma``, a positive scalar (the temperature); the answer
    is ``u`` ``(n,)``, positive, with sum one.

    Args:
        n: number of classes.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import softmax
        >>> softmax(n=2).closed_form(torch.tensor([[1.0, 1.0]]), torch.tensor([3.0]))
        (tensor([[0.5000, 0.5000]]),)
    """
    import cvxpy as cp

    x, gamma = cp.Parameter(n, name="x"), cp.Parameter(pos=True, name="gamma")
    u = cp.Variable(n, name="u")
    return Declaration(
        cp.Problem(cp.Maximize(x @ u + gamma * cp.sum(cp.entr(u))), [cp.sum(u) == 1]),
        parameters=(x, gamma),
        variables=(u,),
        summary="softmax, as the maximizer of an entropy-regularised linear function",
        citation="Boyd and Vandenberghe (2004), Convex Optimization, example 3.25; as a layer: "
        "Agrawal et al. (2019), Differentiable convex optimization layers",
        example=partial(_softmax_example, n),
        closed_form=_softmax,
        start=partial(_ones, n),
    )


@entry(n=1)
def analytic_center(n: int = 3, m: int = 10) -> Declaration:
    """The analytic centre of ``{u : A u <= b}``: minimize ``-sum_i log(b_i - a_i' u)``.

    The parameters are ``A`` ``(m, n)`` and ``b`` ``(m,)``, for a bounded set with interior; the
    answer is ``u`` ``(n,)``. There is no closed form.

    Args:
        n: number of variables.
        m: number of inequalities, more than ``n``, or the set is not bounded.

    Example:
        >>> from ddn_cvx.problems import analytic_center
        >>> analytic_center(n=2, m=5).parameters[0].shape
        (5, 2)
    """
    import cvxpy as cp

    check_size("m", m, minimum=n + 1)
    A, b = cp.Parameter((m, n), name="A"), cp.Parameter(m, name="b")
    u = cp.Variable(n, name="u")
    return Declaration(
        cp.Problem(cp.Minimize(-cp.sum(cp.log(b - A @ u)))),
        parameters=(A, b),
        variables=(u,),
        summary="analytic centre of a polytope whose inequalities are parameters",
        citation="Boyd and Vandenberghe (2004), Convex Optimization, section 8.5.3",
        example=partial(_center_example, n, m),
        start=_inside,
    )


def _inside(A: torch.Tensor, b: torch.Tensor) -> Tensors:
    """A point with ``A u < b``, by reflections at the halfspace that is violated most.

    Motzkin and Schoenberg, "The relaxation method for linear inequalities" (1954): finitely many
    where the set has an interior. The last point, if so many are not enough.
    """
    size = A.norm(dim=-1)
    A, b = A / size.unsqueeze(-1), b / size
    u = A.new_zeros(len(A), A.shape[-1])
    with torch.no_grad():
        for _ in range(10_000):
            violation, row = (times(A, u) - b).max(dim=-1)
            outside = violation >= 0
            if not bool(outside.any()):
                break
            normal_ = A[torch.arange(len(A)), row]
            # The boundary is outside too.
            distance = (2 * violation).clamp_min(1e-9) * outside
            u = u - distance.unsqueeze(-1) * normal_
    return (u,)


def _softmax(x: torch.Tensor, gamma: torch.Tensor) -> Tensors:
    return (torch.softmax(x / gamma.unsqueeze(-1), dim=-1),)


def _ones(n: int, first: torch.Tensor, *others: torch.Tensor) -> Tensors:
    """Inside the entropy's domain."""
    return (first.new_ones(len(first), n),)


def _entropic_example(n: int, m: int, batch: int, generator: torch.Generator) -> Tensors:
    # Stationarity: c + gamma (log(u) + 1) + A' nu = 0.
    A, u = normal(generator, batch, m, n), uniform(generator, batch, n)
    gamma, dual = uniform(generator, batch), normal(generator, batch, m)
    c = -gamma.unsqueeze(1) * (u.log() + 1) - times(A.mT, dual)
    return A, times(A, u), c, gamma


def _softmax_example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    return normal(generator, batch, n), uniform(generator, batch)


def _center_example(n: int, m: int, batch: int, generator: torch.Generator) -> Tensors:
    # Stationarity: sum_i a_i / slack_i = 0, which also bounds the set.
    slack, u = uniform(generator, batch, m), normal(generator, batch, n)
    A = normal(generator, batch, m, n)
    A = A - slack.unsqueeze(2) * (A / slack.unsqueeze(2)).mean(dim=1, keepdim=True)
    return A, times(A, u) + slack
