"""Portfolio choice."""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.problems._entry import entry
from ddn_cvx.problems._sampling import Tensors, normal, subset, times, uniform


@entry(assets=1, factors=1)
def markowitz_portfolio(assets: int = 10, factors: int = 10) -> Declaration:
    """Maximize ``mu' w - gamma / 2 |F w|^2`` subject to ``w >= 0`` and ``sum(w) = 1``.

    The parameters are the expected returns ``mu`` ``(assets,)``, the risk factors ``F``
    ``(factors, assets)`` and the risk aversion ``gamma``, a nonnegative scalar; the answer is the
    portfolio ``w`` ``(assets,)``. The covariance of the returns is ``F' F``: for a window of ``T``
    past returns, ``F`` is the centred window ``(T, assets)`` divided by ``sqrt(T - 1)``.

    Args:
        assets: number of assets.
        factors: number of rows of ``F``.

    Example:
        >>> from ddn_cvx.problems import markowitz_portfolio
        >>> [tuple(tensor.shape) for tensor in markowitz_portfolio(4, 3).inputs(batch=2)]
        [(2, 4), (2, 3, 4), (2,)]
    """
    import cvxpy as cp

    mu, F = cp.Parameter(assets, name="mu"), cp.Parameter((factors, assets), name="F")
    gamma = cp.Parameter(nonneg=True, name="gamma")
    w = cp.Variable(assets, name="w")
    # A variable of its own for F w: gamma |F w|^2 would multiply parameters, which DPP forbids.
    exposure = cp.Variable(factors, name="exposure")
    objective = cp.Maximize(mu @ w - gamma / 2 * cp.sum_squares(exposure))
    return Declaration(
        cp.Problem(objective, [exposure == F @ w, w >= 0, cp.sum(w) == 1]),
        parameters=(mu, F, gamma),
        variables=(w,),
        summary="long-only mean-variance portfolio",
        citation="Markowitz (1952), Portfolio selection; Boyd and Vandenberghe (2004), Convex "
        "Optimization, section 4.4.1",
        example=partial(_example, assets, factors),
    )


def _example(assets: int, factors: int, batch: int, generator: torch.Generator) -> Tensors:
    F, gamma = normal(generator, batch, factors, assets), uniform(generator, batch, low=1.0, high=5)
    # |F w|^2 is strictly convex on portfolios of at most factors + 1 assets.
    held = subset(generator, batch, assets, min((assets + 1) // 2, factors + 1))
    w = uniform(generator, batch, assets) * held
    w = w / w.sum(dim=1, keepdim=True)
    # Stationarity: mu = gamma F' F w, plus a constant, less the multiplier of w >= 0.
    multiplier = uniform(generator, batch, assets) * ~held
    mu = gamma.unsqueeze(1) * times(F.mT, times(F, w)) - multiplier + normal(generator, batch, 1)
    return mu, F, gamma
