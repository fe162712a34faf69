"""``layer.check``: the audit of a layer on the user's own data, with advice in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ddn_cvx.engine.nonlinear_engine import NonlinearEngine
from ddn_cvx.engine.policy import count_by_status
from ddn_cvx.errors import AdjointError, DeclarationError, SolveError
from ddn_cvx.kkt.certificate import ConeCertificate
from ddn_cvx.kkt.nonlinear_certificate import NonlinearCertificate
from ddn_cvx.programs.diagnosis import explanation
from ddn_cvx.solution import Solution
from ddn_cvx.status import Degeneracy
from ddn_cvx.torch_problem import TorchProblem

if TYPE_CHECKING:
    from ddn_cvx.kkt.point import Point
    from ddn_cvx.layer import DeclarativeLayer
    from ddn_cvx.programs.cone.program import ConeData, ConeProgram

# Elements looked at with the expensive checks (conditioning, finite differences, other solver).
_SAMPLED = 4

# Central differences: relative step, the cube root of float64's rounding.
_STEP = 6e-6

# Above these the audit advises.
_RESIDUAL = 1e-6
_GRADIENT = 1e-4
_CONDITION = 1e10

_NONLINEAR = (
    "The problem is solved as a nonlinear program, from a start to a local solution. A cone "
    "program needs no start, and its solution is global:"
)


@dataclass(frozen=True)
class Finding:
    """One line of the audit.

    Attributes:
        topic: what was looked at.
        good: nothing to do about it.
        text: what was found, and what to do if it is not good.
    """

    topic: str
    good: bool
    text: str


@dataclass(frozen=True)
class Audit:
    """What ``layer.check`` found; ``print`` it for advice in plain words.

    Attributes:
        findings: in the order in which they were made.
        solution: the solution of the whole batch.
        advice: why the problem is not a cone program, and what to write instead; empty for a cone
            program, and for a problem that could be one.

    Example:
        >>> import torch, ddn_cvx as ddn
        >>> import cvxpy as cp
        >>> u, x = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0])
        >>> layer = ddn.DeclarativeLayer(problem, parameters=[x], variables=[u])
        >>> layer.check(torch.tensor([1.0, -1.0])).good
        True
    """

    findings: tuple[Finding, ...]
    solution: Solution
    advice: str = ""

    @property
    def good(self) -> bool:
        """Nothing to do."""
        return all(finding.good for finding in self.findings)

    def __str__(self) -> str:
        width = max(len(finding.topic) for finding in self.findings)
        lines = [
            f"{'ok ' if finding.good else 'LOOK'}".ljust(5)
            + f"{finding.topic.ljust(width)}  {finding.text}"
            for finding in self.findings
        ]
        verdict = "All checks passed." if self.good else "See the lines marked LOOK."
        advice = ["", _NONLINEAR, self.advice] if self.advice else []
        return "\n".join([*lines, verdict, *advice])


def audit(layer: DeclarativeLayer, params: Sequence[Any]) -> Audit:
    """Run every check; see :meth:`ddn_cvx.DeclarativeLayer.check`."""
    tensors = tuple(torch.as_tensor(value).detach() for value in params)
    solution = layer.solve(*tensors)
    findings = [_status(solution), _residual(solution)]
    conic = not isinstance(layer._engine, NonlinearEngine)
    solved = (solution.solved.reshape(-1)).nonzero().squeeze(1)[:_SAMPLED]
    if len(solved):
        batched = layer._batch(tensors)
        sample = tuple(tensor[solved] for tensor in batched.tensors)
        findings.append(_degeneracy(solution))
        if solution._certificate is not None and conic:
            findings.append(_active_set(solution))
            findings.append(_conditioning(solution, solved))
        elif solution._certificate is not None:
            findings.append(_active_rows(solution))
            findings.append(_nonlinear_conditioning(solution, solved))
        findings.append(_gradient(layer, sample))
        findings.append(_other_solver(layer, sample))
    why = None if conic else explanation(layer.declaration)
    return Audit(tuple(findings), solution, why.text if why else "")


def _status(solution: Solution) -> Finding:
    counts = count_by_status(solution.status)
    total = solution.status.numel()
    if not counts:
        return Finding("status", True, f"all {total} elements solved")
    said = "; ".join(f"{count} {kind.name}: {kind.message}" for kind, count in counts.items())
    return Finding("status", False, f"{sum(counts.values())} of {total} not solved ({said})")


def _residual(solution: Solution) -> Finding:
    values = solution.residual[solution.solved]
    if values.numel() == 0 or not bool(values.isfinite().any()):
        return Finding("residual", False, "no element has a residual to look at")
    worst = float(values[values.isfinite()].max())
    text = f"largest relative KKT residual {worst:.1e}"
    if worst > _RESIDUAL:
        text += "; gradients inherit it: rescale the data or tighten the solver's tolerance"
    return Finding("residual", worst <= _RESIDUAL, text)


def _degeneracy(solution: Solution) -> Finding:
    if solution.degeneracy is not None:
        return _flagged(solution.degeneracy)
    count = int(solution.degenerate.sum())
    if not count:
        return Finding("degeneracy", True, "every active constraint has a positive multiplier")
    return Finding(
        "degeneracy",
        False,
        f"{count} elements have a constraint that is active with a zero multiplier: the derivative "
        "is one-sided there, and a finite difference may disagree; a small perturbation of the "
        "data removes it",
    )


def _flagged(flags: torch.Tensor) -> Finding:
    """In words, what the flags of a nonlinear program's solution say."""
    counts = {flag: int((flags & int(flag) != 0).sum()) for flag in Degeneracy if flag}
    said = [f"{count} elements: {flag.message}" for flag, count in counts.items() if count]
    if not said:
        return Finding("degeneracy", True, "every solution is an isolated, regular minimum")
    # Dependent constraints alone leave the derivative of the solution well defined.
    harmless = not (counts[Degeneracy.WEAKLY_ACTIVE] or counts[Degeneracy.NO_CURVATURE])
    return Finding("degeneracy", harmless, "; ".join(said))


def _active_rows(solution: Solution) -> Finding:
    certificate = solution._certificate
    assert isinstance(certificate, NonlinearCertificate)
    active, rows = certificate.active()
    if not rows:
        return Finding("active set", True, "no inequality rows")
    kept = active[solution.solved.reshape(-1)]
    text = f"{int(kept.min())} to {int(kept.max())} of {rows} inequality rows are active"
    return Finding("active set", True, text)


def _nonlinear_conditioning(solution: Solution, elements: torch.Tensor) -> Finding:
    from ddn_cvx.kkt.nonlinear_adjoint import DENSE_UNKNOWNS

    certificate = solution._certificate
    assert isinstance(certificate, NonlinearCertificate)
    if certificate.primal.shape[1] + certificate.dual.shape[1] > DENSE_UNKNOWNS:
        return Finding("conditioning", True, "not computed for a large system")
    values = torch.linalg.svdvals(certificate.kkt_matrix(elements))
    condition = float((values[:, 0] / values[:, -1]).max())
    if condition <= _CONDITION:
        text = f"condition number of the KKT system up to {condition:.1e}"
        return Finding("conditioning", True, text)
    return Finding(
        "conditioning",
        solution.degeneracy is not None
        and bool(torch.eq(solution.degeneracy, int(Degeneracy.DEPENDENT_CONSTRAINTS)).all()),
        f"the KKT system is singular or nearly so (condition number {condition:.0e}): constraints "
        "depend on each other, or the objective is flat; minimum-norm derivatives are taken",
    )


def _active_set(solution: Solution) -> Finding:
    from ddn_cvx.kkt.adjoint import derivative_at

    certificate = solution._certificate
    assert isinstance(certificate, ConeCertificate)
    program, cones = certificate.program, certificate.program.cones
    solved = solution.solved.reshape(-1).nonzero().squeeze(1)
    diagonal = derivative_at(program, *_in_units(certificate, solved)).diagonal
    active = diagonal[:, cones.zero :].sum(1)
    if cones.nonnegative == 0:
        return Finding("active set", True, "no inequality rows")
    low, high = int(active.min()), int(active.max())
    text = f"{low} to {high} of {cones.nonnegative} inequality rows are active"
    determined = cones.is_polyhedral and not program.is_quadratic
    if determined and bool((active + cones.zero >= program.variables).any()):
        return Finding(
            "active set",
            False,
            f"{text}; the solution is a vertex of a linear program, whose derivative with respect "
            "to the objective is zero: nothing will be learnt from it. Add a small quadratic "
            "term, such as 1e-3 * cp.sum_squares(u), to the objective",
        )
    return Finding("active set", True, text)


def _conditioning(solution: Solution, elements: torch.Tensor) -> Finding:
    from ddn_cvx.kkt.adjoint import DENSE_UNKNOWNS, dense_system, derivative_at
    from ddn_cvx.linalg.dense import MINIMUM_NORM_TOLERANCE, solve_checked

    certificate = solution._certificate
    assert isinstance(certificate, ConeCertificate)
    program = certificate.program
    if program.variables + program.rows > DENSE_UNKNOWNS:
        return Finding("conditioning", True, "not computed for a sparse system")
    data, point = _in_units(certificate, elements)
    derivative = derivative_at(program, data, point)
    matrix = dense_system(program, data, derivative)
    values = torch.linalg.svdvals(matrix)
    condition = float((values[:, 0] / values[:, -1]).max())
    if condition <= _CONDITION:
        text = f"condition number of the KKT system up to {condition:.1e}"
        return Finding("conditioning", True, text)
    # Singular only in what the layer does not return (auxiliary variables, multipliers of
    # redundant constraints) does no harm: the adjoint's system is then still consistent.
    primal, dual = _random_gradient(program, point)
    right = torch.cat([primal, derivative.times(dual)], 1)
    residual = float(solve_checked(matrix, right)[1].max())
    if residual <= MINIMUM_NORM_TOLERANCE:
        return Finding(
            "conditioning",
            True,
            "the KKT system is singular, from redundant constraints or auxiliary variables, but "
            "the gradient of what the layer returns is determined",
        )
    return Finding(
        "conditioning",
        False,
        "the KKT system is singular and the gradient not determined: the solution is not unique "
        "(add a small quadratic term), or the data are of very different sizes (rescale)",
    )


def _in_units(certificate: ConeCertificate, elements: torch.Tensor) -> tuple[ConeData, Point]:
    """Data and solution of some elements in their own units, in which they are differentiated."""
    from ddn_cvx.kkt.point import Point
    from ddn_cvx.programs.cone.units import natural_units

    data = certificate.data.select(elements)
    units = natural_units(certificate.program, data)
    failed = torch.zeros(len(elements), dtype=torch.bool, device=elements.device)
    primal, dual = certificate.primal[elements], certificate.dual[elements]
    return units.scale(data), Point(primal / units.rho, dual / units.sigma, failed)


def _random_gradient(program: ConeProgram, point: Point) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient with respect to ``x`` and ``y`` of a random function of what the layer returns."""
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        primal, dual = (
            vector.detach().clone().requires_grad_() for vector in (point.primal, point.dual)
        )
        values = [recovery(primal, dual) for recovery in program.recoveries]
        weights = [torch.randn(v.shape, generator=generator, dtype=v.dtype).to(v) for v in values]
        gradients = torch.autograd.grad(
            values, (primal, dual), weights, allow_unused=True, materialize_grads=True
        )
    return gradients[0], gradients[1]


def _gradient(layer: DeclarativeLayer, sample: tuple[torch.Tensor, ...]) -> Finding:
    """Directional derivative by the layer's adjoint against central differences."""
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(tensor.clone().requires_grad_() for tensor in sample)
    if not inputs:
        return Finding("gradient", True, "the layer has no parameters")
    directions = _directions(layer, sample, generator)
    try:
        outputs = layer(*inputs)
        weights = [
            torch.randn(value.shape, generator=generator, dtype=value.dtype).to(value)
            for value in outputs
        ]
        loss = _inner(weights, outputs)
        gradients = torch.autograd.grad(
            loss.sum(), inputs, allow_unused=True, materialize_grads=True
        )
    except AdjointError as error:
        return Finding("gradient", False, str(error))
    analytic = _inner(gradients, directions)

    def moved(sign: float) -> torch.Tensor:
        with torch.no_grad():
            shifted = [t + sign * _STEP * d for t, d in zip(sample, directions, strict=True)]
            values = layer(*shifted)
        return _inner(weights, values)

    try:
        numeric = (moved(1.0) - moved(-1.0)) / (2 * _STEP)
    except SolveError:
        return Finding("gradient", False, "a small perturbation of the inputs has no solution")
    scale = torch.maximum(numeric.abs(), analytic.detach().abs()).clamp_min(1e-3)
    worst = float(((numeric - analytic).abs() / scale).max())
    text = f"adjoint against central differences: relative difference {worst:.1e}"
    if worst <= _GRADIENT:
        return Finding("gradient", True, text)
    return Finding(
        "gradient",
        False,
        f"{text}; if the degeneracy or conditioning lines above are marked, that is why; else "
        "tighten the solver's tolerance or use adjoint='kkt'",
    )


def _inner(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> torch.Tensor:
    """Inner product over all of each element's entries, shape ``(B,)``."""
    products = [(a * b).reshape(a.shape[0], -1).sum(1) for a, b in zip(left, right, strict=True)]
    return torch.stack(products).sum(0)


def _directions(
    layer: DeclarativeLayer, sample: tuple[torch.Tensor, ...], generator: torch.Generator
) -> list[torch.Tensor]:
    """Random directions that respect declared symmetry, relative to each parameter's size."""
    directions = []
    for tensor, parameter in zip(sample, layer.declaration.parameters, strict=True):
        direction = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor)
        if any(parameter.attributes[name] for name in ("symmetric", "PSD", "NSD")):
            direction = (direction + direction.mT) / 2
        directions.append(direction * tensor.abs().mean().clamp_min(1e-3))
    return directions


def _another(layer: DeclarativeLayer) -> str | None:
    """The name of a solver that is not the layer's; None if there is none."""
    from ddn_cvx.solvers.nonlinear.settings import installed_nonlinear_solvers

    declaration = layer.declaration
    if isinstance(declaration, TorchProblem):
        return None
    if not isinstance(layer._engine, NonlinearEngine):
        return "SCS" if layer._engine.solver_name != "SCS" else "CLARABEL"
    if layer._engine.solver_name != "TORCH":
        return "TORCH"
    found = installed_nonlinear_solvers() if declaration.problem.is_dnlp() else ()
    return found[0] if found else None


def _other_solver(layer: DeclarativeLayer, sample: tuple[torch.Tensor, ...]) -> Finding:
    from ddn_cvx.layer import DeclarativeLayer as Layer

    other = _another(layer)
    if other is None:
        return Finding("other solver", True, "there is no other solver for this problem here")
    with torch.no_grad():
        try:
            twin = Layer(layer.declaration, solver=other, on_failure="nan")
            theirs = twin.solve(*sample)
            ours = layer.solve(*sample)
        except (DeclarationError, SolveError) as error:
            return Finding("other solver", False, f"{other} cannot take this problem: {error}")
    both = ours.solved & theirs.solved
    if not bool(both.any()):
        return Finding("other solver", False, f"{other} could not solve these elements")
    difference = max(
        float((a - b)[both].abs().max() / (1 + b[both].abs().max()))
        for a, b in zip(ours.primal, theirs.primal, strict=True)
    )
    text = f"{other} differs by {difference:.1e} (relative)"
    if difference <= 1e-5:
        return Finding("other solver", True, text)
    return Finding(
        "other solver",
        False,
        f"{text}: the solution is not unique, or one of the two is not accurate",
    )
