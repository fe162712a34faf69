"""``layer.check``: the audit of a layer on the user's own data, with advice in plain words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ddn_cvx.batch.differences import disagreement, pulled, weighted
from ddn_cvx.batch.elements import select
from ddn_cvx.declaration import Declaration
from ddn_cvx.engine.policy import count_by_status
from ddn_cvx.errors import AdjointError, DeclarationError
from ddn_cvx.kkt.certificate import KKTCertificate
from ddn_cvx.kkt.point import Point
from ddn_cvx.kkt.system import DENSE_UNKNOWNS, FORMED_UNKNOWNS, dense_matrix, derivative_at
from ddn_cvx.linalg.dense import MINIMUM_NORM_TOLERANCE, solve_checked
from ddn_cvx.solution import Solution, SolveError
from ddn_cvx.status import Degeneracy
from ddn_cvx.torch_problem import TorchProblem

# Elements looked at with the expensive checks (conditioning, finite differences, other solver).
_SAMPLED = 4

# Above these the audit advises.
_RESIDUAL = 1e-6
_GRADIENT = 1e-4
_CONDITION = 1e10

# Gradients below this are compared absolutely.
_LEAST_GRADIENT = 1e-3

_NONLINEAR = (
    "The problem is solved as a nonlinear program, from a start to a local solution. A cone "
    "program needs no start, and its solution is global:"
)


@dataclass(frozen=True)
class Finding:
    """One line of the audit.

    Attributes:
        topic: the part of the layer that was checked.
        good: the check passed.
        text: the result, and what to do if it is not good.
    """

    topic: str
    good: bool
    text: str


@dataclass(frozen=True)
class Audit:
    """Result of ``layer.check``; ``print`` it for advice in plain words.

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
        """Every check passed."""
        return all(finding.good for finding in self.findings)

    def __str__(self) -> str:
        width = max(len(finding.topic) for finding in self.findings)
        lines = [
            f"{'ok' if finding.good else 'LOOK':5}{finding.topic:{width}}  {finding.text}"
            for finding in self.findings
        ]
        verdict = "All checks passed." if self.good else "See the lines marked LOOK."
        advice = ["", _NONLINEAR, self.advice] if self.advice else []
        return "\n".join([*lines, verdict, *advice])


class Layer(Protocol):
    """A layer, see :class:`~ddn_cvx.DeclarativeLayer`, whose module stands above this one."""

    declaration: Declaration | TorchProblem

    def __call__(self, *params: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The requested variables, differentiable."""

    def solve(self, *params: torch.Tensor) -> Solution:
        """The solution of each element."""


# Whether a check passed, and the text of its finding.
Verdict = tuple[bool, str]


def audit(
    layer: Layer,
    tensors: Sequence[torch.Tensor],
    batched: tuple[torch.Tensor, ...],
    path: Any,
    twin: Callable[[str], Layer],
) -> Audit:
    """Run every check; see :meth:`ddn_cvx.DeclarativeLayer.check`.

    Args:
        layer: to be audited.
        tensors: detached inputs, as its user passes them.
        batched: the same, each ``(B, *parameter.shape)``.
        path: of the layer's engine.
        twin: makes a layer with another solver.
    """
    solution = layer.solve(*tensors)
    verdicts = {"status": _status(solution), "residual": _residual(solution)}
    solved = solution.solved.reshape(-1).nonzero().squeeze(1)
    if len(solved):
        sampled = solved[:_SAMPLED]
        sample = select(batched, sampled)
        verdicts["degeneracy"] = _degeneracy(solution)
        if isinstance(solution._certificate, KKTCertificate):
            verdicts["active set"] = _active_set(*solution._certificate.point(solved))
            verdicts["conditioning"] = _conditioning(
                solution, *solution._certificate.point(sampled)
            )
        verdicts["gradient"] = _gradient(layer, sample)
        other = path.another_solver()
        verdicts["other solver"] = _other_solver(layer, other, twin, sample)
    findings = (Finding(topic, good, text) for topic, (good, text) in verdicts.items())
    return Audit(tuple(findings), solution, path.advice())


def _status(solution: Solution) -> Verdict:
    counts = count_by_status(solution.status)
    total = solution.status.numel()
    if not counts:
        return True, f"all {total} elements solved"
    said = "; ".join(f"{count} {kind.name}: {kind.message}" for kind, count in counts.items())
    return False, f"{sum(counts.values())} of {total} not solved ({said})"


def _residual(solution: Solution) -> Verdict:
    values = solution.residual[solution.solved]
    known = values[values.isfinite()]
    if known.numel() == 0:
        return False, "no element has a residual to look at"
    worst = float(known.max())
    text = f"largest relative KKT residual {worst:.1e}"
    if worst > _RESIDUAL:
        text += "; gradients inherit it: rescale the data or tighten the solver's tolerance"
    return worst <= _RESIDUAL, text


def _degeneracy(solution: Solution) -> Verdict:
    if solution.degeneracy is not None:
        return _flagged(solution.degeneracy)
    count = int(solution.degenerate.sum())
    if not count:
        return True, "every active constraint has a positive multiplier"
    return False, (
        f"{count} elements have a constraint that is active with a zero multiplier: the derivative "
        "is one-sided there, and a finite difference may disagree; a small perturbation of the "
        "data removes it"
    )


def _flagged(flags: torch.Tensor) -> Verdict:
    """The flags of a nonlinear program's solution, in words."""
    counts = {flag: int((flags & int(flag) != 0).sum()) for flag in Degeneracy}
    said = [f"{count} elements: {flag.message}" for flag, count in counts.items() if count]
    if not said:
        return True, "every solution is an isolated, regular minimum"
    # Dependent constraints alone leave the derivative of the solution well defined.
    harmless = not (counts[Degeneracy.WEAKLY_ACTIVE] or counts[Degeneracy.NO_CURVATURE])
    return harmless, "; ".join(said)


def _active_set(instance: Any, point: Point) -> Verdict:
    program, cones = instance.program, instance.program.cones
    if cones.nonnegative == 0:
        return True, "no inequality rows"
    with torch.no_grad():
        shifted = point.dual - instance.slack(point.primal)
    active = (shifted[:, cones.zero : cones.linear] > 0).sum(1)
    low, high = int(active.min()), int(active.max())
    text = f"{low} to {high} of {cones.nonnegative} inequality rows are active"
    is_linear = program.has_pattern and cones.is_polyhedral and not program.is_quadratic
    if is_linear and bool((active + cones.zero >= program.variables).any()):
        return False, (
            f"{text}; the solution is a vertex of a linear program, whose derivative with respect "
            "to the objective is zero: nothing will be learnt from it. Add a small quadratic "
            "term, such as 1e-3 * cp.sum_squares(u), to the objective"
        )
    return True, text


def _conditioning(solution: Solution, instance: Any, point: Point) -> Verdict:
    program = instance.program
    unknowns = program.variables + program.rows
    if unknowns > (DENSE_UNKNOWNS if program.has_pattern else FORMED_UNKNOWNS):
        return True, "not computed for a sparse or large system"
    with torch.no_grad():
        derivative = derivative_at(instance, point) if program.rows else None
        matrix = dense_matrix(instance, point, derivative)
        values = torch.linalg.svdvals(matrix)
    condition = float((values[:, 0] / values[:, -1]).max())
    if condition <= _CONDITION:
        return True, f"condition number of the KKT system up to {condition:.1e}"
    if not program.has_pattern:
        flags = solution.degeneracy
        dependent = int(Degeneracy.DEPENDENT_CONSTRAINTS)
        return flags is not None and bool((flags == dependent).all()), (
            f"the KKT system is singular or nearly so (condition number {condition:.0e}): "
            "constraints depend on each other, or the objective is flat; minimum-norm derivatives "
            "are taken"
        )
    # Singular only in what the layer does not return (auxiliary variables, multipliers of
    # redundant constraints) does no harm: the adjoint's system is then still consistent.
    primal, dual = _random_gradient(program, point)
    right = primal if derivative is None else torch.cat([primal, derivative.times(dual)], 1)
    residual = float(solve_checked(matrix, right)[1].max())
    if residual <= MINIMUM_NORM_TOLERANCE:
        return True, (
            "the KKT system is singular, from redundant constraints or auxiliary variables, but "
            "the gradient of what the layer returns is determined"
        )
    return False, (
        "the KKT system is singular and the gradient not determined: the solution is not unique "
        "(add a small quadratic term), or the data are of very different sizes (rescale)"
    )


def _random_gradient(program: Any, point: Point) -> tuple[torch.Tensor, ...]:
    """Gradient with respect to ``x`` and ``y`` of a random function of the layer's variables."""

    def variables(primal: torch.Tensor, dual: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(recovery(primal, dual) for recovery in program.recoveries)

    shapes = [value.shape for value in variables(point.primal, point.dual)]
    incoming = _random(shapes, point.primal)
    return pulled(variables, (point.primal, point.dual), incoming)[1]


def _random(shapes: Iterable[Sequence[int]], like: torch.Tensor) -> list[torch.Tensor]:
    """Normal numbers, the same on every device, in the dtype of ``like`` and on its device.

    Example inputs are often drawn with seed 0: these numbers have to be independent of them.
    """
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator, dtype=like.dtype).to(like) for s in shapes]


def _gradient(layer: Layer, sample: tuple[torch.Tensor, ...]) -> Verdict:
    """Directional derivatives by the layer's adjoint against central differences."""
    if not sample:
        return True, "the layer has no parameters"
    parameters, variables = layer.declaration.parameters, layer.declaration.variables
    incoming = _random([(len(sample[0]), *leaf.shape) for leaf in variables], sample[0])
    try:
        _, gradients = pulled(layer, sample, incoming)
        function = weighted(layer, incoming)
        missed = disagreement(
            function, parameters, sample, gradients, directions=1, seed=2, least=_LEAST_GRADIENT
        )
    except AdjointError as error:
        return False, str(error)
    except SolveError:
        return False, "a small perturbation of the inputs has no solution"
    worst = float(missed.max())
    text = f"adjoint against central differences: relative difference {worst:.1e}"
    if worst <= _GRADIENT:
        return True, text
    return False, (
        f"{text}; if the degeneracy or conditioning lines above are marked, that is why; else "
        "tighten the solver's tolerance or use adjoint='kkt'"
    )


def _other_solver(
    layer: Layer,
    other: str | None,
    twin: Callable[[str], Layer],
    sample: tuple[torch.Tensor, ...],
) -> Verdict:
    if other is None:
        return True, "there is no other solver for this problem here"
    try:
        theirs = twin(other).solve(*sample)
        ours = layer.solve(*sample)
    except (DeclarationError, SolveError) as error:
        return False, f"{other} cannot take this problem: {error}"
    both = ours.solved & theirs.solved
    if not bool(both.any()):
        return False, f"{other} could not solve these elements"
    difference = max(
        float((a - b)[both].abs().max() / (1 + b[both].abs().max()))
        for a, b in zip(ours.primal, theirs.primal, strict=True)
    )
    text = f"{other} differs by {difference:.1e} (relative)"
    if difference <= 1e-5:
        return True, text
    return False, f"{text}: the solution is not unique, or one of the two is not accurate"
