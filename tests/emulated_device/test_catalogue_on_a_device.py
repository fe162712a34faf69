"""Every entry of the catalogue, by every batched solver, on an emulated accelerator."""

from __future__ import annotations

import functools

import pytest
import torch
from agreement import assert_agrees, assert_same

from ddn_cvx import Declaration, DeclarativeLayer
from ddn_cvx.problems import catalogue

pytest_plugins = ["emulated_fixture"]

ENTRIES = catalogue()
# Convex entries that the default run solves as nonlinear programs, too: a linear constraint, a
# cone, a sum of squares. The others take minutes.
_BOTH_WAYS = ("halfspace_projection", "second_order_cone_projection", "ridge_regression")


def _cases() -> list[object]:
    """Solvers of each entry: INTERIOR of cone programs, TORCH, and DEDICATED if there is one."""
    cases: list[object] = []
    for name, constructor in ENTRIES.items():
        declaration = constructor()
        convex = declaration.problem.is_dcp()
        if convex:
            cases.append((name, "INTERIOR"))
        marks = [pytest.mark.slow] if convex and name not in _BOTH_WAYS else []
        cases.append(pytest.param(name, "TORCH", marks=marks))
        if declaration.dedicated is not None:
            cases.append((name, "DEDICATED"))
    return cases


@functools.cache
def _declared(name: str) -> Declaration:
    return ENTRIES[name]()


@pytest.mark.parametrize(("name", "solver"), _cases())
def test_a_device_gives_what_the_host_gives(name: str, solver: str, device: torch.device) -> None:
    declaration = _declared(name)
    layer = DeclarativeLayer(declaration, solver=solver)
    tensors = declaration.inputs(batch=3, seed=1)
    assert_agrees(layer, tensors, device)
    expected = layer.solve(*tensors)
    found = layer.solve(*(tensor.to(device) for tensor in tensors))
    assert_same(found.status, expected.status, device)
    for one, other in zip(found.primal, expected.primal, strict=True):
        assert_same(one, other, device)
