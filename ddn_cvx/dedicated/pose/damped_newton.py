"""A damped Newton method for poses, batched, to machine precision."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.batch.elements import select, where
from ddn_cvx.dedicated.pose.expansion import Expander, Expansion
from ddn_cvx.dedicated.pose.objective import Pose
from ddn_cvx.dedicated.pose.rotations import cayley

# First damping, relative to the Hessian's diagonal.
_FIRST_DAMPING = 1e-4
# Predicted decrease, as a share of the cost, that rounding of the cost hides: steps are undamped.
_HIDDEN_DECREASE = 1e-8
# Length of a Newton step (radians, or relative) that is the last one: the next would be its square.
LAST_LENGTH = 5e-6
# Largest predicted decrease of a last step, as a share of the cost, so that the quadratic model is
# accurate enough for the final cost.
LAST_DECREASE = 1e-4
# Decrease of the cost, per weight and squared entry of the lens matrix, that is rounding.
_DECREASE_ROUNDING = 1e-25
# Damping at which steps are too short to make progress: the iteration stops.
_MAX_DAMPING = 1e11
# Limit on steps.
_MAX_STEPS = 60
# Relative increase of the cost that an undamped step may have, as rounding.
_UNDAMPED_INCREASE = 1e-9


class Refined(NamedTuple):
    """Poses after Newton's method.

    Attributes:
        R: rotations, shape ``(B, 3, 3)``.
        t: translations, shape ``(B, 3)``.
        value: cost at the pose, shape ``(B,)``.
        hessian: Hessian before the last step, shape ``(B, 6, 6)``.
        length: length of the last step, see :func:`length_of`, shape ``(B,)``.
    """

    R: Tensor
    t: Tensor
    value: Tensor
    hessian: Tensor
    length: Tensor


def moved(pose: Pose, step: Tensor) -> Pose:
    """The poses after steps ``(B, 6)``: ``exp([omega]) R``, to second order, and ``t + tau``."""
    return Pose(torch.bmm(cayley(step[:, :3]), pose.R), pose.t + step[:, 3:])


def damped_newton(expander: Expander, start: Pose, steps: int = _MAX_STEPS) -> Refined:
    """Newton's method with Levenberg-Marquardt damping, until the next step is rounding.

    The damping is that of Madsen, Nielsen and Tingleff, "Methods for non-linear least squares
    problems" (2004). Where the cost's Hessian is not positive definite, the Gauss-Newton
    approximation with the weights of the robust cost takes its place. Once the decrease of the cost
    is below its rounding, steps are undamped and accepted while they shrink.

    Args:
        start: poses ``(B, ...)``.
        steps: limit on the number of steps.
    """
    objective = expander.objective
    here = expander(start)
    size = objective.weights.sum(-1) * objective.lens.square().sum((-1, -2))
    state = _State(
        rows=torch.arange(len(start.t), device=start.t.device),
        pose=start,
        here=here,
        damping=torch.full_like(here.value, _FIRST_DAMPING),
        growth=torch.full_like(here.value, 2.0),
        length=torch.full_like(here.value, torch.inf),
        floor=_DECREASE_ROUNDING * size,
    )
    result = Refined(*(torch.empty_like(f) for f in (*start, here.value, here.hessian, here.value)))
    for number in range(steps if len(start.t) else 0):
        pose, here = state.pose, state.here
        step, predicted, newton = _step(expander, pose, here, state.damping)
        size = length_of(step, pose)
        hidden = (predicted <= _HIDDEN_DECREASE * here.value + state.floor) & newton
        # A last step is taken; a step that does not shrink is rounding, and is not.
        last = newton & (size <= LAST_LENGTH) & (state.damping <= _FIRST_DAMPING)
        last = last & ((predicted <= LAST_DECREASE * here.value) | hidden)
        rounding = hidden & (size >= 0.5 * state.length)
        trial = moved(pose, torch.where(rounding.unsqueeze(-1), 0.0, step))
        length = torch.where(hidden | last, torch.minimum(size, state.length), state.length)
        state = state._replace(length=length)
        ended = last | rounding | (state.damping > _MAX_DAMPING) | ~here.value.isfinite()
        if number == steps - 1:
            ended = torch.ones_like(ended)
        if bool(ended.any()):
            # The quadratic model predicts the cost after the last step.
            value = (here.value - torch.where(last, predicted, 0.0)).clamp_min(0.0)
            R, t = where(last | rounding, trial, pose)
            for kept, field in zip(result, (R, t, value, here.hessian, length), strict=True):
                kept[state.rows[ended]] = field[ended]
            live = (~ended).nonzero().squeeze(1)
            if len(live) == 0:
                break
            expander = expander.rows(live)
            state, trial, predicted, hidden = select((state, trial, predicted, hidden), live)
        state = _updated(state, trial, expander(trial), predicted, hidden)
    return result


class _State(NamedTuple):
    """The iteration's state on the unconverged rows, ``(B, ...)``.

    Attributes:
        rows: their places in the batch.
        pose: poses.
        here: expansions at the poses.
        damping: damping, relative to the Hessian's diagonal.
        growth: factor by which the next rejected step raises the damping.
        length: length of the shortest step whose decrease rounding hides.
        floor: decrease of the cost that is rounding.
    """

    rows: Tensor
    pose: Pose
    here: Expansion
    damping: Tensor
    growth: Tensor
    length: Tensor
    floor: Tensor


def _updated(
    state: _State, trial: Pose, there: Expansion, predicted: Tensor, hidden: Tensor
) -> _State:
    """Accept trial poses that lower the cost, and update the damping.

    Args:
        predicted: decrease of the cost that the step's model predicts, ``(B,)``.
        hidden: rows whose decrease is below the rounding of the cost, ``(B,)``.
    """
    here = state.here
    gain = (here.value - there.value) / predicted.clamp_min(1e-300)
    better = there.value < here.value
    level = here.value * (1 + _UNDAMPED_INCREASE) + state.floor
    better = better | (hidden & (there.value <= level))
    ratio = torch.where(gain > 0.75, 0.01, (1 - (2 * gain - 1) ** 3).clamp(1 / 3, 2.0))
    damping = state.damping * torch.where(better, ratio, state.growth)
    state = state._replace(
        damping=torch.where(hidden, 0.0, damping.clamp_min(1e-12)),
        growth=torch.where(better, 2.0, state.growth * 2).clamp_max(64.0),
    )
    if not bool(better.all()):
        trial, there = where(better, (trial, there), (state.pose, here))
    return state._replace(pose=trial, here=there)


def _step(
    expander: Expander, pose: Pose, here: Expansion, damping: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The step, the decrease that its model predicts, and whether it is a damped Newton step."""
    factor, failed = torch.linalg.cholesky_ex(_damped(here.hessian, damping))
    newton = failed == 0
    if not bool(newton.all()):
        rows = (~newton).nonzero().squeeze(1)
        normal = expander.rows(rows).normal(pose.rows(rows))
        again, failed_again = torch.linalg.cholesky_ex(_damped(normal, damping[rows]))
        identity = torch.eye(6, dtype=factor.dtype, device=factor.device)
        factor[rows] = torch.where((failed_again == 0)[:, None, None], again, identity)
        failed[rows] = failed_again
    step = -torch.cholesky_solve(here.gradient.unsqueeze(-1), factor).squeeze(-1)
    predicted = -0.5 * (step * here.gradient).sum(-1)
    usable = predicted.isfinite() & (failed == 0)
    step = torch.where(usable.unsqueeze(-1), step, 0.0)
    return step, torch.where(usable, predicted, 0.0), newton & usable


def _damped(H: Tensor, damping: Tensor) -> Tensor:
    """``H`` with its diagonal times ``1 + damping``; an indefinite ``H`` stays indefinite."""
    raised = H.clone()
    raised.diagonal(dim1=-2, dim2=-1).mul_(1 + damping.unsqueeze(-1))
    return raised


def length_of(step: Tensor, pose: Pose) -> Tensor:
    """The larger of the angle and the translation relative to the pose's, ``(B,)``."""
    angle, shift = step.unflatten(-1, (2, 3)).square().sum(-1).unbind(-1)
    return torch.maximum(angle, shift / pose.t.square().sum(-1).clamp_min(1e-300)).sqrt()
