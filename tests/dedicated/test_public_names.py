"""The public names of dedicated solvers: README's imports, docstrings, and true examples."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

FOLDERS = ("pooling", "pose", "projections", "transport")
MODULES = (*(f"ddn_cvx.dedicated.{folder}" for folder in FOLDERS), "ddn_cvx.nn")
NAMES = [(module, name) for module in MODULES for name in importlib.import_module(module).__all__]
README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("module", MODULES)
def test_the_names_are_sorted_and_are_no_modules(module: str) -> None:
    package = importlib.import_module(module)
    assert package.__all__ == sorted(package.__all__)
    assert not any(inspect.ismodule(getattr(package, name)) for name in package.__all__)


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_public_name_has_an_example_and_it_is_true(module: str, name: str) -> None:
    value = getattr(importlib.import_module(module), name)
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner()
    tests = [test for test in finder.find(value, name, module=False, globs={}) if test.examples]
    assert tests, f"{module}.{name} has no example in its docstring"
    report: list[str] = []
    for test in tests:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def test_the_examples_of_the_common_functions_are_true() -> None:
    common = importlib.import_module("ddn_cvx.dedicated.common")
    assert doctest.testmod(common).failed == 0


def test_the_imports_that_readme_shows_work() -> None:
    found = re.findall(r"from (ddn_cvx(?:\.\w+)+) import ([\w, ]+)", README.read_text())
    assert any(module == "ddn_cvx.dedicated.pose" for module, _ in found)
    for module, names in found:
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module}: {name}"
