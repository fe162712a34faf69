"""``ddn_cvx.compare`` on small problems: its rows, its words, its files, its figure."""

import csv
import gc
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cvxpy as cp
import pytest
import torch

import ddn_cvx as ddn
from ddn_cvx.comparison import Comparison, Errors, GradientError, Row, Spread
from ddn_cvx.comparison.figure import save
from ddn_cvx.comparison.table import as_text
from ddn_cvx.problems import (
    quadratic_program,
    semidefinite_cone_projection,
    simplex_projection,
    sphere_projection,
)
from ddn_cvx.solvers.cone.interior_point.solver import InteriorPoint


@pytest.fixture(scope="module")
def program() -> Comparison:
    return ddn.compare(quadratic_program(n=4, m=3, p=1), batch=6, repeats=2)


@pytest.fixture(scope="module")
def projection() -> Comparison:
    return ddn.compare(simplex_projection(n=4), batch=6, repeats=2)


@pytest.fixture(params=["program", "projection"])
def comparison(request: pytest.FixtureRequest) -> Comparison:
    found: Comparison = request.getfixturevalue(request.param)
    return found


def test_compare_stays_the_function() -> None:
    import ddn_cvx.comparison
    from ddn_cvx import compare

    assert compare is ddn.compare is ddn_cvx.comparison.compare


def test_the_layers_own_choice_is_right(comparison: Comparison) -> None:
    default = comparison.default
    assert default is not None
    assert default.gradient_error is not None
    assert default.gradient_error < 1e-5
    assert default in comparison.correct


def test_every_solver_with_every_adjoint_has_a_row(comparison: Comparison) -> None:
    labels = {row.label for row in comparison.rows}
    for solver in ("CLARABEL", "SCS"):
        assert {f"{solver} {name}" for name in ("kkt", "lsqr", "lsmr", "dense")} <= labels
    assert {"DIFFCP native", "cvxpylayers default"} <= labels


def test_a_row_has_its_figures_or_its_error(comparison: Comparison) -> None:
    for row in comparison.rows:
        if row.error is None:
            assert row.total is not None
            assert row.total.low <= row.total.median <= row.total.high
            assert row.repeats == 2
            assert row.gradients.keys() == comparison.problem.parameters.keys()
        else:
            assert (row.total, row.solution, row.gradients) == (None, None, {})


def test_diffcps_own_adjoint_is_reported_whatever_it_gives(projection: Comparison) -> None:
    for row in (projection.row("CLARABEL", "lsqr"), projection.row("DIFFCP", "native")):
        assert row.error is None
        assert row.gradient_error is not None


def test_exact_rows_agree_with_the_closed_form(projection: Comparison) -> None:
    assert projection.reference.method == "closed form"
    for solver in ("CLARABEL", "SCS"):
        row = projection.row(solver, "kkt")
        assert row.gradient_error is not None
        assert row.gradient_error < 1e-7
        assert row.cosine == pytest.approx(1.0, abs=1e-7)
        assert row.objective is not None
        assert row.objective.worst < 1e-6


def test_named_solvers_and_adjoints_and_the_layers_own_choice() -> None:
    found = ddn.compare(
        simplex_projection(n=3), solvers=["scs"], adjoints=["dense"], batch=2, repeats=1
    )
    assert [row.label for row in found.rows] == ["CLARABEL kkt", "SCS dense"]


def test_an_unknown_solver_is_said_at_once() -> None:
    with pytest.raises(ddn.DeclarationError, match="CLARABEL"):
        ddn.compare(simplex_projection(n=3), solvers=["GUROBI"])


# diffcp leaves its thread pool open when it raises.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed running multiprocessing pool:ResourceWarning")
def test_failing_elements_cost_nobody_else() -> None:
    """One element of four is infeasible: the peer raises, the layer's figures are unharmed."""
    u, x = cp.Variable(2, name="u"), cp.Parameter(2, name="x")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= x, cp.sum(u) <= 1])
    inputs = torch.tensor([[0.1, 0.2], [5.0, 5.0], [-1.0, 0.3], [0.0, -3.0]], dtype=torch.float64)
    found = ddn.compare(problem, inputs, solvers=["CLARABEL", "cvxpylayers"], repeats=1)
    assert found.reference.unsolved == 1
    default = found.default
    assert default is not None
    assert default.failures == 0
    assert default.error is None
    peer = found.row("cvxpylayers", "default")
    assert peer.error is not None
    assert "SolverError" in peer.error
    assert "cvxpylayers default" in found.verdict
    gc.collect()  # of that pool, while its warnings are expected


def test_a_problem_brings_its_parameters_values() -> None:
    u, x = cp.Variable(2, name="u"), cp.Parameter(2, name="x", value=[1.0, -1.0])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0])
    found = ddn.compare(problem, solvers=["CLARABEL"], adjoints=["kkt"], repeats=1)
    assert found.problem.batch == 1
    assert found.problem.seed is None
    x.value = None
    with pytest.raises(ddn.DeclarationError, match="no inputs"):
        ddn.compare(problem)


def test_a_problem_without_parameters() -> None:
    u = cp.Variable(2, name="u")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - 1)), [cp.sum(u) == 1])
    found = ddn.compare(problem, solvers=["CLARABEL"], adjoints=["kkt"], repeats=1)
    assert found.default is not None
    assert found.default.gradient_error is None
    assert found.default.solution is not None
    assert found.default.solution.worst < 1e-9
    assert "solution is" in found.verdict


def test_float32_rows_are_held_against_float64() -> None:
    found = ddn.compare(
        simplex_projection(n=3),
        solvers=["CLARABEL"],
        adjoints=["kkt"],
        batch=4,
        repeats=1,
        dtype=torch.float32,
    )
    assert found.problem.dtype == "float32"
    assert found.default is not None
    assert found.default.gradient_error is not None
    assert 0 < found.default.gradient_error < 1e-5


# -- files, tables, figures -----------------------------------------------------------------------


def test_json_round_trip(comparison: Comparison, tmp_path: Path) -> None:
    text = comparison.to_json(tmp_path / "found.json")
    assert (tmp_path / "found.json").read_text(encoding="utf-8") == text
    assert Comparison.from_json(text) == comparison
    assert json.loads(text)["verdict"] == comparison.verdict


def test_csv_has_a_line_for_each_row_and_parameter(comparison: Comparison) -> None:
    lines = list(csv.DictReader(io.StringIO(comparison.to_csv())))
    assert len(lines) == sum(max(1, len(row.gradients)) for row in comparison.rows)
    default = [line for line in lines if line["is_default"] == "True"]
    assert {line["parameter"] for line in default} == comparison.problem.parameters.keys()


def test_markdown_has_all_rows(comparison: Comparison) -> None:
    text = comparison.to_markdown()
    for row in comparison.rows:
        assert f"| {row.solver} | {row.adjoint}" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_the_terminal(comparison: Comparison, width: int) -> None:
    text = as_text(comparison, width)
    assert max(map(len, text.splitlines())) <= width
    for row in comparison.rows:
        assert f"{row.solver} " in text
    if width >= 80:
        assert "violation" in text


@pytest.mark.parametrize("width", [80, 120])
def test_the_rich_table_is_not_cut(projection: Comparison, width: int) -> None:
    from rich.console import Console

    console = Console(width=width, record=True, file=io.StringIO())
    console.print(projection)
    table = console.export_text().split("Errors are")[0]
    assert "…" not in table
    assert "cvxpylayers" in table


def test_figure(program: Comparison, projection: Comparison, tmp_path: Path) -> None:
    program.plot(tmp_path / "one.png")
    save([program, projection], tmp_path / "both.svg")
    assert (tmp_path / "one.png").stat().st_size > 10_000
    text = (tmp_path / "both.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml")


def test_the_legend_names_every_row_and_covers_no_panel(program: Comparison) -> None:
    from ddn_cvx.comparison.figure import add_legend, draw, panels

    figure = panels(2)
    for axes in figure.axes:
        draw(axes, program)
    add_legend(figure)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    entries = [text.get_text() for text in legend.get_texts()]
    assert len(entries) == len(set(entries))
    assert {row.label for row in program.rows if row.total is not None} <= set(entries)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    box = legend.get_window_extent(renderer)
    for axes in figure.axes:
        panel = axes.get_tightbbox(renderer)
        assert panel is not None
        assert not box.overlaps(panel)
    boxes = [text.get_window_extent(renderer) for text in legend.get_texts()]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])


# -- whose row it is ------------------------------------------------------------------------------


def _texts(comparison: Comparison) -> str:
    """Every text of a comparison's figure, without line breaks."""
    from matplotlib.text import Text

    from ddn_cvx.comparison.figure import draw, panels

    figure = panels(1)
    draw(figure.axes[0], comparison)
    return " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")


def test_a_solver_that_does_not_take_the_problem_has_no_row(tmp_path: Path) -> None:
    pytest.importorskip("moreau")
    found = ddn.compare(
        semidefinite_cone_projection(n=2),
        solvers=["MOREAU"],
        adjoints=["kkt", "native"],
        batch=2,
        repeats=1,
    )
    assert [row.label for row in found.rows] == ["CLARABEL kkt"]
    assert found.rows[0].answers == {"CLARABEL": 2}
    refused = {(entry.solver, name) for entry in found.refusals for name in entry.adjoints}
    assert refused == {("MOREAU", "kkt"), ("MOREAU", "native")}
    refusal = found.refusals[0]
    assert "semidefinite" in refusal.reason
    said = f"No answer from {refusal.label}: {refusal.reason}"
    fields = json.loads(found.to_json())
    assert said in fields["verdict"]
    assert fields["refusals"][0]["reason"] == refusal.reason
    assert said in as_text(found, 1000)
    assert said in found.to_markdown()
    assert said in _texts(found)
    assert refusal.reason in found.to_csv()
    assert Comparison.from_json(found.to_json()) == found
    with pytest.raises(KeyError, match="semidefinite"):
        found.row("MOREAU", "kkt")


def test_diffcps_modes_refuse_power_cones() -> None:
    u, t, x = cp.Variable(1, name="u"), cp.Variable(1), cp.Parameter(1, name="x")
    cone = cp.PowCone3D(t, cp.Constant([1.0]), u, [0.4])
    inputs = torch.tensor([[0.5], [1.0]], dtype=torch.float64)
    power = cp.Problem(cp.Minimize(cp.sum(t) - x @ u), [cone])
    found = ddn.compare(power, inputs, solvers=["CLARABEL", "DIFFCP"], repeats=1)
    assert [row.label for row in found.rows] == ["CLARABEL kkt", "DIFFCP kkt"]
    assert {(entry.solver, name) for entry in found.refusals for name in entry.adjoints} == {
        *(("CLARABEL", name) for name in ("lsqr", "lsmr", "dense")),
        *(("DIFFCP", name) for name in ("lsqr", "lsmr", "dense", "native")),
    }
    assert all("power cones" in refusal.reason for refusal in found.refusals)


def test_a_solver_of_cone_programs_refuses_a_nonconvex_problem() -> None:
    found = ddn.compare(
        sphere_projection(n=3), solvers=["CLARABEL"], adjoints=["kkt"], batch=2, repeats=1
    )
    assert [refusal.label for refusal in found.refusals] == ["CLARABEL kkt"]
    assert "DCP" in found.refusals[0].reason


def _stopping_short(monkeypatch: pytest.MonkeyPatch, elements: slice) -> None:
    """INTERIOR gives up on these elements of a batch."""
    solve = InteriorPoint.solve

    def broken(self: InteriorPoint, *arguments: Any) -> Any:
        raw = solve(self, *arguments)
        raw.primal[elements], raw.dual[elements] = torch.nan, torch.nan
        raw.status[elements] = int(ddn.Status.FAILED)
        return replace(raw, factors=None, products=None)

    monkeypatch.setattr(InteriorPoint, "solve", broken)


def test_a_row_says_which_share_another_solver_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    _stopping_short(monkeypatch, slice(0, 1))
    found = ddn.compare(
        simplex_projection(n=3), solvers=["INTERIOR"], adjoints=["kkt"], batch=4, repeats=1
    )
    row = found.row("INTERIOR", "kkt")
    assert row.answers == {"INTERIOR": 3, "CLARABEL": 1}
    assert row.by_others == "25% by CLARABEL"
    assert row in found.correct
    said = "INTERIOR kkt (25% by CLARABEL)"
    assert said in json.loads(found.to_json())["verdict"]
    assert said in _texts(found)
    for text in (as_text(found, 100), found.to_markdown(), found.to_csv()):
        assert any("INTERIOR" in line and row.by_others in line for line in text.splitlines())


def test_a_row_without_an_answer_of_its_own_is_not_recommended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _stopping_short(monkeypatch, slice(None))
    found = ddn.compare(
        simplex_projection(n=3), solvers=["INTERIOR"], adjoints=["kkt"], batch=2, repeats=1
    )
    row = found.row("INTERIOR", "kkt")
    assert row.by_others == "100% by CLARABEL"
    assert row.worst_error < found.tolerance
    assert row not in found.correct
    assert found.verdict.startswith("Use CLARABEL kkt")


def test_scs_behind_diffcp_is_diffcps_own_answer() -> None:
    found = ddn.compare(
        simplex_projection(n=3), solvers=["DIFFCP"], adjoints=["kkt"], batch=2, repeats=1
    )
    assert found.row("DIFFCP", "kkt").answers == {"DIFFCP": 2}


# -- the verdict ----------------------------------------------------------------------------------


def _row(solver: str, error: float, seconds: float, *, noise: float = 0.01, **more: object) -> Row:
    spread = Spread(seconds, seconds * (1 - noise), seconds * (1 + noise))
    gradient = GradientError(Errors(error / 2, error), 1.0, int(error > 1e-3))
    row = Row(
        solver,
        "kkt",
        solution=Errors(0.0, 0.0),
        gradients={"x": gradient},
        forward=spread,
        backward=spread,
        total=spread,
        repeats=3,
    )
    return replace(row, **more)  # type: ignore[arg-type]


def _verdict(comparison: Comparison, *rows: Row) -> str:
    return replace(comparison, rows=rows).verdict


def test_the_verdict_names_the_fastest_correct_row(projection: Comparison) -> None:
    said = _verdict(projection, _row("A", 1e-12, 1.0), _row("B", 1e-9, 0.5), _row("C", 1e-2, 0.1))
    assert said.startswith("Use B kkt: its gradient is right to 1e-09 on all 6 elements")
    assert "Avoid C kkt: its gradient is off by 1e-02 (in x, above 1e-03 on 1 element)." in said
    assert "tie" not in said


def test_the_verdict_calls_a_tie_a_tie(projection: Comparison) -> None:
    said = _verdict(
        projection,
        _row("A", 1e-12, 1.0, noise=0.1, is_default=True),
        _row("B", 1e-9, 0.95, noise=0.1),
    )
    assert said.startswith("Use A kkt (the layer's default)")
    assert "A tie within the noise of the clock: B kkt." in said


def test_the_verdict_counts_failures_and_slowness(projection: Comparison) -> None:
    said = _verdict(
        projection,
        _row("A", 1e-12, 1.0),
        _row("B", 1e-12, 0.5, failures=2),
        _row("C", 1e-12, 8.0),
        _row("D", 1e-4, 1.0),
        Row("E", "kkt", error="ValueError: no"),
    )
    assert "Avoid B kkt: 2 of 6 elements failed." in said
    assert "Right, but takes 8.0 times as long: C kkt." in said
    assert "Less accurate: D kkt (1e-04)." in said
    assert "No answer from E kkt" in said


def test_the_verdict_when_none_is_right(projection: Comparison) -> None:
    assert _verdict(projection, _row("A", 1e-2, 1.0)).startswith("None is right to 1e-05")


def test_the_verdict_doubts_a_weak_reference(projection: Comparison) -> None:
    weak = replace(projection, reference=replace(projection.reference, agreement=1e-4))
    assert weak.verdict.startswith("The reference is itself confirmed only to 1e-04")
