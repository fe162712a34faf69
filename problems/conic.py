"""The cone program in standard form, all of its data parameters."""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.errors import DeclarationError
from ddn_cvx.problems._entry import check_size, entry
from ddn_cvx.problems._sampling import Tensors, normal, subset, times, uniform


@entry(n=1, equality=0, nonnegative=0)
def cone_program(
    n: int = 8, equality: int = 2, nonnegative: int = 6, second_order: tuple[int, ...] = (4, 3)
) -> Declaration:
    """Minimize ``c' u`` subject to ``b - A u`` in ``{0} x R_+ x Q x ... x Q``.

    The parameters are ``A`` ``(m, n)``, ``b`` ``(m,)`` and ``c`` ``(n,)``, where ``m`` is the sum
    of the cones' dimensions and the rows come in the order of the arguments; the answer is ``u``
    ``(n,)``. ``Q`` is the second-order cone of the ``(t, z)`` with ``|z| <= t``.

    Args:
        n: number of variables.
        equality: number of rows that are equalities.
        nonnegative: number of rows that are inequalities.
        second_order: dimension of each second-order cone, two or more.

    Raises:
        DeclarationError: a size is out of its range, or no such program has an isolated answer
            with unique multipliers.

    Example:
        >>> from ddn_cvx.problems import cone_program
        >>> cone_program(n=4, equality=1, nonnegative=3, second_order=(3,)).parameters[0].shape
        (7, 4)
    """
    import cvxpy as cp

    cones = (equality, nonnegative, tuple(second_order))
    active = _active_inequalities(n, *cones)
    m = equality + nonnegative + sum(second_order)
    A, b = cp.Parameter((m, n), name="A"), cp.Parameter(m, name="b")
    c = cp.Parameter(n, name="c")
    u = cp.Variable(n, name="u")
    slack = b - A @ u
    constraints: list[cp.Constraint] = []
    if equality:
        constraints.append(slack[:equality] == 0)
    if nonnegative:
        constraints.append(slack[equality : equality + nonnegative] >= 0)
    start = equality + nonnegative
    for dimension in second_order:
        constraints.append(cp.SOC(slack[start], slack[start + 1 : start + dimension]))
        start += dimension
    return Declaration(
        cp.Problem(cp.Minimize(c @ u), constraints),
        parameters=(A, b, c),
        variables=(u,),
        summary="cone program with zero, nonnegative and second-order cones, all data parameters",
        citation="O'Donoghue, Chu, Parikh and Boyd (2016), Conic optimization via operator "
        "splitting, problem (1); its derivative: Agrawal, Barratt, Boyd, Busseti and Moursi "
        "(2019), Differentiating through a cone program",
        example=partial(_example, n, *cones, active),
    )


def _active_inequalities(
    n: int, equality: int, nonnegative: int, second_order: tuple[int, ...]
) -> int:
    """How many inequalities the example makes active, so that its derivative exists.

    At the example's answer every second-order cone is met at its boundary: one normal, and a
    curvature of rank ``dimension - 2``. Multipliers are unique if the normals are at most ``n``;
    the answer is isolated if normals and curvature together reach ``n``.
    """
    for position, dimension in enumerate(second_order):
        check_size(f"second_order[{position}]", dimension, minimum=2)
    fewest = max(0, n - equality - sum(dimension - 1 for dimension in second_order))
    most = min(nonnegative, n - equality - len(second_order))
    if fewest > most:
        raise DeclarationError(
            "the cones do not fit n: `equality` plus the number of second-order cones must be at "
            "most n, and the rows, less one for each second-order cone, at least n; got "
            f"n={n}, equality={equality}, nonnegative={nonnegative}, second_order={second_order}."
        )
    return (fewest + most) // 2


def _example(
    n: int,
    equality: int,
    nonnegative: int,
    second_order: tuple[int, ...],
    active_inequalities: int,
    batch: int,
    generator: torch.Generator,
) -> Tensors:
    active = subset(generator, batch, nonnegative, active_inequalities)
    slack = [
        torch.zeros(batch, equality, dtype=torch.float64),
        uniform(generator, batch, nonnegative) * ~active,
    ]
    dual = [
        normal(generator, batch, equality),
        uniform(generator, batch, nonnegative) * active,
    ]
    for dimension in second_order:
        direction = torch.nn.functional.normalize(normal(generator, batch, dimension - 1), dim=1)
        apex = torch.ones(batch, 1, dtype=torch.float64)
        slack.append(uniform(generator, batch, 1) * torch.cat([apex, direction], dim=1))
        dual.append(uniform(generator, batch, 1) * torch.cat([apex, -direction], dim=1))
    m = equality + nonnegative + sum(second_order)
    A, u = normal(generator, batch, m, n), normal(generator, batch, n)
    return A, times(A, u) + torch.cat(slack, dim=1), -times(A.mT, torch.cat(dual, dim=1))
