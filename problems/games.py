"""Games: one player's best answer to the others."""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.problems._entry import entry
from ddn_cvx.problems._sampling import Tensors, uniform


@entry(n=1)
def stackelberg_follower(n: int = 3) -> Declaration:
    """The follower of a two-firm Stackelberg game: the quantities ``u >= 0`` of largest profit.

    The leader has put ``q`` on ``n`` markets. A market's price falls exponentially with what is
    sold, and the cost grows quadratically: ``maximize sum(price * exp(-(q + u)) * u - cost * u^2 /
    2)``, a profit that is not concave. The parameters are ``q`` (nonnegative), ``price`` and
    ``cost`` (positive), each ``(n,)``; the answer is ``u`` ``(n,)``, between 0 and 1.

    Args:
        n: number of markets.

    Example:
        >>> from ddn_cvx.problems import stackelberg_follower
        >>> [parameter.name() for parameter in stackelberg_follower().parameters]
        ['q', 'price', 'cost']
    """
    import cvxpy as cp

    q = cp.Parameter(n, nonneg=True, name="q")
    price, cost = cp.Parameter(n, pos=True, name="price"), cp.Parameter(n, pos=True, name="cost")
    u = cp.Variable(n, name="u")
    income = cp.multiply(price, cp.multiply(cp.exp(-(q + u)), u))
    profit = income - cp.multiply(cost, cp.square(u)) / 2
    return Declaration(
        cp.Problem(cp.Maximize(cp.sum(profit)), [u >= 0]),
        parameters=(q, price, cost),
        variables=(u,),
        summary="the follower's quantity in a two-firm Stackelberg game",
        citation="von Stackelberg (1934), Marktform und Gleichgewicht; as a declarative node: "
        "Gould, Hartley and Campbell (2022), Deep declarative networks",
        example=partial(_example, n),
        start=_start,
    )


def _start(q: torch.Tensor, price: torch.Tensor, cost: torch.Tensor) -> Tensors:
    return (torch.full_like(q, 0.5),)


def _example(n: int, batch: int, generator: torch.Generator) -> Tensors:
    q, cost = uniform(generator, batch, n), uniform(generator, batch, n)
    return q, uniform(generator, batch, n, low=2.0, high=4.0), cost
