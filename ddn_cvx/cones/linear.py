"""Zero and nonnegative cones: the first rows of a product, each of them a cone of its own.

All of their rows are worked on together, so that vectors are ``(B, rows)``: equations first, where
``s`` is zero and ``z`` free, then inequalities, where both are nonnegative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Linear:
    """The rows of the zero and the nonnegative cones of a product.

    Args:
        zero, nonnegative: number of rows of each.
        others: number of rows of other cones, which follow them.
    """

    def __init__(self, zero: int, nonnegative: int, others: int = 0) -> None:
        self.zero, self.nonnegative, self.rows = zero, nonnegative, zero + nonnegative
        self._beside = (zero, others)
        self.inequalities = slice(zero, self.rows)

    # -- membership and projection --------------------------------------------------------------

    def violation(self, slack: torch.Tensor, dual: torch.Tensor) -> torch.Tensor:
        """The larger distance of ``s`` from ``K`` and of ``y`` from ``K*``, shape ``(B,)``."""
        worst = slack.new_zeros(slack.shape[0])
        if self.zero:
            worst = torch.maximum(worst, slack[:, : self.zero].abs().amax(1))
        if self.nonnegative:
            part = self.inequalities
            low = torch.minimum(slack[:, part].amin(1), dual[:, part].amin(1))
            worst = torch.maximum(worst, -low)
        return worst

    def overlap(self, slack: torch.Tensor, dual: torch.Tensor) -> torch.Tensor:
        """The largest ``min(|s_i|, |y_i|)`` of an inequality, shape ``(B,)``.

        At a weakly active row an interior point leaves the square root of its duality gap here.
        """
        if not self.nonnegative:
            return slack.new_zeros(slack.shape[0])
        part = self.inequalities
        return torch.minimum(slack[:, part].abs(), dual[:, part].abs()).amax(1)

    def project(self, point: torch.Tensor) -> torch.Tensor:
        """Projection onto the dual cone, shape ``(B, rows)``."""
        free, nonnegative = point[:, : self.zero], point[:, self.inequalities]
        return torch.cat([free, nonnegative.clamp_min(0.0)], 1)

    def derivative(self, point: torch.Tensor) -> torch.Tensor:
        """The diagonal of that projection's derivative, shape ``(B, rows)``."""
        ones = torch.ones_like(point[:, : self.zero])
        return torch.cat([ones, (point[:, self.inequalities] > 0).to(point.dtype)], 1)

    # -- interior point -------------------------------------------------------------------------

    def scaling(self, s: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``W = sqrt(s / z)`` and ``lambda = W z``, shape ``(B, m)``.

        One and zero in the rows of equations and of other cones.
        """
        s, z = s[:, self.inequalities], z[:, self.inequalities]
        inner = (s / z).sqrt()
        point = inner * z
        if self._beside == (0, 0):
            return inner, point
        pad = torch.nn.functional.pad
        return pad(inner, self._beside, value=1.0), pad(point, self._beside)

    def margin(self, v: torch.Tensor) -> torch.Tensor:
        """The least entry of the inequalities, shape ``(B, 1)``; none without inequalities."""
        return v[:, self.inequalities].amin(1, keepdim=True)

    def step_rates(
        self, point: torch.Tensor, directions: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """One over the longest steps from ``lambda`` along scaled directions, ``(B,)`` each."""
        part = self.inequalities
        return [(d[:, part] / point[:, part]).amin(1).neg() for d in directions]
