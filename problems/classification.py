"""Classification as an optimization problem."""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.problems._entry import entry
from ddn_cvx.problems._sampling import Tensors, normal, signs, times, uniform


@entry(n=1, m=1)
def ridge_logistic_regression(n: int = 20, m: int = 5) -> Declaration:
    """Weights of a linear classifier: ``minimize sum_i log(1 + exp(-a_i' u)) + ridge/2 |u|^2``.

    The parameters are ``A`` ``(n, m)``, whose row ``a_i`` is the i-th sample times its label (one
    or minus one), and ``ridge``, a positive scalar; the answer is ``u`` ``(m,)``.

    Args:
        n: number of samples.
        m: number of features.

    Example:
        >>> from ddn_cvx.problems import ridge_logistic_regression
        >>> ridge_logistic_regression(n=9, m=2).variables[0].shape
        (2,)
    """
    import cvxpy as cp

    A, ridge = cp.Parameter((n, m), name="A"), cp.Parameter(pos=True, name="ridge")
    u = cp.Variable(m, name="u")
    loss = cp.sum(cp.logistic(-A @ u))
    return Declaration(
        cp.Problem(cp.Minimize(loss + ridge * cp.sum_squares(u) / 2)),
        parameters=(A, ridge),
        variables=(u,),
        summary="logistic regression with a quadratic penalty",
        citation="Boyd and Vandenberghe (2004), Convex Optimization, section 7.1.1",
        example=partial(_example, n, m),
    )


def _example(n: int, m: int, batch: int, generator: torch.Generator) -> Tensors:
    samples, truth = normal(generator, batch, n, m), normal(generator, batch, m)
    noisy = times(samples, truth) + 0.5 * signs(generator, batch, n)
    label = torch.where(noisy >= 0, 1.0, -1.0)
    return samples * label.unsqueeze(2), uniform(generator, batch)
