"""The declaration: the user's cvxpy problem, its parameters and its variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ddn_cvx.errors import DeclarationError

if TYPE_CHECKING:
    import cvxpy as cp

ExampleFunction = Callable[[int, torch.Generator], tuple[torch.Tensor, ...]]
ClosedForm = Callable[..., tuple[torch.Tensor, ...]]


@dataclass(frozen=True, eq=False)
class Declaration:
    """An optimization problem in cvxpy syntax, with what is known about it.

    Attributes:
        problem: the cvxpy problem. A constant problem (no parameters) is allowed.
        parameters: every parameter of ``problem``, in the order in which a layer takes tensors.
        variables: variables of ``problem``, or dual variables of its constraints, in the order in
            which a layer returns tensors.
        gp: the problem is a geometric program (log-log convex), as in ``problem.solve(gp=True)``.
        name: short name, for tables.
        summary: the problem in one line.
        citation: where problem or closed form come from.
        example: ``example(batch, generator)`` draws regular inputs on the CPU in float64, one
            tensor of shape ``(batch, *parameter.shape)`` for each parameter.
        closed_form: ``closed_form(*tensors)`` maps inputs of shape ``(B, *parameter.shape)`` to
            solutions of shape ``(B, *variable.shape)``, differentiable by autograd.
        start: ``start(*tensors)`` maps inputs to where an iterative solver starts, one tensor of
            shape ``(B, *variable.shape)`` for each of ``problem.variables()``.
        dedicated: a special algorithm, ``solver="DEDICATED"``: maps inputs of shape
            ``(B, *parameter.shape)`` to the solution, one tensor of shape ``(B, *variable.shape)``
            for each of ``problem.variables()``, NaN where there is none. Its own derivative, if it
            has one, is ``adjoint="native"``.

    Raises:
        DeclarationError: parameters or variables do not fit the problem.

    Example:
        >>> import cvxpy as cp, ddn_cvx as ddn
        >>> u, x = cp.Variable(3), cp.Parameter(3)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0])
        >>> ddn.Declaration(problem, (x,), (u,), name="orthant").name
        'orthant'
    """

    problem: cp.Problem
    parameters: Sequence[cp.Parameter]
    variables: Sequence[cp.Variable]
    gp: bool = False
    name: str = ""
    summary: str = ""
    citation: str = ""
    example: ExampleFunction | None = field(default=None, repr=False)
    closed_form: ClosedForm | None = field(default=None, repr=False)
    start: ClosedForm | None = field(default=None, repr=False)
    dedicated: ClosedForm | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for argument in ("parameters", "variables"):
            value = getattr(self, argument)
            if not isinstance(value, list | tuple):
                raise DeclarationError(
                    f"The layer's {argument} must be provided as a list or tuple; "
                    f"got {type(value).__name__}."
                )
            object.__setattr__(self, argument, tuple(value))
        self._check_parameters()
        self._check_variables()

    def _check_parameters(self) -> None:
        wanted = {parameter.id: parameter for parameter in self.problem.parameters()}
        given = {parameter.id: parameter for parameter in self.parameters}
        if len(given) != len(self.parameters):
            raise DeclarationError("A parameter is listed twice in `parameters`.")
        if wanted.keys() == given.keys():
            return
        missing = [parameter.name() for key, parameter in wanted.items() if key not in given]
        foreign = [parameter.name() for key, parameter in given.items() if key not in wanted]
        message = "The layer's parameters must exactly match problem.parameters."
        if missing:
            message += f" Missing: {', '.join(missing)}."
        if foreign:
            message += f" Not in the problem: {', '.join(foreign)}."
        raise DeclarationError(message)

    def _check_variables(self) -> None:
        if not self.variables:
            raise DeclarationError("`variables` is empty; name at least one variable to return.")
        duals = [dual for rows in self.problem.constraints for dual in rows.dual_variables]
        known = {variable.id for variable in (*self.problem.variables(), *duals)}
        for variable in self.variables:
            if variable.id not in known:
                raise DeclarationError(
                    f"Variable {variable} must be a subset of problem.variables or a constraint "
                    "dual variable."
                )

    def inputs(
        self,
        batch: int = 1,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> tuple[torch.Tensor, ...]:
        """Example inputs: one tensor of shape ``(batch, *parameter.shape)`` for each parameter.

        Args:
            batch: number of elements.
            seed: the same seed gives the same tensors on every device and in every dtype.
            dtype: dtype of the tensors; they are drawn in float64 and rounded.
            device: where to put them.

        Raises:
            DeclarationError: the declaration carries no ``example``.
        """
        if self.example is None:
            if self.parameters:
                raise DeclarationError(
                    f"The declaration {self.name or self.problem} has no example inputs; pass "
                    "example=lambda batch, generator: (...) to Declaration, or the tensors."
                )
            return ()
        generator = torch.Generator().manual_seed(seed)
        drawn = self.example(batch, generator)
        for tensor, parameter in zip(drawn, self.parameters, strict=True):
            if tuple(tensor.shape) != (batch, *parameter.shape):
                raise DeclarationError(
                    f"example() of {self.name} drew shape {tuple(tensor.shape)} for parameter "
                    f"{parameter.name()}; expected {(batch, *parameter.shape)}."
                )
        return tuple(tensor.to(dtype=dtype, device=device) for tensor in drawn)

    def __deepcopy__(self, memo: dict[int, Any]) -> Declaration:
        """A declaration is immutable, and cvxpy's identity is by object: copies share it."""
        return self
