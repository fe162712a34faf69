"""Which module imports which: no cycle, no arrow from the framework to the catalogue, no weight."""

import ast
import functools
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ddn_cvx"

# What may know the catalogue: the catalogue, and what stands above it.
ABOVE = (
    "ddn_cvx.__main__",
    "ddn_cvx.cli",
    "ddn_cvx.nn",
    "ddn_cvx.problems",
)


def is_above(name: str) -> bool:
    return any(name == above or name.startswith(f"{above}.") for above in ABOVE)


# What `import ddn_cvx` must not load.
HEAVY = (
    "clarabel",
    "cvxpy",
    "cvxpylayers",
    "ddn_cvx.comparison",
    "ddn_cvx.problems",
    "diffcp",
    "matplotlib",
    "moreau",
    "pandas",
    "rich",
    "scipy",
    "scs",
    "skfolio",
    "sklearn",
)


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name; the catalogue through its symlink."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        found[dotted(path)] = path
    for path in (PACKAGE / "problems").glob("*.py"):  # rglob does not follow symlinks
        found[dotted(path)] = path
    return found


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def nodes(tree: ast.AST, *, inside_functions: bool) -> Iterator[ast.AST]:
    """Every node that runs: not under ``if TYPE_CHECKING``, and in functions only if asked."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if function and not inside_functions:
            continue
        yield node
        yield from nodes(node, inside_functions=inside_functions)


def imports(name: str, *, inside_functions: bool) -> set[str]:
    """Names of the package's modules that a module imports."""
    known, result = modules(), set()
    path = known[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in nodes(ast.parse(path.read_text()), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            children = {f"{base}.{alias.name}" for alias in node.names}
            # `from package import module` names a module, `from module import name` does not
            result |= children if children <= known.keys() else (children & known.keys()) | {base}
    return (result & known.keys()) - {name}


def test_the_walk_sees_the_whole_package() -> None:
    assert {"ddn_cvx", "ddn_cvx.layer", "ddn_cvx.problems", "ddn_cvx.problems.conic"} <= set(
        modules()
    )
    assert "ddn_cvx.declaration" in imports("ddn_cvx", inside_functions=False)
    assert "ddn_cvx.audit" in imports("ddn_cvx.layer", inside_functions=True)
    assert "ddn_cvx.audit" not in imports("ddn_cvx.layer", inside_functions=False)


def test_no_import_cycle() -> None:
    """Depth-first search over module-level imports; a cycle is shown in the order of imports."""
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name in finished:
            return
        for imported in sorted(imports(name, inside_functions=False)):
            visit(imported, (*trail, name))
        finished.add(name)

    for name in sorted(modules()):
        visit(name, ())


@pytest.mark.parametrize("name", sorted(modules()))
def test_only_what_stands_above_the_catalogue_imports_it(name: str) -> None:
    if is_above(name):
        return
    assert not {imported for imported in imports(name, inside_functions=True) if is_above(imported)}


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, ddn_cvx; print(sorted(sys.modules.keys() & set({HEAVY!r})))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=120,
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(modules()))
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert inspect.getdoc(module), f"{name} has no docstring"
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        documented = inspect.isclass(value) or inspect.isroutine(value)
        assert not documented or inspect.getdoc(value), f"{name}.{public} has no docstring"


@pytest.mark.parametrize("name", ["ddn_cvx", "ddn_cvx.problems", "ddn_cvx.datasets", "ddn_cvx.nn"])
def test_the_public_modules_say_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    assert sorted(module.__all__) == list(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
