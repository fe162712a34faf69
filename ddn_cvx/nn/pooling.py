"""Modules of robust pooling."""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.dedicated.pooling import robust_pool, vector_pool
from ddn_cvx.dedicated.pooling.penalties import penalty_named
from ddn_cvx.nn.positive import keep_logarithm, shown


class _Penalised(torch.nn.Module):
    """A module with a penalty and its scale."""

    log_alpha: Tensor

    def __init__(self, penalty: str, alpha: float | Tensor, learnable: bool) -> None:
        super().__init__()
        penalty_named(penalty)
        scale = torch.as_tensor(alpha, dtype=torch.get_default_dtype()).detach().clone()
        if scale.ndim > 1 or not bool((scale > 0).all()):
            raise ValueError(
                f"alpha must be a positive number, or a vector of them, one a channel; got {alpha}."
            )
        self.penalty = penalty
        keep_logarithm(self, "alpha", scale, learnable)

    @property
    def alpha(self) -> Tensor:
        """The scale between inliers and outliers: a scalar, or one for each channel ``(C,)``."""
        return self.log_alpha.exp()

    def extra_repr(self) -> str:
        """For ``repr``."""
        return f"{self.penalty!r}, {shown(self, 'alpha')}"


class _RobustPool(_Penalised):
    """Base of the pools of scalars."""

    # Number of dimensions behind the channels, which are pooled.
    _dims = 1

    def __init__(
        self,
        penalty: str,
        alpha: float | Tensor = 1.0,
        *,
        learnable: bool = False,
        keepdim: bool = False,
        search: str = "global",
    ) -> None:
        super().__init__(penalty, alpha, learnable)
        if search not in ("global", "local"):
            raise ValueError(f"search must be 'global' or 'local'; got {search!r}.")
        self.keepdim, self.search = keepdim, search

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """The pooled channels.

        Args:
            x: see the class's shapes.
            weights: nonnegative, broadcasting with ``x``; a mask is a weight of zero.
        """
        if x.ndim not in (self._dims + 1, self._dims + 2):
            wanted = ", ".join("CHW"[: self._dims + 1] if self._dims == 2 else "CN")
            raise ValueError(
                f"{type(self).__name__} expects an input of shape (B, {wanted}) or ({wanted}); "
                f"got {tuple(x.shape)}."
            )
        channels, alpha = x.shape[-self._dims - 1], self.alpha
        if alpha.ndim and len(alpha) != channels:
            raise ValueError(
                f"alpha has {len(alpha)} channels and the input {channels}, of shape "
                f"{tuple(x.shape)}."
            )
        dim = tuple(range(-self._dims, 0))
        with torch.autocast(x.device.type, enabled=False):
            pooled = robust_pool(x, self.penalty, alpha, weights, dim=dim, search=self.search)
        return pooled[(...,) + (None,) * self._dims] if self.keepdim else pooled

    def extra_repr(self) -> str:
        """For ``repr``."""
        keepdim = ", keepdim=True" if self.keepdim else ""
        search = "" if self.search == "global" else f", search={self.search!r}"
        return super().extra_repr() + keepdim + search


class RobustPool1d(_RobustPool):
    """Robust mean over points: ``argmin_u sum_i w_i phi(u - x_i; alpha)`` for each channel.

    See :func:`ddn_cvx.dedicated.pooling.robust_pool` for the penalties, the derivatives, and the
    choice where the minimizer is not unique.

    Args:
        penalty: "quadratic", "pseudo_huber", "huber", "welsch" or "truncated_quadratic".
        alpha: positive; a number, or one for each channel, shape ``(C,)``.
        learnable: make ``alpha`` a parameter (its logarithm).
        keepdim: keep the pooled dimension, of size one.
        search: "global", or "local": the Welsch penalty by mean shift, faster.

    Shapes:
        Input ``(B, C, N)`` or ``(C, N)``; output ``(B, C)`` or ``(C,)``, with ``keepdim``
        ``(B, C, 1)`` or ``(C, 1)``; dtype of the input, computed in float64.

    Raises:
        ValueError: an unknown penalty or search, ``alpha`` not positive, a wrong shape.

    Example:
        >>> import torch
        >>> from ddn_cvx.nn import RobustPool1d
        >>> RobustPool1d("truncated_quadratic")(torch.tensor([[0.0, 1.0, 0.5, 90.0]]))
        tensor([0.5000])
    """


class RobustPool2d(_RobustPool):
    """As :class:`RobustPool1d`, over the last two dimensions; it can replace average pooling.

    Shapes:
        Input ``(B, C, H, W)`` or ``(C, H, W)``; output ``(B, C)`` or ``(C,)``. With ``keepdim``
        ``(B, C, 1, 1)`` or ``(C, 1, 1)``, as ``torch.nn.AdaptiveAvgPool2d(1)``.

    Example:
        >>> import torch
        >>> from ddn_cvx.nn import RobustPool2d
        >>> pool = RobustPool2d("welsch", alpha=1.0)
        >>> pool
        RobustPool2d('welsch', alpha=1)
        >>> pool(torch.zeros(8, 3, 7, 7)).shape
        torch.Size([8, 3])
    """

    _dims = 2


class RobustVectorPool(_Penalised):
    """Robust mean of vectors: ``argmin_u sum_i w_i phi(|u - x_i|; alpha)``.

    See :mod:`ddn_cvx.dedicated.pooling.vector` for the derivatives, and the choice where the
    minimizer is not unique. For the two penalties that are not convex the lowest of several minima
    is returned; that it is the global one is likely, and not proved.

    Args:
        penalty: "quadratic", "pseudo_huber", "huber", "welsch" or "truncated_quadratic".
        alpha: a positive number.
        learnable: make ``alpha`` a parameter (its logarithm).
        starts: number of starts of a nonconvex penalty's descent, besides four others.

    Shapes:
        Input ``(..., n, m)``, ``n`` points of ``m`` coordinates; weights, nonnegative,
        broadcasting with ``(..., n)``; output ``(..., m)``, dtype of the input, computed in
        float64.

    Raises:
        ValueError: an unknown penalty, ``alpha`` not a positive number, a wrong shape.

    Example:
        >>> import torch
        >>> from ddn_cvx.nn import RobustVectorPool
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [90.0, -50.0]])
        >>> RobustVectorPool("truncated_quadratic", alpha=2.0)(x)
        tensor([0.5000, 0.5000])
    """

    def __init__(
        self, penalty: str, alpha: float = 1.0, *, learnable: bool = False, starts: int = 16
    ) -> None:
        super().__init__(penalty, alpha, learnable)
        if self.log_alpha.ndim:
            raise ValueError(f"alpha must be one positive number; got {alpha}.")
        if starts < 0:
            raise ValueError(f"starts must not be negative; got {starts}.")
        self.starts = starts

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """The pooled vectors; see the class's shapes."""
        return vector_pool(x, self.penalty, self.alpha, weights, self.starts)
