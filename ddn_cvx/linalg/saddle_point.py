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

# Added to the diagonals of matrices of size one, so that dependent rows leave positive pivots:
# thousands of roundings, or eight in single precision. Refinement of the solution takes it out.
_DIAGONAL_SHIFT = {torch.float64: 1e-12, torch.float32: 1e-6}
# A solution with a relative residual above this, some hundred roundings, is refined once more.
_REFINED_RESIDUAL = 1e-13
# Least size of a right-hand side in a relative residual: one that float32 can hold.
_LEAST_SIZE = 1e-35


class Factored(abc.ABC):
    """A factored system in ``(x, z)`` that refines its solutions and knows their residuals.

    Attributes:
        failed: elements whose factorisation failed, and with it every solution, ``(B,)``, bool.
    """

    failed: torch.Tensor

    def refined(
        self, f: torch.Tensor, g: torch.Tensor, x: torch.Tensor, z: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of iterative refinement."""
        more = self._solve(*self._residual(f, g, x, z))
        return x + more[0], z + more[1]

    def refined_where(
        self, wanted: torch.Tensor | None, f: torch.Tensor, g: torch.Tensor, x: torch.Tensor,
        z: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """The solutions, those of the elements in ``wanted`` ``(B,)`` refined; None for none."""
        if wanted is None or not perhaps_any(wanted):
            return x, z
        more_x, more_z = self.refined(f, g, x, z)
        wide = wanted[:, None, None]
        return torch.where(wide, more_x, x), torch.where(wide, more_z, z)

    def relative_residual(
        self, f: torch.Tensor, g: torch.Tensor, x: torch.Tensor, z: torch.Tensor
    ) -> torch.Tensor:
        """``|K (x, z) - (f, g)| / |(f, g)|``, Euclidean, shape ``(B,)``."""
        rest = torch.cat(self._residual(f, g, x, z), 1).flatten(1).norm(dim=1)
        size = torch.cat([f, g], 1).flatten(1).norm(dim=1).clamp_min(_LEAST_SIZE)
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
        """``(f, g) - K (x, z)``."""


class SaddlePoint(Factored):
    """Factors of the system, for any number of right sides.

    Args:
        P: symmetric positive semidefinite, shape ``(B, n, n)``, or None for zero.
        A: shape ``(B, m, n)``.
        equalities: number of rows of ``A``, the first ones, with a zero in ``J``.
        given: where all rows are equalities, and ``P`` positive definite: its factor ``L``,
            ``L^-1 A'``, and the factor of ``A P^-1 A'``. :meth:`is_regular` then asks for more,
            as no ``A' A`` is added to ``P``.
        refinements: of the solutions that :meth:`solve` refines.
    """

    def __init__(
        self,
        P: torch.Tensor | None,
        A: torch.Tensor,
        equalities: int,
        given: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
        refinements: int = 1,
    ) -> None:
        self._refinements = refinements
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
        """``P``, ``A``, and the three factors that another system can be ``given``."""
        return self._P, self._A, self._factor, self._side, self._schur

    def solve(
        self, f: torch.Tensor, g: torch.Tensor, refined: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Factored`."""
        x, z = self._solve(f, g)
        for _ in range(self._refinements):
            x, z = self.refined_where(refined, f, g, x, z)
        return x, z

    def exact(
        self, f: torch.Tensor, g: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``x``, ``z`` and their relative residual after one refinement, or two if need be."""
        x, z = self.refined(f, g, *self._solve(f, g))
        residual = self.relative_residual(f, g, x, z)
        inexact = residual > _REFINED_RESIDUAL
        if perhaps_any(inexact):
            x, z = self.refined_where(inexact, f, g, x, z)
            residual = self.relative_residual(f, g, x, z)
        return x, z, residual

    def is_regular(self, used: torch.Tensor, least: float) -> torch.Tensor:
        """Whether all pivots are at least a share of the largest one, shape ``(B,)``.

        Args:
            used: equalities whose rows of ``A`` are not all zero, shape ``(B, equalities)``.
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


def cholesky(M: torch.Tensor, *, exactly: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower Cholesky factors of ``M``, and whether the factorisation failed, ``(B,)``, bool.

    Args:
        M: positive semidefinite, of size one; its diagonal is shifted in place.
        exactly: without the shift, by which dependent rows seldom fail.
    """
    if not exactly:
        M.diagonal(dim1=-2, dim2=-1).add_(_DIAGONAL_SHIFT[M.dtype])
    # Upper factors are made a little faster, and lie in memory as their systems are solved best.
    upper, info = torch.linalg.cholesky_ex(M, upper=True)
    lower: torch.Tensor = upper.mT
    return lower, info != 0
