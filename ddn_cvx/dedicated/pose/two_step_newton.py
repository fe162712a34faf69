"""Newton's method from good starts: one step in single precision, one in double."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.batch.elements import put, where
from ddn_cvx.dedicated.pose.damped_newton import (
    LAST_DECREASE,
    LAST_LENGTH,
    Refined,
    damped_newton,
    length_of,
    moved,
)
from ddn_cvx.dedicated.pose.expansion import Expander, Expansion
from ddn_cvx.dedicated.pose.objective import Pose

# Length of the first step (radians, or relative) up to which it is taken without a trial.
_LONGEST_FIRST_STEP = 0.1
# Largest ratio of the lengths of a step and the step before it.
_LARGEST_RATIO = 0.1
# Largest estimate of the error after the last step: quadratic convergence takes steps of lengths a
# and b to an error of b (b / a)^2.
_LARGEST_ERROR = 1e-10
# Increase of the cost, as a share, that may be rounding of single precision.
_SINGLE_ROUNDING = 1e-3


class _Step(NamedTuple):
    """Poses after a Newton step.

    Attributes:
        refined: the result of converged rows; other rows are to be ignored.
        converged: rows whose error after the step is negligible, ``(B,)``.
        shrinks: rows whose step is much shorter than the one before, ``(B,)``.
        pose: where to continue on rows that have not converged.
    """

    refined: Refined
    converged: Tensor
    shrinks: Tensor
    pose: Pose


def two_step_newton(expander: Expander, single: Expander, start: Pose) -> Refined:
    """Two undamped Newton steps, which are enough from most good starts.

    The first is in single precision, the second in double. The few rows on which the second one is
    not short enough to be the last get a third, and then the damped method.

    Args:
        single: the expander in single precision.
        start: poses ``(B, ...)``.
    """
    rough = Pose(start.R.float(), start.t.float())
    before, step, first, newton = _newton(single, rough)
    step = torch.where((newton & (first < _LONGEST_FIRST_STEP)).unsqueeze(-1), step, 0.0)
    found = _step(expander, moved(start, step.double()), before.value, first, start)
    rows = (~found.converged & found.shrinks).nonzero().squeeze(1)
    if len(rows) > 0:
        value, length = found.refined.value[rows], found.refined.length[rows]
        pose, former = found.pose.rows(rows), start.rows(rows)
        third = _step(expander.rows(rows), pose, value, length, former)
        for kept, new in zip(_tensors(found), _tensors(third), strict=True):
            kept[rows] = new
    rows = (~found.converged).nonzero().squeeze(1)
    if len(rows) > 0:
        damped = damped_newton(expander.rows(rows), found.pose.rows(rows))
        return put(found.refined, rows, damped)
    return found.refined


def _tensors(step: _Step) -> tuple[Tensor, ...]:
    return *step.refined, step.converged, *step.pose


def _step(expander: Expander, pose: Pose, before: Tensor, former: Tensor, start: Pose) -> _Step:
    """Newton's step from ``pose``, to which a step from ``start`` has led.

    Where it does not shrink, the next method starts from ``start``.

    Args:
        before: the cost at ``start``, ``(B,)``.
        former: the length of the step from ``start``, ``(B,)``.
    """
    here, step, length, newton = _newton(expander, pose)
    newton = newton & (here.value <= before * (1 + _SINGLE_ROUNDING))
    newton = newton & (length < _LARGEST_RATIO * former)
    last = moved(pose, step)
    predicted = -0.5 * (step * here.gradient).sum(-1)
    converged = newton & (length <= LAST_LENGTH)
    converged = converged & (length**3 <= _LARGEST_ERROR * former.square())
    converged = converged & (predicted <= LAST_DECREASE * here.value)
    refined = Refined(last.R, last.t, here.value - predicted, here.hessian, length)
    return _Step(refined, converged, newton, where(newton, last, start))


def _newton(expander: Expander, pose: Pose) -> tuple[Expansion, Tensor, Tensor, Tensor]:
    """The expansion, Newton's step, its length, and rows with a positive definite Hessian."""
    here = expander(pose)
    factor, failed = torch.linalg.cholesky_ex(here.hessian)
    step = -torch.cholesky_solve(here.gradient.unsqueeze(-1), factor).squeeze(-1)
    return here, step, length_of(step, pose), failed == 0
