"""A :class:`~ddn_cvx.TorchProblem` as a nonlinear program."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import cast

import torch
from torch.func import functional_call

from ddn_cvx.batch.inputs import flat
from ddn_cvx.cones.product import Cones
from ddn_cvx.errors import DeclarationError
from ddn_cvx.programs.nonlinear.program import NonlinearProgram
from ddn_cvx.programs.recovery import Recovery
from ddn_cvx.torch_problem import TorchProblem

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class CompiledTorch:
    """The program of a :class:`~ddn_cvx.TorchProblem`; fields as in the cvxpy case."""

    program: NonlinearProgram
    problem: TorchProblem
    functions: _Functions
    requested: list[Recovery]
    duals: list[tuple[Recovery, ...]]
    notes: tuple[str, ...] = ()

    def inputs(self, tensors: Tensors) -> Tensors:
        """The inputs, and the modules' parameters as they are now."""
        return (*tensors, *self.functions.shared)

    @property
    def primals(self) -> list[Recovery]:
        """The unknown's alone."""
        return self.requested

    def start(
        self, inputs: Tensors, given: dict[int, torch.Tensor], batch: int, device: torch.device
    ) -> torch.Tensor:
        """The start, shape ``(B, n)``; ``given`` holds at most one, under the key 0."""
        n = self.problem.size
        start = self.problem.start
        value: torch.Tensor
        if 0 in given:
            value = given[0]
        elif callable(start) and not isinstance(start, torch.Tensor):
            value = start(*inputs[: len(self.problem.input_shapes)])
        elif start is not None:
            value = torch.as_tensor(start)
        else:
            value = torch.zeros(())
        value = value.detach().to(device=device, dtype=torch.float64)
        shape = (batch, *self.problem.variable_shape)
        try:
            return value.expand(shape).reshape(batch, n).clone()
        except RuntimeError:
            raise ValueError(
                f"The start has shape {tuple(value.shape)}; expected {shape} or "
                f"{tuple(self.problem.variable_shape)}."
            ) from None


def compile_torch(problem: TorchProblem) -> CompiledTorch:
    """Wrap the user's functions; sizes of the constraints are found by calling them once.

    Raises:
        DeclarationError: a function returns a tensor of the wrong shape.
    """
    functions = _Functions(problem)
    u = torch.zeros((2, problem.size), dtype=torch.float64)
    inputs = [torch.ones((2, *shape), dtype=torch.float64) for shape in problem.input_shapes]
    device = next((p.device for p in functions.shared), torch.device("cpu"))
    probe = (u.to(device), *(x.to(device) for x in inputs), *functions.shared)
    with torch.no_grad():
        functions.objective(*probe)
        sizes = [
            0 if getattr(problem, role) is None else functions.rows(role, *probe).shape[1]
            for role in ("equality", "inequality")
        ]
    program = NonlinearProgram(
        variables=problem.size,
        objective=functions.objective,
        constraint=functions.constraint if sum(sizes) else None,
        cones=Cones(zero=sizes[0], nonnegative=sizes[1]),
        residuals=functions.residuals if problem.residuals is not None else None,
        shared=len(functions.owners),
        traceable=problem.recorded,
    )
    duals: list[tuple[Recovery, ...]] = []
    offset = 0
    for size, role in zip(sizes, ("equality", "inequality"), strict=True):
        if getattr(problem, role) is not None:
            duals.append((Recovery.in_order("dual", offset, (size,)),))
        offset += size
    unknown = Recovery.in_order("primal", 0, tuple(problem.variable_shape))
    return CompiledTorch(program, problem, functions, [unknown], duals)


class _Functions:
    """The user's functions over the flat unknown, with modules' parameters as arguments."""

    def __init__(self, problem: TorchProblem) -> None:
        self.problem = problem
        self.names: list[tuple[str, str]] = []
        self.places: list[int] = []
        self.owners: list[tuple[str, str]] = []
        seen: dict[int, int] = {}
        for role, module in problem.modules().items():
            for name, parameter in module.named_parameters():
                if id(parameter) not in seen:  # one module may serve two roles
                    seen[id(parameter)] = len(self.owners)
                    self.owners.append((role, name))
                self.names.append((role, name))
                self.places.append(seen[id(parameter)])

    @property
    def shared(self) -> Tensors:
        """The modules' parameters as they are now; ``torch.func.functional_call`` replaces them."""
        modules = self.problem.modules()
        return tuple(
            cast(torch.Tensor, functools.reduce(getattr, name.split("."), modules[role]))
            for role, name in self.owners
        )

    def _call(self, role: str, u: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        own = len(tensors) - len(self.owners)
        inputs, shared = tensors[:own], tensors[own:]
        function = getattr(self.problem, role)
        unknown = u.reshape(u.shape[0], *self.problem.variable_shape)
        if not isinstance(function, torch.nn.Module):
            value = function(unknown, *inputs)
        else:
            # The modules' dtype is the user's; the program is solved in float64.
            values = {
                name: shared[place].to(u.dtype)
                for (owner, name), place in zip(self.names, self.places, strict=True)
                if owner == role
            }
            buffers = {
                name: buffer.to(u.dtype) if buffer.is_floating_point() else buffer
                for name, buffer in function.named_buffers()
            }
            value = functional_call(function, {**buffers, **values}, (unknown, *inputs))
        if not isinstance(value, torch.Tensor):
            raise DeclarationError(
                f"TorchProblem's {role} must return a tensor; got {type(value).__name__}."
            )
        return value

    def objective(self, u: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        value = self._call("objective", u, *tensors)
        if tuple(value.shape) != (u.shape[0],):
            raise DeclarationError(
                f"TorchProblem's objective must return one value for each element, shape "
                f"{(u.shape[0],)}; got {tuple(value.shape)}."
            )
        return value

    def rows(self, role: str, u: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        value = self._call(role, u, *tensors)
        if value.ndim < 1 or value.shape[0] != u.shape[0]:
            raise DeclarationError(
                f"TorchProblem's {role} must return shape ({u.shape[0]}, rows); got "
                f"{tuple(value.shape)}."
            )
        return flat(value)

    def constraint(self, u: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        parts = [
            self.rows(role, u, *tensors)
            for role in ("equality", "inequality")
            if getattr(self.problem, role) is not None
        ]
        return torch.cat(parts, 1)

    def residuals(self, u: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return self.rows("residuals", u, *tensors)
