"""Every module of ``ddn_cvx.nn``, and what layers do besides, on an emulated accelerator."""

from __future__ import annotations

import copy
from typing import Any

import cvxpy as cp
import pytest
import torch
from agreement import assert_agrees, assert_same
from helpers import draw
from torch import nn

import ddn_cvx as ddn
import ddn_cvx.nn
from ddn_cvx.dedicated.pooling.penalties import PENALTIES
from ddn_cvx.dedicated.pose.objective import COSTS
from ddn_cvx.dedicated.projections.sets import SETS
from ddn_cvx.nn import (
    BlindPnP,
    PerspectiveNPoint,
    PolyhedronProjection,
    Projection,
    QuadraticProgram,
    RobustPool1d,
    RobustPool2d,
    RobustVectorPool,
    Sinkhorn,
)

pytest_plugins = ["emulated_fixture"]

Case = tuple[nn.Module, tuple[torch.Tensor, ...]]


def _programs() -> dict[str, Case]:
    A, G, q = draw(4, 1, 3), draw(4, 2, 3, seed=1), draw(4, 3, seed=2)
    point = draw(4, 3, 1, seed=3)
    b, h = (A @ point).squeeze(2), (G @ point).squeeze(2) + 0.5
    P = torch.eye(3, dtype=torch.float64)
    cases: dict[str, Case] = {
        "QuadraticProgram": (QuadraticProgram(3, 2, 1), (P, q, A, b, G, h)),
        "PolyhedronProjection": (PolyhedronProjection(3, 2, 1), (q, G, h, A, b)),
    }
    for solver in ("CLARABEL", "SCS"):
        options = {"solver": solver, "solver_args": {"eps": 1e-10} if solver == "SCS" else {}}
        program = PolyhedronProjection(3, 2, 1, **options)
        cases[f"PolyhedronProjection, {solver}"] = (program, (q, G, h, A, b))
    return cases


def _pools() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for penalty in PENALTIES:
        pool = RobustPool1d(penalty, alpha=torch.tensor([0.5, 1.0, 2.0]), learnable=True)
        weights = draw(4, 3, 7, seed=1).abs()
        cases[f"RobustPool1d, {penalty}"] = (pool, (draw(4, 3, 7), weights))
        pooled = RobustVectorPool(penalty, alpha=0.7, learnable=True)
        cases[f"RobustVectorPool, {penalty}"] = (pooled, (draw(4, 6, 3),))
    cases["RobustPool2d"] = (RobustPool2d("welsch", search="local"), (draw(4, 3, 5, 5),))
    return cases


def _projections() -> dict[str, Case]:
    data: dict[str, dict[str, Any]] = {
        "box": {"lower": -0.5, "upper": torch.ones(4)},
        "hyperplane": {"normal": torch.ones(4)},
        "halfspace": {"normal": torch.ones(4)},
    }
    cases: dict[str, Case] = {}
    for name, described in SETS.items():
        shape = (5, 3, 3) if described.matrix else (5, 3 if name == "exponential_cone" else 4)
        module = Projection(name, learnable=bool(described.data), **data.get(name, {}))
        cases[f"Projection, {name}"] = (module, (draw(*shape),))
    return cases


def _poses() -> dict[str, Case]:
    scene = draw(3, 9, 3)
    placed = scene + torch.tensor([0.1, -0.2, 6.0])
    image = placed[..., :2] / placed[..., 2:] + 1e-3 * draw(3, 9, 2, seed=1)
    cases: dict[str, Case] = {}
    for cost in COSTS:
        module = PerspectiveNPoint(cost, scale=0.01, learnable=True, rotation="quaternion")
        cases[f"PerspectiveNPoint, {cost}"] = (
            module,
            (image, scene, torch.ones_like(image[..., 0])),
        )
    outlier = image.clone()
    outlier[:, 0] += 1
    searched = PerspectiveNPoint(ransac=True, threshold=0.01, rotation="axis_angle")
    cases["PerspectiveNPoint, ransac"] = (searched, (outlier, scene))
    blind = BlindPnP(gamma=100.0, threshold=0.01, learnable=True)
    features = scene + 1e-3 * draw(3, 9, 3, seed=2)
    cases["BlindPnP"] = (blind, (features, scene, image, scene))
    return cases


def _plans() -> dict[str, Case]:
    masses = (draw(3, 4, seed=1).softmax(-1), draw(3, 5, seed=2).softmax(-1))
    return {"Sinkhorn": (Sinkhorn(5.0, learnable=True), (draw(3, 4, 5), *masses))}


CASES = {**_programs(), **_pools(), **_projections(), **_poses(), **_plans()}


def test_every_module_is_here() -> None:
    assert {name.split(",")[0] for name in CASES} == set(ddn_cvx.nn.__all__)


@pytest.mark.parametrize("name", CASES)
def test_a_module_gives_what_it_gives_on_the_host(name: str, device: torch.device) -> None:
    module, tensors = CASES[name]
    assert_agrees(copy.deepcopy(module).double(), tensors, device)


@pytest.mark.parametrize("name", CASES)
def test_single_precision_stays_single(name: str, device: torch.device) -> None:
    module, tensors = CASES[name]
    there = copy.deepcopy(module).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        outputs = there(*(tensor.float().to(device) for tensor in tensors))
    expected = module(*(tensor.float() for tensor in tensors))
    if isinstance(outputs, torch.Tensor):
        outputs, expected = (outputs,), (expected,)
    for output, other in zip(outputs, expected, strict=True):
        assert output.dtype == torch.float32
        assert_same(output.detach(), other.detach(), device)


def _layer(**options: object) -> tuple[ddn.DeclarativeLayer, list[torch.Tensor]]:
    u, x, r = cp.Variable(4), cp.Parameter(4), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [cp.norm(u, 1) <= r, u[0] >= -0.1])
    layer = ddn.DeclarativeLayer(problem, [x, r], [u], **options)  # type: ignore[arg-type]
    return layer, [draw(5, 4), draw(5, seed=1).abs()]


@pytest.mark.parametrize("solver", [None, "CLARABEL"])
def test_a_solution_lives_on_the_device(solver: str | None, device: torch.device) -> None:
    layer, tensors = _layer(solver=solver)
    there = [tensor.to(device) for tensor in tensors]
    found, expected = layer.solve(*there), layer.solve(*tensors)
    for one, other in zip((*found.primal, *found.dual), (*expected.primal, *expected.dual),
                          strict=True):  # fmt: skip
        assert isinstance(one, torch.Tensor)
        torch.testing.assert_close(one.cpu(), other, rtol=1e-6, atol=1e-6)
        assert one.device == device
    for name in ("status", "residual", "iterations", "degenerate"):
        assert getattr(found, name).device == device, name
    assert_same(found.violation() < 1e-6, expected.violation() < 1e-6, device)
    torch.testing.assert_close(found.objective().cpu(), expected.objective())


def test_elements_that_fail_are_nan_on_the_device(device: torch.device) -> None:
    layer, tensors = _layer(solver="INTERIOR", on_failure="nan")
    tensors[0][2, 1] = torch.nan
    assert_agrees(layer, tensors, device)
    loud, _ = _layer(solver="INTERIOR")
    with pytest.raises(ddn.SolveError, match="1 of 5"):
        loud(*(tensor.to(device) for tensor in tensors))


def test_forward_mode_and_second_derivatives(device: torch.device) -> None:
    layer, tensors = _layer(solver="INTERIOR")

    def work(x: torch.Tensor) -> torch.Tensor:
        return layer.forward(x, tensors[1].to(x.device))[0]

    def bent(x: torch.Tensor) -> torch.Tensor:
        gradient: torch.Tensor = torch.func.grad(lambda x: work(x).square().sum())(x.sin())
        return gradient

    x = tensors[0]
    for of in (work, bent):
        expected, found = (torch.func.jvp(of, (t,), (t,))[1] for t in (x, x.to(device)))
        assert_same(found, expected, device)


def test_a_torch_problem_with_parameters(device: torch.device) -> None:
    class Bowl(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depth = nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))

        def forward(self, u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return (self.depth * (u - x).square()).sum(1) + 0.1 * u.square().square().sum(1)

    problem = ddn.TorchProblem(
        Bowl(), variable_shape=(3,), input_shapes=[(3,)],
        equality=lambda u, x: u.sum(1, keepdim=True) - 1, inequality=lambda u, x: -u,
    )  # fmt: skip
    assert_agrees(ddn.DeclarativeLayer(problem), [draw(4, 3)], device)


def test_the_audit_runs_on_the_device(device: torch.device) -> None:
    layer, tensors = _layer(solver="INTERIOR")
    audit = layer.check(*(tensor.to(device) for tensor in tensors))
    assert str(audit).splitlines()[0] == str(layer.check(*tensors)).splitlines()[0]
