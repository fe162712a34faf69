"""The steps that six benchmarks time against their peers, for two checkouts beside each other.

The sizes, inputs and settings are the benchmarks' own; what is called is the public surface, which
both checkouts have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import ddn_cvx as ddn
from checkouts.steps import Step
from ddn_cvx import nn

RADIUS = 3.0
# Named sets of vectors and of matrices, with the data they take.
VECTORS: dict[str, dict[str, float]] = {
    **{
        name: {"radius": RADIUS}
        for name in ("simplex", "l1_ball", "l2_ball", "linf_ball", "l1_sphere", "l2_sphere")
    },
    "monotone_cone": {},
}
PROJECTED = ((64, 10), (256, 100), (4096, 1000))
MATRICES = ((256, 5, 5), (64, 20, 20))
POOLED = ((16, 64, 7, 7), (8, 256, 32, 32))
PENALTIES = (
    ("pseudo_huber", "global"),
    ("huber", "global"),
    ("truncated_quadratic", "global"),
    ("welsch", "global"),
    ("welsch", "local"),
)


def quadratic_program(batch: int) -> Step:
    """Of forward_backward.py."""
    from forward_backward import PROGRAM

    problem, parameters, variables = PROGRAM.problem()
    layer = ddn.DeclarativeLayer(problem, parameters=parameters, variables=variables)
    return Step(layer, PROGRAM.draw(batch, seed=0))


def convex(name: str) -> Step:
    """A case of convex_engine.py."""
    from convex_engine import cases

    case = next(case for case in cases() if case.name == name)
    layer = ddn.DeclarativeLayer(case.problem, parameters=case.parameters, variables=case.variables)
    return Step(layer, case.inputs)


def nonconvex(entry: str, batch: int) -> Step:
    """An entry of against_uno.py."""
    from against_uno import ENTRIES

    declaration = ENTRIES[entry][0]()
    layer = ddn.DeclarativeLayer(declaration, solver="TORCH", on_failure="nan")
    return Step(layer, declaration.inputs(batch, seed=0))


def projected(name: str, shape: tuple[int, ...]) -> Step:
    """A row of projections.py."""
    points = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Step(nn.Projection(name, **VECTORS.get(name, {})), (points,))


def pooled(shape: tuple[int, ...], penalty: str, search: str) -> Step:
    """A row of robust_pooling.py."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    outlier = torch.rand(shape, generator=generator) < 0.2
    x = torch.where(outlier, x + 10 * torch.rand(shape, generator=generator), x)
    return Step(nn.RobustPool2d(penalty, search=search), (x,))


def posed(batch: int) -> Step:
    """A row of pose.py."""
    from ddn_cvx.datasets import make_camera_scenes

    scenes = make_camera_scenes(batch, 100, noise=2.0)
    camera = torch.tensor([800.0, 800.0, 320.0, 320.0], dtype=torch.float64)
    pose = nn.PerspectiveNPoint()
    return Step(
        lambda image, points: pose(image, points, None, camera), (scenes.image, scenes.points)
    )


def _convex_names() -> Iterator[str]:
    from convex_engine import cases

    yield from (case.name for case in cases())


def benchmark_steps() -> dict[str, Callable[[], Step]]:
    """Every row of the six benchmarks, by the benchmark and its own name."""
    steps: dict[str, Callable[[], Step]] = {
        f"forward_backward: QP n=10, B={batch}": partial(quadratic_program, batch)
        for batch in (1, 64, 1024)
    }
    steps |= {f"convex_engine: {name}": partial(convex, name) for name in _convex_names()}
    entries = ("welsch_pooling, n=64", "perspective_n_point, n=100")
    steps |= {
        f"against_uno: {entry}, B={batch}": partial(nonconvex, entry, batch)
        for entry in entries
        for batch in (1, 64, 1024)
    }
    steps |= {
        f"pose: forward and backward, B={batch}": partial(posed, batch) for batch in (64, 256)
    }
    steps |= {
        f"projections: {name} {shape}": partial(projected, name, shape)
        for shape in PROJECTED
        for name in VECTORS
    }
    steps |= {
        f"projections: birkhoff_polytope {shape}": partial(projected, "birkhoff_polytope", shape)
        for shape in MATRICES
    }
    steps |= {
        f"robust_pooling: {penalty}, {search} {shape}": partial(pooled, shape, penalty, search)
        for shape in POOLED
        for penalty, search in PENALTIES
    }
    return steps
