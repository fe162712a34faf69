"""Which module imports which: arrows go down, no cycle, no arrow to the catalogue, no weight."""

import ast
import functools
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ddn_cvx"

# The layer of each folder, and of each module beside the folders. An import, a lazy or a type-only
# one too, stays in its folder or goes to a lower layer.
LAYERS = {
    layer: number
    for number, layers in enumerate(
        (
            ("status", "errors", "batch"),
            ("declaration", "torch_problem", "linalg"),
            ("cones", "solution", "dedicated"),
            ("programs", "problems", "datasets"),
            ("kkt",),
            ("solvers", "adjoints"),  # siblings: any solver goes with any adjoint
            ("engine",),
            ("audit",),
            ("layer",),
            ("nn", "comparison"),
            ("cli", ""),  # "": ddn_cvx itself
            ("__main__",),
        )
    )
    for layer in layers
}

# The catalogue, and the modules above it, which may know it.
ABOVE = (
    "ddn_cvx.__main__",
    "ddn_cvx.cli",
    "ddn_cvx.nn",
    "ddn_cvx.problems",
)


# Modules that users import: `__all__` is sorted, and every function and class shows an example.
PUBLIC = frozenset(
    {
        "ddn_cvx",
        "ddn_cvx.datasets",
        "ddn_cvx.dedicated.pooling",
        "ddn_cvx.dedicated.pose",
        "ddn_cvx.dedicated.projections",
        "ddn_cvx.dedicated.transport",
        "ddn_cvx.nn",
        "ddn_cvx.problems",
    }
)


def is_above(name: str) -> bool:
    return any(name == above or name.startswith(f"{above}.") for above in ABOVE)


# Modules that `import ddn_cvx` must not load.
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
    return dict(sorted(found.items()))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def nodes(tree: ast.AST, *, lazy: bool, types: bool) -> Iterator[ast.AST]:
    """Every node; in functions only if ``lazy``, under ``if TYPE_CHECKING`` only if ``types``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not types:
            continue
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if function and not lazy:
            continue
        yield node
        yield from nodes(node, lazy=lazy, types=types)


@functools.cache
def imports(name: str, *, lazy: bool = False, types: bool = False) -> frozenset[str]:
    """Names of the package's modules that a module imports."""
    known, result = modules(), set()
    path = known[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in nodes(parsed(path), lazy=lazy, types=types):
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
    return frozenset((result & known.keys()) - {name})


def arrows() -> set[tuple[str, str]]:
    """Every import, lazy and type-only ones too, as a pair of modules."""
    return {(name, other) for name in modules() for other in imports(name, lazy=True, types=True)}


def folder(name: str) -> str:
    """Part of the package to which a module belongs; empty for the package itself."""
    return name.split(".")[1] if "." in name else ""


def circle(arrows: set[tuple[str, str]]) -> list[str]:
    """Modules of the first circle of imports that a depth-first search meets, in order."""
    targets: dict[str, list[str]] = {}
    for name, other in sorted(arrows):
        targets.setdefault(name, []).append(other)
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name not in finished:
            for other in targets.get(name, ()):
                if found := visit(other, (*trail, name)):
                    return found
            finished.add(name)
        return []

    return next((found for name in sorted(targets) if (found := visit(name, ()))), [])


def test_the_walk_sees_the_whole_package() -> None:
    assert {"ddn_cvx", "ddn_cvx.layer", "ddn_cvx.problems", "ddn_cvx.problems.conic"} <= set(
        modules()
    )
    assert "ddn_cvx.declaration" in imports("ddn_cvx")
    assert "ddn_cvx.audit" in imports("ddn_cvx.layer", lazy=True)
    assert "ddn_cvx.audit" not in imports("ddn_cvx.layer")
    assert "ddn_cvx.declaration" in imports("ddn_cvx.solution", types=True)
    assert "ddn_cvx.declaration" not in imports("ddn_cvx.solution", lazy=True)


def test_imports_go_down() -> None:
    unknown = {folder(name) for name in modules()} - LAYERS.keys()
    assert not unknown, f"folders without a layer: {sorted(unknown)}"
    upwards = [
        f"{name} -> {other}"
        for name, other in sorted(arrows())
        if folder(name) != folder(other) and LAYERS[folder(other)] >= LAYERS[folder(name)]
    ]
    assert not upwards, "imports that do not go down: " + ", ".join(upwards)


def test_no_import_cycle() -> None:
    """Neither among the imports that run with a module, nor among all of them."""
    for drawn in (
        {(name, other) for name in modules() for other in imports(name)},
        arrows(),
    ):
        found = circle(drawn)
        assert not found, " -> ".join(found)


def test_a_circle_is_found_and_shown_in_order() -> None:
    assert circle({("a", "b"), ("b", "c"), ("c", "b")}) == ["b", "c", "b"]
    assert circle({("a", "b"), ("a", "c"), ("b", "c")}) == []


def test_only_what_stands_above_the_catalogue_imports_it() -> None:
    wrong = [
        f"{name} -> {other}"
        for name in modules()
        for other in sorted(imports(name, lazy=True))
        if is_above(other) and not is_above(name)
    ]
    assert not wrong, ", ".join(wrong)


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Nor does the catalogue load cvxpy before one of its entries is called."""
    code = (
        f"import sys, ddn_cvx; print(sorted(sys.modules.keys() & set({HEAVY!r})))\n"
        "import ddn_cvx.problems; ddn_cvx.problems.catalogue(); print('cvxpy' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=120,
    )
    assert run.stdout.split() == ["[]", "False"]


def test_every_public_name_exists_once_and_is_documented() -> None:
    wrong = []
    for name in modules():
        module = importlib.import_module(name)
        public = getattr(module, "__all__", ())
        values = {one: getattr(module, one, None) for one in public}
        wrong += [] if inspect.getdoc(module) else [f"{name} has no docstring"]
        wrong += [f"{name}.{one} does not exist" for one in public if not hasattr(module, one)]
        wrong += [
            f"{name}.{one} has no docstring"
            for one, value in values.items()
            if (inspect.isclass(value) or inspect.isroutine(value)) and not inspect.getdoc(value)
        ]
        if name in PUBLIC:
            wrong += [] if list(public) == sorted(values) else [f"{name}.__all__ is not sorted"]
            wrong += [
                f"{name}.{one} is a module" for one in values if inspect.ismodule(values[one])
            ]
    assert not wrong, "\n".join(wrong)
