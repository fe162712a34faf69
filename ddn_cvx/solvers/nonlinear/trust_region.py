"""The loop that the minimisers of programs without constraints share.

All are trust-region methods (Conn, Gould and Toint, "Trust-Region Methods", 2000, algorithm 6.1.1):
a step minimises a model of ``f`` within a radius, is taken if ``f`` falls by a fair part of what
the model predicted, and the radius follows that ratio. They differ in the model and in how they
minimise it, which is what a subclass of :class:`TrustRegion` says.

All elements advance together, each with its own radius. Converged elements are frozen, and dropped
when they are more than half.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddn_cvx.batch.elements import put, select, where
from ddn_cvx.programs.nonlinear.at_inputs import NonlinearInstance
from ddn_cvx.solvers.answer import Answer
from ddn_cvx.status import Status

_RUNNING = -1

# Of the ratio of actual to predicted reduction (Conn, Gould and Toint, section 17.1).
_ACCEPT, _POOR, _GOOD, _SHRINK, _GROW = 1e-4, 0.25, 0.75, 0.25, 2.5
# Relative to 1 + |f|, in units of the last place: below the first, changes of f are rounding;
# below the second, rounding disturbs the ratio, and gradients tell the reduction more accurately.
_ROUNDING, _DISTURBED = 10.0, 1e3
# No gradient is asked to be more accurate than this many units of the last place.
_TOLERANCE_FLOOR = 1e3
_LOW, _FAR = -1e20, 1e15
# Steps in a row that rounding swallowed, after which an element has stalled.
_STALLED = 5
# A step that leaves more than these parts of the gradient and of f is sluggish.
_SLUGGISH_GRADIENT, _SLUGGISH_VALUE = 0.5, 0.9
# Past the tolerance an element goes on while a step reduces the gradient to this part.
_IMPROVING = 0.1


class Step(NamedTuple):
    """The minimum of a model within the radius.

    Attributes:
        p: the step, shape ``(W, n)``.
        predicted: by how much the model falls, shape ``(W,)``, not negative.
        boundary: whether the radius limits the step, bool, shape ``(W,)``.
    """

    p: Tensor
    predicted: Tensor
    boundary: Tensor


@dataclass
class WorkingSet:
    """The elements still at work; every tensor's first dimension is their number ``W``."""

    element: Tensor  # position in the batch
    u: Tensor  # (W, n)
    f: Tensor  # (W,)
    g: Tensor  # (W, n)
    local: tuple[Tensor, ...]  # what else the model needs at u
    radius: Tensor  # (W,)
    status: Tensor  # (W,), -1 while running
    iterations: Tensor  # (W,)
    settled: Tensor  # (W,), within the tolerance
    confirmed: Tensor  # (W,), a step from within the tolerance did not bring much
    stalls: Tensor  # (W,), steps in a row lost in rounding
    sluggish: Tensor  # (W,), steps in a row that brought little
    tried: Tensor  # (W,), some trial point was finite


def relative_stationarity(f: Tensor, g: Tensor) -> Tensor:
    """``|g|_inf / (1 + |f|)``: shapes ``(B,)``, ``(B, n)`` to ``(B,)``; it knows no start."""
    return g.abs().amax(1) / (1 + f.abs())


def tolerance_of(tolerance: float, dtype: torch.dtype) -> float:
    """The tolerance asked for, or what the precision allows."""
    return max(tolerance, _TOLERANCE_FLOOR * torch.finfo(dtype).eps)


def norm(rows_of: Tensor) -> Tensor:
    """Euclidean norms: ``(W, n)`` to ``(W,)``."""
    return torch.linalg.vector_norm(rows_of, dim=1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TrustRegion(ABC):
    """The settings and the loop of a trust-region method; see the module.

    Attributes:
        max_iterations: each element stops there, whatever it has.
        tolerance: of the relative stationarity; at least a thousand units of the last place.
        initial_radius: the first radius, relative to the larger of one and the start's length.
        patience: sluggish steps in a row after which an element is given up, if any.
    """

    max_iterations: int = 200
    tolerance: float = 1e-10
    initial_radius: float = 1.0
    patience: int | None = None

    name: ClassVar[str]
    in_torch: ClassVar[bool] = True

    @abstractmethod
    def evaluate(
        self, function: NonlinearInstance, u: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """``f`` ``(W,)``, its gradient ``(W, n)``, and what else the model needs at ``u``."""

    @abstractmethod
    def propose(self, function: NonlinearInstance, at: WorkingSet) -> Step:
        """The step that minimises the model within the radius, or nearly so."""

    def length(self, local: tuple[Tensor, ...], step: Tensor) -> Tensor:
        """The norm the radius is measured in: ``(W, n)`` to ``(W,)``."""
        return norm(step)

    def remember(
        self, accepted: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The model's tensors after the step."""
        return where(accepted, new, old)

    def __call__(self, function: NonlinearInstance, start: Tensor) -> Answer:
        """Minimise from ``start``, shape ``(B, n)``.

        Returns:
            ``u``, ``f`` and the trial points. SOLVED: the stationarity is within the tolerance, and
            so is the fall that the method's model predicts. INACCURATE: stopped above it.
            UNBOUNDED: ``f`` or ``u`` diverged. FAILED: ``f`` or a derivative is not finite at the
            start, or at every trial point.
        """
        with torch.no_grad():
            return self._minimise(function, start.detach())

    def _minimise(self, function: NonlinearInstance, start: Tensor) -> Answer:
        if start.numel() == 0:
            return _nothing_to_do(function, start)
        at, whole = self._begin(function, start), function
        result = _answer(at)
        index = (at.status == _RUNNING).nonzero()[:, 0]
        if len(index) < len(start):  # without those that fail at their start
            at, function = select(at, index), whole.select(index)
        if not len(index):
            return result
        for iteration in range(self.max_iterations + 1):
            step = self.propose(function, at)
            self._stop(at, step, last=iteration == self.max_iterations)
            running = at.status == _RUNNING
            count = int(running.sum())
            if 2 * count < len(running):
                result = put(result, at.element, _answer(at))
                if not count:  # at the last iteration at the latest
                    break
                at, step = select((at, step), running.nonzero()[:, 0])
                function = whole.select(at.element)
            self._move(function, at, step)
        return result

    def _begin(self, function: NonlinearInstance, start: Tensor) -> WorkingSet:
        f, g, local = self.evaluate(function, start)
        finite = _finite(f, g, *local, start)
        length = self.length(local, start)
        zero = torch.zeros(len(start), dtype=torch.int64, device=start.device)
        return WorkingSet(
            element=torch.arange(len(start), device=start.device),
            u=start,
            f=f,
            g=g,
            local=local,
            radius=self.initial_radius * length.clamp(min=1.0),
            status=torch.where(finite, _RUNNING, int(Status.FAILED)),
            iterations=zero,
            settled=zero > 0,
            confirmed=zero > 0,
            stalls=zero,
            sluggish=zero,
            tried=zero > 0,
        )

    def _stop(self, at: WorkingSet, step: Step, *, last: bool) -> None:
        """Set the status, before the step is tried.

        A small gradient alone does not solve: relative to ``f`` it is small on the way to minus
        infinity, and it is zero at saddle points. In both cases the model still hopes for much.
        """
        eps = torch.finfo(at.f.dtype).eps
        tolerance = tolerance_of(self.tolerance, at.f.dtype)
        residual = relative_stationarity(at.f, at.g)
        hope = step.predicted / (1 + at.f.abs())
        at.settled = (residual <= tolerance) & (hope <= tolerance**0.5)
        solved = at.settled & (at.confirmed | (step.predicted <= 0))
        floor = eps * self.length(at.local, at.u).clamp(min=1e-6)
        stalled = (at.stalls >= _STALLED) | (at.radius <= floor)
        if self.patience is not None:
            stalled = stalled | (at.sluggish >= self.patience)
        if last:
            solved, stalled = at.settled, torch.ones_like(solved)
        hopeless = stalled & ~at.tried & (at.iterations > 0)
        status = torch.where(stalled, int(Status.INACCURATE), at.status)
        status = torch.where(hopeless, int(Status.FAILED), status)
        status = torch.where(solved | (stalled & at.settled), int(Status.SOLVED), status)
        at.status = torch.where(at.status == _RUNNING, status, at.status)

    def _move(self, function: NonlinearInstance, at: WorkingSet, step: Step) -> None:
        """Try the step, take it where it is good, and adapt the radius."""
        running = at.status == _RUNNING
        trial = at.u + step.p
        f, g, local = self.evaluate(function, trial)
        finite = _finite(f, g, *local, trial)
        ratio, lost = _reduction(at, step, f, g)
        accepted = running & finite & (ratio > _ACCEPT)

        length = self.length(at.local, step.p)
        old, new = norm(at.g), norm(g)
        poor = ~finite | ~(ratio >= _POOR)
        good = finite & (ratio >= _GOOD) & step.boundary
        radius = torch.where(good, torch.maximum(at.radius, _GROW * length), at.radius)
        radius = torch.where(poor, _SHRINK * torch.minimum(length, at.radius), radius)
        slow = (new > _SLUGGISH_GRADIENT * old) & (f.abs() > _SLUGGISH_VALUE * at.f.abs())
        diverged = accepted & (f < at.f)
        diverged &= (f < _LOW) | (norm(trial) > _FAR)
        diverged |= running & (f == -torch.inf)

        at.confirmed = at.settled & ~(accepted & (new <= _IMPROVING * old))
        at.stalls = torch.where(accepted, 0, at.stalls + (running & lost))
        at.sluggish = torch.where(accepted, (at.sluggish + 1) * slow, at.sluggish)
        at.tried = at.tried | (running & finite)
        at.iterations = at.iterations + running
        at.radius = torch.where(running, radius, at.radius)
        at.local = self.remember(accepted, local, at.local)
        at.u, at.f, at.g = where(accepted, (trial, f, g), (at.u, at.f, at.g))
        at.status = torch.where(diverged, int(Status.UNBOUNDED), at.status)


def _reduction(at: WorkingSet, step: Step, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Actual over predicted reduction, and whether both are rounding: ``(W,)``, ``(W,)``.

    Where the predicted one is so small that rounding of ``f`` disturbs the ratio, the actual one is
    integrated from the gradients at both ends of the step. Where all changes of ``f`` are rounding,
    a step counts as perfect if it reduces the gradient (Conn, Gould and Toint, section 17.4.2).
    """
    unit = torch.finfo(f.dtype).eps * (1 + at.f.abs())
    actual = at.f - f
    integrated = -0.5 * ((at.g + g) * step.p).sum(1)
    disturbed = (step.predicted <= _DISTURBED * unit) & (actual.abs() <= _DISTURBED * unit)
    ratio = torch.where(disturbed, integrated, actual) / step.predicted
    lost = (step.predicted <= _ROUNDING * unit) & (actual.abs() <= _ROUNDING * unit)
    smaller = norm(g) < norm(at.g)
    return torch.where(lost, smaller.to(ratio.dtype), ratio), lost


def _finite(*parts: Tensor) -> Tensor:
    """Whether all entries of an element are finite: ``(W, ...)`` each, to ``(W,)``."""
    result = torch.ones(len(parts[0]), dtype=torch.bool, device=parts[0].device)
    for part in parts:
        result &= part.isfinite().flatten(1).all(1) if part.dim() > 1 else part.isfinite()
    return result


def _answer(at: WorkingSet) -> Answer:
    return Answer(at.u, at.u[:, :0], at.status, at.iterations, objective=at.f)


def _nothing_to_do(function: NonlinearInstance, start: Tensor) -> Answer:
    """The answer for an empty batch, or without variables."""
    zero = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    value = function.value(start)
    status = torch.where(value.isfinite(), int(Status.SOLVED), int(Status.FAILED))
    return Answer(start, start[:, :0], status, zero, objective=value)
