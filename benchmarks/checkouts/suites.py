"""The long suites, one item at a time: nonlinear problems, certificates, Maros-Meszaros programs.

Each is run by the checkout's own script in ``benchmarks/``, and each item's result goes to a file
at once, one JSON object a line, so that a run that was stopped can go on where it was.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import ddn_cvx as ddn

Item = tuple[str, Callable[[], dict[str, Any]]]


def script(root: Path, name: str) -> ModuleType:
    """The checkout's own benchmark, as a module."""
    spec = importlib.util.spec_from_file_location(name, root / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _plain(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """The function's dataclass as a dictionary."""
    return asdict(function(*arguments))


def nonlinear(root: Path, data: Path | None) -> Iterator[Item]:
    """The standard nonlinear problems."""
    module = script(root, "nonlinear_problems")
    for problem in module.PROBLEMS:
        yield problem.name, partial(_plain, module.solve, problem, None)


def maros(root: Path, data: Path | None) -> Iterator[Item]:
    """The Maros-Meszaros programs, the small ones first."""
    module = script(root, "maros_meszaros")
    with tempfile.TemporaryDirectory() as scratch:
        folder = module.folder_with_data(data, Path(scratch))
        paths = sorted(folder.glob("*.mat"), key=lambda path: (path.stat().st_size, path.name))
        for problem in filter(None, map(module.read, paths)):
            for name, solver in module._LAYERS.items():
                run = partial(_plain, module.by_layer, problem, solver)
                yield f"{problem.name}, {name}", run


def certificates(root: Path, data: Path | None) -> Iterator[Item]:
    """Batches with elements that have no solution."""
    module = script(root, "certificates")

    def run(family: str, n: int, batch: int, solver: str | None) -> dict[str, Any]:
        shape = module.Shape.of(family, n)
        generator = np.random.default_rng([module._FAMILIES.index(family), n, batch])
        kinds = list(generator.permutation(module._KINDS * module._EACH))
        elements = [module.draw(shape, kind, generator) for kind in kinds]
        layer = module.layer_of(shape, solver)
        solution: ddn.Solution = layer.solve(*module.tensors_of(shape, elements))
        verdicts = module.judge(shape, kinds, elements, solution)
        return {
            "status": solution.status.tolist(),
            "residual": solution.residual.tolist(),
            "certificate": solution.certificate().residual.tolist(),
            "primal": solution.primal[0].nan_to_num(0.0).norm(dim=1).tolist(),
            "verdicts": [list(verdict) for verdict in verdicts],
        }

    for batch in range(8):
        for n in module._SIZES:
            for family in module._FAMILIES:
                for solver in module._SOLVERS:
                    name = f"{family} n={n}, batch {batch}, {solver or 'default'}"
                    yield name, partial(run, family, n, batch, solver)


SUITES = {"nonlinear": nonlinear, "certificates": certificates, "maros": maros}


def run_suite(
    root: Path, name: str, path: Path, *, data: str, names: list[str], resume: bool
) -> None:
    """Every item, or those that the file does not have yet.

    Args:
        root: the checkout.
        name: of the suite.
        path: the file of results.
        data: archive of the Maros-Meszaros programs; empty to download it.
        names: parts of names of items; empty for all.
        resume: go on with the file of an earlier run.
    """
    lines = path.read_text().splitlines() if resume and path.exists() else []
    known = {json.loads(line)["name"] for line in lines}
    with path.open("a" if resume else "w") as file:
        for item, run in SUITES[name](root, Path(data) if data else None):
            if item in known or (names and not any(part in item for part in names)):
                continue
            start = time.process_time()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = run()
            except Exception as error:  # compared as it is
                found = {"error": type(error).__name__}
            found = {**found, "name": item, "seconds": time.process_time() - start}
            file.write(json.dumps(found, default=float) + "\n")
            file.flush()
