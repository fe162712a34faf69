"""Nonlinear test problems in cvxpy, with their published starting points and optimal values.

Most come from Hock and Schittkowski (1981), *Test Examples for Nonlinear Programming Codes*, and
from Moré, Garbow and Hillstrom (1981), *Testing Unconstrained Optimization Software*. All are DNLP
valid: ``problem.solve(nlp=True, solver=cp.UNO)`` accepts them, though cvxpy warns where it cannot
see that a denominator is positive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cvxpy as cp  # noqa: TID253 -- every builder needs it
import numpy as np

Kind = Literal["least squares", "unconstrained", "constrained"]
Builder = Callable[[], cp.Problem]


@dataclass(frozen=True)
class NonlinearProblem:
    """A test problem.

    Attributes:
        name: short and unique.
        build: makes a fresh problem, whose variables hold the published starting point.
        objective: the published optimal value.
        source: where statement, start and value come from.
        kind: a sum of squares without constraints, another function without constraints, the rest.
        note: corrections and difficulties.
        others: values at other stationary points, which a solver may reach from the start too.
    """

    name: str
    build: Builder
    objective: float
    source: str
    kind: Kind = "constrained"
    note: str = ""
    others: tuple[float, ...] = ()


_REGISTRY: list[NonlinearProblem] = []


def _problem(
    objective: float,
    source: str,
    *others: float,
    kind: Kind = "constrained",
    note: str = "",
) -> Callable[[Builder], Builder]:
    """Decorator: the builder's name is the problem's name."""

    def register(build: Builder) -> Builder:
        name = build.__name__
        _REGISTRY.append(NonlinearProblem(name, build, objective, source, kind, note, others))
        return build

    return register


def _hs(
    number: int, objective: float, *others: float, note: str = ""
) -> Callable[[Builder], Builder]:
    """A problem of Hock and Schittkowski (1981)."""
    source = f"Hock and Schittkowski (1981), problem {number}"
    return _problem(objective, source, *others, note=note)


def _mgh(
    number: int, objective: float, *others: float, note: str = ""
) -> Callable[[Builder], Builder]:
    """A sum of squares of Moré, Garbow and Hillstrom (1981)."""
    source = f"Moré, Garbow and Hillstrom (1981), problem {number}"
    return _problem(objective, source, *others, kind="least squares", note=note)


def _start(*values: float, nonneg: bool = False) -> cp.Variable:
    """A vector variable at a starting point; ``nonneg`` shows cvxpy it may be a denominator."""
    x = cp.Variable(len(values), name="x", nonneg=nonneg)
    x.value = np.array(values, dtype=float)
    return x


def _minimize(objective: cp.Expression, *constraints: cp.Constraint) -> cp.Problem:
    return cp.Problem(cp.Minimize(objective), list(constraints))


def _maximize(objective: cp.Expression, *constraints: cp.Constraint) -> cp.Problem:
    return cp.Problem(cp.Maximize(objective), list(constraints))


def _rosenbrock(x: cp.Variable) -> cp.Expression:
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


# -- Hock and Schittkowski: bounds only -----------------------------------------------------------


@_hs(1, 0.0)
def hs1() -> cp.Problem:
    """Rosenbrock's function with an inactive bound."""
    x = _start(-2, 1)
    return _minimize(_rosenbrock(x), x[1] >= -1.5)


@_hs(2, 0.0504261879, 4.941229318)
def hs2() -> cp.Problem:
    """Rosenbrock's function with an active bound; the start violates it."""
    x = _start(-2, 1)
    return _minimize(_rosenbrock(x), x[1] >= 1.5)


@_hs(3, 0.0)
def hs3() -> cp.Problem:
    """A flat convex quadratic."""
    x = _start(10, 1)
    x1, x2 = x
    return _minimize(x2 + 1e-5 * (x2 - x1) ** 2, x2 >= 0)


@_hs(4, 8 / 3)
def hs4() -> cp.Problem:
    """A cubic, both bounds active."""
    x = _start(1.125, 0.125)
    x1, x2 = x
    return _minimize((x1 + 1) ** 3 / 3 + x2, x1 >= 1, x2 >= 0)


@_hs(5, -np.sqrt(3) / 2 - np.pi / 3)
def hs5() -> cp.Problem:
    """McCormick's function on a box."""
    x = _start(0, 0)
    x1, x2 = x
    objective = cp.nlp.sin(x1 + x2) + (x1 - x2) ** 2 - 1.5 * x1 + 2.5 * x2 + 1
    return _minimize(objective, x1 >= -1.5, x1 <= 4, x2 >= -3, x2 <= 3)


@_hs(25, 0.0, note="the gradient nearly vanishes at the start, where the value is 32.835")
def hs25() -> cp.Problem:
    """Fit of a Weibull curve, 99 residuals."""
    x = _start(100, 12.5, 3, nonneg=True)
    x1, x2, x3 = x
    level = 0.01 * np.arange(1, 100)
    u = 25 + (-50 * np.log(level)) ** (2 / 3)
    residual = cp.exp(-cp.exp(x3 * cp.log(u - x2)) / x1) - level
    return _minimize(cp.sum_squares(residual), x1 >= 0.1, x <= np.array([100, 25.6, 5]))


@_hs(38, 0.0)
def hs38() -> cp.Problem:
    """Colville's function, Wood's on a box."""
    x = _start(-3, -1, -3, -1)
    return _minimize(_wood(x), x >= -10, x <= 10)


@_hs(45, 1.0)
def hs45() -> cp.Problem:
    """A product of five variables, every upper bound active."""
    x = _start(2, 2, 2, 2, 2)
    x1, x2, x3, x4, x5 = x
    objective = 2 - x1 * x2 * x3 * x4 * x5 / 120
    return _minimize(objective, x >= 0, x <= np.arange(1, 6))


@_hs(110, -45.77846971)
def hs110() -> cp.Problem:
    """Logarithms and the fifth root of a product of ten variables."""
    x = _start(*[9] * 10, nonneg=True)
    objective = cp.sum_squares(cp.log(x - 2)) + cp.sum_squares(cp.log(10 - x))
    return _minimize(objective - cp.exp(0.2 * cp.sum(cp.log(x))), x >= 2.001, x <= 9.999)


# -- Hock and Schittkowski: equalities ------------------------------------------------------------


@_hs(6, 0.0)
def hs6() -> cp.Problem:
    """Rosenbrock's valley as a constraint."""
    x = _start(-1.2, 1)
    x1, x2 = x
    return _minimize((1 - x1) ** 2, 10 * (x2 - x1**2) == 0)


@_hs(7, -np.sqrt(3))
def hs7() -> cp.Problem:
    """A logarithm on a quartic curve."""
    x = _start(2, 2)
    x1, x2 = x
    return _minimize(cp.log(1 + x1**2) - x2, (1 + x1**2) ** 2 + x2**2 == 4)


@_hs(8, -1.0)
def hs8() -> cp.Problem:
    """Two equations in two unknowns; the objective is constant."""
    x = _start(2, 1)
    x1, x2 = x
    return _minimize(0 * x1 - 1, x1**2 + x2**2 == 25, x1 * x2 == 9)


@_hs(9, -0.5)
def hs9() -> cp.Problem:
    """A product of sine and cosine on a line."""
    x = _start(0, 0)
    x1, x2 = x
    objective = cp.nlp.sin(np.pi * x1 / 12) * cp.nlp.cos(np.pi * x2 / 16)
    return _minimize(objective, 4 * x1 - 3 * x2 == 0)


@_hs(26, 0.0, note="the Hessian is singular at the solution: convergence is linear")
def hs26() -> cp.Problem:
    """A quartic sum on a quartic surface."""
    x = _start(-2.6, 2, 2)
    x1, x2, x3 = x
    return _minimize((x1 - x2) ** 2 + (x2 - x3) ** 4, (1 + x2**2) * x1 + x3**4 == 3)


@_hs(27, 0.04)
def hs27() -> cp.Problem:
    """A valley with a quadratic equality."""
    x = _start(2, 2, 2)
    x1, x2, x3 = x
    return _minimize(0.01 * (x1 - 1) ** 2 + (x2 - x1**2) ** 2, x1 + x3**2 + 1 == 0)


@_hs(28, 0.0)
def hs28() -> cp.Problem:
    """Linear least squares with a linear equality."""
    x = _start(-4, 1, 1)
    x1, x2, x3 = x
    return _minimize((x1 + x2) ** 2 + (x2 + x3) ** 2, x1 + 2 * x2 + 3 * x3 == 1)


@_hs(39, -1.0)
def hs39() -> cp.Problem:
    """A linear objective with squared slacks."""
    x = _start(2, 2, 2, 2)
    x1, x2, x3, x4 = x
    return _minimize(-x1, x2 - x1**3 - x3**2 == 0, x1**2 - x2 - x4**2 == 0)


@_hs(40, -0.25)
def hs40() -> cp.Problem:
    """A product of four variables, three equalities."""
    x = _start(0.8, 0.8, 0.8, 0.8)
    x1, x2, x3, x4 = x
    equalities = x1**3 + x2**2 == 1, x1**2 * x4 - x3 == 0, x4**2 - x2 == 0
    return _minimize(-x1 * x2 * x3 * x4, *equalities)


@_hs(41, 52 / 27, 2.0)
def hs41() -> cp.Problem:
    """A product of three variables, a linear equality and bounds."""
    x = _start(2, 2, 2, 2)
    x1, x2, x3, x4 = x
    equality = x1 + 2 * x2 + 2 * x3 - x4 == 0
    return _minimize(2 - x1 * x2 * x3, equality, x >= 0, x <= np.array([1, 1, 1, 2]))


@_hs(42, 28 - 10 * np.sqrt(2))
def hs42() -> cp.Problem:
    """Distance to a point on a circle."""
    x = _start(1, 1, 1, 1)
    x1, _, x3, x4 = x
    return _minimize(cp.sum_squares(x - np.arange(1, 5)), x1 == 2, x3**2 + x4**2 == 2)


@_hs(46, 0.0, note="the Hessian is singular at the solution: convergence is linear")
def hs46() -> cp.Problem:
    """Sixth powers and a sine in the constraints."""
    x = _start(np.sqrt(2) / 2, 1.75, 0.5, 2, 2)
    x1, x2, x3, x4, x5 = x
    objective = (x1 - x2) ** 2 + (x3 - 1) ** 2 + (x4 - 1) ** 4 + (x5 - 1) ** 6
    equalities = x1**2 * x4 + cp.nlp.sin(x4 - x5) == 1, x2 + x3**4 * x4**2 == 2
    return _minimize(objective, *equalities)


@_hs(47, 0.0)
def hs47() -> cp.Problem:
    """A cubic term in the objective, so the published solution is only local."""
    x = _start(2, np.sqrt(2), -1, 2 - np.sqrt(2), 0.5)
    x1, x2, x3, x4, x5 = x
    objective = (x1 - x2) ** 2 + (x2 - x3) ** 3 + (x3 - x4) ** 4 + (x4 - x5) ** 4
    equalities = x1 + x2**2 + x3**3 == 3, x2 - x3**2 + x4 == 1, x1 * x5 == 1
    return _minimize(objective, *equalities)


@_hs(48, 0.0)
def hs48() -> cp.Problem:
    """Linear least squares, two equalities."""
    x = _start(3, 5, -3, 2, -2)
    x1, x2, x3, x4, x5 = x
    objective = (x1 - 1) ** 2 + (x2 - x3) ** 2 + (x4 - x5) ** 2
    return _minimize(objective, cp.sum(x) == 5, x3 - 2 * (x4 + x5) == -3)


@_hs(49, 0.0, note="the Hessian is singular at the solution: convergence is linear")
def hs49() -> cp.Problem:
    """Fourth and sixth powers, linear equalities."""
    x = _start(10, 7, 2, -3, 0.8)
    x1, x2, x3, x4, x5 = x
    objective = (x1 - x2) ** 2 + (x3 - 1) ** 2 + (x4 - 1) ** 4 + (x5 - 1) ** 6
    return _minimize(objective, x1 + x2 + x3 + 4 * x4 == 7, x3 + 5 * x5 == 6)


@_hs(50, 0.0)
def hs50() -> cp.Problem:
    """A quartic, three linear equalities."""
    x = _start(35, -31, 11, 5, -5)
    x1, x2, x3, x4, x5 = x
    objective = (x1 - x2) ** 2 + (x2 - x3) ** 2 + (x3 - x4) ** 4 + (x4 - x5) ** 2
    equalities = [x[i] + 2 * x[i + 1] + 3 * x[i + 2] == 6 for i in range(3)]
    return _minimize(objective, *equalities)


def _hs51_to_53(objective: cp.Expression, right: float, x: cp.Variable) -> cp.Problem:
    x1, x2, x3, x4, x5 = x
    return _minimize(objective, x1 + 3 * x2 == right, x3 + x4 - 2 * x5 == 0, x2 - x5 == 0)


@_hs(51, 0.0)
def hs51() -> cp.Problem:
    """Linear least squares, three equalities."""
    x = _start(2.5, 0.5, 2, -1, 0.5)
    x1, x2, x3, x4, x5 = x
    objective = (x1 - x2) ** 2 + (x2 + x3 - 2) ** 2 + (x4 - 1) ** 2 + (x5 - 1) ** 2
    return _hs51_to_53(objective, 4, x)


@_hs(52, 1859 / 349)
def hs52() -> cp.Problem:
    """Linear least squares, three homogeneous equalities."""
    x = _start(2, 2, 2, 2, 2)
    x1, x2, x3, x4, x5 = x
    objective = (4 * x1 - x2) ** 2 + (x2 + x3 - 2) ** 2 + (x4 - 1) ** 2 + (x5 - 1) ** 2
    return _hs51_to_53(objective, 0, x)


@_hs(53, 176 / 43)
def hs53() -> cp.Problem:
    """Linear least squares, three equalities and inactive bounds."""
    x = _start(2, 2, 2, 2, 2)
    x1, x2, x3, x4, x5 = x
    objective = (x1 - x2) ** 2 + (x2 + x3 - 2) ** 2 + (x4 - 1) ** 2 + (x5 - 1) ** 2
    problem = _hs51_to_53(objective, 0, x)
    return cp.Problem(problem.objective, [*problem.constraints, x >= -10, x <= 10])


@_hs(55, 19 / 3, 20 / 3, 6.805840142, note="the start is on the way to 20 / 3")
def hs55() -> cp.Problem:
    """Six linear equalities, of which one is redundant, in six variables."""
    x = _start(1, 2, 0, 0, 0, 2)
    x1, x2, x3, x4, x5, x6 = x
    equalities = (
        x1 + 2 * x2 + 5 * x5 == 6,
        x1 + x2 + x3 == 3,
        x4 + x5 + x6 == 2,
        x1 + x4 == 1,
        x2 + x5 == 2,
        x3 + x6 == 2,
    )
    objective = x1 + 2 * x2 + 4 * x5 + cp.exp(x1 * x4)
    return _minimize(objective, *equalities, x >= 0, x1 <= 1, x4 <= 1)


@_hs(56, -3.456)
def hs56() -> cp.Problem:
    """A product; bounds eliminated by squared sines."""
    a, b = np.arcsin(np.sqrt(1 / 4.2)), np.arcsin(np.sqrt(5 / 7.2))
    x = _start(1, 1, 1, a, a, a, b)
    x1, x2, x3 = x[0], x[1], x[2]
    sines = cp.nlp.sin(x[3:]) ** 2
    equalities = x[:3] == 4.2 * sines[:3], x1 + 2 * x2 + 2 * x3 == 7.2 * sines[3]
    return _minimize(-x1 * x2 * x3, *equalities)


@_hs(60, 0.03256820025)
def hs60() -> cp.Problem:
    """A quartic equality and bounds."""
    x = _start(2, 2, 2)
    x1, x2, x3 = x
    objective = (x1 - 1) ** 2 + (x1 - x2) ** 2 + (x2 - x3) ** 4
    equality = x1 * (1 + x2**2) + x3**4 == 4 + 3 * np.sqrt(2)
    return _minimize(objective, equality, x >= -10, x <= 10)


@_hs(61, -143.6461422)
def hs61() -> cp.Problem:
    """Two quadratic equalities, whose gradients are dependent at the start."""
    x = _start(0, 0, 0)
    x1, x2, x3 = x
    objective = 4 * x1**2 + 2 * x2**2 + 2 * x3**2 - 33 * x1 + 16 * x2 - 24 * x3
    return _minimize(objective, 3 * x1 - 2 * x2**2 == 7, 4 * x1 - x3**2 == 11)


@_hs(62, -26272.51448)
def hs62() -> cp.Problem:
    """Logarithms of ratios on the simplex."""
    x = _start(0.7, 0.2, 0.1, nonneg=True)
    x1, x2, x3 = x
    objective = -32.174 * (
        255 * cp.log((x1 + x2 + x3 + 0.03) / (0.09 * x1 + x2 + x3 + 0.03))
        + 280 * cp.log((x2 + x3 + 0.03) / (0.07 * x2 + x3 + 0.03))
        + 290 * cp.log((x3 + 0.03) / (0.13 * x3 + 0.03))
    )
    return _minimize(objective, cp.sum(x) == 1, x <= 1)


@_hs(63, 961.7151721)
def hs63() -> cp.Problem:
    """A concave quadratic on a plane and a sphere."""
    x = _start(2, 2, 2)
    x1, x2, x3 = x
    objective = 1000 - x1**2 - 2 * x2**2 - x3**2 - x1 * x2 - x1 * x3
    plane = 8 * x1 + 14 * x2 + 7 * x3 == 56
    return _minimize(objective, plane, cp.sum_squares(x) == 25, x >= 0)


def _hs68_or_69(a: float, b: float, d: float, n: int) -> cp.Problem:
    """Cost of a statistical process control chart."""
    x = _start(1, 1, 1, 1, nonneg=True)
    x1, x2, x3, x4 = x
    growth = cp.exp(x1) - 1
    objective = (a * n - (b * growth - x3) * x4 / (growth + x4)) / x1
    shift = d * np.sqrt(n)
    phi = cp.nlp.normcdf
    equalities = x3 == 2 * phi(-x2), x4 == phi(-x2 + shift) + phi(-x2 - shift)
    return _minimize(objective, *equalities, x1 >= 1e-4, x <= np.array([100, 100, 2, 2]))


@_hs(68, -0.920425026)
def hs68() -> cp.Problem:
    """The normal distribution function in the equalities."""
    return _hs68_or_69(1e-4, 1, 1, 24)


@_hs(69, -956.71288)
def hs69() -> cp.Problem:
    """Problem 68 with other constants."""
    return _hs68_or_69(0.1, 1000, 1, 4)


@_hs(77, 0.24150513)
def hs77() -> cp.Problem:
    """Sixth powers and a sine in the constraints."""
    x = _start(2, 2, 2, 2, 2)
    x1, x2, x3, x4, x5 = x
    objective = (x1 - 1) ** 2 + (x1 - x2) ** 2 + (x3 - 1) ** 2 + (x4 - 1) ** 4 + (x5 - 1) ** 6
    first = x1**2 * x4 + cp.nlp.sin(x4 - x5) == 2 * np.sqrt(2)
    return _minimize(objective, first, x2 + x3**4 * x4**2 == 8 + np.sqrt(2))


def _hs78_equalities(x: cp.Variable) -> list[cp.Constraint]:
    x1, x2, x3, x4, x5 = x
    return [cp.sum_squares(x) == 10, x2 * x3 == 5 * x4 * x5, x1**3 + x2**3 == -1]


@_hs(78, -2.91970041)
def hs78() -> cp.Problem:
    """A product of five variables, three equalities."""
    x = _start(-2, 1.5, 2, -1, -1)
    x1, x2, x3, x4, x5 = x
    return _minimize(x1 * x2 * x3 * x4 * x5, *_hs78_equalities(x))


@_hs(79, 0.0787768209)
def hs79() -> cp.Problem:
    """A quartic, three equalities."""
    x = _start(2, 2, 2, 2, 2)
    x1, x2, x3, x4, x5 = x
    objective = (x1 - 1) ** 2 + (x1 - x2) ** 2 + (x2 - x3) ** 2 + (x3 - x4) ** 4 + (x4 - x5) ** 4
    equalities = (
        x1 + x2**2 + x3**3 == 2 + 3 * np.sqrt(2),
        x2 - x3**2 + x4 == -2 + 2 * np.sqrt(2),
        x1 * x5 == 2,
    )
    return _minimize(objective, *equalities)


_HS80_BOUND = np.array([2.3, 2.3, 3.2, 3.2, 3.2])


@_hs(80, 0.0539498478)
def hs80() -> cp.Problem:
    """Problem 78 under an exponential, with bounds."""
    x = _start(-2, 2, 2, -1, -1)
    x1, x2, x3, x4, x5 = x
    bounds = x >= -_HS80_BOUND, x <= _HS80_BOUND
    return _minimize(cp.exp(x1 * x2 * x3 * x4 * x5), *_hs78_equalities(x), *bounds)


@_hs(81, 0.0539498478)
def hs81() -> cp.Problem:
    """Problem 80 with a squared constraint subtracted."""
    x = _start(-2, 2, 2, -1, -1)
    x1, x2, x3, x4, x5 = x
    objective = cp.exp(x1 * x2 * x3 * x4 * x5) - 0.5 * (x1**3 + x2**3 + 1) ** 2
    return _minimize(objective, *_hs78_equalities(x), x >= -_HS80_BOUND, x <= _HS80_BOUND)


@_hs(99, -831079892.0, note="values of 1e9: a solver's absolute tolerances mean little")
def hs99() -> cp.Problem:
    """Thrust angles of a rocket: maximal final velocity at given height."""
    x = _start(*[0.5] * 7)
    b = 32
    a = np.array([50, 50, 75, 75, 75, 100, 100])
    dt = np.diff([0, 25, 50, 100, 150, 200, 290, 380])
    lift = cp.multiply(a, cp.nlp.sin(x)) - b
    height, climb = 0, 0
    for i in range(7):
        height = height + dt[i] * climb + 0.5 * dt[i] ** 2 * lift[i]
        climb = climb + dt[i] * lift[i]
    velocity = (a * dt) @ cp.nlp.cos(x)
    return _minimize(-(velocity**2), height == 1e5, climb == 1e3, x >= 0, x <= 1.58)


@_hs(107, 5055.011803)
def hs107() -> cp.Problem:
    """Static power scheduling, trigonometric equalities."""
    x = _start(0.8, 0.8, 0.2, 0.2, 1.0454, 1.0454, 1.0454, 0, 0)
    p1, p2, q1, q2, v1, v2, v3, t1, t2 = x
    c, d = 48.4 / 50.176 * np.sin(0.25), 48.4 / 50.176 * np.cos(0.25)
    sin, cos = cp.nlp.sin, cp.nlp.cos
    s1, c1, s2, c2, s12, c12 = sin(t1), cos(t1), sin(t2), cos(t2), sin(t1 - t2), cos(t1 - t2)
    v12, v13, v23 = v1 * v2, v1 * v3, v2 * v3
    equalities = (
        0.4 - p1 + 2 * c * v1**2 - v12 * (d * s1 + c * c1) - v13 * (d * s2 + c * c2) == 0,
        0.4 - p2 + 2 * c * v2**2 + v12 * (d * s1 - c * c1) + v23 * (d * s12 - c * c12) == 0,
        0.8 + 2 * c * v3**2 + v13 * (d * s2 - c * c2) - v23 * (d * s12 + c * c12) == 0,
        0.2 - q1 + 2 * d * v1**2 + v12 * (c * s1 - d * c1) + v13 * (c * s2 - d * c2) == 0,
        0.2 - q2 + 2 * d * v2**2 - v12 * (c * s1 + d * c1) - v23 * (c * s12 + d * c12) == 0,
        -0.337 + 2 * d * v3**2 - v13 * (c * s2 + d * c2) + v23 * (c * s12 - d * c12) == 0,
    )
    objective = 3000 * p1 + 1000 * p1**3 + 2000 * p2 + 666.667 * p2**3
    return _minimize(objective, *equalities, x[:2] >= 0, x[4:7] >= 0.90909, x[4:7] <= 1.0909)


_HS111_COST = np.array(
    [-6.089, -17.164, -34.054, -5.914, -24.721, -14.986, -24.100, -10.708, -26.662, -22.179]
)
_HS111_BALANCE = np.array(
    [
        [1, 2, 2, 0, 0, 1, 0, 0, 0, 1],
        [0, 0, 0, 1, 2, 1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 1, 1, 2, 1],
    ]
)


@_hs(111, -47.76109026)
def hs111() -> cp.Problem:
    """Chemical equilibrium in logarithmic variables."""
    x = _start(*[-2.3] * 10)
    objective = cp.exp(x) @ (_HS111_COST + x - cp.log(cp.sum(cp.exp(x))))
    balance = _HS111_BALANCE @ cp.exp(x) == np.array([2, 1, 1])
    return _minimize(objective, balance, x >= -100, x <= 100)


@_hs(112, -47.76109026, note="the book prints -47.707579 here; both forms have the same optimum")
def hs112() -> cp.Problem:
    """Chemical equilibrium."""
    x = _start(*[0.1] * 10, nonneg=True)
    objective = x @ (_HS111_COST + cp.log(x / cp.sum(x)))
    return _minimize(objective, _HS111_BALANCE @ x == np.array([2, 1, 1]), x >= 1e-6)


# -- Hock and Schittkowski: inequalities, two variables -------------------------------------------


@_hs(10, -1.0)
def hs10() -> cp.Problem:
    """A linear objective on an ellipse."""
    x = _start(-10, 10)
    x1, x2 = x
    return _minimize(x1 - x2, -3 * x1**2 + 2 * x1 * x2 - x2**2 + 1 >= 0)


@_hs(11, -8.498464223)
def hs11() -> cp.Problem:
    """Projection onto a parabola."""
    x = _start(4.9, 0.1)
    x1, x2 = x
    return _minimize((x1 - 5) ** 2 + x2**2 - 25, x1**2 <= x2)


@_hs(12, -30.0)
def hs12() -> cp.Problem:
    """A convex quadratic on an ellipse."""
    x = _start(0, 0)
    x1, x2 = x
    objective = 0.5 * x1**2 + x2**2 - x1 * x2 - 7 * x1 - 7 * x2
    return _minimize(objective, 4 * x1**2 + x2**2 <= 25)


@_hs(13, 1.0, note="no constraint qualification holds at the solution: there are no multipliers")
def hs13() -> cp.Problem:
    """A cusp."""
    x = _start(-2, -2)
    x1, x2 = x
    return _minimize((x1 - 2) ** 2 + x2**2, (1 - x1) ** 3 >= x2, x >= 0)


@_hs(14, 9 - 2.875 * np.sqrt(7))
def hs14() -> cp.Problem:
    """An ellipse and a line."""
    x = _start(2, 2)
    x1, x2 = x
    return _minimize((x1 - 2) ** 2 + (x2 - 1) ** 2, 0.25 * x1**2 + x2**2 <= 1, x1 - 2 * x2 == -1)


@_hs(15, 306.5, 360.3797669)
def hs15() -> cp.Problem:
    """Rosenbrock's function, a hyperbola and a parabola."""
    x = _start(-2, 1)
    x1, x2 = x
    return _minimize(_rosenbrock(x), x1 * x2 >= 1, x1 + x2**2 >= 0, x1 <= 0.5)


@_hs(16, 0.25, 23.14466094)
def hs16() -> cp.Problem:
    """Rosenbrock's function outside two parabolas."""
    x = _start(-2, 1)
    x1, x2 = x
    bounds = x1 >= -0.5, x1 <= 0.5, x2 <= 1
    return _minimize(_rosenbrock(x), x1 + x2**2 >= 0, x1**2 + x2 >= 0, *bounds)


@_hs(17, 1.0)
def hs17() -> cp.Problem:
    """Rosenbrock's function between two parabolas."""
    x = _start(-2, 1)
    x1, x2 = x
    bounds = x1 >= -0.5, x1 <= 0.5, x2 <= 1
    return _minimize(_rosenbrock(x), x2**2 >= x1, x1**2 >= x2, *bounds)


@_hs(18, 5.0)
def hs18() -> cp.Problem:
    """A hyperbola and the outside of a disc."""
    x = _start(2, 2)
    x1, x2 = x
    objective = 0.01 * x1**2 + x2**2
    return _minimize(objective, x1 * x2 >= 25, cp.sum_squares(x) >= 25, x1 >= 2, x2 >= 0, x <= 50)


@_hs(19, -6961.81381)
def hs19() -> cp.Problem:
    """Cubic objective in a thin crescent."""
    x = _start(20.1, 5.84)
    x1, x2 = x
    outer = (x1 - 5) ** 2 + (x2 - 5) ** 2 >= 100
    inner = (x1 - 6) ** 2 + (x2 - 5) ** 2 <= 82.81
    objective = (x1 - 10) ** 3 + (x2 - 20) ** 3
    return _minimize(objective, outer, inner, x1 >= 13, x2 >= 0, x <= 100)


@_hs(20, 81.5 - 25 * np.sqrt(3), 40.19872981)
def hs20() -> cp.Problem:
    """Rosenbrock's function outside two parabolas and a disc."""
    x = _start(-2, 1)
    x1, x2 = x
    outside = x1 + x2**2 >= 0, x1**2 + x2 >= 0, cp.sum_squares(x) >= 1
    return _minimize(_rosenbrock(x), *outside, x1 >= -0.5, x1 <= 0.5)


@_hs(21, -99.96)
def hs21() -> cp.Problem:
    """A convex quadratic program, started outside."""
    x = _start(-1, -1)
    x1, x2 = x
    bounds = x1 >= 2, x1 <= 50, x2 >= -50, x2 <= 50
    return _minimize(0.01 * x1**2 + x2**2 - 100, 10 * x1 - x2 >= 10, *bounds)


@_hs(22, 1.0)
def hs22() -> cp.Problem:
    """Projection on a parabola and a half-plane."""
    x = _start(2, 2)
    x1, x2 = x
    return _minimize((x1 - 2) ** 2 + (x2 - 1) ** 2, x1 + x2 <= 2, x1**2 <= x2)


@_hs(23, 2.0)
def hs23() -> cp.Problem:
    """A convex quadratic, five inequalities of which four are not convex."""
    x = _start(3, 1)
    x1, x2 = x
    inequalities = (
        x1 + x2 >= 1,
        x1**2 + x2**2 >= 1,
        9 * x1**2 + x2**2 >= 9,
        x1**2 >= x2,
        x2**2 >= x1,
    )
    return _minimize(x1**2 + x2**2, *inequalities, x >= -50, x <= 50)


@_hs(24, -1.0)
def hs24() -> cp.Problem:
    """A quintic on a triangle."""
    x = _start(1, 0.5)
    x1, x2 = x
    root = np.sqrt(3)
    triangle = x1 / root >= x2, x1 + root * x2 >= 0, x1 + root * x2 <= 6
    return _minimize(((x1 - 3) ** 2 - 9) * x2**3 / (27 * root), *triangle, x >= 0)


_HS57_TIMES = np.repeat(np.arange(8, 44, 2), [2, 4, 4, 3, 3, 2, 3, 3, 3, 3, 2, 3, 2, 1, 2, 2, 1, 1])
_HS57_DATA = 0.01 * np.array([
    49, 49, 48, 47, 48, 47, 46, 46, 45, 43, 45, 43, 43, 44, 43, 43, 46, 45, 42, 42, 43, 41,
    41, 40, 42, 40, 40, 41, 40, 41, 41, 40, 40, 40, 38, 41, 40, 40, 41, 38, 40, 40, 39, 39,
])  # fmt: skip


@_hs(57, 0.02845966972, 0.03064761905)
def hs57() -> cp.Problem:
    """Fit of an exponential decay with a bilinear inequality."""
    x = _start(0.42, 5)
    x1, x2 = x
    fit = x1 + (0.49 - x1) * cp.exp(-x2 * (_HS57_TIMES - 8))
    inequality = 0.49 * x2 - x1 * x2 >= 0.09
    return _minimize(cp.sum_squares(_HS57_DATA - fit), inequality, x1 >= 0.4, x2 >= -4)


@_hs(59, -7.802789471, -6.749505274, note="the book prints -7.804226324")
def hs59() -> cp.Problem:
    """A polynomial of high degree, badly scaled; the start violates a bound."""
    x = _start(90, 10, nonneg=True)
    x1, x2 = x
    objective = (
        -75.196 + 3.8112 * x1 - 0.12694 * x1**2 + 2.0567e-3 * x1**3 - 1.0345e-5 * x1**4
        + 6.8306 * x2 - 0.25645 * x2**2 + 3.4604e-3 * x2**3 - 1.3514e-5 * x2**4
        - 0.030234 * x1 * x2 + 1.28134e-3 * x1**2 * x2 - 3.5256e-5 * x1**3 * x2
        + 2.266e-7 * x1**4 * x2 - 3.405e-4 * x1 * x2**2 + 1.6638e-6 * x1 * x2**3
        + 5.2375e-6 * x1**2 * x2**2 + 6.3e-8 * x1**3 * x2**2 - 7e-10 * x1**3 * x2**3
        + 28.106 / (x2 + 1) + 2.8673 * cp.exp(0.0005 * x1 * x2)
    )  # fmt: skip
    inequalities = x1 * x2 >= 700, x2 >= x1**2 / 125, (x2 - 50) ** 2 >= 5 * (x1 - 55)
    return _minimize(objective, *inequalities, x1 <= 75, x2 <= 65)


# -- Hock and Schittkowski: inequalities, three and four variables --------------------------------


@_hs(29, -16 * np.sqrt(2))
def hs29() -> cp.Problem:
    """A product on an ellipsoid."""
    x = _start(1, 1, 1)
    x1, x2, x3 = x
    return _minimize(-x1 * x2 * x3, x1**2 + 2 * x2**2 + 4 * x3**2 <= 48)


@_hs(30, 1.0)
def hs30() -> cp.Problem:
    """Outside of a cylinder; multipliers are not unique."""
    x = _start(1, 1, 1)
    x1, x2, _ = x
    return _minimize(cp.sum_squares(x), x1**2 + x2**2 >= 1, x1 >= 1, x >= -10, x <= 10)


@_hs(31, 6.0)
def hs31() -> cp.Problem:
    """A quadratic and a hyperbola."""
    x = _start(1, 1, 1)
    x1, x2, x3 = x
    bounds = x >= np.array([-10, 1, -10]), x <= np.array([10, 10, 1])
    return _minimize(9 * x1**2 + x2**2 + 9 * x3**2, x1 * x2 >= 1, *bounds)


@_hs(32, 1.0)
def hs32() -> cp.Problem:
    """A quadratic on the simplex with a cubic cut; a degenerate vertex."""
    x = _start(0.1, 0.7, 0.2)
    x1, x2, x3 = x
    objective = (x1 + 3 * x2 + x3) ** 2 + 4 * (x1 - x2) ** 2
    return _minimize(objective, 6 * x2 + 4 * x3 - x1**3 >= 3, cp.sum(x) == 1, x >= 0)


@_hs(33, np.sqrt(2) - 6, -4.0)
def hs33() -> cp.Problem:
    """Between a cone and a sphere; the start satisfies necessary conditions in part."""
    x = _start(0, 0, 3)
    x1, x2, x3 = x
    objective = (x1 - 1) * (x1 - 2) * (x1 - 3) + x3
    return _minimize(objective, x3**2 >= x1**2 + x2**2, cp.sum_squares(x) >= 4, x >= 0, x3 <= 5)


@_hs(34, -np.log(np.log(10)))
def hs34() -> cp.Problem:
    """Nested exponentials, linear objective."""
    x = _start(0, 1.05, 2.9)
    x1, x2, x3 = x
    bounds = x >= 0, x <= np.array([100, 100, 10])
    return _minimize(-x1, x2 >= cp.exp(x1), x3 >= cp.exp(x2), *bounds)


@_hs(35, 1 / 9)
def hs35() -> cp.Problem:
    """Beale's convex quadratic program."""
    x = _start(0.5, 0.5, 0.5)
    x1, x2, x3 = x
    quadratic = 2 * x1**2 + 2 * x2**2 + x3**2 + 2 * x1 * x2 + 2 * x1 * x3
    return _minimize(9 - 8 * x1 - 6 * x2 - 4 * x3 + quadratic, x1 + x2 + 2 * x3 <= 3, x >= 0)


@_hs(36, -3300.0)
def hs36() -> cp.Problem:
    """Rosenbrock's post office parcel with bounds; the solution is a vertex."""
    x = _start(10, 10, 10)
    x1, x2, x3 = x
    bounds = x >= 0, x <= np.array([20, 11, 42])
    return _minimize(-x1 * x2 * x3, x1 + 2 * x2 + 2 * x3 <= 72, *bounds)


@_hs(37, -3456.0)
def hs37() -> cp.Problem:
    """Rosenbrock's post office parcel."""
    x = _start(10, 10, 10)
    x1, x2, x3 = x
    girth = x1 + 2 * x2 + 2 * x3
    return _minimize(-x1 * x2 * x3, girth <= 72, girth >= 0, x >= 0, x <= 42)


@_hs(43, -44.0)
def hs43() -> cp.Problem:
    """Rosen and Suzuki's convex problem."""
    x = _start(0, 0, 0, 0)
    x1, x2, x3, x4 = x
    objective = x1**2 + x2**2 + 2 * x3**2 + x4**2 - 5 * x1 - 5 * x2 - 21 * x3 + 7 * x4
    inequalities = (
        x1**2 + x2**2 + x3**2 + x4**2 + x1 - x2 + x3 - x4 <= 8,
        x1**2 + 2 * x2**2 + x3**2 + 2 * x4**2 - x1 - x4 <= 10,
        2 * x1**2 + x2**2 + x3**2 + 2 * x1 - x2 - x4 <= 5,
    )
    return _minimize(objective, *inequalities)


@_hs(44, -15.0)
def hs44() -> cp.Problem:
    """An indefinite quadratic program with several vertices as local solutions."""
    x = _start(0, 0, 0, 0)
    x1, x2, x3, x4 = x
    objective = x1 - x2 - x3 - x1 * x3 + x1 * x4 + x2 * x3 - x2 * x4
    inequalities = (
        x1 + 2 * x2 <= 8,
        4 * x1 + x2 <= 12,
        3 * x1 + 4 * x2 <= 12,
        2 * x3 + x4 <= 8,
        x3 + 2 * x4 <= 8,
        x3 + x4 <= 5,
    )
    return _minimize(objective, *inequalities, x >= 0)


@_hs(64, 6299.842428)
def hs64() -> cp.Problem:
    """Reciprocals in objective and constraint."""
    x = _start(1, 1, 1, nonneg=True)
    reciprocal = 1 / x
    objective = np.array([5, 20, 10]) @ x + np.array([50000, 72000, 144000]) @ reciprocal
    return _minimize(objective, np.array([4, 32, 120]) @ reciprocal <= 1, x >= 1e-5)


@_hs(65, 0.9535288567)
def hs65() -> cp.Problem:
    """A convex quadratic on a ball and a box; the start violates the box."""
    x = _start(-5, 5, 0)
    x1, x2, x3 = x
    objective = (x1 - x2) ** 2 + (x1 + x2 - 10) ** 2 / 9 + (x3 - 5) ** 2
    bound = np.array([4.5, 4.5, 5])
    return _minimize(objective, cp.sum_squares(x) <= 48, x >= -bound, x <= bound)


@_hs(66, 0.5181632741)
def hs66() -> cp.Problem:
    """Nested exponentials, linear objective."""
    x = _start(0, 1.05, 2.9)
    x1, x2, x3 = x
    bounds = x >= 0, x <= np.array([100, 100, 10])
    return _minimize(0.2 * x3 - 0.8 * x1, x2 >= cp.exp(x1), x3 >= cp.exp(x2), *bounds)


@_hs(71, 17.0140173)
def hs71() -> cp.Problem:
    """A product bounded below, on a sphere."""
    x = _start(1, 5, 5, 1)
    x1, x2, x3, x4 = x
    objective = x1 * x4 * (x1 + x2 + x3) + x3
    return _minimize(objective, x1 * x2 * x3 * x4 >= 25, cp.sum_squares(x) == 40, x >= 1, x <= 5)


@_hs(72, 727.67937)
def hs72() -> cp.Problem:
    """Optimal sample size."""
    x = _start(1, 1, 1, 1, nonneg=True)
    reciprocal = 1 / x
    first = np.array([4, 2.25, 1, 0.25]) @ reciprocal <= 0.0401
    second = np.array([0.16, 0.36, 0.64, 0.64]) @ reciprocal <= 0.010085
    return _minimize(1 + cp.sum(x), first, second, x >= 1e-3, x <= 1e5 * np.array([4, 3, 2, 1]))


@_hs(73, 29.894378)
def hs73() -> cp.Problem:
    """Cattle feed: a linear program with a chance constraint."""
    x = _start(1, 1, 1, 1)
    deviation = cp.sqrt(np.array([0.28, 0.19, 20.5, 0.62]) @ x**2)
    protein = np.array([12, 11.9, 41.8, 52.1]) @ x >= 21 + 1.645 * deviation
    fat = np.array([2.3, 5.6, 11.1, 1.3]) @ x >= 5
    cost = np.array([24.55, 26.75, 39, 40.5]) @ x
    return _minimize(cost, fat, protein, cp.sum(x) == 1, x >= 0)


def _hs74_or_75(a: float) -> cp.Problem:
    """Static power scheduling of three buses."""
    x = _start(0, 0, 0, 0)
    x1, x2, x3, x4 = x
    sin = cp.nlp.sin
    equalities = (
        1000 * sin(-x3 - 0.25) + 1000 * sin(-x4 - 0.25) + 894.8 - x1 == 0,
        1000 * sin(x3 - 0.25) + 1000 * sin(x3 - x4 - 0.25) + 894.8 - x2 == 0,
        1000 * sin(x4 - 0.25) + 1000 * sin(x4 - x3 - 0.25) + 1294.8 == 0,
    )
    objective = 3 * x1 + 1e-6 * x1**3 + 2 * x2 + 2e-6 / 3 * x2**3
    bounds = x[:2] >= 0, x[:2] <= 1200, x[2:] >= -a, x[2:] <= a
    return _minimize(objective, *equalities, x4 - x3 <= a, x4 - x3 >= -a, *bounds)


@_hs(74, 5126.4981)
def hs74() -> cp.Problem:
    """Angles within 0.55."""
    return _hs74_or_75(0.55)


@_hs(75, 5174.4129)
def hs75() -> cp.Problem:
    """Angles within 0.48."""
    return _hs74_or_75(0.48)


@_hs(76, -4.681818181)
def hs76() -> cp.Problem:
    """A convex quadratic program."""
    x = _start(0.5, 0.5, 0.5, 0.5)
    x1, x2, x3, x4 = x
    quadratic = x1**2 + 0.5 * x2**2 + x3**2 + 0.5 * x4**2 - x1 * x3 + x3 * x4
    inequalities = (
        x1 + 2 * x2 + x3 + x4 <= 5,
        3 * x1 + x2 + 2 * x3 - x4 <= 4,
        x2 + 4 * x3 >= 1.5,
    )
    return _minimize(quadratic - x1 - 3 * x2 + x3 - x4, *inequalities, x >= 0)


# -- Hock and Schittkowski: inequalities, five variables and more ---------------------------------


@_hs(83, -30665.53867)
def hs83() -> cp.Problem:
    """Colville's third problem: bilinear, two-sided inequalities."""
    x = _start(78, 33, 27, 27, 27)
    x1, x2, x3, x4, x5 = x
    rows = (
        (85.334407 + 0.0056858 * x2 * x5 + 0.0006262 * x1 * x4 - 0.0022053 * x3 * x5, 0, 92),
        (80.51249 + 0.0071317 * x2 * x5 + 0.0029955 * x1 * x2 + 0.0021813 * x3**2, 90, 110),
        (9.300961 + 0.0047026 * x3 * x5 + 0.0012547 * x1 * x3 + 0.0019085 * x3 * x4, 20, 25),
    )
    inequalities = [c for row, low, high in rows for c in (row >= low, row <= high)]
    bounds = x >= np.array([78, 33, 27, 27, 27]), x <= np.array([102, 45, 45, 45, 45])
    objective = 5.3578547 * x3**2 + 0.8356891 * x1 * x5 + 37.293239 * x1 - 40792.141
    return _minimize(objective, *inequalities, *bounds)


_COLVILLE_A = np.array(
    [
        [-16, 2, 0, 1, 0],
        [0, -2, 0, 4, 2],
        [-3.5, 0, 2, 0, 0],
        [0, -2, 0, -4, -1],
        [0, -9, -2, 1, -2.8],
        [2, 0, -4, 0, 0],
        [-1, -1, -1, -1, -1],
        [-1, -2, -3, -2, -1],
        [1, 2, 3, 4, 5],
        [1, 1, 1, 1, 1],
    ]
)
_COLVILLE_B = np.array([-40, -2, -0.25, -4, -4, -1, -40, -60, 5, 1])
_COLVILLE_C = np.array(
    [
        [30, -20, -10, 32, -10],
        [-20, 39, -6, -31, 32],
        [-10, -6, 10, -6, -10],
        [32, -31, -6, 39, -20],
        [-10, 32, -10, -20, 30],
    ]
)
_COLVILLE_D = np.array([4, 8, 10, 6, 2])
_COLVILLE_E = np.array([-15, -27, -36, -18, -12])


@_hs(86, -32.34867897)
def hs86() -> cp.Problem:
    """Colville's first problem: a cubic with linear inequalities."""
    x = _start(0, 0, 0, 0, 1)
    objective = _COLVILLE_E @ x + x @ (_COLVILLE_C @ x) + _COLVILLE_D @ x**3
    return _minimize(objective, _COLVILLE_A @ x >= _COLVILLE_B, x >= 0)


@_hs(117, 32.34867897)
def hs117() -> cp.Problem:
    """Colville's second problem, the dual of problem 86."""
    x = _start(*[1e-3] * 6, 60, *[1e-3] * 8)
    y, z = x[:10], x[10:]
    objective = -_COLVILLE_B @ y + z @ (_COLVILLE_C @ z) + 2 * _COLVILLE_D @ z**3
    dual = 2 * _COLVILLE_C @ z + cp.multiply(3 * _COLVILLE_D, z**2) + _COLVILLE_E
    return _minimize(objective, dual >= _COLVILLE_A.T @ y, x >= 0)


@_hs(93, 135.075961)
def hs93() -> cp.Problem:
    """Transformer design."""
    x = _start(5.54, 4.4, 12.02, 11.82, 0.702, 0.852)
    x1, x2, x3, x4, x5, x6 = x
    core, winding = x1 * x4 * (x1 + x2 + x3), x2 * x3 * (x1 + 1.57 * x2 + x4)
    rating = 1e-3 * x1 * x2 * x3 * x4 * x5 * x6 >= 2.07
    losses = 0.00062 * core * x5**2 + 0.00058 * winding * x6**2 <= 1
    objective = core * (0.0204 + 0.0607 * x5**2) + winding * (0.0187 + 0.0437 * x6**2)
    return _minimize(objective, rating, losses, x >= 0)


def _hs95_or_97(b: tuple[float, float, float, float]) -> cp.Problem:
    """Linear objective, bilinear inequalities."""
    x = _start(0, 0, 0, 0, 0, 0)
    x1, x2, x3, x4, x5, x6 = x
    inequalities = (
        17.1 * x1 + 38.2 * x2 + 204.2 * x3 + 212.3 * x4 + 623.4 * x5 + 1495.5 * x6 - 169 * x1 * x3
        - 3580 * x3 * x5 - 3810 * x4 * x5 - 18500 * x4 * x6 - 24300 * x5 * x6 >= b[0],
        17.9 * x1 + 36.8 * x2 + 113.9 * x3 + 169.7 * x4 + 337.8 * x5 + 1385.2 * x6 - 139 * x1 * x3
        - 2450 * x4 * x5 - 16600 * x4 * x6 - 17200 * x5 * x6 >= b[1],
        -273 * x2 - 70 * x4 - 819 * x5 + 26000 * x4 * x5 >= b[2],
        159.9 * x1 - 311 * x2 + 587 * x4 + 391 * x5 + 2198 * x6 - 14000 * x1 * x6 >= b[3],
    )  # fmt: skip
    upper = np.array([0.31, 0.046, 0.068, 0.042, 0.028, 0.0134])
    cost = np.array([4.3, 31.8, 63.3, 15.8, 68.5, 4.7])
    return _minimize(cost @ x, *inequalities, x >= 0, x <= upper)


@_hs(95, 0.01561952524)
def hs95() -> cp.Problem:
    """Bilinear inequalities, a vertex."""
    return _hs95_or_97((4.97, -1.88, -29.08, -78.02))


@_hs(97, 3.135809, 4.071246357)
def hs97() -> cp.Problem:
    """Problem 95 with another right side."""
    return _hs95_or_97((32.97, 25.12, -29.08, -78.02))


@_hs(100, 680.6300573)
def hs100() -> cp.Problem:
    """Fourth and sixth powers, seven variables."""
    x = _start(1, 2, 0, 4, 0, 1, 1)
    x1, x2, x3, x4, x5, x6, x7 = x
    objective = (
        (x1 - 10) ** 2 + 5 * (x2 - 12) ** 2 + x3**4 + 3 * (x4 - 11) ** 2 + 10 * x5**6
        + 7 * x6**2 + x7**4 - 4 * x6 * x7 - 10 * x6 - 8 * x7
    )  # fmt: skip
    inequalities = (
        2 * x1**2 + 3 * x2**4 + x3 + 4 * x4**2 + 5 * x5 <= 127,
        7 * x1 + 3 * x2 + 10 * x3**2 + x4 - x5 <= 282,
        23 * x1 + x2**2 + 6 * x6**2 - 8 * x7 <= 196,
        4 * x1**2 + x2**2 - 3 * x1 * x2 + 2 * x3**2 + 5 * x6 - 11 * x7 <= 0,
    )
    return _minimize(objective, *inequalities)


def _posynomial(x: cp.Variable, *terms: tuple[float, tuple[float, ...]]) -> cp.Expression:
    """A sum of monomials, each a coefficient with the exponents of the variables."""
    coefficients = np.array([coefficient for coefficient, _ in terms])
    return coefficients @ cp.exp(np.array([powers for _, powers in terms]) @ cp.log(x))


def _hs101_to_103(a: float) -> cp.Problem:
    """A geometric program."""
    x = _start(*[6] * 7, nonneg=True)
    objective = _posynomial(
        x,
        (10, (1, -1, 0, 2, 0, -3, a)),
        (15, (-1, -2, 1, 1, -1, 0, -0.5)),
        (20, (-2, 1, 0, -1, -2, 1, 0)),
        (25, (2, 2, -1, 0, 0.5, -2, 1)),
    )
    first = _posynomial(
        x,
        (0.5, (0.5, 0, -1, 0, 0, -2, 1)),
        (0.7, (3, 1, -2, 0, 0, 1, 0.5)),
        (0.2, (0, -1, 1, -0.5, 0, 2 / 3, 0.25)),
    )
    second = _posynomial(
        x,
        (1.3, (-0.5, 1, -1, 0, -1, 1, 0)),
        (0.8, (0, 0, 1, -1, -1, 2, 0)),
        (3.1, (-1, 0.5, 0, -2, -1, 1 / 3, 0)),
    )
    third = _posynomial(
        x,
        (2, (1, 0, -1.5, 0, 1, -1, 1 / 3)),
        (0.1, (0, 1, -0.5, 0, 1, -1, -0.5)),
        (1, (-1, 1, 0.5, 0, 1, 0, 0)),
        (0.65, (0, -2, 1, 0, 1, -1, 1)),
    )
    fourth = _posynomial(
        x,
        (0.2, (-2, 1, 0, -1, 0.5, 0, 1 / 3)),
        (0.3, (0.5, 2, 1, 1 / 3, -2 / 3, 0, 0.25)),
        (0.4, (-3, -2, 1, 0, 1, 0, 0.75)),
        (0.5, (0, 0, -2, 1, 0, 0, 0.5)),
    )
    inequalities = first <= 1, second <= 1, third <= 1, fourth <= 1
    limits = objective >= 100, objective <= 3000
    return _minimize(objective, *inequalities, *limits, x[:6] >= 0.1, x[6] >= 0.01, x <= 10)


@_hs(101, 1809.76476)
def hs101() -> cp.Problem:
    """Geometric program, exponent -1/4."""
    return _hs101_to_103(-0.25)


@_hs(102, 911.880571)
def hs102() -> cp.Problem:
    """Geometric program, exponent 1/8."""
    return _hs101_to_103(0.125)


@_hs(103, 543.667958)
def hs103() -> cp.Problem:
    """Geometric program, exponent 1/2."""
    return _hs101_to_103(0.5)


@_hs(104, 3.9511634396)
def hs104() -> cp.Problem:
    """Optimal reactor design: ratios with real exponents."""
    x = _start(6, 3, 0.4, 0.2, 6, 6, 1, 0.5, nonneg=True)
    x1, x2, x3, x4, x5, x6, x7, x8 = x
    objective = 0.4 * (x1 / x7) ** 0.67 + 0.4 * (x2 / x8) ** 0.67 + 10 - x1 - x2
    inequalities = (
        0.0588 * x5 * x7 + 0.1 * x1 <= 1,
        0.0588 * x6 * x8 + 0.1 * x1 + 0.1 * x2 <= 1,
        4 * x3 / x5 + 2 * x3**-0.71 / x5 + 0.0588 * x3**-1.3 * x7 <= 1,
        4 * x4 / x6 + 2 * x4**-0.71 / x6 + 0.0588 * x4**-1.3 * x8 <= 1,
    )
    limits = objective >= 1, objective <= 4.2
    return _minimize(objective, *inequalities, *limits, x >= 0.1, x <= 10)


@_hs(106, 7049.248021, note="the book prints 7049.330923")
def hs106() -> cp.Problem:
    """Heat exchanger design: linear objective, badly scaled bilinear inequalities."""
    x = _start(5000, 5000, 5000, 200, 350, 150, 225, 425)
    x1, x2, x3, x4, x5, x6, x7, x8 = x
    inequalities = (
        0.0025 * (x4 + x6) <= 1,
        0.0025 * (x5 + x7 - x4) <= 1,
        0.01 * (x8 - x5) <= 1,
        x1 * x6 - 833.33252 * x4 - 100 * x1 + 83333.333 >= 0,
        x2 * x7 - 1250 * x5 - x2 * x4 + 1250 * x4 >= 0,
        x3 * x8 - 1250000 - x3 * x5 + 2500 * x5 >= 0,
    )
    lower = np.array([100, 1000, 1000, 10, 10, 10, 10, 10])
    upper = np.array([10000] * 3 + [1000] * 5)
    return _minimize(x1 + x2 + x3, *inequalities, x >= lower, x <= upper)


@_hs(108, -0.8660254038, -0.6749814429, -0.5)
def hs108() -> cp.Problem:
    """The largest hexagon of unit diameter."""
    x = _start(*[1] * 9)
    x1, x2, x3, x4, x5, x6, x7, x8, x9 = x
    inequalities = (
        x3**2 + x4**2 <= 1,
        x9**2 <= 1,
        x5**2 + x6**2 <= 1,
        x1**2 + (x2 - x9) ** 2 <= 1,
        (x1 - x5) ** 2 + (x2 - x6) ** 2 <= 1,
        (x1 - x7) ** 2 + (x2 - x8) ** 2 <= 1,
        (x3 - x5) ** 2 + (x4 - x6) ** 2 <= 1,
        (x3 - x7) ** 2 + (x4 - x8) ** 2 <= 1,
        x7**2 + (x8 - x9) ** 2 <= 1,
        x1 * x4 - x2 * x3 >= 0,
        x3 * x9 >= 0,
        -x5 * x9 >= 0,
        x5 * x8 - x6 * x7 >= 0,
    )
    area = 0.5 * (x1 * x4 - x2 * x3 + x3 * x9 - x5 * x9 + x5 * x8 - x6 * x7)
    return _minimize(-area, *inequalities, x9 >= 0)


@_hs(113, 24.3062091)
def hs113() -> cp.Problem:
    """Wong's second problem, convex, ten variables."""
    x = _start(2, 3, 5, 5, 1, 2, 7, 3, 6, 10)
    x1, x2, x3, x4, x5, x6, x7, x8, x9, x10 = x
    objective = (
        x1**2 + x2**2 + x1 * x2 - 14 * x1 - 16 * x2 + (x3 - 10) ** 2 + 4 * (x4 - 5) ** 2
        + (x5 - 3) ** 2 + 2 * (x6 - 1) ** 2 + 5 * x7**2 + 7 * (x8 - 11) ** 2
        + 2 * (x9 - 10) ** 2 + (x10 - 7) ** 2 + 45
    )  # fmt: skip
    inequalities = (
        4 * x1 + 5 * x2 - 3 * x7 + 9 * x8 <= 105,
        10 * x1 - 8 * x2 - 17 * x7 + 2 * x8 <= 0,
        -8 * x1 + 2 * x2 + 5 * x9 - 2 * x10 <= 12,
        3 * (x1 - 2) ** 2 + 4 * (x2 - 3) ** 2 + 2 * x3**2 - 7 * x4 <= 120,
        5 * x1**2 + 8 * x2 + (x3 - 6) ** 2 - 2 * x4 <= 40,
        0.5 * (x1 - 8) ** 2 + 2 * (x2 - 4) ** 2 + 3 * x5**2 - x6 <= 30,
        x1**2 + 2 * (x2 - 2) ** 2 - 2 * x1 * x2 + 14 * x5 - 6 * x6 <= 0,
        -3 * x1 + 6 * x2 + 12 * (x9 - 8) ** 2 - 7 * x10 <= 0,
    )
    return _minimize(objective, *inequalities)


@_hs(114, -1768.80696)
def hs114() -> cp.Problem:
    """Alkylation process: ratios in equalities."""
    x = _start(1745, 12000, 110, 3048, 1974, 89.2, 92.8, 8, 3.6, 145, nonneg=True)
    x1, x2, x3, x4, x5, x6, x7, x8, x9, x10 = x
    a, b = 0.99, 0.9
    g1 = 35.82 - 0.222 * x10 - b * x9
    g2 = -133 + 3 * x7 - a * x10
    g5 = 1.12 * x1 + 0.13167 * x1 * x8 - 0.00667 * x1 * x8**2 - a * x4
    g6 = 57.425 + 1.098 * x8 - 0.038 * x8**2 + 0.325 * x6 - a * x7
    constraints = (
        g1 >= 0,
        g2 >= 0,
        x9 * (1 / b - b) >= g1,
        x10 * (1 / a - a) >= g2,
        g5 >= 0,
        g6 >= 0,
        x4 * (1 / a - a) >= g5,
        x7 * (1 / a - a) >= g6,
        1.22 * x4 - x1 - x5 == 0,
        98000 * x3 / (x4 * x9 + 1000 * x3) - x6 == 0,
        (x2 + x5) / x1 - x8 == 0,
    )
    lower = np.array([1e-5] * 5 + [85, 90, 3, 1.2, 145])
    upper = np.array([2000, 16000, 120, 5000, 2000, 93, 95, 12, 4, 162])
    objective = 5.04 * x1 + 0.035 * x2 + 10 * x3 + 3.36 * x5 - 0.063 * x4 * x7
    return _minimize(objective, *constraints, x >= lower, x <= upper)


@_hs(116, 97.588409)
def hs116() -> cp.Problem:
    """Three-stage membrane separation."""
    x = _start(0.5, 0.8, 0.9, 0.1, 0.14, 0.5, 489, 80, 650, 450, 150, 150, 150)
    x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13 = x
    objective = x11 + x12 + x13
    inequalities = (
        x3 >= x2,
        x2 >= x1,
        0.002 * (x7 - x8) <= 1,
        objective >= 50,
        objective <= 250,
        x13 - 1.262626 * x10 + 1.231059 * x3 * x10 >= 0,
        x12 - 1.262626 * x9 + 1.231059 * x2 * x9 >= 0,
        x11 - 1.262626 * x8 + 1.231059 * x1 * x8 >= 0,
        x5 - 0.03475 * x2 - 0.975 * x2 * x5 + 0.00975 * x2**2 >= 0,
        x6 - 0.03475 * x3 - 0.975 * x3 * x6 + 0.00975 * x3**2 >= 0,
        x4 - 0.03475 * x1 - 0.975 * x1 * x4 + 0.00975 * x1**2 >= 0,
        x5 * x7 - x1 * x8 - x4 * x7 + x4 * x8 >= 0,
        0.002 * (x2 * x9 + x5 * x8 - x1 * x8 - x6 * x9) + x5 + x6 <= 1,
        x2 * x9 - x3 * x10 - x6 * x9 - 500 * x2 + 500 * x6 + x2 * x10 >= 0,
        x2 - 0.9 - 0.002 * (x2 * x10 - x3 * x10) >= 0,
    )
    lower = np.array([0.1, 0.1, 0.1, 1e-4, 0.1, 0.1, 0.1, 0.1, 500, 0.1, 1, 1e-4, 1e-4])
    upper = np.array([1, 1, 1, 0.1, 0.9, 0.9, 1000, 1000, 1000, 500, 150, 150, 150])
    return _minimize(objective, *inequalities, x >= lower, x <= upper)


@_hs(118, 664.82045)
def hs118() -> cp.Problem:
    """A convex quadratic program, fifteen variables."""
    x = _start(20, 55, 15, 20, 60, 20, 20, 60, 20, 20, 60, 20, 20, 60, 20)
    period = [x[3 * k : 3 * k + 3] for k in range(5)]
    linear, square = np.array([2.3, 1.7, 2.2]), np.array([1e-4, 1e-4, 1.5e-4])
    objective = sum(linear @ y + square @ y**2 for y in period)
    steps = [period[k + 1] - period[k] for k in range(4)]
    changes = [c for step in steps for c in (step >= -7, step <= np.array([6, 7, 6]))]
    demand = [cp.sum(y) >= d for y, d in zip(period, [60, 50, 70, 85, 100], strict=True)]
    bounds = x >= np.array([8, 43, 3] + [0] * 12), x <= np.array([21, 57, 16] + [90, 120, 60] * 4)
    return _minimize(objective, *changes, *demand, *bounds)


# -- Unconstrained --------------------------------------------------------------------------------


@_mgh(1, 0.0)
def rosenbrock() -> cp.Problem:
    """Rosenbrock's function."""
    x = _start(-1.2, 1)
    return _minimize(_rosenbrock(x))


@_mgh(21, 0.0)
def extended_rosenbrock_10() -> cp.Problem:
    """Extended Rosenbrock function, ten variables in pairs."""
    x = _start(*[-1.2, 1] * 5)
    odd, even = x[0::2], x[1::2]
    return _minimize(100 * cp.sum_squares(even - odd**2) + cp.sum_squares(1 - odd))


@_problem(
    0.0,
    "Rosenbrock's function in the chained form; start of Moré, Garbow and Hillstrom (1981)",
    3.986579112347,
    kind="least squares",
)
def chained_rosenbrock_10() -> cp.Problem:
    """Chained Rosenbrock function, ten variables."""
    x = _start(*[-1.2, 1] * 5)
    return _minimize(100 * cp.sum_squares(x[1:] - x[:-1] ** 2) + cp.sum_squares(1 - x[:-1]))


@_mgh(2, 48.98425368, 0.0, note="the global minimum is 0")
def freudenstein_roth() -> cp.Problem:
    """Freudenstein and Roth's function."""
    x = _start(0.5, -2)
    x1, x2 = x
    first = x1 - 13 + ((5 - x2) * x2 - 2) * x2
    return _minimize(first**2 + (x1 - 29 + ((x2 + 1) * x2 - 14) * x2) ** 2)


@_mgh(3, 0.0, note="badly scaled: the solution is (1.098e-5, 9.106)")
def powell_badly_scaled() -> cp.Problem:
    """Powell's badly scaled function."""
    x = _start(0, 1)
    x1, x2 = x
    return _minimize((1e4 * x1 * x2 - 1) ** 2 + (cp.exp(-x1) + cp.exp(-x2) - 1.0001) ** 2)


@_mgh(4, 0.0, note="badly scaled: the solution is (1e6, 2e-6)")
def brown_badly_scaled() -> cp.Problem:
    """Brown's badly scaled function."""
    x = _start(1, 1)
    x1, x2 = x
    return _minimize((x1 - 1e6) ** 2 + (x2 - 2e-6) ** 2 + (x1 * x2 - 2) ** 2)


@_mgh(5, 0.0)
def beale() -> cp.Problem:
    """Beale's function."""
    x = _start(1, 1)
    x1, x2 = x
    return _minimize(sum((y - x1 * (1 - x2**i)) ** 2 for i, y in ((1, 1.5), (2, 2.25), (3, 2.625))))


@_mgh(6, 124.3621824)
def jennrich_sampson() -> cp.Problem:
    """Jennrich and Sampson's function, ten residuals."""
    x = _start(0.3, 0.4)
    i = np.arange(1, 11)
    return _minimize(cp.sum_squares(2 + 2 * i - cp.exp(i * x[0]) - cp.exp(i * x[1])))


@_mgh(8, 8.214877e-3, 17.4286, note="17.4286 with variables at infinity")
def bard() -> cp.Problem:
    """Bard's function: fit of a ratio, 15 residuals."""
    x = _start(1, 1, 1)
    x1, x2, x3 = x
    y = 0.01 * np.array([14, 18, 22, 25, 29, 32, 35, 39, 37, 58, 73, 96, 134, 210, 439])
    u = np.arange(1, 16)
    v = 16 - u
    return _minimize(cp.sum_squares(y - x1 - u / (v * x2 + np.minimum(u, v) * x3)))


@_mgh(9, 1.12793277e-8)
def gaussian() -> cp.Problem:
    """Fit of a Gaussian bell, 15 residuals."""
    x = _start(0.4, 1, 0)
    x1, x2, x3 = x
    half = [0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521]
    y = np.array([*half, 0.3989, *half[::-1]])
    t = (8 - np.arange(1, 16)) / 2
    return _minimize(cp.sum_squares(x1 * cp.exp(-x2 * (t - x3) ** 2 / 2) - y))


@_mgh(10, 87.94585517, note="very badly scaled")
def meyer() -> cp.Problem:
    """Meyer's function: resistance of a thermistor, 16 residuals."""
    x = _start(0.02, 4000, 250)
    x1, x2, x3 = x
    y = np.array([
        34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030,
        6005, 5147, 4427, 3820, 3307, 2872,
    ])  # fmt: skip
    t = 45 + 5 * np.arange(1, 17)
    return _minimize(cp.sum_squares(x1 * cp.exp(x2 / (t + x3)) - y))


@_mgh(12, 0.0, note="the solutions (1, 10, 1), (10, 1, -1) and x1 = x2, x3 = 0 have the same value")
def box_3d() -> cp.Problem:
    """Box's three-dimensional function, ten residuals."""
    x = _start(0, 10, 20)
    x1, x2, x3 = x
    t = 0.1 * np.arange(1, 11)
    fit = cp.exp(-t * x1) - cp.exp(-t * x2)
    return _minimize(cp.sum_squares(fit - x3 * (np.exp(-t) - np.exp(-10 * t))))


@_mgh(13, 0.0, note="the Hessian is singular at the solution: convergence is linear")
def powell_singular() -> cp.Problem:
    """Powell's singular function."""
    x = _start(3, -1, 0, 1)
    x1, x2, x3, x4 = x
    quartic = (x2 - 2 * x3) ** 4 + 10 * (x1 - x4) ** 4
    return _minimize((x1 + 10 * x2) ** 2 + 5 * (x3 - x4) ** 2 + quartic)


def _wood(x: cp.Variable) -> cp.Expression:
    x1, x2, x3, x4 = x
    return (
        100 * (x2 - x1**2) ** 2 + (1 - x1) ** 2 + 90 * (x4 - x3**2) ** 2 + (1 - x3) ** 2
        + 10.1 * ((x2 - 1) ** 2 + (x4 - 1) ** 2) + 19.8 * (x2 - 1) * (x4 - 1)
    )  # fmt: skip


@_mgh(14, 0.0)
def wood() -> cp.Problem:
    """Wood's function."""
    x = _start(-3, -1, -3, -1)
    return _minimize(_wood(x))


@_mgh(15, 3.07505604e-4)
def kowalik_osborne() -> cp.Problem:
    """Kowalik and Osborne's function: enzyme kinetics, 11 residuals."""
    x = _start(0.25, 0.39, 0.415, 0.39)
    x1, x2, x3, x4 = x
    y = 1e-4 * np.array([1957, 1947, 1735, 1600, 844, 627, 456, 342, 323, 235, 246])
    u = np.array([4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])
    fit = x1 * (u**2 + u * x2) / (u**2 + u * x3 + x4)
    return _minimize(cp.sum_squares(y - fit))


@_mgh(16, 85822.20163)
def brown_dennis() -> cp.Problem:
    """Brown and Dennis' function, 20 residuals."""
    x = _start(25, 5, -5, -1)
    x1, x2, x3, x4 = x
    t = np.arange(1, 21) / 5
    first, second = x1 + t * x2 - np.exp(t), x3 + x4 * np.sin(t) - np.cos(t)
    return _minimize(cp.sum_squares(first**2 + second**2))


@_mgh(17, 5.46489470e-5)
def osborne_1() -> cp.Problem:
    """Osborne's first function: fit of two exponentials, 33 residuals."""
    x = _start(0.5, 1.5, -1, 0.01, 0.02)
    x1, x2, x3, x4, x5 = x
    y = 1e-3 * np.array([
        844, 908, 932, 936, 925, 908, 881, 850, 818, 784, 751, 718, 685, 658, 628, 603, 580,
        558, 538, 522, 506, 490, 478, 467, 457, 448, 438, 431, 424, 420, 414, 411, 406,
    ])  # fmt: skip
    t = 10 * np.arange(33)
    return _minimize(cp.sum_squares(y - x1 - x2 * cp.exp(-t * x4) - x3 * cp.exp(-t * x5)))


@_mgh(18, 0.0, 5.65565e-3)
def biggs_exp6() -> cp.Problem:
    """Biggs' function: fit of three exponentials, 13 residuals."""
    x = _start(1, 2, 1, 1, 1, 1)
    x1, x2, x3, x4, x5, x6 = x
    t = 0.1 * np.arange(1, 14)
    y = np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t)
    fit = x3 * cp.exp(-t * x1) - x4 * cp.exp(-t * x2) + x6 * cp.exp(-t * x5)
    return _minimize(cp.sum_squares(fit - y))


@_mgh(28, 0.0)
def discrete_boundary_value_10() -> cp.Problem:
    """Discretized two-point boundary value problem, ten variables."""
    h = 1 / 11
    t = h * np.arange(1, 11)
    x = _start(*(t * (t - 1)))
    padded = cp.hstack([0, x, 0])
    second_difference = 2 * x - padded[:-2] - padded[2:]
    return _minimize(cp.sum_squares(second_difference + h**2 * (x + t + 1) ** 3 / 2))


@_mgh(30, 0.0)
def broyden_tridiagonal_10() -> cp.Problem:
    """Broyden's tridiagonal function, ten variables."""
    x = _start(*[-1] * 10)
    padded = cp.hstack([0, x, 0])
    residual = cp.multiply(3 - 2 * x, x) - padded[:-2] - 2 * padded[2:] + 1
    return _minimize(cp.sum_squares(residual))


@_problem(0.0, "Himmelblau (1972); start at the origin", kind="least squares")
def himmelblau() -> cp.Problem:
    """Himmelblau's function: four minimizers of value 0."""
    x = _start(0, 0)
    x1, x2 = x
    return _minimize((x1**2 + x2 - 11) ** 2 + (x1 + x2**2 - 7) ** 2)


@_problem(0.3978873577, "Branin (1972); start at (6, 14) of the usual domain", kind="unconstrained")
def branin() -> cp.Problem:
    """Branin's function: three minimizers of equal value."""
    x = _start(6, 14)
    x1, x2 = x
    well = x2 - 5.1 / (4 * np.pi**2) * x1**2 + 5 / np.pi * x1 - 6
    return _minimize(well**2 + 10 * (1 - 1 / (8 * np.pi)) * cp.nlp.cos(x1) + 10)


# -- Applications ---------------------------------------------------------------------------------

_COVARIANCE = np.array(
    [
        [0.0400, 0.0060, 0.0040, -0.0020],
        [0.0060, 0.0225, 0.0045, 0.0010],
        [0.0040, 0.0045, 0.0900, 0.0030],
        [-0.0020, 0.0010, 0.0030, 0.0100],
    ]
)


@_problem(0.0, "Maillard, Roncalli and Teiletche (2010), least squares form; own data")
def risk_parity_least_squares() -> cp.Problem:
    """Portfolio of equal risk contributions, in percent."""
    x = _start(*[0.25] * 4)
    contribution = 100 * cp.multiply(x, _COVARIANCE @ x)
    spread = contribution - cp.sum(contribution) / 4
    return _minimize(cp.sum_squares(spread), cp.sum(x) == 1, x >= 0)


@_problem(-0.4645892188, "Spinu (2013), logarithmic barrier form; own data", kind="unconstrained")
def risk_parity_barrier() -> cp.Problem:
    """Portfolio of equal risk contributions, before scaling."""
    x = _start(*[1.0] * 4, nonneg=True)
    return _minimize(0.5 * cp.quad_form(x, _COVARIANCE) - cp.sum(cp.log(x)) / 4)


def _apart(centers: cp.Variable, distance: cp.Expression | float) -> list[cp.Constraint]:
    """No two centers nearer than a distance."""
    n = centers.shape[0]
    pairs = [(i, j) for i in range(n) for j in range(i)]
    return [cp.sum_squares(centers[i] - centers[j]) >= distance**2 for i, j in pairs]


@_problem(0.25, "equal circles in a unit square, Specht's tables; own start")
def circle_packing_4() -> cp.Problem:
    """The largest radius of four circles in a unit square."""
    centers, radius = cp.Variable((4, 2), name="centers"), cp.Variable(name="radius")
    centers.value = np.array([[0.2, 0.3], [0.8, 0.2], [0.3, 0.7], [0.7, 0.9]])
    radius.value = 0.1
    inside = centers >= radius, centers <= 1 - radius
    return _maximize(radius, *_apart(centers, 2 * radius), *inside, radius >= 0)


@_problem(5.3282011774, "equal circles in a square, Specht's tables; own start", 5.346065215)
def circle_packing_6() -> cp.Problem:
    """The smallest square that holds six unit circles."""
    centers, side = cp.Variable((6, 2), name="centers"), cp.Variable(name="side")
    centers.value = np.array([[1, 1], [5, 1], [3, 2.6], [1, 4.5], [5, 4.2], [3, 6]])
    side.value = 7.0
    return _minimize(side, *_apart(centers, 2.0), centers >= 1, centers <= side - 1)


@dataclass(frozen=True)
class _Network:
    """Buses, generators and lines, in units of 100 MVA.

    Attributes:
        load: per bus, active and reactive.
        generators: bus, limits of active and of reactive power, quadratic and linear cost.
        lines: from, to, resistance, reactance, charging, limit of apparent power (0: none).
    """

    load: list[complex]
    generators: list[tuple[int, float, float, float, float, float]]
    lines: list[tuple[int, int, float, float, float, float]]


Products = Callable[[int, int], tuple[cp.Expression, cp.Expression]]


def _power_flow(network: _Network, square: list[cp.Expression], products: Products) -> cp.Problem:
    """Optimal power flow, given ``|v_i|^2`` and the parts of ``v_i conj(v_k)``."""
    count = len(network.generators)
    p, q = cp.Variable(count, name="p"), cp.Variable(count, name="q")
    p.value, q.value = np.zeros(count), np.zeros(count)
    active: list[cp.Expression | float] = [load.real for load in network.load]
    reactive: list[cp.Expression | float] = [load.imag for load in network.load]
    constraints: list[cp.Constraint] = []
    for start, end, r, reactance, charging, limit in network.lines:
        y = 1 / complex(r, reactance)
        for i, k in ((start, end), (end, start)):
            c, s = products(i, k)
            flow = y.real * square[i] - y.real * c - y.imag * s
            reactive_flow = -(y.imag + charging / 2) * square[i] + y.imag * c - y.real * s
            active[i] = active[i] + flow
            reactive[i] = reactive[i] + reactive_flow
            if limit:
                constraints.append(flow**2 + reactive_flow**2 <= limit**2)
    cost: cp.Expression | float = 0.0
    for g, (bus, p_max, q_min, q_max, quadratic, linear) in enumerate(network.generators):
        active[bus], reactive[bus] = active[bus] - p[g], reactive[bus] - q[g]
        constraints += [p[g] >= 0, p[g] <= p_max, q[g] >= q_min, q[g] <= q_max]
        cost = cost + quadratic * p[g] ** 2 + linear * p[g]
    balance = [power == 0 for power in (*active, *reactive)]
    return _minimize(cost, *balance, *constraints)


@_problem(
    5812.64, "Lesieutre, Molzahn, Borden and DeMarco (2011); PGLib-OPF case3_lmbd; flat start"
)
def power_flow_3_polar() -> cp.Problem:
    """AC optimal power flow of three buses, polar coordinates."""
    network = _Network(
        load=[1.1 + 0.4j, 1.1 + 0.4j, 0.95 + 0.5j],
        generators=[
            (0, 20, -10, 10, 1100, 500),
            (1, 20, -10, 10, 850, 120),
            (2, 0, -10, 10, 0, 0),
        ],
        lines=[
            (0, 2, 0.065, 0.62, 0.45, 0),
            (2, 1, 0.025, 0.75, 0.7, 0.5),
            (0, 1, 0.042, 0.9, 0.3, 0),
        ],
    )
    v, angle = cp.Variable(3, name="v"), cp.Variable(3, name="angle")
    v.value, angle.value = np.ones(3), np.zeros(3)

    def products(i: int, k: int) -> tuple[cp.Expression, cp.Expression]:
        difference = angle[i] - angle[k]
        magnitude = v[i] * v[k]
        return magnitude * cp.nlp.cos(difference), magnitude * cp.nlp.sin(difference)

    problem = _power_flow(network, [v[i] ** 2 for i in range(3)], products)
    limits = [v >= 0.9, v <= 1.1, angle[0] == 0]
    return cp.Problem(problem.objective, problem.constraints + limits)


@_problem(17551.89, "Li and Bo (2010); PGLib-OPF case5_pjm; flat start")
def power_flow_5_rectangular() -> cp.Problem:
    """AC optimal power flow of five buses, rectangular coordinates."""
    network = _Network(
        load=[0, 3 + 0.9861j, 3 + 0.9861j, 4 + 1.3147j, 0],
        generators=[
            (0, 0.4, -0.3, 0.3, 0, 1400),
            (0, 1.7, -1.275, 1.275, 0, 1500),
            (2, 5.2, -3.9, 3.9, 0, 3000),
            (3, 2, -1.5, 1.5, 0, 4000),
            (4, 6, -4.5, 4.5, 0, 1000),
        ],
        lines=[
            (0, 1, 0.00281, 0.0281, 0.00712, 4),
            (0, 3, 0.00304, 0.0304, 0.00658, 4.26),
            (0, 4, 0.00064, 0.0064, 0.03126, 4.26),
            (1, 2, 0.00108, 0.0108, 0.01852, 4.26),
            (2, 3, 0.00297, 0.0297, 0.00674, 4.26),
            (3, 4, 0.00297, 0.0297, 0.00674, 2.4),
        ],
    )
    e, f = cp.Variable(5, name="e"), cp.Variable(5, name="f")
    e.value, f.value = np.ones(5), np.zeros(5)

    def products(i: int, k: int) -> tuple[cp.Expression, cp.Expression]:
        return e[i] * e[k] + f[i] * f[k], f[i] * e[k] - e[i] * f[k]

    square = [e[i] ** 2 + f[i] ** 2 for i in range(5)]
    problem = _power_flow(network, square, products)
    limits = [c for v in square for c in (v >= 0.9**2, v <= 1.1**2)]
    return cp.Problem(problem.objective, [*problem.constraints, *limits, f[0] == 0, e[0] >= 0])


@_problem(
    -3.015325774, "hanging chain of rigid links, own instance; value of the convex relaxation"
)
def hanging_chain() -> cp.Problem:
    """Potential energy of a chain of ten rigid links between two hooks."""
    links, length = 10, 0.15
    x, y = cp.Variable(links + 1, name="x"), cp.Variable(links + 1, name="y")
    x.value, y.value = np.linspace(0, 1, links + 1), -np.sin(np.linspace(0, np.pi, links + 1)) / 3
    rigid = cp.diff(x) ** 2 + cp.diff(y) ** 2 == length**2
    hooks = x[0] == 0, y[0] == 0, x[links] == 1, y[links] == 0
    return _minimize(cp.sum(y[:-1] + y[1:]) / 2, rigid, *hooks)


@_problem(
    7.348305692, "minimal surface, own instance; value of the convex form", kind="unconstrained"
)
def minimal_surface() -> cp.Problem:
    """Area of a triangulated surface over the square, 25 interior points, saddle boundary."""
    n = 6
    t = np.linspace(-1, 1, n + 1)
    saddle = t[:, None] ** 2 - t[None, :] ** 2
    inner = cp.Variable((n - 1, n - 1), name="inner")
    inner.value = np.zeros((n - 1, n - 1))
    rows = [saddle[:1], cp.hstack([saddle[1:-1, :1], inner, saddle[1:-1, -1:]]), saddle[-1:]]
    height = cp.vstack(rows)
    right, down = n / 2 * cp.diff(height, axis=1), n / 2 * cp.diff(height, axis=0)
    upper = cp.sqrt(1 + right[:-1] ** 2 + down[:, :-1] ** 2)
    lower = cp.sqrt(1 + right[1:] ** 2 + down[:, 1:] ** 2)
    return _minimize(2 / n**2 * cp.sum(upper + lower))


@_problem(1.613581098, "Jaynes (1963), the dice of mean 4.5; uniform start")
def entropy_of_dice() -> cp.Problem:
    """The dice of largest entropy, given the mean of its throws."""
    x = _start(*[1 / 6] * 6, nonneg=True)
    return _maximize(cp.sum(cp.entr(x)), cp.sum(x) == 1, np.arange(1, 7) @ x == 4.5)


@_problem(
    10.22452907,
    "O-ring data of Dalal, Fowlkes and Hoadley (1989), ridge 1/100; value of a conic solver",
    kind="unconstrained",
)
def ridge_logistic_regression() -> cp.Problem:
    """Failure of O-rings against temperature, centered at 70 degrees, per 10 degrees."""
    temperature = np.array(
        [66, 70, 69, 68, 67, 72, 73, 70, 57, 63, 70, 78, 67, 53, 67, 75, 70, 81, 76, 79, 75, 76, 58]
    )
    failed = np.array([0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1])
    x = _start(0, 0)
    score = x[0] + x[1] * (temperature - 70) / 10
    return _minimize(cp.sum(cp.logistic(score)) - failed @ score + 0.01 * cp.sum_squares(x))


_POINTS = np.array([[1.0, 0.0, 0.2], [0.0, 1.0, -0.3], [0.5, -0.5, 1.0], [-1.0, 0.3, 0.4]])
_TURNED = np.array([[0.6, 0.8, 0.1], [-0.7, 0.6, -0.2], [0.8, 0.2, 0.9], [-0.9, -0.5, 0.6]])


@_problem(
    0.03325776189,
    "Schönemann (1966); own data, value from the singular values, start at the identity",
    note="IPOPT takes nine equalities in nine unknowns for a square system, and only solves that",
)
def procrustes() -> cp.Problem:
    """The nearest orthogonal map between two sets of points; equalities are repeated."""
    R = cp.Variable((3, 3), name="R")
    R.value = np.eye(3)
    orthogonal = R.T @ R - np.eye(3) == 0
    return _minimize(cp.sum_squares(_POINTS @ R - _TURNED), orthogonal)


@_problem(2 + np.sqrt(3), "second difference matrix, eigenvalues 2 - 2 cos(k pi / 6); own start")
def largest_eigenvalue() -> cp.Problem:
    """The Rayleigh quotient on the sphere."""
    A = 2 * np.eye(5) - np.eye(5, k=1) - np.eye(5, k=-1)
    x = _start(1, 0, 0, 0, 0)
    return _maximize(x @ (A @ x), cp.sum_squares(x) == 1)


PROBLEMS: tuple[NonlinearProblem, ...] = tuple(_REGISTRY)
