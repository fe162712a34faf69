"""What the minimisers of smooth functions share: their input, their answer, when they stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ddn_cvx.status import Status

# Beyond this an unknown has diverged, below its negative an objective is unbounded.
_DIVERGED = 1e15
_UNBOUNDED = -1e20


class SmoothFunction(Protocol):
    """``f`` for every element of a batch, its inputs in place."""

    def value(self, u: torch.Tensor) -> torch.Tensor:
        """``f``, shapes ``(B, n) -> (B,)``."""

    def gradient(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``f`` and its gradient, ``(B,)`` and ``(B, n)``."""

    def hessian(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``f``, its gradient and its Hessian, ``(B, n, n)``."""

    def hessian_product(self, u: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        """The Hessian times ``direction``, ``(B, n)``."""

    def select(self, elements: torch.Tensor) -> SmoothFunction:
        """The same function for a part of the batch."""


class SumOfSquares(SmoothFunction, Protocol):
    """``f = |r|^2``."""

    def residuals(self, u: torch.Tensor) -> torch.Tensor:
        """``r``, shape ``(B, k)``."""

    def residual_jacobian(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``r`` and its Jacobian, ``(B, k, n)``."""


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where a minimiser stopped.

    Attributes:
        point: ``u``, shape ``(B, n)``.
        value, gradient: of ``f`` there, shapes ``(B,)`` and ``(B, n)``.
        residual: ``|grad f|`` over ``1 + |f|``, shape ``(B,)``.
        status: :class:`~ddn_cvx.Status`, int64, shape ``(B,)``.
        iterations: int64, shape ``(B,)``.
    """

    point: torch.Tensor
    value: torch.Tensor
    gradient: torch.Tensor
    residual: torch.Tensor
    status: torch.Tensor
    iterations: torch.Tensor


class Progress:
    """Bookkeeping of a batched iteration: who is done, why, and who is still worked on.

    Finished elements are frozen; when they are more than half, only the others are kept. Working
    sets have sizes that are powers of two, so that few shapes are recorded.

    Args:
        function: of the whole batch.
        start: shape ``(B, n)``.
        tolerance: of the relative gradient.
    """

    def __init__(self, function: SmoothFunction, start: torch.Tensor, tolerance: float) -> None:
        batch = len(start)
        self._whole = function
        self.function = function
        self.tolerance = tolerance
        self.element = torch.arange(batch, device=start.device)
        self.done = torch.zeros(batch, dtype=torch.bool, device=start.device)
        value = start.new_full((batch,), torch.nan)
        self.found = Minimum(
            point=start.clone(),
            value=value,
            gradient=torch.full_like(start, torch.nan),
            residual=value.clone(),
            status=torch.full((batch,), int(Status.INACCURATE), device=start.device),
            iterations=torch.zeros(batch, dtype=torch.int64, device=start.device),
        )

    def record(
        self,
        u: torch.Tensor,
        value: torch.Tensor,
        gradient: torch.Tensor,
        curved_down: torch.Tensor,
        stalled: torch.Tensor,
        iteration: int,
    ) -> bool:
        """Note where the working set is; True when all of it is done.

        Args:
            u, value, gradient: of the working set.
            curved_down: elements at which the function curves down: not a minimum.
            stalled: elements that cannot get further.
            iteration: number of steps taken so far.
        """
        found, fresh = self.found, ~self.done
        where = self.element[fresh]
        residual = gradient.abs().amax(1) / (1 + value.abs())
        finite = value.isfinite() & gradient.isfinite().all(1)
        status = torch.full_like(self.element, int(Status.INACCURATE))
        solved = (residual <= self.tolerance) & ~curved_down
        diverged = (value < _UNBOUNDED) | ((u.abs().amax(1) > _DIVERGED) & (value < -1e6))
        status = torch.where(solved, int(Status.SOLVED), status)
        status = torch.where(diverged, int(Status.UNBOUNDED), status)
        broken = int(Status.BAD_INPUT) if iteration == 0 else int(Status.FAILED)
        status = torch.where(finite, status, broken)
        found.point[where], found.value[where] = u[fresh], value[fresh]
        found.gradient[where], found.residual[where] = gradient[fresh], residual[fresh]
        found.status[where] = status[fresh]
        found.iterations[where] = iteration
        self.done = self.done | solved | diverged | ~finite | stalled
        return bool(self.done.all())

    def compress(self) -> torch.Tensor | None:
        """Which places of the working set go on, if it is time to drop the others."""
        left = int((~self.done).sum())
        if 2 * left > len(self.done) or left == 0:
            return None
        size = 1 << (left - 1).bit_length()
        kept = torch.argsort(self.done.to(torch.int8), stable=True)[:size]
        self.element, self.done = self.element[kept], self.done[kept]
        self.function = self._whole.select(self.element)
        return kept
