"""Units: of variables, rows, parameters and the objective, from 1e-8 to 1e8.

Every family is one problem with a known solution; a draw changes its units and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp  # noqa: TID253
import torch
from common import QuadraticProgram, exact_reference

import ddn_cvx as ddn
from robustness_cases.judged import Case, Tensors

# Decades on both sides of one.
DECADES = 8.0


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> torch.Tensor:
    """Numbers between the two."""
    return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)


def drawn_unit(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Powers of ten, any real exponent."""
    return 10 ** uniform(generator, -DECADES, DECADES, *shape)


def convex_layer(
    objective: Any, constraints: list[Any], parameters: list[Any], variable: Any
) -> torch.nn.Module:
    """A layer that reports failures by element."""
    return ddn.DeclarativeLayer(
        cp.Problem(objective, constraints),
        parameters=parameters,
        variables=[variable],
        on_failure="nan",
    )


def in_length(
    family: str,
    layer: Callable[[], torch.nn.Module],
    base: Tensors,
    length: torch.Tensor,
    solution: Callable[..., torch.Tensor],
) -> Case:
    """Inputs ``(B, n)`` and ``(B,)``, both in the unit ``(B, 1)`` of the variable."""
    units = (length, length.squeeze(1))
    return Case(family, layer, base, units, length, solution, f"length {length[0, 0]:.1e}")


# -- closed forms ----------------------------------------------------------------------------------


def log_utility(generator: torch.Generator, batch: int) -> Case:
    """``max sum log x, a'x <= b``: x_i = b / (n a_i)."""
    n = 4
    length, price = drawn_unit(generator, batch, 1), drawn_unit(generator, batch, 1)

    def layer() -> torch.nn.Module:
        x, a, b = cp.Variable(n), cp.Parameter(n, pos=True), cp.Parameter(pos=True)
        return convex_layer(cp.Maximize(cp.sum(cp.log(x))), [a @ x <= b], [a, b], x)

    base = (uniform(generator, 0.5, 2, batch, n), uniform(generator, 0.5, 2, batch))
    units = (price, (price * length).squeeze(1))
    return Case(
        "log utility", layer, base, units, length, lambda a, b: b.unsqueeze(1) / (n * a),
        f"length {length[0, 0]:.1e}, price {price[0, 0]:.1e}",
    )  # fmt: skip


def water_filling(generator: torch.Generator, batch: int) -> Case:
    """``max sum log(a + x), sum x = P, x >= 0``, all in one unit."""
    n = 5
    power = drawn_unit(generator, batch, 1)

    def layer() -> torch.nn.Module:
        x, a, total = cp.Variable(n), cp.Parameter(n, pos=True), cp.Parameter(pos=True)
        objective = cp.Maximize(cp.sum(cp.log(a + x)))
        return convex_layer(objective, [cp.sum(x) == total, x >= 0], [a, total], x)

    def solution(a: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        ordered = a.sort(1).values
        count = torch.arange(1, n + 1, dtype=a.dtype)
        levels = (total.unsqueeze(1) + ordered.cumsum(1)) / count
        used = (levels > ordered).sum(1, keepdim=True) - 1
        return (levels.gather(1, used) - a).clamp_min(0.0)

    base = (uniform(generator, 0.1, 2, batch, n), uniform(generator, 0.5, 4, batch))
    return in_length("water-filling", layer, base, power, solution)


def gaussian(generator: torch.Generator, batch: int) -> Case:
    """``min tr(S X) - log det X``: X = S^-1."""
    n = 3
    unit = 10 ** uniform(generator, -4, 4, batch, 1, 1)

    def layer() -> torch.nn.Module:
        X, S = cp.Variable((n, n), symmetric=True), cp.Parameter((n, n), symmetric=True)
        return convex_layer(cp.Minimize(cp.trace(S @ X) - cp.log_det(X)), [], [S], X)

    root = normal(generator, batch, n, n)
    covariance = root @ root.mT / n + 0.3 * torch.eye(n, dtype=torch.float64)

    def solution(S: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv((S + S.mT) / 2)

    return Case(
        "Gaussian likelihood", layer, (covariance,), (unit,), 1 / unit, solution,
        f"unit {unit[0, 0, 0]:.1e}",
    )  # fmt: skip


def nearest_in_ball(generator: torch.Generator, batch: int) -> Case:
    """``min |u - x|^2, |u| <= r``."""
    n = 3
    length = drawn_unit(generator, batch, 1)

    def layer() -> torch.nn.Module:
        u, x, r = cp.Variable(n), cp.Parameter(n), cp.Parameter(pos=True)
        return convex_layer(cp.Minimize(cp.sum_squares(u - x)), [cp.norm(u) <= r], [x, r], u)

    def solution(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return x * (r.unsqueeze(1) / x.norm(dim=1, keepdim=True)).clamp_max(1.0)

    base = (normal(generator, batch, n), uniform(generator, 0.5, 2, batch))
    return in_length("nearest in a ball", layer, base, length, solution)


def distances(generator: torch.Generator, batch: int) -> Case:
    """``min |u - x|`` over a box that holds no x: the nearest point, by a norm."""
    n = 3
    length = drawn_unit(generator, batch, 1)

    def layer() -> torch.nn.Module:
        u, x, r = cp.Variable(n), cp.Parameter(n), cp.Parameter(pos=True)
        return convex_layer(cp.Minimize(cp.norm(u - x)), [u <= r, u >= -r], [x, r], u)

    def solution(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return torch.minimum(torch.maximum(x, -r.unsqueeze(1)), r.unsqueeze(1))

    x = normal(generator, batch, n)
    x[:, 0] = 2 + x[:, 0].abs()
    base = (x, uniform(generator, 0.5, 1.5, batch))
    return in_length("distance to a box", layer, base, length, solution)


# -- quadratic programs ----------------------------------------------------------------------------


class _Exact(torch.autograd.Function):
    """Solution of quadratic programs with the derivative from the active set."""

    @staticmethod
    def forward(ctx: Any, *data: torch.Tensor) -> torch.Tensor:
        ctx.data = [tensor.detach() for tensor in data]
        rows = [
            exact_reference([tensor[k].numpy() for tensor in ctx.data], torch.ones(n).numpy())
            for k, n in enumerate([data[1].shape[1]] * len(data[0]))
        ]
        return torch.stack([torch.from_numpy(row.solution) for row in rows])

    @staticmethod
    def backward(ctx: Any, *incoming: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = [
            exact_reference([tensor[k].numpy() for tensor in ctx.data], incoming[0][k].numpy())
            for k in range(len(ctx.data[0]))
        ]
        return tuple(
            torch.stack([torch.from_numpy(row.gradients[part]) for row in rows])
            for part in range(6)
        )


def _regular(program: QuadraticProgram, seed: int, batch: int) -> Tensors:
    """Data of elements at which the solution is clearly differentiable."""
    kept: list[Tensors] = []
    while len(kept) < batch:
        seed += 7919
        data = program.draw(batch, seed)
        for k in range(batch):
            part = tuple(tensor[k] for tensor in data)
            found = exact_reference([x.numpy() for x in part], torch.ones(program.n).numpy())
            if found.margin > 1e-2 and found.condition < 1e4:
                kept.append(part)
    return tuple(torch.stack(parts) for parts in zip(*kept[:batch], strict=True))


def quadratic(generator: torch.Generator, batch: int) -> Case:
    """A strictly convex quadratic program, a unit for each variable, row and the objective."""
    program = QuadraticProgram(6, 4, 2)
    seed = int(torch.randint(2**30, (), generator=generator))
    base = _regular(program, seed, batch)
    x = drawn_unit(generator, batch, program.n) ** 0.5
    rows, equalities = (drawn_unit(generator, batch, k) ** 0.5 for k in (program.m, program.p))
    value = drawn_unit(generator, batch, 1)

    def layer() -> torch.nn.Module:
        problem, parameters, variables = program.problem()
        return ddn.DeclarativeLayer(
            problem, parameters=parameters, variables=variables, on_failure="nan"
        )

    units = (
        (value.sqrt() / x).unsqueeze(1).expand(-1, program.n, -1),
        value / x,
        rows.unsqueeze(2) / x.unsqueeze(1),
        rows,
        equalities.unsqueeze(2) / x.unsqueeze(1),
        equalities,
    )
    return Case("quadratic program", layer, base, units, x, _Exact.apply, f"seed {seed}")


# -- nonconvex -------------------------------------------------------------------------------------


def outside_disc(generator: torch.Generator, batch: int) -> Case:
    """``min |u - x|^2, |u|^2 >= r^2``: projection outwards, or x itself."""
    length = drawn_unit(generator, batch, 1)

    def layer() -> torch.nn.Module:
        u, x, r = cp.Variable(2), cp.Parameter(2), cp.Parameter(pos=True)
        problem = cp.Problem(
            cp.Minimize(cp.sum_squares(u - x)), [cp.sum_squares(u) >= cp.square(r)]
        )
        return ddn.DeclarativeLayer(
            problem, parameters=[x, r], variables=[u], solver="TORCH", on_failure="nan", starts=3
        )

    def solution(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return x * (r.unsqueeze(1) / x.norm(dim=1, keepdim=True)).clamp_min(1.0)

    angle = uniform(generator, 0, 6.28, batch)
    radius = torch.where(
        torch.rand(batch, generator=generator) < 0.5,
        uniform(generator, 0.4, 0.8, batch),
        uniform(generator, 1.2, 1.6, batch),
    )
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    base = (x, torch.ones(batch, dtype=torch.float64))
    return in_length("outside a disc", layer, base, length, solution)


def sphere(generator: torch.Generator, batch: int) -> Case:
    """``min |u - x|^2, |u|^2 == s^2``."""
    length = drawn_unit(generator, batch, 1)

    def layer() -> torch.nn.Module:
        u, x, s = cp.Variable(3), cp.Parameter(3), cp.Parameter(pos=True)
        problem = cp.Problem(
            cp.Minimize(cp.sum_squares(u - x)), [cp.sum_squares(u) == cp.square(s)]
        )
        return ddn.DeclarativeLayer(
            problem, parameters=[x, s], variables=[u], on_failure="nan", starts=3
        )

    def solution(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return x * s.unsqueeze(1) / x.norm(dim=1, keepdim=True)

    direction = torch.nn.functional.normalize(normal(generator, batch, 3), dim=1)
    base = (direction * uniform(generator, 0.5, 2, batch, 1), uniform(generator, 0.5, 2, batch))
    return in_length("sphere", layer, base, length, solution)


def double_well(generator: torch.Generator, batch: int) -> Case:
    """``(v/s)^4 - (v/s)^2 - q v/s, |v| <= 1.5 s``: the global minimum, q > 0."""
    scale = float(drawn_unit(generator, 1))
    height = float(drawn_unit(generator, 1))

    def objective(v: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        z = v.squeeze(1) / scale
        return height * (z**4 - z**2 - q * z)

    def inside(v: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return torch.cat([v - 1.5 * scale, -v - 1.5 * scale], 1)

    def layer() -> torch.nn.Module:
        start = torch.full((1,), 0.9 * scale, dtype=torch.float64)
        problem = ddn.TorchProblem(
            objective,
            variable_shape=(1,),
            inequality=inside,
            start=lambda q: start.expand(len(q), 1),
        )
        return ddn.DeclarativeLayer(problem, on_failure="nan")

    def solution(q: torch.Tensor) -> torch.Tensor:
        z = torch.full_like(q, 0.9).detach()
        for _ in range(60):
            z = (z - (4 * z**3 - 2 * z - q.detach()) / (12 * z**2 - 2)).detach()
        z = z - (4 * z**3 - 2 * z - q) / (12 * z**2 - 2).detach()
        return z.unsqueeze(1)

    base = (uniform(generator, 0.2, 1.2, batch),)
    units = (torch.ones(batch, dtype=torch.float64),)
    unit = torch.full((batch, 1), scale, dtype=torch.float64)
    note = f"scale {scale:.1e}, height {height:.1e}"
    return Case("double well", layer, base, units, unit, solution, note)


FAMILIES: tuple[Callable[[torch.Generator, int], Case], ...] = (
    log_utility,
    water_filling,
    gaussian,
    nearest_in_ball,
    distances,
    quadratic,
    outside_disc,
    sphere,
    double_well,
)
