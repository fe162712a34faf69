"""UNO and IPOPT through cvxpy's interface to nonlinear solvers, one element at a time."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.errors import DeclarationError
from ddn_cvx.kkt.multipliers import recover_multipliers
from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance
from ddn_cvx.solution import restored_values
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.solvers.nonlinear.dedicated import packed
from ddn_cvx.solvers.nonlinear.settings import IPOPT, UNO, installed_nonlinear_solvers
from ddn_cvx.status import Status, translated

# Options that keep the solver from printing, whatever cvxpy says about verbosity.
_QUIET: dict[str, dict[str, Any]] = {UNO: {"logger": "SILENT"}, IPOPT: {}}

_PACKAGES = {UNO: 'pip install "ddn-cvx[nlp]"', IPOPT: "pip install cyipopt-wheels"}


@dataclass(frozen=True, eq=False)
class External:
    """Solves the declaration itself by ``problem.solve(nlp=True)``.

    Attributes:
        declaration: the problem, with its parameters.
        compiled: packs and unpacks the unknown.
        name: "UNO" or "IPOPT".

    Raises:
        DeclarationError: the solver is not installed, or the problem is not DNLP.
    """

    declaration: Declaration
    compiled: Any
    name: str

    in_torch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.name not in installed_nonlinear_solvers():
            raise DeclarationError(
                f"The solver {self.name} is not installed: {_PACKAGES[self.name]}."
            )
        if not self.declaration.problem.is_dnlp():
            raise DeclarationError(
                f"{self.name} takes DNLP problems (problem.is_dnlp()), and this one is not: a "
                "nonsmooth atom stands where it would have to be concave. Use solver='TORCH'."
            )

    def __call__(self, program: NonlinearInstance, start: torch.Tensor) -> Answer:
        """Solve each element from its start; multipliers are recovered from the KKT conditions."""
        problem = self.declaration.problem
        variables, parameters = list(problem.variables()), list(self.declaration.parameters)
        batch = len(start)
        status = torch.full((batch,), int(Status.FAILED), device=start.device)
        iterations = torch.zeros_like(status)
        unpacked = self.compiled.unknown.unpack(start)
        values = [value.clone() for value in unpacked]
        inputs = [tensor.cpu().numpy() for tensor in program.inputs]
        with restored_values([*variables, *parameters]):
            for element in range(batch):
                for parameter, value in zip(parameters, inputs, strict=True):
                    parameter.save_value(value[element])
                for variable, value in zip(variables, unpacked, strict=False):
                    variable.save_value(value[element].cpu().numpy())
                status[element], iterations[element] = self._solve(problem)
                for variable, value in zip(variables, values, strict=False):
                    if variable.value is not None:
                        value[element] = torch.as_tensor(variable.value).to(value)
        point = packed(self.compiled, values, program.inputs)
        return Answer(point, recover_multipliers(program, point), status, iterations)

    def _solve(self, problem: Any) -> tuple[int, int]:
        import cvxpy as cp

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                problem.solve(nlp=True, solver=getattr(cp, self.name), **_QUIET[self.name])
        except Exception:  # whatever a foreign solver raises is this element's failure
            return int(Status.FAILED), 0
        statistics = problem.solver_stats
        count = getattr(statistics, "num_iters", None)
        return int(translated("CVXPY", problem.status)), int(count or 0)
