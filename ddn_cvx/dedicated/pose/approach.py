"""Poses of least cost from good starts: a step in single precision, and a last one in double."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.dedicated.pose.expansion import Expander, Expansion
from ddn_cvx.dedicated.pose.objective import Pose
from ddn_cvx.dedicated.pose.refine import LAST, SETTLED, Refined, length_of, moved

# A longer first step, an angle or relative, is not taken untried.
_SHORT = 0.1
# The second step is no longer than this share of the first.
_SHRINKING = 0.1
# What a third step may bring: it would be the second one's square, by what that is to the first's.
_EXACT = 1e-10
# What single precision may add to the cost, as a share.
_ROUNDING = 1e-3


class Approach(NamedTuple):
    """Where starts lead.

    Attributes:
        found: what is refined, of no interest elsewhere.
        settled: where the last step was Newton's, and all but rounding, ``(B,)``.
        pose: where to go on from elsewhere.
    """

    found: Refined
    settled: torch.Tensor
    pose: Pose


def approached(expander: Expander, single: Expander, start: Pose) -> Approach:
    """A few Newton steps without damping, from starts ``(B, ...)`` for which these mostly do.

    The first is in single precision, the second in double; a third one is for those few rows that
    the second has moved by more than rounding.

    Args:
        expander: of the objective.
        single: of the same in single precision.
        start: ``(B, ...)``.
    """
    rough = Pose(start.R.float(), start.t.float())
    before, step, first, newton = _newton(single, rough)
    step = torch.where((newton & (first < _SHORT)).unsqueeze(-1), step, 0.0)
    whole = _step(expander, moved(start, step.double()), before.value, first, start)
    more = (~whole.settled & whole.shrinks).nonzero().squeeze(1)
    if len(more) > 0:
        former = Pose(start.R[more], start.t[more])
        pose = Pose(whole.pose.R[more], whole.pose.t[more])
        value, length = whole.found.value[more], whole.found.length[more]
        third = _step(expander.part(more), pose, value, length, former)
        for kept, field in zip(
            (*whole.found, *whole.pose), (*third.found, *third.pose), strict=True
        ):
            kept[more] = field
        whole.settled[more] = third.settled
    return Approach(whole.found, whole.settled, whole.pose)


class _Step(NamedTuple):
    """As an :class:`Approach`, and which steps are much shorter than the ones before."""

    found: Refined
    settled: torch.Tensor
    pose: Pose
    shrinks: torch.Tensor


def _step(
    expander: Expander, pose: Pose, before: torch.Tensor, former: torch.Tensor, start: Pose
) -> _Step:
    """Newton's step from a pose to which one of the length ``former`` led, from a cost ``before``.

    What does not shrink is left, from ``start``, to a method that tries its steps.
    """
    here, step, length, newton = _newton(expander, pose)
    newton = newton & (here.value <= before * (1 + _ROUNDING)) & (length < _SHRINKING * former)
    last = moved(pose, step)
    predicted = -0.5 * (step * here.gradient).sum(-1)
    settled = newton & (length <= LAST) & (length**3 <= _EXACT * former.square())
    settled = settled & (predicted <= SETTLED * here.value)
    back = Pose(
        torch.where(newton[:, None, None], last.R, start.R),
        torch.where(newton[:, None], last.t, start.t),
    )
    found = Refined(last.R, last.t, here.value - predicted, here.hessian, length)
    return _Step(found, settled, back, newton)


def _newton(
    expander: Expander, pose: Pose
) -> tuple[Expansion, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The expansion, Newton's step and its length, and where the Hessian is positive definite."""
    here = expander(pose)
    factor, failed = torch.linalg.cholesky_ex(here.hessian)
    step = -torch.cholesky_solve(here.gradient.unsqueeze(-1), factor).squeeze(-1)
    return here, step, length_of(step, pose), failed == 0
