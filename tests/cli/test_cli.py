"""The command ``ddn-cvx``, and the tour."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from ddn_cvx.cli.cli import locate, main
from ddn_cvx.cli.tour import run_tour
from ddn_cvx.comparison import compare
from ddn_cvx.comparison.table import as_text
from ddn_cvx.problems import catalogue

_OWN = """
import cvxpy as cp
import torch

import ddn_cvx as ddn

u, x = cp.Variable(2, name="u"), cp.Parameter(2, name="x")
problem = cp.Problem(cp.Minimize(cp.sum_squares(u - x)), [u >= 0])


def own() -> ddn.Declaration:
    def example(batch, generator):
        return (torch.randn(batch, 2, generator=generator, dtype=torch.float64),)

    return ddn.Declaration(problem, [x], [u], name="own", example=example)


made = own()
number = 3


def broken():
    raise ValueError("out of order")
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(_OWN, encoding="utf-8")
    return path


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ddn_cvx", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        check=False,
    )


def test_list_names_every_entry_without_cvxpy() -> None:
    code = "import sys, ddn_cvx.cli as c; c.main(['list']); sys.exit('cvxpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in catalogue():
        assert name in done.stdout


def test_show_gives_the_problem_and_the_layer() -> None:
    done = _run("show", "markowitz_portfolio")
    assert done.returncode == 0, done.stderr
    for part in ("maximize", "subject to", "gamma  scalar  nonneg", "Markowitz (1952)", "solver="):
        assert part in done.stdout


def test_an_unknown_name_is_a_mistake_with_a_suggestion() -> None:
    done = _run("show", "simplex_projektion")
    assert done.returncode == 2
    assert "did you mean simplex_projection" in done.stderr
    assert "Traceback" not in done.stderr


def test_compare_prints_and_saves(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / f"found.{name}" for name in ("json", "csv", "markdown", "png")}
    code = main(
        [
            *("compare", "simplex_projection", f"{own}:own", "--batch", "3"),
            *("--solver", "CLARABEL", "--adjoint", "kkt", "--plot", str(files["png"])),
            *("--json", str(files["json"]), "--csv", str(files["csv"])),
            *("--markdown", str(files["markdown"])),
        ]
    )
    assert code == 0
    printed = capsys.readouterr().out
    assert "simplex_projection: batch of 3" in printed
    assert "Use CLARABEL kkt" in printed
    found = json.loads(files["json"].read_text(encoding="utf-8"))
    assert [one["problem"]["name"] for one in found] == ["simplex_projection", "own"]
    assert all(path.stat().st_size > 0 for path in files.values())


def test_a_file_may_hold_a_declaration_a_problem_or_a_function(own: Path) -> None:
    assert locate(f"{own}:own").name == "own"
    assert locate(f"{own}:made").name == "own"
    assert locate(f"{own}:problem").name == "problem"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "{own}"], "say which declaration"),
        (["show", "{own}:onw"], "did you mean own"),
        (["show", "{own}:number"], "is a int"),
        (["show", "{own}:broken"], "raised ValueError: out of order"),
        (["show", "nowhere.py:own"], "there is no file"),
        (["compare", "lasso", "--solver", "GUROBI"], "GUROBI"),
        (["compare", "lasso", "--device", "abacus"], "no device"),
        (["compare", "lasso", "--plot", "no/such/place.png"], "no directory"),
    ],
)
def test_mistakes_are_explained(
    arguments: list[str], message: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(own=own) for argument in arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_must_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "lasso", "--device", "cuda"]) == 2
    assert "cuda is not available" in capsys.readouterr().err


def test_the_tour_in_small(tmp_path: Path) -> None:
    shown: list[object] = []
    run = partial(compare, solvers=["CLARABEL"], adjoints=["kkt"])
    tour = run_tour(run, batch=4, repeats=1, show=shown.append)
    names = [comparison.problem.name for comparison in tour.comparisons]
    assert names[:3] == ["quadratic_program", "simplex_projection", "huber_pooling"]
    for comparison in tour.comparisons:
        assert comparison.default is not None
        assert comparison.default.is_correct(1e-5)
        assert comparison in shown
    tour.plot(tmp_path / "tour.png")
    assert (tmp_path / "tour.png").stat().st_size > 10_000
    assert f"correct on {len(names)} of {len(names)} problems" in tour.verdict
    assert "fastest" in as_text(tour)
    if tour.portfolios is None:
        assert "pip install" in tour.verdict
        return
    weights = tour.portfolios.weights
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights), dtype=torch.float64))
    assert weights.min() > -1e-9
