"""Poses of least cost near a start, to the last digit: a damped Newton method, batched."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ddn_cvx.dedicated.pose.expansion import Expander, Expansion
from ddn_cvx.dedicated.pose.objective import Pose
from ddn_cvx.dedicated.pose.rotations import cayley

_FIRST_DAMPING = 1e-4
# Below this share of the cost a predicted decrease is not told from rounding: steps are undamped.
_FINE = 1e-8
# After a Newton step below this, an angle or relative, nothing but rounding is left: its square.
LAST = 5e-6
# The share of the cost that it may bring, so that the model tells the cost there.
SETTLED = 1e-4
# The smallest decrease of the cost, relative to the image's, that is more than rounding.
_ROUNDING = 1e-25
# Damping that no progress brings down.
_STUCK = 1e11
# Few rows are copied out of the batch once this share of it is still moving.
_COMPACT = 0.6


class Refined(NamedTuple):
    """A pose, and there its cost ``(B,)``, Hessian ``(B, 6, 6)`` and last step's length ``(B,)``.

    The length is the larger of a step's angle and of its translation relative to the pose's.
    """

    R: torch.Tensor
    t: torch.Tensor
    value: torch.Tensor
    hessian: torch.Tensor
    length: torch.Tensor

    def picked(self, index: torch.Tensor) -> Refined:
        """Some rows."""
        return Refined(*(field[index] for field in self))


def moved(pose: Pose, step: torch.Tensor) -> Pose:
    """``exp([omega]) R``, to second order, and ``t + tau`` for steps ``(B, 6)``."""
    return Pose(torch.bmm(cayley(step[:, :3]), pose.R), pose.t + step[:, 3:])


def refined(expander: Expander, start: Pose, steps: int = 60) -> Refined:
    """Until the next Newton step is rounding.

    Madsen, Nielsen and Tingleff, "Methods for non-linear least squares problems" (2004), with the
    cost's own Hessian where that is positive definite, and Gauss and Newton's, with the weights of
    the robust cost, elsewhere. Once the cost no longer tells steps from rounding they are taken
    undamped while they shrink.

    Args:
        expander: of an objective with data ``(B, ...)``.
        start: ``(B, ...)``.
        steps: at most.
    """
    objective = expander.objective
    part, here = expander, expander(start)
    state = _State(
        rows=torch.arange(len(start.t), device=start.t.device),
        R=start.R,
        t=start.t,
        damping=torch.full_like(here.value, _FIRST_DAMPING),
        growth=torch.full_like(here.value, 2.0),
        length=torch.full_like(here.value, torch.inf),
        floor=_ROUNDING * objective.weights.sum(-1) * objective.lens.square().sum((-1, -2)),
        done=torch.zeros_like(here.value, dtype=torch.bool),
    )
    result = Refined(*(torch.empty_like(f) for f in (*start, here.value, here.hessian, here.value)))
    for number in range(steps):
        pose = Pose(state.R, state.t)
        step, predicted, newton = _step(part, pose, here, state.damping)
        size = length_of(step, pose)
        fine = (predicted <= _FINE * here.value + state.floor) & newton
        # The last step is taken; one that is rounding, and no shorter than the one before, is not.
        last = newton & (size <= LAST) & (state.damping <= _FIRST_DAMPING)
        last = last & ((predicted <= SETTLED * here.value) | fine)
        rounding = fine & (size >= 0.5 * state.length)
        trial = moved(pose, torch.where(rounding.unsqueeze(-1), 0.0, step))
        length = torch.where(fine | last, torch.minimum(size, state.length), state.length)
        ended = last | rounding | (state.damping > _STUCK) | ~here.value.isfinite()
        if number == steps - 1:
            ended = torch.ones_like(ended)
        new = ended & ~state.done
        if bool(new.any()):
            # By the model, what the last step brings is known.
            value = (here.value - torch.where(last, predicted, 0.0)).clamp_min(0.0)
            final = Refined(*_where(last | rounding, trial, pose), value, here.hessian, length)
            if len(new) == len(result.value) and bool(new.all()):
                return final
            for kept, field in zip(result, final, strict=True):
                kept[state.rows[new]] = field[new]
        state = state._replace(length=length, done=state.done | ended)
        live = (~state.done).nonzero().squeeze(1)
        if len(live) == 0:
            break
        if len(live) < _COMPACT * len(ended):
            part, state = part.part(live), _State(*(field[live] for field in state))
            here = Expansion(*(field[live] for field in here))
            trial = Pose(trial.R[live], trial.t[live])
            predicted, fine = predicted[live], fine[live]
        state, here = _compared(state, here, trial, part(trial), predicted, fine)
    return result


class _State(NamedTuple):
    """Rows that are still moving, and those that are done until the next time they are left out."""

    rows: torch.Tensor
    R: torch.Tensor
    t: torch.Tensor
    damping: torch.Tensor
    growth: torch.Tensor
    length: torch.Tensor
    floor: torch.Tensor
    done: torch.Tensor


def _compared(
    state: _State,
    here: Expansion,
    trial: Pose,
    there: Expansion,
    predicted: torch.Tensor,
    fine: torch.Tensor,
) -> tuple[_State, Expansion]:
    """The trial where it is better, and the next damping."""
    gain = (here.value - there.value) / predicted.clamp_min(1e-300)
    better = there.value < here.value
    better = better | (fine & (there.value <= here.value * (1 + 1e-9) + state.floor))
    ratio = torch.where(gain > 0.75, 0.01, (1 - (2 * gain - 1) ** 3).clamp(1 / 3, 2.0))
    damping = state.damping * torch.where(better, ratio, state.growth)
    state = state._replace(
        damping=torch.where(fine, 0.0, damping.clamp_min(1e-12)),
        growth=torch.where(better, 2.0, state.growth * 2).clamp_max(64.0),
    )
    if bool(better.all()):
        return state._replace(R=trial.R, t=trial.t), there
    pose = _where(better, trial, Pose(state.R, state.t))
    fields = (
        torch.where(better.view(-1, *[1] * (new.ndim - 1)), new, old)
        for new, old in zip(there, here, strict=True)
    )
    return state._replace(R=pose.R, t=pose.t), Expansion(*fields)


def _step(
    part: Expander, pose: Pose, here: Expansion, damping: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The step, the decrease that its model predicts, and whether it has the cost's Hessian."""
    factor, failed = torch.linalg.cholesky_ex(_damped(here.hessian, damping))
    newton = failed == 0
    if not bool(newton.all()):
        rows = (~newton).nonzero().squeeze(1)
        normal = part.part(rows).normal(Pose(pose.R[rows], pose.t[rows]))
        again, failed_again = torch.linalg.cholesky_ex(_damped(normal, damping[rows]))
        identity = torch.eye(6, dtype=factor.dtype, device=factor.device)
        factor[rows] = torch.where((failed_again == 0)[:, None, None], again, identity)
        failed[rows] = failed_again
    step = -torch.cholesky_solve(here.gradient.unsqueeze(-1), factor).squeeze(-1)
    predicted = -0.5 * (step * here.gradient).sum(-1)
    usable = predicted.isfinite() & (failed == 0)
    step = torch.where(usable.unsqueeze(-1), step, 0.0)
    return step, torch.where(usable, predicted, 0.0), newton & usable


def _damped(H: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
    """``H`` with its diagonal raised; where that is negative, for the factorisation to fail."""
    raised = H.clone()
    raised.diagonal(dim1=-2, dim2=-1).mul_(1 + damping.unsqueeze(-1))
    return raised


def length_of(step: torch.Tensor, pose: Pose) -> torch.Tensor:
    """The larger of a step's angle and of its translation relative to the pose's, ``(B,)``."""
    angle, shift = step.unflatten(-1, (2, 3)).square().sum(-1).unbind(-1)
    return torch.maximum(angle, shift / pose.t.square().sum(-1).clamp_min(1e-300)).sqrt()


def _where(condition: torch.Tensor, pose: Pose, other: Pose) -> Pose:
    return Pose(
        torch.where(condition[:, None, None], pose.R, other.R),
        torch.where(condition[:, None], pose.t, other.t),
    )
