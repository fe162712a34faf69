"""Atoms that contain a problem or an expression of their own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ddn_cvx.programs.translation.errors import Refusal
from ddn_cvx.programs.translation.function import TorchFunction
from ddn_cvx.programs.translation.registry import register
from ddn_cvx.programs.translation.tape import Shape, Tape, Value

# Absolute size of s up to which it counts as zero: that of np.isclose(s, 0), which cvxpy asks.
_ZERO = 1e-8


def _parameters(atom: Any) -> list[Any]:
    found = {p.id: p for f in (atom.f, atom.f_recession) if f is not None for p in f.parameters()}
    return list(found.values())


@register("perspective.perspective", operands=lambda atom: [*atom.args, *_parameters(atom)])
def _build_perspective(tape: Tape, atom: Any, args: list[Value]) -> Value:
    variables, parameters = atom.f.variables(), _parameters(atom)
    leaves = [*variables, *parameters]
    recession = None if atom.f_recession is None else tape.translate(atom.f_recession, leaves)
    call = partial(
        _perspective,
        function=tape.translate(atom.f, leaves),
        recession=recession,
        scaled=len(variables),
        shape=tuple(atom.shape),
    )
    return tape.call(call, *args, shape=atom.shape)


def _perspective(
    s: torch.Tensor,
    *values: torch.Tensor,
    function: TorchFunction,
    recession: TorchFunction | None,
    scaled: int,
    shape: Shape,
) -> torch.Tensor:
    """s f(x / s), and f's recession function of x where s is zero."""
    batch = max(value.shape[0] for value in (s, *values))
    s = s.expand(batch, *s.shape[1:]).reshape(batch)
    values = tuple(value.expand(batch, *value.shape[1:]) for value in values)
    xs, parameters = values[:scaled], values[scaled:]
    zero = s.abs() <= _ZERO
    safe = s if recession is None else torch.where(zero, 1.0, s)
    quotients = [x / safe.reshape(batch, *(1,) * (x.dim() - 1)) for x in xs]
    value = safe.reshape(batch, *(1,) * len(shape)) * function(*quotients, *parameters)
    if recession is None:
        return value
    wide = zero.reshape(batch, *(1,) * len(shape))
    return torch.where(wide, recession(*xs, *parameters).reshape(value.shape), value)


@register("suppfunc.SuppFuncAtom")
def _refuse_support_function(tape: Tape, atom: Any, args: list[Value]) -> Value:
    raise Refusal(
        "is the optimal value of an inner problem, which cvxpy solves to evaluate it",
        "Write the support function in closed form (a norm, a maximum), or state the inner "
        "problem's dual variables and constraints in the outer problem.",
    )
