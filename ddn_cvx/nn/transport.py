"""Optimal transport as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.dedicated.common import check_positive
from ddn_cvx.dedicated.transport import sinkhorn
from ddn_cvx.nn.positive import keep_logarithm, shown


class Sinkhorn(torch.nn.Module):
    """The entropy-regularised transport plan between two marginals.

    See :func:`ddn_cvx.dedicated.transport.sinkhorn`.

    Args:
        gamma: positive: the larger, the sharper the plan.
        learnable: make ``gamma`` a parameter (its logarithm).

    Shapes:
        Costs ``(..., n, m)``, marginals ``(..., n)`` and ``(..., m)``, uniform if not given; output
        ``(..., n, m)``, dtype of the costs, computed in float64.

    Raises:
        ValueError: ``gamma`` is not a positive number; a shape does not fit.

    Example:
        >>> import torch
        >>> from ddn_cvx.nn import Sinkhorn
        >>> Sinkhorn(gamma=3.0)(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor([[0.4763, 0.0237],
                [0.0237, 0.4763]])
    """

    log_gamma: Tensor

    def __init__(self, gamma: float = 1.0, *, learnable: bool = False) -> None:
        super().__init__()
        check_positive("gamma", gamma)
        keep_logarithm(self, "gamma", torch.tensor(float(gamma)), learnable)

    @property
    def gamma(self) -> Tensor:
        """The sharpness, a scalar."""
        return self.log_gamma.exp()

    def forward(self, C: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        """The plan; see the class's shapes."""
        return sinkhorn(C, a, b, self.gamma)

    def extra_repr(self) -> str:
        """For ``repr``."""
        return shown(self, "gamma")
