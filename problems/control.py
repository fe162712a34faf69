"""Control: inputs of a dynamical system, chosen by optimization."""

from functools import partial

import torch

from ddn_cvx.declaration import Declaration
from ddn_cvx.problems._entry import check_size, entry
from ddn_cvx.problems._sampling import Tensors, normal, signs, subset, times, uniform


@entry(horizon=1, states=1)
def linear_mpc(horizon: int = 6, states: int = 3, inputs: int = 1) -> Declaration:
    """One step of linear model-predictive control: the plan whose first input is applied.

    Minimize ``1/2 sum_t state_weight' (x_{t+1} - target_t)^2 + input_weight' u_t^2`` subject to
    ``x_{t+1} = A x_t + B u_t``, ``x_0 = initial`` and ``|u_t| <= bound``, for ``t`` from 0 to
    ``horizon - 1``; squares, products with weights and bounds are elementwise. The parameters are
    ``A`` ``(states, states)``, ``B`` ``(states, inputs)``, ``initial`` ``(states,)``, ``target``
    ``(horizon, states)``, ``state_weight`` ``(states,)`` and ``input_weight`` ``(inputs,)``,
    nonnegative, and ``bound`` ``(inputs,)``. The answers are ``first`` ``(inputs,)``, the input to
    apply, ``plan`` ``(horizon, inputs)``, all inputs, and ``path`` ``(horizon + 1, states)``.

    Args:
        horizon: number of steps planned.
        states: length of the state.
        inputs: length of the input, at most ``states``.

    Example:
        >>> from ddn_cvx.problems import linear_mpc
        >>> [variable.shape for variable in linear_mpc(horizon=5, states=4, inputs=2).variables]
        [(2,), (5, 2), (6, 4)]
    """
    import cvxpy as cp

    check_size("inputs", inputs, maximum=states)
    A, B = cp.Parameter((states, states), name="A"), cp.Parameter((states, inputs), name="B")
    initial = cp.Parameter(states, name="initial")
    target = cp.Parameter((horizon, states), name="target")
    state_weight = cp.Parameter(states, nonneg=True, name="state_weight")
    input_weight = cp.Parameter(inputs, nonneg=True, name="input_weight")
    bound = cp.Parameter(inputs, nonneg=True, name="bound")
    first, plan = cp.Variable(inputs, name="first"), cp.Variable((horizon, inputs), name="plan")
    path = cp.Variable((horizon + 1, states), name="path")
    # A variable of its own: a product of two parameters, weight and target, would not be DPP.
    error = cp.Variable((horizon, states), name="error")
    constraints: list[cp.Constraint] = [
        path[0] == initial,
        path[1:] == path[:-1] @ A.T + plan @ B.T,
        error == path[1:] - target,
        first == plan[0],
    ]
    for t in range(horizon):
        constraints += [-bound <= plan[t], plan[t] <= bound]
    cost = state_weight @ cp.sum(cp.square(error), axis=0)
    cost += input_weight @ cp.sum(cp.square(plan), axis=0)
    return Declaration(
        cp.Problem(cp.Minimize(cost / 2), constraints),
        parameters=(A, B, initial, target, state_weight, input_weight, bound),
        variables=(first, plan, path),
        summary="one step of linear model-predictive control with bounded inputs",
        citation="Rawlings, Mayne and Diehl (2017), Model Predictive Control, chapter 1; as a "
        "layer: Amos, Rodriguez, Sacks, Boots and Kolter (2018), Differentiable MPC for "
        "end-to-end planning and control",
        example=partial(_example, horizon, states, inputs),
    )


def _example(
    horizon: int, states: int, inputs: int, batch: int, generator: torch.Generator
) -> Tensors:
    """Inputs, multipliers and costates first; the targets follow from stationarity.

    With costates ``p_t`` of the dynamics: ``input_weight u_t + mu_t = B' p_t`` and
    ``p_{t-1} = A' p_t - state_weight (x_t - target_{t-1})``.
    """
    A = torch.linalg.qr(normal(generator, batch, states, states)).Q  # neither grows nor decays
    B = torch.linalg.qr(normal(generator, batch, states, inputs)).Q
    B = B * uniform(generator, batch, 1, inputs)
    state_weight, input_weight = (
        uniform(generator, batch, states),
        uniform(generator, batch, inputs),
    )
    bound, x = uniform(generator, batch, inputs), normal(generator, batch, states)
    initial, count = x, horizon * inputs
    side = signs(generator, batch, count) * subset(generator, batch, count, count // 3)
    side = side.reshape(batch, horizon, inputs)
    inside = uniform(generator, batch, horizon, inputs, low=-0.7, high=0.7)
    plan = bound.unsqueeze(1) * torch.where(side == 0, inside, side)
    force = input_weight.unsqueeze(1) * plan + side * uniform(generator, batch, horizon, inputs)
    costate = force / (B * B).sum(dim=1, keepdim=True) @ B.mT  # B has orthogonal columns
    target = []
    for t in range(horizon):
        x = times(A, x) + times(B, plan[:, t])
        later = times(A.mT, costate[:, t + 1]) if t + 1 < horizon else torch.zeros_like(x)
        target.append(x + (costate[:, t] - later) / state_weight)
    return A, B, initial, torch.stack(target, dim=1), state_weight, input_weight, bound
