"""A cvxpy problem as a nonlinear program."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ddn_cvx.batch.inputs import flat
from ddn_cvx.declaration import Declaration
from ddn_cvx.errors import DeclarationError
from ddn_cvx.linalg.triangle import from_upper_triangle
from ddn_cvx.programs.diagnosis import refused_variable
from ddn_cvx.programs.nonlinear.constraints import (
    Block,
    Layout,
    block,
    domain_constraints,
    without_repeats,
)
from ddn_cvx.programs.nonlinear.least_squares import squared_terms
from ddn_cvx.programs.nonlinear.program import NonlinearProgram
from ddn_cvx.programs.nonlinear.smoothing import Smoothed, has_kinks, smoothed
from ddn_cvx.programs.nonlinear.unknown import Unknown
from ddn_cvx.programs.recovery import Recovery
from ddn_cvx.programs.translation import TorchFunction, TranslationError, translate
from ddn_cvx.solution import quiet_sparse_values

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class Compiled:
    """A program with what connects it to the declaration.

    Attributes:
        program: the functions.
        unknown: packs and unpacks ``u``.
        requested: one for each of the declaration's variables.
        primals: one for each of ``problem.variables()``.
        duals: for each of ``problem.constraints``, one for each of its dual variables, or None
            where the program's multipliers are not those of the constraint.
        variables: ``problem.variables()``, then those that stand for nonsmooth atoms.
        auxiliary: slots of the latter, each with its value as a function of the variables before
            it and the inputs.
        symmetric: which parameters are symmetric.
        notes: lines for ``repr(layer)``.
    """

    program: NonlinearProgram
    unknown: Unknown
    requested: list[Recovery]
    primals: list[Recovery]
    duals: list[tuple[Recovery, ...] | None]
    variables: list[Any]
    auxiliary: list[tuple[int, TorchFunction]]
    symmetric: tuple[bool, ...]
    notes: tuple[str, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        """A program is immutable, and the declaration finds its variables by their identity."""
        return self

    def inputs(self, tensors: Tensors) -> Tensors:
        """Symmetric parameters are read from their upper triangle, as in the cone programs."""
        return tuple(
            from_upper_triangle(tensor) if symmetric else tensor
            for tensor, symmetric in zip(tensors, self.symmetric, strict=True)
        )

    def start(
        self, inputs: Tensors, given: dict[int, torch.Tensor], batch: int, device: torch.device
    ) -> torch.Tensor:
        """The start, shape ``(B, n)``.

        Args:
            given: starts ``(B, *shape)`` by variable id; the others start at their ``value``, else
                at zero. Solvers then begin inside the bounds (:mod:`.start`).
        """
        values: list[torch.Tensor] = []
        for place, variable in enumerate(self.variables):
            if variable.id in given:
                values.append(given[variable.id].to(device=device, dtype=torch.float64))
                continue
            with quiet_sparse_values():
                value = variable.value if place < len(self.primals) else None
            if value is None:
                value = np.zeros(variable.shape)
            if hasattr(value, "toarray"):
                value = value.toarray()
            tensor = torch.as_tensor(np.asarray(value, dtype=np.float64), device=device)
            values.append(tensor.expand(batch, *variable.shape))
        for slot, function in self.auxiliary:
            values[slot] = torch.nan_to_num(function(*values, *inputs)).reshape_as(values[slot])
        return self.unknown.pack(values)


def compile_nonlinear(declaration: Declaration) -> Compiled:
    """Translate a declaration.

    Raises:
        DeclarationError: a variable is integer or complex, a constraint or an atom has no meaning
            here; the message says which and what to write.
    """
    problem = declaration.problem
    refused = refused_variable(problem)
    if refused is not None:
        raise DeclarationError(refused)
    smooth = smoothed(problem)
    original, added = problem.variables(), _added_variables(problem, smooth)
    unknown = Unknown([*original, *added])
    try:
        functions, blocks = _translated(declaration, smooth, unknown)
        leaves: list[Any] = [*unknown.variables, *declaration.parameters]
        auxiliary = [
            (unknown.slots[variable.id], translate(value, leaves))
            for variable, value in smooth.values
        ]
    except TranslationError as error:
        raise DeclarationError(f"{error}") from error
    layout = functions.layout
    duals = [layout.multipliers(block) for block in blocks[: len(problem.constraints)]]
    return Compiled(
        functions.program(),
        unknown,
        [_requested(variable, declaration, unknown, duals) for variable in declaration.variables],
        unknown.recoveries[: len(original)],
        duals,
        unknown.variables,
        auxiliary,
        tuple(_is_symmetric(parameter) for parameter in declaration.parameters),
        _notes(problem, len(added)),
    )


def _added_variables(problem: Any, smooth: Smoothed) -> list[Any]:
    """Variables that stand for nonsmooth atoms, each behind those of which it is a function."""
    known = {variable.id for variable in problem.variables()}
    added = [variable for variable in smooth.problem.variables() if variable.id not in known]
    order = {variable.id: place for place, (variable, _) in enumerate(smooth.values)}
    return sorted(added, key=lambda variable: order.get(variable.id, len(order)))


def _translated(
    declaration: Declaration, smooth: Smoothed, unknown: Unknown
) -> tuple[_Functions, list[Block]]:
    """The program's functions; the blocks of the original constraints, and then of all others."""
    leaves: list[Any] = [*unknown.variables, *declaration.parameters]
    target = smooth.problem.objective.expr
    squares = squared_terms(target)
    terms = None
    if squares is not None:
        terms = [(translate(w, leaves), translate(r, leaves)) for w, r in squares]
    implied = [constraint for variable in unknown.variables for constraint in variable.domain]
    implied += domain_constraints(declaration.problem, smooth.problem)
    constraints = [*smooth.problem.constraints, *without_repeats(implied)]
    blocks = [block(constraint, leaves) for constraint in constraints]
    return _Functions(unknown, translate(target, leaves), Layout(blocks), terms), blocks


def _requested(
    variable: Any,
    declaration: Declaration,
    unknown: Unknown,
    duals: list[tuple[Recovery, ...] | None],
) -> Recovery:
    """How one of the declaration's variables, primal or dual, is read from the solution."""
    if variable.id in unknown.slots:
        return unknown.recoveries[unknown.slots[variable.id]]
    for constraint, recoveries in zip(declaration.problem.constraints, duals, strict=True):
        for place, dual in enumerate(constraint.dual_variables):
            if dual.id != variable.id:
                continue
            if recoveries is None:
                raise DeclarationError(
                    f"The multipliers of constraint {constraint} are not available in a nonlinear "
                    "program; ask for primal variables only."
                )
            return replace(recoveries[place], shape=tuple(variable.shape))
    raise AssertionError(f"{variable} is no variable of the declaration")


def _is_symmetric(parameter: Any) -> bool:
    return any(parameter.attributes[name] for name in ("symmetric", "PSD", "NSD"))


def _notes(problem: Any, added: int) -> tuple[str, ...]:
    """Lines for ``repr(layer)`` about nonsmooth atoms."""
    if added:
        return (f"{added} nonsmooth atoms replaced by variables and constraints",)
    if has_kinks(problem):
        return ("nonsmooth atoms kept: the problem is not DNLP, derivatives at kinks one-sided",)
    return ()


@dataclass(frozen=True, eq=False)
class _Functions:
    """The program's functions over the flat unknown.

    Attributes:
        unknown: unpacks ``u``.
        objective_of: the objective as a function of the variables and the inputs.
        layout: the rows.
        terms: weights and residuals of a sum of squares, or None.
    """

    unknown: Unknown
    objective_of: TorchFunction
    layout: Layout
    terms: list[tuple[TorchFunction, TorchFunction]] | None

    def program(self) -> NonlinearProgram:
        """The functions as a program."""
        is_constrained = bool(self.layout.parts)
        return NonlinearProgram(
            variables=self.unknown.size,
            objective=self.objective,
            constraint=self.constraint if is_constrained else None,
            cones=self.layout.cones,
            affine=self.layout.affine if is_constrained else None,
            residuals=self.residuals if self.terms is not None else None,
            traceable=True,
        )

    def objective(self, u: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """``f``, shape ``(B,)``."""
        return self.objective_of(*self.unknown.unpack(u), *inputs).reshape(u.shape[0])

    def constraint(self, u: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """``c``, shape ``(B, m)``."""
        return self.layout(*self.unknown.unpack(u), *inputs)

    def residuals(self, u: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """``r`` with ``f = |r|^2``, shape ``(B, k)``."""
        assert self.terms is not None
        leaves = (*self.unknown.unpack(u), *inputs)
        found = []
        for weight, residual in self.terms:
            value = residual(*leaves)
            root = weight(*leaves).sqrt()
            if root.ndim != value.ndim:
                root = root.reshape(-1, *[1] * (value.ndim - 1))
            found.append(flat(root * value))
        return torch.cat(found, 1)
