"""Elementwise functions.

Where a function is given by cases, the argument of the case that is not taken is replaced as well
("double where"): otherwise its infinite derivative, times zero, is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch

from ddn_cvx.programs.translation import affine
from ddn_cvx.programs.translation.registry import register, register_functions
from ddn_cvx.programs.translation.tape import Function, Tape, Value

# cvxpy rounds to this many decimals (settings.ATOM_EVAL_TOL) before it takes a ceiling or a floor.
_DECIMALS = 4


def bounded_log(x: torch.Tensor) -> torch.Tensor:
    """The logarithm where x is positive; from zero down, that of the least normal number.

    The slope of x log x at zero is then large and finite, not infinite, and zero times it is zero.
    """
    least = torch.finfo(x.dtype).tiny
    positive = x > least
    logarithm = torch.where(positive, x, 1.0).log()
    return torch.where(positive, logarithm, math.log(least))


def entropy(x: torch.Tensor) -> torch.Tensor:
    """-x log x, zero at zero, -inf below."""
    return (-x * bounded_log(x)).masked_fill(x < 0, -torch.inf)


def _relative_entropy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    outside = (x < 0) | (y < 0) | ((y == 0) & (x > 0))
    return (x * (bounded_log(x) - bounded_log(y))).masked_fill(outside, torch.inf)


def _kl_divergence(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _relative_entropy(x, y) - x + y


def _softplus(x: torch.Tensor) -> torch.Tensor:
    # Torch's threshold of 20 would leave an error of 2e-9.
    return torch.nn.functional.softplus(x, threshold=40.0)


def _xexp(x: torch.Tensor) -> torch.Tensor:
    return x * x.exp()


def _ceil(x: torch.Tensor) -> torch.Tensor:
    return torch.round(x, decimals=_DECIMALS).ceil()


def _floor(x: torch.Tensor) -> torch.Tensor:
    return torch.round(x, decimals=_DECIMALS).floor()


def _sign(x: torch.Tensor) -> torch.Tensor:
    # -1 at zero, and still a function of x, with derivative zero
    return (torch.sign(x) - 0.5).sign()


def _one_minus(x: torch.Tensor) -> torch.Tensor:
    return 1.0 - x


register_functions(
    {
        "affine.unary_operators.NegExpression": torch.neg,
        "elementwise.abs.abs": torch.abs,
        "elementwise.ceil.ceil": _ceil,
        "elementwise.ceil.floor": _floor,
        "elementwise.entr.entr": entropy,
        "elementwise.exp.exp": torch.exp,
        "elementwise.hyperbolic.asinh": torch.asinh,
        "elementwise.hyperbolic.atanh": torch.atanh,
        "elementwise.hyperbolic.sinh": torch.sinh,
        "elementwise.hyperbolic.tanh": torch.tanh,
        "elementwise.log.log": torch.log,
        "elementwise.log1p.log1p": torch.log1p,
        "elementwise.logic.Not": _one_minus,
        "elementwise.logistic.logistic": _softplus,
        "elementwise.normcdf.normcdf": torch.special.ndtr,
        "elementwise.trig.cos": torch.cos,
        "elementwise.trig.sin": torch.sin,
        "elementwise.trig.tan": torch.tan,
        "elementwise.xexp.xexp": _xexp,
        "one_minus_pos.one_minus_pos": _one_minus,
        "sign.sign": _sign,
    }
)


def _broadcasting(
    name: str, function: Function, by_number: Callable[[float], Function] | None = None
) -> None:
    @register(name, operands=lambda atom: affine.look_through(atom.args))
    def build(tape: Tape, atom: Any, args: list[Value]) -> Value:
        if by_number is not None:  # commutative: batched operands first
            args = sorted(args, key=lambda value: value.array is not None)
        pair = partial(affine.elementwise, tape, function, by_number=by_number)
        return tape.expanded(reduce(pair, args), tuple(atom.shape))


def _exclusive_or(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.remainder(x + y, 2.0)


_broadcasting("elementwise.kl_div.kl_div", _kl_divergence)
_broadcasting("elementwise.rel_entr.rel_entr", _relative_entropy)
_broadcasting("elementwise.logic.And", torch.minimum)
_broadcasting("elementwise.logic.Or", torch.maximum)
_broadcasting("elementwise.logic.Xor", _exclusive_or)
_broadcasting(
    "elementwise.maximum.maximum", torch.maximum, lambda n: partial(torch.clamp_min, min=n)
)
_broadcasting(
    "elementwise.minimum.minimum", torch.minimum, lambda n: partial(torch.clamp_max, max=n)
)


@register("elementwise.huber.huber", operands=lambda atom: [*atom.args, atom.M])
def _build_huber(tape: Tape, atom: Any, args: list[Value]) -> Value:
    x, threshold = args
    if threshold.array is not None:
        M = float(threshold.array.reshape(()))
        return tape.call(partial(_huber, M=M), x, shape=atom.shape)
    threshold = tape.view(threshold, (1,) * len(x.shape))
    return tape.call(_huber, x, threshold, shape=atom.shape)


def _huber(x: torch.Tensor, M: torch.Tensor | float) -> torch.Tensor:
    size = x.abs()
    return torch.where(size <= M, x * x, M * (2.0 * size - M))


@register(
    "elementwise.power.Power",
    "elementwise.power.PowerApprox",
    operands=lambda atom: [*atom.args, atom.p],
)
def _build_power(tape: Tape, atom: Any, args: list[Value]) -> Value:
    x, exponent = args
    shape = tuple(atom.shape)
    if exponent.array is None:
        exponent = tape.view(exponent, (1,) * len(shape))
        return tape.call(_power_of_both, x, exponent, shape=shape)
    p = float(exponent.array.reshape(()))
    if p == 0:
        return tape.call(torch.ones_like, x, shape=shape)
    if p == 1:
        return x
    simple = {2.0: torch.square, 0.5: torch.sqrt, -1.0: torch.reciprocal}
    return tape.call(simple.get(p, partial(torch.pow, exponent=p)), x, shape=shape)


def _power_of_both(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """x to the power p, also differentiated in p; at zero the derivative in p is zero."""
    zero = x == 0
    power = torch.pow(torch.where(zero, 1.0, x), p)
    return torch.where(zero, torch.pow(torch.where(zero, x, 0.0), p.detach()), power)
