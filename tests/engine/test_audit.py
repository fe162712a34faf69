"""``layer.check`` says what is wrong, and says nothing where nothing is."""

import cvxpy as cp
import torch

import ddn_cvx as ddn
from ddn_cvx.audit import Audit
from ddn_cvx.problems import catalogue, quadratic_program


def marked(audit: Audit) -> set[str]:
    return {finding.topic for finding in audit.findings if not finding.good}


def test_a_regular_quadratic_program_passes_every_check() -> None:
    declaration = quadratic_program(n=5, m=3, p=1)
    audit = ddn.DeclarativeLayer(declaration).check(*declaration.inputs(batch=8))
    assert audit.good
    assert {finding.topic for finding in audit.findings} == {
        "status",
        "residual",
        "degeneracy",
        "active set",
        "conditioning",
        "gradient",
        "other solver",
    }
    assert "All checks passed" in str(audit)


def test_every_catalogue_entry_passes() -> None:
    for name, constructor in catalogue().items():
        declaration = constructor()
        audit = ddn.DeclarativeLayer(declaration).check(*declaration.inputs(batch=4))
        assert audit.good, f"{name}:\n{audit}"


def linear_program() -> ddn.DeclarativeLayer:
    u, c = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(c @ u), [u >= 0, cp.sum(u) == 1])
    return ddn.DeclarativeLayer(problem, [c], [u])


def test_a_linear_programs_vertex_has_nothing_to_learn_from() -> None:
    audit = linear_program().check(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert marked(audit) == {"active set"}
    assert "quadratic term" in str(audit)


def test_a_solution_that_is_not_unique_is_seen_by_conditioning_and_gradient() -> None:
    audit = linear_program().check(torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64))
    assert {"conditioning", "gradient"} <= marked(audit)


def test_a_weakly_active_bound_is_degenerate() -> None:
    u, x = cp.Variable(2), cp.Parameter(2)
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0]), [x], [u])
    audit = layer.check(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert "degeneracy" in marked(audit)


def test_failing_elements_are_counted_and_the_rest_is_still_audited() -> None:
    u, x = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= x, u <= 1])
    layer = ddn.DeclarativeLayer(problem, [x], [u])
    inputs = torch.tensor([[2.0, 0.0], [0.5, 0.3], [torch.nan, 0.0]], dtype=torch.float64)
    audit = layer.check(inputs)
    assert "2 of 3 not solved" in str(audit)
    assert "INFEASIBLE" in str(audit) or "no point satisfies" in str(audit)
    assert any(finding.topic == "gradient" for finding in audit.findings)


def test_a_layer_without_parameters_can_be_checked() -> None:
    u = cp.Variable(2)
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(u - 1))), [], [u])
    assert layer.check().good


def test_the_users_own_values_survive_the_audit() -> None:
    u, x = cp.Variable(2), cp.Parameter(2)
    u.value, x.value = [3.0, 4.0], [5.0, 6.0]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0])
    ddn.DeclarativeLayer(problem, [x], [u]).check(torch.tensor([1.0, 2.0]))
    assert u.value.tolist() == [3.0, 4.0]
    assert x.value.tolist() == [5.0, 6.0]
