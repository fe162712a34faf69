"""The examples in all docstrings are run, and every public name has one."""

import ast
import dataclasses
import doctest
import functools
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from test_imports import PUBLIC as STRICT
from test_imports import modules

# Packages without which an example is skipped.
OPTIONAL = frozenset({"moreau", "skfolio", "sklearn", "unopy"})

# What no user imports.
INTERNAL = frozenset({"ddn_cvx.cli", "ddn_cvx.programs.diagnosis", "ddn_cvx.programs.translation"})

SOURCES = modules()
WITH_EXAMPLES = [name for name, path in SOURCES.items() if ">>> " in path.read_text()]
PUBLIC = [
    name
    for name, path in SOURCES.items()
    if "\n__all__" in path.read_text() and name not in INTERNAL
]


@functools.cache
def public_names() -> frozenset[str]:
    return frozenset(name for module in PUBLIC for name in importlib.import_module(module).__all__)


def examples(name: str) -> Iterator[doctest.DocTest]:
    """The examples of a module's docstrings, those of decorated and private functions too.

    A public name's example imports all that it needs; any other sees its module's names.
    """
    path, parser = SOURCES[name], doctest.DocTestParser()
    module = vars(importlib.import_module(name))

    def visit(node: ast.AST, label: str, names: dict[str, Any]) -> Iterator[doctest.DocTest]:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node) or ""
            test = parser.get_doctest(text, names, label, str(path), node.body[0].lineno - 1)
            if test.examples:
                yield test
        for child in ast.iter_child_nodes(node):
            own = getattr(child, "name", "")
            is_public = isinstance(node, ast.Module) and own in public_names()
            yield from visit(child, f"{label}.{own}", {} if is_public else names)

    yield from visit(ast.parse(path.read_text()), name, module)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_are_true(name: str) -> None:
    wrong: list[str] = []
    missing: set[str] = set()
    runner = doctest.DebugRunner(optionflags=doctest.NORMALIZE_WHITESPACE, verbose=False)
    for test in examples(name):
        try:
            runner.run(test)
        except doctest.DocTestFailure as failure:
            source, want = failure.example.source, failure.example.want
            wrong.append(f"{test.name}: {source}wanted:\n{want}got:\n{failure.got}")
        except doctest.UnexpectedException as failure:
            error = failure.exc_info[1]
            if isinstance(error, ImportError) and error.name in OPTIONAL:
                missing.add(str(error.name))
            else:
                wrong.append(f"{test.name}: {failure.example.source}raised {error!r}")
    assert not wrong, "\n".join(wrong)
    if missing:
        pytest.skip(f"examples that need {', '.join(sorted(missing))}; the others are true")


def is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) or hasattr(value, "_fields")


def test_a_public_function_or_class_shows_an_example() -> None:
    """Exceptions and warnings show themselves; records of internal modules, what returns them."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    silent = []
    for name in PUBLIC:
        module = importlib.import_module(name)
        for public in module.__all__:
            value = getattr(module, public)
            if inspect.isclass(value) and issubclass(value, BaseException):
                continue
            if name in STRICT or not is_record(value):
                found = finder.find(value, public, module=False, globs={})
                if not any(test.examples for test in found):
                    silent.append(f"{name}.{public}")
    assert not silent, f"no example in the docstrings of {', '.join(silent)}"
