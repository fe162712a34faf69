"""Denoising of sequences."""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.dedicated.projections import total_variation
from ddn_cvx.problems._entry import entry
from ddn_cvx.problems._sampling import Tensors, signs, subset, uniform


@entry(n=2, solution=total_variation)
def total_variation_denoising(n: int = 10) -> Declaration:
    """Minimize ``1/2 |u - x|^2 + weight sum_i |u_{i+1} - u_i|``.

    The parameters are ``x`` ``(n,)`` and ``weight``, a nonnegative scalar; the answer is ``u``
    ``(n,)``, piecewise constant.

    Args:
        n: length of ``x``, at least 2.

    Example:
        >>> import torch
        >>> from ddn_cvx.problems import total_variation_denoising
        >>> x, weight = torch.tensor([[0.0, 3.0]]), torch.tensor([1.0])
        >>> total_variation_denoising(n=2).closed_form(x, weight)
        (tensor([[1., 2.]]),)
    """
    import cvxpy as cp

    x, weight = cp.Parameter(n, name="x"), cp.Parameter(nonneg=True, name="weight")
    u = cp.Variable(n, name="u")
    jumps = cp.norm1(u[1:] - u[:-1])
    return Declaration(
        cp.Problem(cp.Minimize(cp.sum_squares(u - x) / 2 + weight * jumps)),
        parameters=(x, weight),
        variables=(u,),
        summary="one-dimensional total-variation denoising (the fused lasso's signal part)",
        citation="Rudin, Osher and Fatemi (1992), Nonlinear total variation based noise removal "
        "algorithms; Johnson (2013), A dynamic programming algorithm for the fused lasso and "
        "L0-segmentation",
        example=partial(_example, n),
    )


def _example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    # Stationarity: u_i - x_i + weight (s_{i-1} - s_i) = 0, with s the sign of a jump, or between.
    weight = uniform(generator, batch)
    jumps = subset(generator, batch, n - 1, n // 2)
    side = signs(generator, batch, n - 1)
    u = (uniform(generator, batch, n - 1) * side * jumps).cumsum(dim=1)
    dual = torch.where(jumps, side, uniform(generator, batch, n - 1, low=-0.8, high=0.8))
    none = torch.zeros(batch, 1, dtype=torch.float64)
    u = torch.cat([none, u], dim=1)
    pull = torch.cat([none, dual], dim=1) - torch.cat([dual, none], dim=1)
    return u + weight.unsqueeze(1) * pull, weight
