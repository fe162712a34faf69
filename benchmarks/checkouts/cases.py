"""Cases that both checkouts run: the catalogue and other problems by every solver, and modules."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import ddn_cvx as ddn
from checkouts.answers import SPOILED, Record, Tensors, of_function, of_layer, of_policies, spoiled
from checkouts.problems import PROBLEMS, Problem, normal, symmetric
from ddn_cvx import nn
from ddn_cvx.problems import catalogue

ALL, FEW = (1, 5, 64), (1, 5)


@dataclass(frozen=True)
class Pair:
    """A solver with an adjoint.

    Attributes:
        solver, adjoint: as for the layer.
        batches: the batch sizes; five alone where it is slow, or not ours.
        bad: also a batch with bad elements.
        settings: of the solver.
    """

    solver: str | None
    adjoint: str | None = None
    batches: tuple[int, ...] = ALL
    bad: bool = True
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """For tables."""
        if self.solver is None:
            return "default"
        return " ".join([self.solver, self.adjoint or "", *(str(v) for _, v in self.settings)])


PAIRS = (
    Pair(None),
    Pair("INTERIOR", "kkt"),
    Pair("INTERIOR", "dense", (5,), bad=False),
    Pair("CLARABEL", "kkt"),
    Pair("CLARABEL", "lsmr", (5,), bad=False),
    Pair("SCS", "kkt", FEW),
    Pair("MOREAU", "kkt"),
    Pair("MOREAU", "native", (5,)),
    Pair("DIFFCP", "native", (5,)),
    Pair("DIFFCP", "native", (1,), bad=False, settings=(("mode", "lpgd"),)),
    Pair("DIFFCP", "lsqr", (5,), bad=False),
    Pair("DIFFCP", "dense", (5,), bad=False),
    Pair("TORCH", "implicit"),
    Pair("TORCH", "unrolled", FEW),
    Pair("DEDICATED", "implicit"),
    Pair("DEDICATED", "native"),
    Pair("UNO", "implicit", (1,), bad=False),
)


def draw(problem: Problem, batch: int, seed: int = 0) -> Tensors:
    """Example inputs."""
    if isinstance(problem, ddn.Declaration):
        return problem.inputs(batch, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return tuple(normal(generator, batch, *shape) for shape in problem.input_shapes)


def problems() -> dict[str, Callable[[], Problem]]:
    """Every entry of the catalogue, and `PROBLEMS`."""
    return {**catalogue(), **PROBLEMS}


Run = Callable[[], Record]


@dataclass(frozen=True)
class Chosen:
    """Which cases are wanted.

    Attributes:
        names: parts of names of problems and modules; empty for all.
        solvers: as in `Pair`, "default" for None; empty for all.
        batches: batch sizes; empty for all.
        thorough: convex problems as nonlinear programs, too, in every batch size; slow.
    """

    names: list[str]
    solvers: list[str]
    batches: list[int]
    thorough: bool

    def has(self, name: str) -> bool:
        """Whether a problem or module of this name is wanted."""
        return not self.names or any(part in name for part in self.names)

    def sizes(self, pair: Pair, problem: Problem) -> tuple[int, ...]:
        """Batch sizes of a pair."""
        heavy = pair.solver == "TORCH" and is_convex(problem) and not self.thorough
        sizes = (5,) if heavy else pair.batches
        return tuple(size for size in sizes if not self.batches or size in self.batches)


def cases(chosen: Chosen) -> Iterator[tuple[str, Run]]:
    """Name and function of each case."""
    for name, build in problems().items():
        if not chosen.has(name):
            continue
        for pair in PAIRS:
            if not chosen.solvers or (pair.solver or "default") in chosen.solvers:
                yield f"{name} | {pair.name}", partial(by_pair, build, pair, chosen)
    if chosen.solvers:
        return
    for name, module in MODULES.items():
        if chosen.has(f"nn.{name}"):
            yield f"nn.{name} | module", partial(by_module, *module)
    for name in ("quadratic_program", "sphere_projection", "second_order_cone_projection"):
        if chosen.has(f"compare {name}"):
            yield f"compare {name} | rows", partial(by_comparison, name)


def by_pair(build: Callable[[], Problem], pair: Pair, chosen: Chosen) -> Record:
    """A problem by one solver and adjoint: every batch size, a batch with bad elements, policies.

    The record's kinds are preceded by the batch.
    """
    problem = build()
    construct = partial(
        ddn.DeclarativeLayer,
        problem,
        solver=pair.solver,
        adjoint=pair.adjoint,
        solver_args=dict(pair.settings),
    )
    try:
        layer = construct(on_failure="nan")
    except Exception as error:  # a solver that does not take the problem says so in both checkouts
        return {"layer": type(error).__name__}
    sizes, record = chosen.sizes(pair, problem), Record()
    for size in sizes:
        record |= marked(f"B={size}", of_layer(layer, draw(problem, size)))
    if 5 not in sizes:
        return record
    good, bad = draw(problem, 5), spoiled(draw(problem, SPOILED, seed=1))
    is_nonlinear = pair.solver == "TORCH" and pair.adjoint == "implicit"
    if pair.bad and (not is_nonlinear or not is_convex(problem) or chosen.thorough):
        record |= marked("bad", of_layer(layer, bad))
    if pair.solver is None:
        record |= marked("policies", of_policies(construct, bad, good))
    if pair.solver in ("INTERIOR", "MOREAU") and pair.adjoint == "kkt":
        layer(*draw(problem, 5, seed=1))
        warm = partial(layer, warm_start=True)
        record |= marked("warm", of_function(warm, good, [False] * len(good)))
    if is_nonlinear and not is_convex(problem):
        several = construct(on_failure="nan", starts=3)
        record |= marked("starts=3", of_layer(several, good))
    return record


def is_convex(problem: Problem) -> bool:
    """Whether cvxpy says so."""
    return isinstance(problem, ddn.Declaration) and bool(problem.problem.is_dcp())


def marked(mark: str, record: Record) -> Record:
    """With the mark before each kind."""
    return {f"{mark} | {kind}": value for kind, value in record.items()}


# -- modules ---------------------------------------------------------------------------------------


def drawn(*shapes: tuple[int, ...], seed: int = 0) -> Callable[[], Tensors]:
    """Standard normal tensors, on demand."""

    def run() -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        return tuple(normal(generator, *shape) for shape in shapes)

    return run


def scenes(batch: int = 8, points: int = 12) -> Tensors:
    """Images of points before cameras, with noise, and the points."""
    generator = torch.Generator().manual_seed(4)
    scene, turn = normal(generator, batch, points, 3), normal(generator, batch, 3, 3)
    placed = scene @ torch.linalg.matrix_exp((turn - turn.mT) / 4).mT
    placed = placed + torch.tensor([0.1, -0.2, 6.0], dtype=torch.float64)
    image = placed[..., :2] / placed[..., 2:]
    return image + normal(generator, batch, points, 2) / 500, scene


def with_outliers() -> Tensors:
    """As `scenes`, with every fourth point of the image far away."""
    image, scene = scenes(points=16)
    image[:, ::4] += 0.5
    return image, scene


def blind_scenes() -> Tensors:
    """Features that are the points themselves, in another order on either side."""
    image, scene = scenes(batch=3, points=16)
    order = torch.arange(15, -1, -1)
    return scene, scene[:, order] + 0.01, image, scene[:, order]


def quadratic() -> Tensors:
    """Data of ``nn.QuadraticProgram``."""
    declaration = catalogue()["quadratic_program"](3, 2, 1)
    P, q, A, b, G, h = declaration.inputs(SPOILED, seed=0)
    return P, q, A, b, G, h


def polyhedron() -> Tensors:
    """Data of ``nn.PolyhedronProjection``, with equalities."""
    _, q, A, b, G, h = quadratic()
    return q, G, h, A, b


_PENALTIES = ("quadratic", "pseudo_huber", "huber", "welsch", "truncated_quadratic")
_COSTS = ("squared", "huber", "cauchy", "geman_mcclure", "cosine")
_BALLS = ("l1_ball", "l2_ball", "linf_ball", "l1_sphere", "l2_sphere", "linf_sphere", "simplex")
_NORMAL = torch.linspace(1, 2, 6)

Module = tuple[Callable[[], torch.nn.Module], Callable[[], Tensors]]

MODULES: dict[str, Module] = {
    **{
        f"RobustPool1d {name}": (
            partial(nn.RobustPool1d, name, alpha=0.7, learnable=True),
            drawn((SPOILED, 3, 9)),
        )
        for name in _PENALTIES
    },
    "RobustPool2d welsch local": (
        partial(nn.RobustPool2d, "welsch", search="local", keepdim=True),
        drawn((SPOILED, 3, 4, 4)),
    ),
    **{
        f"RobustVectorPool {name}": (
            partial(nn.RobustVectorPool, name, alpha=0.7, learnable=True),
            drawn((SPOILED, 8, 3)),
        )
        for name in _PENALTIES
    },
    **{
        f"Projection {name}": (
            partial(nn.Projection, name, radius=0.8, learnable=True),
            drawn((SPOILED, 6)),
        )
        for name in _BALLS
    },
    "Projection box": (
        partial(nn.Projection, "box", lower=-0.5, upper=0.5, learnable=True),
        drawn((SPOILED, 6)),
    ),
    **{
        f"Projection {name}": (
            partial(nn.Projection, name, normal=_NORMAL, offset=0.3, learnable=True),
            drawn((SPOILED, 6)),
        )
        for name in ("hyperplane", "halfspace")
    },
    "Projection second_order_cone": (
        partial(nn.Projection, "second_order_cone"),
        drawn((64, 4)),
    ),
    "Projection exponential_cone": (partial(nn.Projection, "exponential_cone"), drawn((64, 3))),
    "Projection monotone_cone": (partial(nn.Projection, "monotone_cone"), drawn((SPOILED, 9))),
    "Projection total_variation": (
        partial(nn.Projection, "total_variation", weight=0.3, learnable=True),
        drawn((SPOILED, 9)),
    ),
    "Projection positive_semidefinite_cone": (
        partial(nn.Projection, "positive_semidefinite_cone"),
        lambda: symmetric(4)(SPOILED, torch.Generator().manual_seed(0)),
    ),
    "Projection birkhoff_polytope": (
        partial(nn.Projection, "birkhoff_polytope"),
        drawn((SPOILED, 4, 4)),
    ),
    "QuadraticProgram": (partial(nn.QuadraticProgram, 3, 2, 1, on_failure="nan"), quadratic),
    "PolyhedronProjection": (
        partial(nn.PolyhedronProjection, 3, 2, 1, on_failure="nan"),
        polyhedron,
    ),
    "Sinkhorn": (partial(nn.Sinkhorn, 5.0, learnable=True), drawn((SPOILED, 4, 6))),
    **{
        f"PerspectiveNPoint {name}": (
            partial(nn.PerspectiveNPoint, name, scale=0.01, learnable=True),
            scenes,
        )
        for name in _COSTS
    },
    "PerspectiveNPoint ransac": (
        partial(nn.PerspectiveNPoint, ransac=True, threshold=0.02, rotation="quaternion"),
        with_outliers,
    ),
    "BlindPnP": (partial(nn.BlindPnP, 100.0, 0.01, learnable=True), blind_scenes),
}


def by_module(build: Callable[[], torch.nn.Module], inputs: Callable[[], Tensors]) -> Record:
    """Outputs and derivatives of a module, with good inputs and with bad ones, and its state."""
    module, tensors = build(), inputs()
    symmetric = [False] * len(tensors)
    parameters = list(module.parameters())
    record = marked("good", {"inputs": list(tensors)})
    record |= marked("good", of_function(module, tensors, symmetric, parameters))
    record |= marked("bad", of_function(module, spoiled(tensors), symmetric, parameters))
    single = tuple(tensor.float() for tensor in tensors)
    record |= marked("single", of_function(module, single, symmetric))
    record["state dict"] = [
        f"{key} {tuple(value.shape)}" for key, value in module.state_dict().items()
    ]
    return record


def by_comparison(name: str) -> Record:
    """Which rows ``compare`` has, and what it says of each but for times and rounding."""
    comparison = ddn.compare(catalogue()[name](), batch=4, repeats=1, seconds=0.1)
    rows = [
        f"{row.solver} {row.adjoint}: default {row.is_default}, error {row.error is not None}, "
        f"failures {row.failures}, wrong {row.wrong}"
        for row in comparison.rows
    ]
    return {"rows": rows, "reference": comparison.reference.method}


def quietly(run: Run) -> Record:
    """Without warnings, and with torch's own generator in a known state.

    An exception that nobody expected is the case's record, and its traceback goes to the log.
    """
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return run()
        except Exception as error:
            traceback.print_exc()
            return {"case": type(error).__name__}
