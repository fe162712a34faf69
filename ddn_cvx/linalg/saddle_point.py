"""The linear system of an interior-point step, and how it is factored.

    [P   A' ] [x]   [f]
    [A  -J  ] [z] = [g],      J = diag(0, I),

where the first rows of ``A`` are the equalities', for which ``J`` is zero. With the equalities'
rows added to ``M = P + A' A`` (which changes nothing, as their product with ``x`` is known), two
Cholesky factors are enough: of ``M``, and of the Schur complement ``A_E M^-1 A_E'``.
"""

from __future__ import annotations

import abc

import torch

from ddn_cvx.batch.device import perhaps_any
from ddn_cvx.linalg.products import cholesky_solve, matmul_narrow

# Diagonals are raised by this, for data of size one; refinement takes it out.
_RAISED = {torch.float64: 1e-12, torch.float32: 1e-6}
# A solution with a relative residual above this is refined once more.
_EXACT = 1e-13


class Factored(abc.ABC):
    """A factored system in ``(x, z)`` that refines its solutions and says how good they are.

    Attributes:
        failed: elements without factors, whose solutions are of no use, shape ``(B,)``, bool.
    """

    failed: torch.Tensor

    def refined(
        self, f: torch.Tensor, g: torch.Tensor, x: torch.Tensor, z: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A solution with what is left of the right sides solved for, too."""
        more = self._solve(*self._residual(f, g, x, z))
        return x + more[0], z + more[1]

    def relative_residual(
        self, f: torch.Tensor, g: torch.Tensor, x: torch.Tensor, z: torch.Tensor
    ) -> torch.Tensor:
        """How far a solution is from one, relative to the right side, shape ``(B,)``."""
        rest = torch.cat(self._residual(f, g, x, z), 1).flatten(1).norm(dim=1)
        size = torch.cat([f, g], 1).flatten(1).norm(dim=1).clamp_min(1e-35)
        relative: torch.Tensor = rest / size
        return relative.nan_to_num(nan=torch.inf)

    @abc.abstractmethod
    def solve(
        self, f: torch.Tensor, g: torch.Tensor, refined: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``x`` and ``z`` for right sides ``(B, n, c)`` and ``(B, m, c)``.

        Args:
            f, g: right sides.
            refined: which elements' solutions are refined, shape ``(B,)``, bool; None for none.
        """

    @abc.abstractmethod
    def _solve(self, f: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A solution without refinement."""

    @abc.abstractmethod
    def _residual(
        self, f: torch.Tensor, g: torch.Tensor, x: torch.Tensor, z: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is left of the right sides."""


class SaddlePoint(Factored):
    """Factors of the system, for as many right sides as come.

    Args:
        P: symmetric positive semidefinite, shape ``(B, n, n)``, or None for zero.
        A: shape ``(B, m, n)``.
        equalities: number of rows of ``A``, the first ones, with a zero in ``J``.
        given: where all rows are equalities, and ``P`` positive definite: its factor ``L``,
            ``L^-1 A'``, and the factor of ``A P^-1 A'``. Regular is then what is so in the inverse
            of ``P`` alone, which asks for more.
    """

    def __init__(
        self,
        P: torch.Tensor | None,
        A: torch.Tensor,
        equalities: int,
        given: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        self._P, self._A, self._equalities = P, A, equalities
        self._squares = given is None
        if given is not None:
            self._factor, self._side, self._schur = given
            self.failed = torch.zeros(len(A), dtype=torch.bool, device=A.device)
            return
        M = torch.bmm(A.mT, A) if P is None else torch.baddbmm(P, A.mT, A)
        self._factor, self.failed = cholesky(M)
        if equalities:
            self._side = torch.linalg.solve_triangular(
                self._factor, A[:, :equalities].mT, upper=False
            )
            self._schur, failed = cholesky(torch.bmm(self._side.mT, self._side))
            self.failed = self.failed | failed

    @property
    def parts(self) -> tuple[torch.Tensor | None, ...]:
        """``P``, ``A``, and what is ``given`` to another one of these."""
        return self._P, self._A, self._factor, self._side, self._schur

    def solve(
        self, f: torch.Tensor, g: torch.Tensor, refined: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Factored`."""
        return refined_once(self, f, g, *self._solve(f, g), refined)

    def exact(
        self, f: torch.Tensor, g: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``x``, ``z`` and their relative residual, refined until that is rounding, or twice."""
        x, z = self.refined(f, g, *self._solve(f, g))
        residual = self.relative_residual(f, g, x, z)
        inexact = residual > _EXACT
        if perhaps_any(inexact):
            x, z = refined_once(self, f, g, x, z, inexact)
            residual = self.relative_residual(f, g, x, z)
        return x, z, residual

    def is_regular(self, used: torch.Tensor, least: float) -> torch.Tensor:
        """Whether no pivot is less than a share of the largest one, shape ``(B,)``.

        Args:
            used: equalities that are none of zeros, shape ``(B, equalities)``.
            least: the share.
        """
        pivots = self._factor.diagonal(dim1=-2, dim2=-1).square()
        regular = (pivots.amin(1) > least * pivots.amax(1)) & ~self.failed
        if self._equalities:
            pivots = self._schur.diagonal(dim1=-2, dim2=-1).square()
            most = pivots.amax(1, keepdim=True)
            regular = regular & (pivots > least * most).logical_or(~used).all(1)
        return regular

    def _solve(self, f: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        p = self._equalities
        right = f + matmul_narrow(self._A.mT, g) if self._squares else f
        if p == 0:
            x = cholesky_solve(self._factor, right)
            return x, matmul_narrow(self._A, x) - g
        half = torch.linalg.solve_triangular(self._factor, right, upper=False)
        y = cholesky_solve(self._schur, matmul_narrow(self._side.mT, half) - g[:, :p])
        half = half - matmul_narrow(self._side, y)
        x = torch.linalg.solve_triangular(self._factor.mT, half, upper=True)
        if p == self._A.shape[1]:
            return x, y
        z = matmul_narrow(self._A, x) - g
        z[:, :p] = y
        return x, z

    def _residual(
        self, f: torch.Tensor, g: torch.Tensor, x: torch.Tensor, z: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        f = f - matmul_narrow(self._A.mT, z)
        if self._P is not None:
            f = f - matmul_narrow(self._P, x)
        g = g - matmul_narrow(self._A, x)
        if self._equalities < self._A.shape[1]:
            g[:, self._equalities :] += z[:, self._equalities :]
        return f, g


def refined_once(
    system: Factored,
    f: torch.Tensor,
    g: torch.Tensor,
    x: torch.Tensor,
    z: torch.Tensor,
    wanted: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Refined solutions of the elements that want it, the others as they are."""
    if wanted is None or not perhaps_any(wanted):
        return x, z
    more_x, more_z = system.refined(f, g, x, z)
    wide = wanted[:, None, None]
    return torch.where(wide, more_x, x), torch.where(wide, more_z, z)


def cholesky(M: torch.Tensor, *, exactly: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower factors of ``M``, changed in place, and where there are none, shape ``(B,)``, bool.

    Args:
        M: positive semidefinite, of size one.
        exactly: without raising the diagonal by the little with which dependent rows seldom fail.
    """
    if not exactly:
        M.diagonal(dim1=-2, dim2=-1).add_(_RAISED[M.dtype])
    # Upper factors are made a little faster, and lie in memory as their systems are solved best.
    upper, info = torch.linalg.cholesky_ex(M, upper=True)
    lower: torch.Tensor = upper.mT
    return lower, info != 0
