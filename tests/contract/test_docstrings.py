"""The examples in docstrings are run, and every public name has one."""

import doctest
import importlib
import inspect
from typing import Any

import pytest

MODULES = ("ddn_cvx", "ddn_cvx.datasets", "ddn_cvx.problems")


NAMES = [(module, name) for module in MODULES for name in importlib.import_module(module).__all__]


def examples(value: Any, name: str) -> list[doctest.DocTest]:
    """The docstring examples of a class or function, and of a class's methods."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = finder.find(value, name, module=False, globs={})
    return [test for test in found if test.examples]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_the_examples_are_true(module: str, name: str) -> None:
    value = getattr(importlib.import_module(module), name)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in examples(value, f"{module}.{name}"):
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_public_function_or_class_shows_an_example(module: str, name: str) -> None:
    """Exceptions and warnings show themselves."""
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value) and issubclass(value, BaseException):
        assert inspect.getdoc(value)
    else:
        assert examples(value, name), f"{module}.{name} has no example in its docstring"
