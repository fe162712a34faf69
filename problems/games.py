"""Games: one player's best answer to the others."""

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.problems._sampling import uniform


def stackelberg_follower() -> Declaration:
    """The follower of a two-firm Stackelberg game: the quantity ``u >= 0`` of largest profit.

    The leader has put ``q`` on the market. The price falls exponentially with what is sold, and
    the cost grows quadratically: ``maximize price * exp(-(q + u)) * u - cost * u^2 / 2``, a profit
    that is not concave. The parameters are the scalars ``q`` (nonnegative), ``price`` and ``cost``
    (positive); the answer is the scalar ``u``, between 0 and 1.

    Example:
        >>> from ddn_cvx.problems import stackelberg_follower
        >>> [parameter.name() for parameter in stackelberg_follower().parameters]
        ['q', 'price', 'cost']
    """
    import cvxpy as cp

    q = cp.Parameter(nonneg=True, name="q")
    price, cost = cp.Parameter(pos=True, name="price"), cp.Parameter(pos=True, name="cost")
    u = cp.Variable(name="u")
    profit = price * cp.multiply(cp.exp(-(q + u)), u) - cost * cp.square(u) / 2
    return Declaration(
        cp.Problem(cp.Maximize(profit), [u >= 0]),
        parameters=(q, price, cost),
        variables=(u,),
        name="stackelberg_follower",
        summary="the follower's quantity in a two-firm Stackelberg game",
        citation="von Stackelberg (1934), Marktform und Gleichgewicht; as a declarative node: Gould, "
        "Hartley and Campbell (2022), Deep declarative networks",
        example=_example,
        start=_start,
    )


def _start(
    q: torch.Tensor, price: torch.Tensor, cost: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return (torch.full_like(q, 0.5),)


def _example(batch: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    q, cost = uniform(generator, batch), uniform(generator, batch)
    return q, uniform(generator, batch, low=2.0, high=4.0), cost
