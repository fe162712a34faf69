"""Constraints of a cvxpy problem as rows of a nonlinear program: ``-c`` in a cone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ddn_cvx.batch.columns import picked
from ddn_cvx.batch.device import OnDevice
from ddn_cvx.batch.inputs import flat
from ddn_cvx.cones.product import Cones
from ddn_cvx.errors import DeclarationError
from ddn_cvx.linalg.triangle import scaled_triangle
from ddn_cvx.programs.recovery import Recovery
from ddn_cvx.programs.translation import TorchFunction, translate

if TYPE_CHECKING:
    import cvxpy as cp

# Kinds of cones, in the order of a program's rows.
_KINDS = ("zero", "nonnegative", "second order", "semidefinite")


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one kind of cone from one constraint: ``sign G a`` of its arguments' entries ``a``.

    ``G`` gathers and scales. Its transpose reads the multipliers of the arguments off those of the
    rows, as the pairing of rows and multipliers is that of arguments and their multipliers.

    Attributes:
        kind: of cone.
        functions: the translated arguments.
        shapes: of the arguments.
        sign: 1 or -1.
        sides: number of rows, for semidefinite cones sides of the matrices; one for each cone.
        affine: the rows are affine in the unknown.
        index: row of each entry of the arguments (row-major, the arguments behind one another); at
            most two entries share a row.
        scale: factor of each entry.
    """

    kind: str
    functions: tuple[TorchFunction, ...]
    shapes: tuple[tuple[int, ...], ...]
    sign: float
    sides: tuple[int, ...]
    affine: bool
    index: np.ndarray
    scale: np.ndarray

    @cached_property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.index.max(initial=-1)) + 1

    @cached_property
    def _gather(self) -> OnDevice | None:
        """First and last entry that each row reads, and their factor; None for entries in order."""
        in_order = np.arange(len(self.index))
        if np.array_equal(self.index, in_order):
            return None
        first, last = np.empty((2, self.rows), dtype=np.int64)
        first[self.index[::-1]], last[self.index] = in_order[::-1], in_order
        if np.array_equal(first, last):
            return OnDevice(self.sign * self.scale[first], first)
        weight = np.where(first == last, 0.5, 1.0)  # a row of one entry reads it twice
        return OnDevice(self.sign * weight * self.scale[first], first, last)

    def __call__(self, *leaves: torch.Tensor) -> torch.Tensor:
        """The rows of ``c``, shape ``(B, rows)``, at the leaves' values."""
        arguments = [flat(function(*leaves)) for function in self.functions]
        entries = torch.cat(arguments, 1) if len(arguments) > 1 else arguments[0]
        if self._gather is None:
            return entries if self.sign == 1 else -entries
        scale, *indices = self._gather(entries.device)
        terms = [picked(entries, index) for index in indices]
        return functools.reduce(torch.add, terms) * scale.to(entries.dtype)

    def recoveries(self, start: int) -> tuple[Recovery, ...]:
        """The multipliers of each argument, where the part's rows begin at ``start``."""
        ends = np.cumsum([int(np.prod(shape, dtype=np.int64)) for shape in self.shapes])[:-1]
        pieces = zip(np.split(self.index, ends), np.split(self.scale, ends), strict=True)
        return tuple(
            Recovery("dual", start + index, scale, shape)
            for (index, scale), shape in zip(pieces, self.shapes, strict=True)
        )


class Block(NamedTuple):
    """The parts of one cvxpy constraint, and whether they have its multipliers: then there is one.

    Attributes:
        parts: at least one.
        is_read: cvxpy's dual variables are those of the first part's arguments.
    """

    parts: list[Part]
    is_read: bool


class Layout:
    """The rows of a program: the parts in the order of their kinds.

    Args:
        blocks: of all constraints.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        parts = [part for block in blocks for part in block.parts]
        self.parts = sorted(parts, key=lambda part: _KINDS.index(part.kind))
        starts = np.cumsum([0, *(part.rows for part in self.parts)])
        self._starts = {part: int(n) for part, n in zip(self.parts, starts[:-1], strict=True)}
        self.affine = torch.tensor([part.affine for part in self.parts for _ in range(part.rows)])

    @property
    def cones(self) -> Cones:
        """The product of cones."""
        rows: dict[str, int] = dict.fromkeys(_KINDS, 0)
        sides: dict[str, tuple[int, ...]] = dict.fromkeys(_KINDS, ())
        for part in self.parts:
            rows[part.kind] += part.rows
            sides[part.kind] += part.sides
        return Cones(
            rows["zero"], rows["nonnegative"], sides["second order"], sides["semidefinite"]
        )

    def multipliers(self, block: Block) -> tuple[Recovery, ...] | None:
        """One for each dual variable of a block's constraint, or None where they are not read."""
        part = block.parts[0]
        return part.recoveries(self._starts[part]) if block.is_read else None

    def __call__(self, *leaves: torch.Tensor) -> torch.Tensor:
        """``c``, shape ``(B, m)``, at the leaves' values."""
        rows = [part(*leaves) for part in self.parts]
        return torch.cat(rows, 1) if len(rows) > 1 else rows[0]


# -- one constraint --------------------------------------------------------------------------------


def block(constraint: Any, leaves: list[Any]) -> Block:
    """A cvxpy constraint as rows.

    Raises:
        DeclarationError: the constraint has no meaning in a nonlinear program.
        TranslationError: one of its arguments has no torch counterpart.
    """
    import cvxpy as cp
    from cvxpy.constraints.nonpos import Inequality
    from cvxpy.constraints.zero import Equality

    arguments = constraint.args
    match constraint:
        case Equality():
            return Block([_linear("zero", arguments[0] - arguments[1], 1, leaves)], True)
        case cp.Zero():
            return Block([_linear("zero", arguments[0], 1, leaves)], True)
        case Inequality():
            return Block([_linear("nonnegative", arguments[0] - arguments[1], 1, leaves)], True)
        case cp.NonNeg():
            return Block([_linear("nonnegative", arguments[0], -1, leaves)], True)
        case cp.NonPos():
            return Block([_linear("nonnegative", arguments[0], 1, leaves)], True)
        case cp.PSD():
            return Block([_semidefinite(constraint, leaves)], True)
        case cp.SOC():
            return Block([_second_order(constraint, leaves)], True)
        case cp.ExpCone():
            x, y, z = arguments
            # y > 0, x <= y log(z / y): smooth inside, without the overflow of y exp(x / y).
            return _smooth_cone(x + cp.rel_entr(y, z), [y, z], leaves)
        case cp.PowCone3D() | cp.PowConeND():
            factors, z = _power_factors(constraint)
            mean: Any = 1.0
            for factor, exponents in factors:
                mean = cp.multiply(mean, _powers(factor, exponents))
            sides = [z + mean, *(factor for factor, _ in factors)]
            return _smooth_cone(z - mean, sides, leaves)
    raise DeclarationError(
        f"The constraint {str(constraint)[:120]} ({type(constraint).__name__}) has no meaning in a "
        "nonlinear program; write it with ==, <=, >=, >> or cp.SOC."
    )


def _linear(kind: str, expression: Any, sign: float, leaves: list[Any]) -> Part:
    function, affine = translate(expression, leaves), expression.is_affine()
    index, scale = np.arange(expression.size), np.ones(expression.size)
    return Part(kind, (function,), (tuple(expression.shape),), sign, (), affine, index, scale)


def _smooth_cone(inside: Any, positive: list[Any], leaves: list[Any]) -> Block:
    """``inside <= 0`` and ``positive >= 0`` in the place of a cone without rows of its own."""
    parts = [_linear("nonnegative", inside, 1, leaves)]
    return Block(parts + [_linear("nonnegative", e, -1, leaves) for e in positive], False)


def _semidefinite(constraint: Any, leaves: list[Any]) -> Part:
    (expression,) = constraint.args
    function, affine = translate(expression, leaves), expression.is_affine()
    shape, side = tuple(expression.shape), expression.shape[0]
    return Part("semidefinite", (function,), (shape,), -1, (side,), affine, *scaled_triangle(side))


def _second_order(constraint: Any, leaves: list[Any]) -> Part:
    """``|X[:, i]| <= t[i]``, for ``axis=1`` of rows, as ``-(t, X)``, cone by cone."""
    t, X = constraint.args
    count = max(1, t.size)
    size = 1 + X.size // count
    rows = np.arange(count * size).reshape(count, size)
    rest = rows[:, 1:]
    if len(X.shape) == 2 and not constraint.axis:  # a cone's vector is a column of X
        rest = rest.T
    index = np.concatenate([rows[:, 0], rest.reshape(-1)])
    functions = (translate(t, leaves), translate(X, leaves))
    shapes = (tuple(t.shape), tuple(X.shape))
    affine = t.is_affine() and X.is_affine()
    sides, scale = (size,) * count, np.ones(count * size)
    return Part("second order", functions, shapes, -1, sides, affine, index, scale)


def _power_factors(constraint: Any) -> tuple[list[tuple[Any, np.ndarray]], Any]:
    """The factors of the weighted geometric mean, each with its exponents, and what it bounds."""
    import cvxpy as cp

    def vector(expression: Any) -> Any:
        return cp.vec(expression, order="F")

    alpha = np.asarray(constraint.alpha.value, dtype=np.float64)
    if isinstance(constraint, cp.PowCone3D):
        x, y, z = (vector(part) for part in constraint.args)
        alpha = np.broadcast_to(alpha.reshape(-1, order="F"), z.shape)
        return [(x, alpha), (y, 1 - alpha)], z
    W, z = constraint.args
    if constraint.axis == 1:
        W, alpha = W.T, alpha.T
    if W.ndim == 1:
        return [(vector(W[i]), alpha[i].reshape(1)) for i in range(W.shape[0])], vector(z)
    return [(W[i], alpha[i]) for i in range(W.shape[0])], vector(z)


def _powers(base: Any, exponents: np.ndarray) -> Any:
    """Entrywise powers; cvxpy's ``power`` takes one exponent for all."""
    import cvxpy as cp

    if np.ptp(exponents) == 0:
        return cp.power(base, float(exponents[0]))
    return cp.hstack([cp.power(base[i], float(e)) for i, e in enumerate(exponents)])


# -- implied constraints ---------------------------------------------------------------------------


def domain_constraints(problem: cp.Problem, smooth: cp.Problem) -> list[Any]:
    """Where the expressions of a problem are defined, as constraints.

    Args:
        problem: the user's.
        smooth: the problem in which its nonsmooth atoms are replaced.

    cvxpy's rules for convex problems restrict ``x**3`` to nonnegative ``x``, where it is convex;
    elsewhere an integer power means what it says.
    """
    import cvxpy as cp

    constraints = [a for constraint in smooth.constraints for a in constraint.args]
    expressions = [smooth.objective.expr, *constraints]
    if problem.is_dcp():
        return [c for expression in expressions for c in expression.domain]
    found: list[Any] = []
    seen: set[int] = set()

    def visit(expression: Any) -> None:
        if id(expression) in seen or not expression.variables():
            return
        seen.add(id(expression))
        for argument in expression.args:
            visit(argument)
        if isinstance(expression, cp.Power | cp.PowerApprox):
            exponent = getattr(expression.p, "value", None)
            if exponent is not None and float(exponent) >= 0 and float(exponent).is_integer():
                return
        if isinstance(expression, cp.atoms.atom.Atom):
            found.extend(expression._domain())

    for expression in expressions:
        visit(expression)
    return found


def without_repeats(constraints: list[Any]) -> list[Any]:
    """Each implied constraint once; cvxpy lists a domain for every place that needs it."""
    seen: set[Any] = set()
    kept = []
    for constraint in constraints:
        if not any(argument.variables() for argument in constraint.args):
            continue
        # The text alone abbreviates large constants, and says names, not variables.
        leaves = tuple(variable.id for variable in constraint.variables())
        numbers = tuple(_dense(c.value).tobytes() for c in constraint.constants())
        key = (str(constraint), leaves, numbers)
        if key not in seen:
            seen.add(key)
            kept.append(constraint)
    return kept


def _dense(value: Any) -> np.ndarray:
    return np.asarray(value.toarray() if hasattr(value, "toarray") else value)
