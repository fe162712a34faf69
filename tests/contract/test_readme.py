"""The README is true: its snippets run, its commands exist, its tables say what is."""

import copy
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cvxpy as cp
import pytest
import torch
from cvxpylayers.torch import CvxpyLayer

from ddn_cvx import DeclarativeLayer
from ddn_cvx.problems import simplex_projection

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in the README's order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


SNIPPETS = blocks("python")
COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]
SHELL = [command.split() for command in COMMANDS if command.startswith("ddn-cvx")]


# -- snippets and commands ------------------------------------------------------------------------


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_snippet_runs(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by itself, in an empty folder, as a newcomer would paste it; it saves what it says."""
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})
    saved = re.findall(r'\.(?:plot|to_json)\("(.*?)"\)', snippet)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(saved)


def test_an_import_that_stands_in_the_text_works() -> None:
    found = re.findall(r"`from (ddn_cvx(?:\.\w+)+) import ([\w, ]+)`", README)
    assert any(module == "ddn_cvx.dedicated.pose" for module, _ in found)
    for module, names in found:
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module}: {name}"


def command(*arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "ddn_cvx", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=True,
    )
    return run.stdout


@pytest.mark.parametrize("words", [words for words in SHELL if words[1] in ("list", "show")])
def test_a_cheap_command_runs(words: list[str]) -> None:
    assert "lasso" in command(*words[1:])


def test_the_options_of_the_other_commands_exist() -> None:
    helped = command("compare", "--help")
    named = {word for words in SHELL if words[1] == "compare" for word in words[2:]}
    options = {word for word in named if word.startswith("--")}
    assert options
    for option in options:
        assert option in helped


def test_the_command_takes_the_readmes_own_problem(tmp_path: Path) -> None:
    (snippet,) = [snippet for snippet in SNIPPETS if "def halfspace_projection" in snippet]
    file = tmp_path / "mine.py"
    file.write_text(snippet[: snippet.index("\nprint(")], encoding="utf-8")
    assert "a (5,)" in command("show", f"{file}:halfspace_projection")


def test_the_two_commands_install_what_exists() -> None:
    """Each makes its own environment, pins CI's torch, and names an extra of this package."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    installing = [line for line in COMMANDS if " install " in line]
    assert len(installing) == 2
    (pinned,) = set(re.findall(r"torch==[\d.]+", (ROOT / ".ci" / "run").read_text()))
    for line in installing:
        assert line.startswith("python3 -m venv --without-pip .venv && ")
        assert pinned in line
        (extra,) = re.findall(r'"\.\[(\w+)\]"', line)
        assert extra in extras
    assert [line.rpartition(" && ")[2] for line in installing] == [
        ".venv/bin/ddn-cvx compare",
        ".venv/bin/python -m pytest -n 2",
    ]


def test_the_linked_files_exist() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


# -- solvers x adjoints ---------------------------------------------------------------------------


def solver_table() -> list[tuple[str, str, bool]]:
    """Solver, adjoint, whether it is the default, of each cell that is not a no."""
    lines = [line for line in README.splitlines() if line.startswith("| ")]
    start = next(number for number, line in enumerate(lines) if line.startswith("| solver |"))
    adjoints = [cell.strip(" `") for cell in lines[start].split("|")[2:-1]]
    cells = []
    for line in lines[start + 2 :]:
        named = re.match(r'\| `"(\w+)"', line)
        if named is None:
            break
        for adjoint, cell in zip(adjoints, line.split("|")[2:-1], strict=True):
            assert cell.strip() in ("yes", "default", "no")
            if cell.strip() != "no":
                cells.append((named[1], adjoint, cell.strip() == "default"))
    return cells


@pytest.mark.parametrize(("solver", "adjoint", "default"), solver_table())
def test_the_table_of_solvers_and_adjoints(solver: str, adjoint: str, default: bool) -> None:
    """Each combination gives the gradient of the closed form; the native ones are as they are."""
    if solver == "MOREAU":
        pytest.importorskip("moreau")
    declaration = simplex_projection(n=4)
    assert declaration.closed_form is not None
    inputs = [tensor.requires_grad_() for tensor in declaration.inputs(batch=3, seed=0)]
    layer = DeclarativeLayer(declaration, solver=solver, adjoint=adjoint)
    weights = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)
    found = torch.autograd.grad(layer(*inputs), inputs, weights)
    expected = torch.autograd.grad(declaration.closed_form(*inputs), inputs, weights)
    tolerance = 1e-2 if adjoint == "native" else 1e-5
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact, rtol=0, atol=tolerance)
    if default:
        assert f"adjoint={adjoint!r}" in repr(DeclarativeLayer(declaration, solver=solver))


# -- what differs from cvxpylayers ----------------------------------------------------------------

Make = Callable[..., Any]
X = torch.tensor([[0.3, 0.4, 0.9], [0.2, -0.1, 0.5]], dtype=torch.float64)


def build(make: Make) -> Any:
    u, x = cp.Variable(3), cp.Parameter(3)
    objective = cp.sum_squares(u - x) + 0.1 * cp.norm(u, 2)
    return make(cp.Problem(cp.Minimize(objective), [u >= 0, u <= 0.6]), [x], [u])


def parameter_in_quadratic_form(make: Make) -> bool:
    u, x = cp.Variable(3), cp.Parameter(3)
    P = cp.Parameter((3, 3), PSD=True)
    problem = cp.Problem(cp.Minimize(cp.quad_form(u, P) - x @ u), [u >= 0])
    (value,) = make(problem, [P, x], [u])(torch.eye(3).double().expand(2, 3, 3), X)
    return torch.allclose(value, X.relu() / 2, atol=1e-6)


def two_leading_dimensions(make: Make) -> bool:
    return bool(build(make)(X.expand(4, 2, 3))[0].shape == (4, 2, 3))


def float32_stays(make: Make) -> bool:
    return bool(build(make)(X.float())[0].dtype == torch.float32)


def autocast(make: Make) -> bool:
    layer, linear = build(make), torch.nn.Linear(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return bool(layer(linear(X.float()))[0].isfinite().all())


def second_derivative(make: Make) -> bool:
    layer = build(make)
    inputs = (X.clone().requires_grad_(),)
    return torch.autograd.gradgradcheck(lambda x: layer(x)[0], inputs, atol=1e-5, rtol=1e-4)


def vmap(make: Make) -> bool:
    layer = build(make)
    together = torch.func.vmap(lambda x: layer(x)[0])(X)
    return bool(torch.allclose(together, layer(X)[0], atol=1e-6))


def jvp(make: Make) -> bool:
    layer = build(make)
    pushed = torch.func.jvp(lambda x: layer(x)[0], (X,), (torch.ones_like(X),))
    return bool(pushed[0].shape == pushed[1].shape == X.shape)


def deepcopy(make: Make) -> bool:
    layer = build(make)
    return bool(torch.equal(copy.deepcopy(layer)(X)[0], layer(X)[0]))


def no_parameters(make: Make) -> bool:
    u = cp.Variable(2)
    (value,) = make(cp.Problem(cp.Minimize(cp.sum_squares(u - 1))), [], [u])()
    return bool(torch.allclose(value, torch.ones_like(value), atol=1e-6))


def infeasible_element(make: Make) -> bool:
    b, u = cp.Parameter(), cp.Variable()
    problem = cp.Problem(cp.Minimize(cp.square(u)), [u >= b, u <= 1])
    options = {} if make is CvxpyLayer else {"on_failure": "nan"}
    (value,) = make(problem, [b], [u], **options)(torch.tensor([0.5, 2.0]).double())
    return bool(value[0] - 0.5 < 1e-6 and value[1].isnan())


DIFFERENCES = [
    parameter_in_quadratic_form,
    two_leading_dimensions,
    float32_stays,
    autocast,
    second_derivative,
    vmap,
    jvp,
    deepcopy,
    no_parameters,
    infeasible_element,
]


@pytest.mark.parametrize("works", DIFFERENCES)
def test_what_this_package_does(works: Callable[[Make], bool]) -> None:
    assert works(DeclarativeLayer)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("works", DIFFERENCES)
def test_what_cvxpylayers_does_not(works: Callable[[Make], bool]) -> None:
    """If this fails, cvxpylayers has learnt it: take the line out of the README's table."""
    try:
        worked = works(CvxpyLayer)
    except Exception:  # of any kind, it says so in its own words
        worked = False
    assert not worked


def test_the_accuracy_is_the_benchmarks() -> None:
    rows = json.loads((RESULTS / "gradient_accuracy.json").read_text())
    ours = [row for row in rows if row["layer"] == "ddn_cvx, default"]
    theirs = [row for row in rows if row["layer"] == "cvxpylayers, default"]
    assert sum(row["regular"] for row in ours) == sum(row["regular"] for row in theirs) == 160
    claimed = re.search(
        r"at the defaults, 160 .*? worst (\S+), median (\S+) to (\S+) by size \| worst (\S+) ",
        README,
    )
    assert claimed is not None
    measured = (
        max(row["worst"] for row in theirs),
        min(row["median"] for row in theirs),
        max(row["median"] for row in theirs),
        max(row["worst"] for row in ours),
    )
    assert claimed.groups() == tuple(f"{value:.0e}".replace("e-0", "e-") for value in measured)


def test_the_times_are_the_benchmarks() -> None:
    rows = json.loads((RESULTS / "forward_backward.json").read_text())
    claimed = re.search(r"\| (\S+) to (\S+) for one element, (\S+) to (\S+) for 64 or", README)
    assert claimed is not None
    one_low, one_high, many_low, many_high = map(float, claimed.groups())
    equal = [row for row in rows if row["our_error"] < 1e-8 and row["their_error"] < 1e-8]
    assert {row["batch"] for row in equal} == {1, 64, 1024}
    for row in equal:
        low, high = (one_low, one_high) if row["batch"] == 1 else (many_low, many_high)
        assert low <= row["ratio"]["median"] <= high


def test_the_failures_are_the_benchmarks() -> None:
    table = json.loads((RESULTS / "failures.json").read_text())
    ours, theirs = table['ddn_cvx, on_failure="nan"'], table["cvxpylayers, default"]
    assert "returns 60, names 4" in README
    assert ours["sound elements returned"] == ours["sound elements unchanged bit for bit"] == 60
    assert ours["faulty elements that are NaN"] == 4
    assert not theirs["sound elements returned"]
