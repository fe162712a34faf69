"""The Levenberg-Marquardt method for sums of squares.

The model is the sum of squares of the linearised residuals, ``|r + Jp|^2``, within
``|D p| <= radius``; ``D`` holds the largest norms of the Jacobian's columns so far, so that the
variables' units do not matter (Moré, "The Levenberg-Marquardt algorithm: implementation and
theory", 1978; Madsen, Nielsen and Tingleff, "Methods for non-linear least squares problems", 2004,
section 3.2). The step is ``p = -(J'J + t D^2)^-1 J'r``, from the singular values of the triangular
factor of ``J D^-1``: the Jacobian's condition number is never squared.

The model leaves out the residuals' own curvature. Where residuals stay large it converges slowly,
and it cannot tell a saddle point from a minimum. So the method ends with
:class:`~ddn_cvx.solvers.nonlinear.newton.TrustRegionNewton`, element by element: from where its
progress became slow, and for one confirming step elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ddn_cvx.batch.elements import put, select, where
from ddn_cvx.linalg.dense import factored
from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.nonlinear.newton import TrustRegionNewton, ball_minimum
from ddn_cvx.solvers.nonlinear.trust_region import Step, TrustRegion, WorkingSet, norm
from ddn_cvx.status import Status


@dataclass(frozen=True)
class LevenbergMarquardt(TrustRegion):
    """Levenberg-Marquardt with Moré's trust region, finished by exact Newton steps.

    Attributes:
        max_iterations: of each of the two phases.
        initial_radius: the first radius in the norm ``|D p|``, relative to the larger of one and
            the start's length in it.
        patience: sluggish steps in a row after which exact Hessians take over.
        exact_finish: whether they do, and confirm the answers. Without, an element that converges
            slowly uses its iterations up, and an answer may be a saddle point.
    """

    initial_radius: float = 10.0
    patience: int | None = 5
    exact_finish: bool = True

    name: ClassVar[str] = "levenberg marquardt"

    def __call__(self, function: NonlinearInstance, start: Tensor) -> Answer:
        """Minimise from ``start``, shape ``(B, n)``."""
        found = super().__call__(function, start)
        if not self.exact_finish or start.numel() == 0:
            return found
        index = (found.status <= int(Status.INACCURATE)).nonzero()[:, 0]
        if not len(index):
            return found
        newton = TrustRegionNewton(self.max_iterations, self.tolerance)
        part, old = newton(function.select(index), found.primal[index]), select(found, index)
        # FAILED: no Hessian at the point of the first phase.
        best = where(part.status == int(Status.FAILED), old, part)
        best = replace(best, iterations=old.iterations + part.iterations)
        return put(found, index, best)

    def evaluate(
        self, function: NonlinearInstance, u: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """``f`` ``(W,)``, gradient ``(W, n)``; residuals ``(W, k)``, Jacobian, ``D`` ``(W, n)``."""
        r, jacobian = function.residual_jacobian(u)
        g = 2 * (jacobian * r[:, :, None]).sum(1)
        return (r * r).sum(1), g, (r, jacobian, torch.linalg.vector_norm(jacobian, dim=1))

    def remember(
        self, accepted: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The new residuals and Jacobian, and the larger of both ``D``."""
        r, jacobian, scale = super().remember(accepted, new, old)
        return r, jacobian, torch.maximum(scale, old[2])

    def length(self, local: tuple[Tensor, ...], step: Tensor) -> Tensor:
        """``|D p|``: ``(W, n)`` to ``(W,)``."""
        return norm(_divisor(local[2]) * step)

    def propose(self, function: NonlinearInstance, at: WorkingSet) -> Step:
        """The minimum of ``|r + Jp|^2`` within the radius."""
        r, jacobian, scale = at.local
        scale = _divisor(scale)
        _, k, n = jacobian.shape
        matrix, right = jacobian / scale[:, None, :], r  # (W, k, n), (W, k)
        if k > n:  # the triangular factor carries all that matters of both
            both = torch.cat([matrix, r[:, :, None]], 2)
            (triangle,) = factored(_triangular, both)  # (W, n + 1, n + 1)
            matrix, right = triangle[:, :n, :n], triangle[:, :n, n]
        left, singular, vectors = torch.linalg.svd(matrix, full_matrices=False)
        rank_floor = max(k, n) * torch.finfo(singular.dtype).eps * singular.amax(1, keepdim=True)
        singular = torch.where(singular <= rank_floor, 0.0, singular)
        c = 2 * singular * (left * right[:, :, None]).sum(1)
        found = ball_minimum(2 * singular.square(), c, at.radius)
        return found._replace(p=(vectors * found.p[:, :, None]).sum(1) / scale)


def _divisor(scale: Tensor) -> Tensor:
    """``D``, with one for a variable that no residual has depended on yet."""
    return torch.where(scale > 0, scale, 1.0)


def _triangular(matrix: Tensor) -> tuple[Tensor]:
    return (torch.linalg.qr(matrix, mode="r").R,)
