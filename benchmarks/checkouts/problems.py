"""Problems beside the catalogue's, for every kind of program and everything that can go wrong.

Only the package's public surface is used, so that one file serves checkouts whose modules differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cvxpy as cp  # noqa: TID253 -- every builder needs it
import torch

import ddn_cvx as ddn

Tensors = tuple[torch.Tensor, ...]
Problem = ddn.Declaration | ddn.TorchProblem
Example = Callable[[int, torch.Generator], Tensors]


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def vectors(*sizes: int) -> Example:
    """An example that draws one standard normal vector for each parameter."""
    return lambda batch, generator: tuple(normal(generator, batch, size) for size in sizes)


def declared(
    objective: Any,
    constraints: Sequence[Any],
    parameters: Sequence[Any],
    variables: Sequence[Any],
    example: Example,
    **options: Any,
) -> ddn.Declaration:
    """A declaration with example inputs."""
    problem = cp.Problem(objective, list(constraints))
    return ddn.Declaration(problem, list(parameters), list(variables), example=example, **options)


# -- cone programs ---------------------------------------------------------------------------------


def second_order(n: int = 8, cones: int = 3, rows: int = 4) -> ddn.Declaration:
    """A linear objective over second-order cones and a ball, feasible at zero."""
    u, c = cp.Variable(n), cp.Parameter(n)
    matrices = [cp.Parameter((rows, n)) for _ in range(cones)]
    constraints = [cp.norm(A @ u) <= 1 + u[k] for k, A in enumerate(matrices)]

    def example(batch: int, generator: torch.Generator) -> Tensors:
        drawn = (normal(generator, batch, rows, n) for _ in range(cones))
        return normal(generator, batch, n), *drawn

    return declared(
        cp.Minimize(c @ u), [*constraints, cp.norm(u) <= 10], [c, *matrices], [u], example
    )


def symmetric(side: int) -> Example:
    """An example that draws one symmetric matrix."""

    def example(batch: int, generator: torch.Generator) -> Tensors:
        root = normal(generator, batch, side, side)
        return (root + root.mT,)

    return example


def correlation(side: int = 5) -> ddn.Declaration:
    """The nearest correlation matrix."""
    U = cp.Variable((side, side), symmetric=True)
    C = cp.Parameter((side, side), symmetric=True)
    constraints = [U >> 0, cp.diag(U) == 1]
    return declared(cp.Minimize(cp.sum_squares(U - C)), constraints, [C], [U], symmetric(side))


def largest_eigenvalue(side: int = 5) -> ddn.Declaration:
    """A ridge and the largest eigenvalue of a matrix that depends on the unknown linearly."""
    u, C = cp.Variable(3), cp.Parameter((side, side), symmetric=True)
    basis = normal(torch.Generator().manual_seed(13), 3, side, side).numpy()
    combined = sum(u[k] * (matrix + matrix.T) for k, matrix in enumerate(basis))
    objective = cp.Minimize(cp.lambda_max(C + combined) + cp.sum_squares(u))
    return declared(objective, [], [C], [u], symmetric(side))


def entropy(n: int = 6) -> ddn.Declaration:
    """A linear objective and an entropy over the simplex."""
    u, c = cp.Variable(n), cp.Parameter(n)
    objective = cp.Maximize(c @ u + cp.sum(cp.entr(u)))
    return declared(objective, [cp.sum(u) == 1], [c], [u], vectors(n))


def logistic(n: int = 4, rows: int = 8) -> ddn.Declaration:
    """Logistic regression with a ridge."""
    u, A = cp.Variable(n), cp.Parameter((rows, n))
    objective = cp.Minimize(cp.sum(cp.logistic(A @ u)) + cp.sum_squares(u) / 2)
    return declared(objective, [], [A], [u], lambda b, g: (normal(g, b, rows, n),))


def power() -> ddn.Declaration:
    """A projection onto a power cone."""
    u, x = cp.Variable(3), cp.Parameter(3)
    cone = cp.PowCone3D(u[0], u[1], u[2], 0.3)
    return declared(cp.Minimize(cp.sum_squares(u - x)), [cone], [x], [u], vectors(3))


def p_norm(n: int = 4) -> ddn.Declaration:
    """A projection onto a ball of the norm with p = 3, which power cones describe."""
    u, x = cp.Variable(n), cp.Parameter(n)
    objective = cp.Minimize(cp.sum_squares(u - 2 * x))
    return declared(objective, [cp.pnorm(u, 3) <= 1], [x], [u], vectors(n))


def geometric() -> ddn.Declaration:
    """The box of largest volume with bounded walls and aspect ratio."""
    h, w, d = (cp.Variable(pos=True, name=name) for name in "hwd")
    wall, floor = cp.Parameter(pos=True, name="wall"), cp.Parameter(pos=True, name="floor")
    constraints = [2 * (h * w + h * d) <= wall, w * d <= floor, h / w >= 0.5, h / w <= 2]

    def example(batch: int, generator: torch.Generator) -> Tensors:
        return normal(generator, batch).exp(), normal(generator, batch).exp()

    return declared(cp.Maximize(h * w * d), constraints, [wall, floor], [h, w, d], example, gp=True)


def multipliers() -> ddn.Declaration:
    """A layer that returns two variables and the multipliers of two constraints."""
    u, t, x, low = cp.Variable(4), cp.Variable(), cp.Parameter(4), cp.Parameter(4)
    constraints = [u >= low, cp.sum(u) == 1, cp.norm(u) <= t + 1]
    objective = cp.Minimize(cp.sum_squares(u - x) + cp.square(t))
    duals = [constraints[0].dual_variables[0], constraints[1].dual_variables[0]]
    example = lambda b, g: (normal(g, b, 4), normal(g, b, 4) / 4 - 1)  # noqa: E731
    return declared(objective, constraints, [x, low], [u, t, *duals], example)


def attributes() -> ddn.Declaration:
    """Constraints that are attributes of the variables."""
    u, X = cp.Variable(3, nonneg=True), cp.Variable((3, 3), PSD=True)
    D, x = cp.Variable((3, 3), diag=True), cp.Parameter(3)
    distance = cp.sum_squares(u - x) + cp.sum_squares(X - cp.diag(x)) + cp.sum_squares(D + X)
    return declared(cp.Minimize(distance), [], [x], [u, X, D], vectors(3))


def sparse(n: int = 300) -> ddn.Declaration:
    """A smoothed signal between bounds: a sparse quadratic program."""
    u, x = cp.Variable(n), cp.Parameter(n)
    smooth = cp.sum_squares(u - x) + 10 * cp.sum_squares(cp.diff(u))
    example = lambda b, g: (2 * normal(g, b, n),)  # noqa: E731
    return declared(cp.Minimize(smooth), [u >= -1, u <= 1], [x], [u], example)


def not_parametrised() -> ddn.Declaration:
    """A convex problem that is not DPP."""
    u, a, x = cp.Variable(3), cp.Parameter(3), cp.Parameter(3)
    objective = cp.Minimize(cp.sum_squares(u - cp.multiply(cp.multiply(a, a), x)))
    return declared(objective, [cp.sum(u) <= 1], [a, x], [u], vectors(3, 3))


def without_parameters() -> ddn.Declaration:
    """A constant problem."""
    u = cp.Variable(3)
    objective = cp.Minimize(cp.sum_squares(u - 1) + u[0])
    return declared(objective, [cp.sum(u) == 1, u >= 0.1], [], [u], lambda b, g: ())


# -- degenerate, infeasible and unbounded ones -----------------------------------------------------


def vertex(n: int = 4, rows: int = 8) -> ddn.Declaration:
    """A linear program, whose solution does not depend on the objective nearby."""
    u, c, h = cp.Variable(n), cp.Parameter(n), cp.Parameter(rows)
    G = normal(torch.Generator().manual_seed(3), rows, n).numpy()
    constraints = [G @ u <= h, u <= 3, u >= -3]
    example = lambda b, g: (normal(g, b, n), normal(g, b, rows).abs() + 0.1)  # noqa: E731
    return declared(cp.Minimize(c @ u), constraints, [c, h], [u], example)


def weakly_active() -> ddn.Declaration:
    """Every other element lies on the boundary of the set onto which it is projected."""
    u, x = cp.Variable(3), cp.Parameter(3)

    def example(batch: int, generator: torch.Generator) -> Tensors:
        x = normal(generator, batch, 3).abs()
        x[::2, 1] = 0.0
        return (x,)

    return declared(cp.Minimize(cp.sum_squares(u - x)), [u >= 0], [x], [u], example)


def dependent() -> ddn.Declaration:
    """Active constraints that depend on each other."""
    u, x = cp.Variable(3), cp.Parameter(3)
    constraints = [cp.sum(u) <= 0, 2 * cp.sum(u) <= 0, cp.sum(u) + u[0] <= u[0], u[1] == u[2]]
    example = lambda b, g: (normal(g, b, 3) + 1,)  # noqa: E731
    return declared(cp.Minimize(cp.sum_squares(u - x)), constraints, [x], [u], example)


def infeasible() -> ddn.Declaration:
    """Every third element has no feasible point."""
    u, x, low = cp.Variable(3), cp.Parameter(3), cp.Parameter(3)

    def example(batch: int, generator: torch.Generator) -> Tensors:
        low = -normal(generator, batch, 3).abs()
        low[2::3] = 1.0
        return normal(generator, batch, 3), low

    constraints = [u >= low, cp.sum(u) <= 1]
    return declared(cp.Minimize(cp.sum_squares(u - x)), constraints, [x, low], [u], example)


def infeasible_cone() -> ddn.Declaration:
    """Every third element's ball and halfspace have no common point."""
    u, x, low = cp.Variable(3), cp.Parameter(3), cp.Parameter()

    def example(batch: int, generator: torch.Generator) -> Tensors:
        low = normal(generator, batch).abs() / 4
        low[1::3] = 4.0
        return normal(generator, batch, 3), low

    constraints = [cp.norm(u) <= 1, cp.sum(u) >= low]
    return declared(cp.Minimize(x @ u), constraints, [x, low], [u], example)


def unbounded() -> ddn.Declaration:
    """Every third element's objective falls without end."""
    u, c = cp.Variable(3), cp.Parameter(3)

    def example(batch: int, generator: torch.Generator) -> Tensors:
        c = normal(generator, batch, 3).abs() + 0.1
        c[2::3, 1] = -1.0
        return (c,)

    return declared(cp.Minimize(c @ u), [u >= 0, u[0] + u[2] <= 4], [c], [u], example)


# -- nonlinear programs ----------------------------------------------------------------------------


def sphere(n: int = 3, *, inequality: bool = False) -> ddn.Declaration:
    """The nearest point of a sphere, and perhaps of a halfspace."""
    u, x = cp.Variable(n), cp.Parameter(n)
    constraints = [cp.sum_squares(u) == 1, *([u[0] <= 0.5] if inequality else [])]
    return declared(cp.Minimize(cp.sum_squares(u - x)), constraints, [x], [u], vectors(n))


def saddle() -> ddn.Declaration:
    """From the default start a stationary point that is not a minimum, for every other element."""
    u, x = cp.Variable(2), cp.Parameter(2)

    def example(batch: int, generator: torch.Generator) -> Tensors:
        x = normal(generator, batch, 2)
        x[::2, 1] = 0.0
        return (x,)

    objective = cp.Minimize(cp.square(u[0] - x[0]) - cp.square(u[1]) + u[1] ** 4 + x[1] * u[1])
    return declared(objective, [], [x], [u], example)


def standard() -> ddn.Declaration:
    """Hock and Schittkowski's problem 71 with parameters: bounds, a product, a sphere."""
    u, a = cp.Variable(4), cp.Parameter(2)
    u.value = [1.0, 5.0, 5.0, 1.0]
    constraints = [u >= 1, u <= 5, u[0] * u[1] * u[2] * u[3] >= a[0], cp.sum_squares(u) == a[1]]
    objective = cp.Minimize(u[0] * u[3] * (u[0] + u[1] + u[2]) + u[2])
    near = torch.tensor([25.0, 40.0], dtype=torch.float64)
    return declared(objective, constraints, [a], [u], lambda b, g: (near + normal(g, b, 2) / 4,))


def curve_fit(rows: int = 12) -> ddn.Declaration:
    """Nonlinear least squares: an exponential through data."""
    u, y = cp.Variable(2), cp.Parameter(rows)
    t = torch.linspace(0, 1, rows, dtype=torch.float64)
    objective = cp.Minimize(cp.sum_squares(u[0] * cp.exp(u[1] * t.numpy()) - y))
    example = lambda b, g: (t.exp() + normal(g, b, rows) / 10,)  # noqa: E731
    return declared(objective, [], [y], [u], example)


def nonconvex_cones() -> ddn.Declaration:
    """A product over a second-order and a semidefinite cone."""
    u, X, x = cp.Variable(3), cp.Variable((2, 2), symmetric=True), cp.Parameter(3)
    objective = cp.sum_squares(u - x) + u[0] * u[1] / 2 + cp.sum_squares(X - x[0]) + X[0, 1] * u[2]
    constraints = [cp.norm(u[1:]) <= u[0] + 1, X >> 0]
    return declared(cp.Minimize(objective), constraints, [x], [u, X], vectors(3))


class Energy(torch.nn.Module):
    """README's network as an objective."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        )
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(normal(torch.Generator().manual_seed(number), *parameter.shape))

    def forward(self, u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The energy of each element, shape ``(B,)``."""
        energy: torch.Tensor = self.network(torch.cat([u, x], 1)).squeeze(1) / 4
        return energy + (u**2).sum(1)


def energy() -> ddn.TorchProblem:
    """A torch objective with parameters of its own, and an inequality."""
    return ddn.TorchProblem(
        Energy().double(),
        variable_shape=(2,),
        input_shapes=[(2,)],
        inequality=lambda u, x: u.sum(1, keepdim=True) - 1,
    )


def torch_sphere() -> ddn.TorchProblem:
    """A torch objective with an equality and a start."""
    return ddn.TorchProblem(
        lambda u, x: ((u - x) ** 2).sum(1),
        variable_shape=(3,),
        input_shapes=[(3,)],
        equality=lambda u, x: (u**2).sum(1, keepdim=True) - 1,
        start=lambda x: x,
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "second_order": second_order,
    "correlation": correlation,
    "largest_eigenvalue": largest_eigenvalue,
    "entropy": entropy,
    "logistic": logistic,
    "power": power,
    "p_norm": p_norm,
    "geometric": geometric,
    "multipliers": multipliers,
    "attributes": attributes,
    "sparse": sparse,
    "not_parametrised": not_parametrised,
    "without_parameters": without_parameters,
    "vertex": vertex,
    "weakly_active": weakly_active,
    "dependent": dependent,
    "infeasible": infeasible,
    "infeasible_cone": infeasible_cone,
    "unbounded": unbounded,
    "sphere": sphere,
    "sphere_and_inequality": partial(sphere, inequality=True),
    "saddle": saddle,
    "standard": standard,
    "curve_fit": curve_fit,
    "nonconvex_cones": nonconvex_cones,
    "energy": energy,
    "torch_sphere": torch_sphere,
}
