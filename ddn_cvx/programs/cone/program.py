"""A cone program: its structure, and affine maps from parameters to the data of a batch.

The program of one batch element, and its optimality conditions (signs: :mod:`ddn_cvx.programs`):

    minimise    1/2 x' P x + q' x                 P x + q + A' y = 0
    subject to  A x + s = b,  s in K              A x + s = b
                                                  s in K, y in K*, <s, y> = 0

The rows are ordered as SCS orders them (see :mod:`ddn_cvx.cones.product`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch

from ddn_cvx.cones.product import Cones
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.programs.cone.affine_map import AffineMap
from ddn_cvx.programs.cone.quadratic_forms import FactoredProblem
from ddn_cvx.programs.recovery import Recovery


@dataclass(frozen=True, eq=False)
class ConeData:
    """The data of a batch of cone programs: values over the program's patterns.

    Attributes:
        P: shape ``(B, P_pattern.stored)``; the full symmetric matrix, or no columns if linear.
        q: shape ``(B, n)``.
        A: shape ``(B, A_pattern.stored)``.
        b: shape ``(B, m)``.
    """

    P: torch.Tensor
    q: torch.Tensor
    A: torch.Tensor
    b: torch.Tensor

    @property
    def batch(self) -> int:
        """Number of elements ``B``."""
        return self.q.shape[0]

    def select(self, elements: torch.Tensor | slice) -> ConeData:
        """The data of some elements."""
        return ConeData(self.P[elements], self.q[elements], self.A[elements], self.b[elements])

    def detach(self) -> ConeData:
        """The same values without derivatives."""
        return ConeData(self.P.detach(), self.q.detach(), self.A.detach(), self.b.detach())

    def detach_to_host(self) -> ConeData:
        """Detached copies in host memory, for the external solvers."""
        tensors = (self.P, self.q, self.A, self.b)
        return ConeData(*(tensor.detach().cpu().contiguous() for tensor in tensors))


@dataclass(frozen=True, eq=False)
class ConeProgram:
    """The compiled program: everything but the parameters' values.

    Attributes:
        variables: number of canonical variables ``n``.
        cones: the product of cones ``K``.
        P_pattern, A_pattern: sparsity of ``P`` (full symmetric) and ``A``.
        P_map, q_map, A_map, b_map: affine maps from the stacked parameters.
        recoveries: one for each variable the layer returns.
        primal_recoveries: one for each of ``problem.variables()``.
        dual_recoveries: for each constraint of the problem, one for each of its dual variables,
            or None where cvxpy does not report the constraint's multipliers.
        logarithm: which parameters enter through their logarithm (geometric programs).
        factored: the rewriting of parametric quadratic forms that came first, if one was needed.
        context: cvxpylayers' own context, kept only when a foreign interface needs it.
    """

    variables: int
    cones: Cones
    P_pattern: Pattern
    A_pattern: Pattern
    P_map: AffineMap
    q_map: AffineMap
    A_map: AffineMap
    b_map: AffineMap
    recoveries: tuple[Recovery, ...]
    primal_recoveries: tuple[Recovery, ...]
    dual_recoveries: tuple[tuple[Recovery, ...] | None, ...]
    logarithm: tuple[bool, ...]
    factored: FactoredProblem | None = None
    context: Any = field(default=None, repr=False)

    has_pattern: ClassVar[bool] = True

    @cached_property
    def rows(self) -> int:
        """Number of rows ``m``."""
        return self.cones.rows

    @cached_property
    def is_checked(self) -> bool:
        """Rows are ordered as SCS orders them, so that the residual can be computed.

        A foreign interface may ask cvxpy for another order of semidefinite rows.
        """
        if self.context is None or not self.cones.semidefinite:
            return True
        return self.context.solver.canon_solver_name in ("SCS", "DIFFCP")

    @cached_property
    def is_quadratic(self) -> bool:
        """The objective has a quadratic term."""
        return self.P_pattern.stored > 0

    def data(self, stacked: torch.Tensor) -> ConeData:
        """Problem data from stacked parameters of shape ``(B, N)``, float64."""
        joint, sizes, apart = self._maps
        parts = {}
        for name, affine in apart.items():
            parts[name] = affine(stacked)
        if joint is not None:
            parts.update(zip(sizes, joint(stacked).split([*sizes.values()], 1), strict=True))
        return ConeData(**parts)

    @cached_property
    def _maps(self) -> tuple[AffineMap | None, dict[str, int], dict[str, AffineMap]]:
        """The maps that only gather joined to one, the sizes of its parts, and the other maps.

        One pass forward and one back is less than one for each.
        """
        maps = {name: getattr(self, f"{name}_map") for name in ("P", "q", "A", "b")}
        gathers = {name: affine for name, affine in maps.items() if affine.is_gather}
        if len(gathers) < 2:
            return None, {}, maps
        apart = {name: affine for name, affine in maps.items() if name not in gathers}
        sizes = {name: affine.outputs for name, affine in gathers.items()}
        return AffineMap.stacked(tuple(gathers.values())), sizes, apart
