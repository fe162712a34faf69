"""Training steps, forward and backward: their calls are counted, their time is taken."""

from __future__ import annotations

import gc
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import ddn_cvx as ddn
from checkouts.answers import Tensors, normal_like
from checkouts.cases import draw, scenes
from checkouts.problems import (
    Problem,
    correlation,
    entropy,
    logistic,
    normal,
    second_order,
    sparse,
    sphere,
)
from ddn_cvx import nn
from ddn_cvx.problems import perspective_n_point, quadratic_program, simplex_projection

# Steps until everything is compiled, and until a nonlinear program's derivatives are recorded, too.
_COMPILED, _RECORDED = 3, 15
# A time is taken of as many steps as take this long.
_SECONDS = 0.02


@dataclass
class Step:
    """A layer or a module with its inputs."""

    function: Callable[..., Any]
    inputs: Tensors

    def __post_init__(self) -> None:
        self.leaves = tuple(tensor.clone().requires_grad_() for tensor in self.inputs)
        self.weights = normal_like(self._outputs(), seed=1)

    def _outputs(self) -> Tensors:
        values = self.function(*self.leaves)
        return tuple(values) if isinstance(values, tuple | list) else (values,)

    def forward(self) -> Tensors:
        """Outputs, differentiable."""
        return self._outputs()

    def backward(self, outputs: Tensors) -> None:
        """Gradients for every input."""
        torch.autograd.grad(outputs, self.leaves, self.weights, allow_unused=True)


def layer_step(build: Callable[[], Problem], batch: int, **options: Any) -> Step:
    """A layer on example inputs."""
    problem = build()
    return Step(ddn.DeclarativeLayer(problem, **options), draw(problem, batch))


def module_step(build: Callable[[], torch.nn.Module], inputs: Callable[[], Tensors]) -> Step:
    """A module on given inputs."""
    return Step(build(), inputs())


# -- calls -----------------------------------------------------------------------------------------

COUNTED: dict[str, tuple[Callable[[], Step], int]] = {
    "quadratic_program(n=10, m=5, p=2)": (
        partial(layer_step, partial(quadratic_program, n=10, m=5, p=2), 1),
        _COMPILED,
    ),
    "sphere": (partial(layer_step, sphere, 1), _COMPILED),
    "sphere, derivatives recorded": (partial(layer_step, sphere, 1), _RECORDED),
}


def count_calls(step: Step, root: Path, warm: int) -> dict[str, dict[str, int]]:
    """Calls of each function of the package after some steps, forward and backward."""
    folders = tuple(str((root / folder).resolve()) + "/" for folder in ("ddn_cvx", "problems"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(warm):
            step.backward(step.forward())
        outputs: list[Tensors] = []
        forward = _counted(lambda: outputs.append(step.forward()), folders)
        backward = _counted(lambda: step.backward(outputs[0]), folders)
    return {"forward": forward, "backward": backward}


def _counted(run: Callable[[], None], folders: tuple[str, ...]) -> dict[str, int]:
    counts: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(folders):
            counts[frame.f_code.co_qualname] += 1  # modules move

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return dict(counts)


# -- times -----------------------------------------------------------------------------------------


class Timed:
    """A step that is run again and again."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def warm(self) -> float:
        """Run until warm; seconds of one step."""
        for _ in range(_RECORDED):
            seconds = self.run(1)["wall"]
        return seconds

    def run(self, count: int) -> dict[str, float]:
        """Mean seconds of a step: forward, backward and together, and of the processor."""
        step, forward, backward = self.step, 0.0, 0.0
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            busy = time.process_time()
            for _ in range(count):
                start = time.perf_counter()
                outputs = step.forward()
                middle = time.perf_counter()
                step.backward(outputs)
                end = time.perf_counter()
                forward += middle - start
                backward += end - middle
            busy = time.process_time() - busy
        return {
            "forward": forward / count,
            "backward": backward / count,
            "wall": (forward + backward) / count,
            "processor": busy / count,
        }


def repeats_for(seconds: float) -> int:
    """How many steps are timed together."""
    return max(1, min(100, round(_SECONDS / max(seconds, 1e-9))))


def images(*shape: int) -> Tensors:
    """Float32 points, a fifth of them outliers."""
    generator = torch.Generator().manual_seed(0)
    x = normal(generator, *shape)
    outlier = torch.rand(shape, generator=generator) < 0.2
    return (torch.where(outlier, x + 10, x).float(),)


def points(batch: int, n: int) -> Tensors:
    """Float32 points."""
    return (normal(torch.Generator().manual_seed(0), batch, n).float(),)


TIMED: dict[str, Callable[[], Step]] = {
    **{
        f"QP n={n}, B={batch}": partial(
            layer_step, partial(quadratic_program, n, n // 2, n // 5), batch
        )
        for n in (10, 50)
        for batch in (1, 64)
    },
    **{f"SOCP n=8, B={batch}": partial(layer_step, second_order, batch) for batch in (1, 64)},
    **{
        f"correlation side 5, B={batch}": partial(layer_step, correlation, batch)
        for batch in (1, 64)
    },
    **{f"entropy n=6, B={batch}": partial(layer_step, entropy, batch) for batch in (1, 64)},
    "logistic n=4, B=16": partial(layer_step, logistic, 16),
    "sparse QP n=300, B=4": partial(layer_step, sparse, 4),
    **{f"sphere, B={batch}": partial(layer_step, sphere, batch) for batch in (1, 64)},
    **{
        f"sphere and inequality, B={batch}": partial(
            layer_step, partial(sphere, inequality=True), batch
        )
        for batch in (1, 64)
    },
    "perspective_n_point n=20, TORCH, B=4": partial(
        layer_step, partial(perspective_n_point, 20), 4, solver="TORCH"
    ),
    "simplex n=10, layer, B=64": partial(layer_step, partial(simplex_projection, 10), 64),
    "simplex n=10, layer, DEDICATED, B=64": partial(
        layer_step, partial(simplex_projection, 10), 64, solver="DEDICATED"
    ),
    **{
        f"nn.Projection {name} ({batch}, {n})": partial(
            module_step, partial(nn.Projection, name), partial(points, batch, n)
        )
        for name in ("simplex", "l1_ball", "l2_ball", "monotone_cone")
        for batch, n in ((64, 10), (256, 100))
    },
    "nn.Projection exponential_cone (256, 3)": partial(
        module_step, partial(nn.Projection, "exponential_cone"), partial(points, 256, 3)
    ),
    **{
        f"nn.PerspectiveNPoint {cost}, 8 x 12 points": partial(
            module_step, partial(nn.PerspectiveNPoint, cost, scale=0.01), scenes
        )
        for cost in ("squared", "huber")
    },
    **{
        f"nn.RobustPool2d {name} (4, 16, 7, 7)": partial(
            module_step, partial(nn.RobustPool2d, name), partial(images, 4, 16, 7, 7)
        )
        for name in ("huber", "welsch", "truncated_quadratic")
    },
}
