"""Everything that a layer or a module returns on given inputs, in tensors that can be compared.

A record maps kinds ("primal", "gradient", ...) to tensors whose first dimension is the batch. Where
a kind cannot be had, the record holds the name of the exception: refusals are compared, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

import ddn_cvx as ddn

Tensors = tuple[torch.Tensor, ...]
Record = dict[str, Any]
Function = Callable[..., Any]

# Elements of `spoiled`, and the largest batch that cvxpy evaluates one by one.
SPOILED = 7
_EVALUATED = 7


def normal_like(tensors: Sequence[torch.Tensor], seed: int) -> Tensors:
    """Standard normal tensors of the same shapes and dtypes."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
        for tensor in tensors
    )


def spoiled(inputs: Tensors) -> Tensors:
    """A batch of `SPOILED` good elements with bad ones in the places 1 to 5.

    They hold a NaN, an infinity, zeros, every number with the other sign (a ball of negative
    radius, an indefinite matrix), and a thousand times every number.
    """
    tensors = tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in inputs)
    if not tensors or any(len(tensor) < SPOILED for tensor in tensors):
        return tensors
    tensors[0][1].view(-1)[-1] = torch.nan
    tensors[-1][2].view(-1)[0] = torch.inf
    for tensor in tensors:
        tensor[3] = 0.0
        tensor[4] *= -1
        tensor[5] *= 1000
    return tensors


def attempt(record: Record, kind: str, function: Callable[[], Any]) -> Any:
    """Keep what the function returns, or the name of what it raises; return the former or None."""
    try:
        value = function()
    except Exception as error:  # compared, whatever it is
        record[kind] = type(error).__name__
        return None
    record[kind] = flattened(value)
    return value


def flattened(value: Any) -> Any:
    """A list of detached tensors from nested tuples; anything else unchanged."""
    if isinstance(value, torch.Tensor):
        return [value.detach().clone()]
    if isinstance(value, list | tuple) and not all(isinstance(part, str) for part in value):
        return [tensor for part in value if part is not None for tensor in flattened(part)]
    return list(value) if isinstance(value, tuple) else value


# -- solutions -------------------------------------------------------------------------------------


def of_solution(solution: ddn.Solution) -> Record:
    """Results of ``layer.solve``: values, statuses, residuals, flags and certificates."""
    record: Record = {}
    for name in ("status", "primal", "dual", "residual", "iterations", "degenerate", "solver"):
        record[name] = flattened(getattr(solution, name))
    for name in ("degeneracy", "runner_up"):
        value = getattr(solution, name)
        record[name] = "None" if value is None else flattened(value)
    attempt(record, "stationarity", solution.stationarity)
    attempt(record, "complementarity", solution.complementarity)
    if solution.status.numel() <= _EVALUATED:
        attempt(record, "objective", solution.objective)
        attempt(record, "violation", solution.violation)

    def certificate() -> Any:
        found = solution.certificate()
        return found.dual, found.direction

    attempt(record, "certificate", certificate)
    attempt(record, "certificate residual", lambda: solution.certificate().residual)
    return record


# -- derivatives -----------------------------------------------------------------------------------


def of_function(
    function: Function,
    inputs: Tensors,
    symmetric: Sequence[bool],
    parameters: Sequence[torch.Tensor] = (),
) -> Record:
    """Outputs and derivatives of a function of a batch: a layer or a module.

    - gradient: of the outputs' inner product with standard normal numbers;
    - second: the gradient of the squared norm of that gradient;
    - tangent: of the outputs along standard normal directions;
    - parameters: the gradient for the module's own parameters.

    An input that is symmetric has its gradients' symmetric part compared, and moves symmetrically:
    which triangle a layer reads is its own business. The ``gauge`` is that gradient as it comes.
    """
    record: Record = {}
    leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)

    def made_symmetric(tensors: Sequence[torch.Tensor]) -> Tensors:
        pairs = zip(tensors, symmetric, strict=True)
        return tuple((tensor + tensor.mT) / 2 if is_ else tensor for tensor, is_ in pairs)

    def run(*given: torch.Tensor) -> Tensors:
        values = function(*given)
        return tuple(values) if isinstance(values, tuple | list) else (values,)

    outputs = attempt(record, "output", lambda: run(*leaves))
    if outputs is None:
        return record
    weights = normal_like(outputs, seed=1)

    def gradient() -> Tensors:
        return torch.autograd.grad(
            outputs, leaves, weights, create_graph=True, allow_unused=True, materialize_grads=True
        )

    def second() -> Tensors:
        first = made_symmetric(gradient())
        norm = torch.stack([part.square().sum() for part in first]).sum()
        found = torch.autograd.grad(norm, leaves, allow_unused=True, materialize_grads=True)
        return made_symmetric(found)

    def tangent() -> list[torch.Tensor]:
        directions = made_symmetric(normal_like(inputs, seed=2))
        with forward_ad.dual_level():
            pairs = zip(inputs, directions, strict=True)
            values = run(*(forward_ad.make_dual(*pair) for pair in pairs))
            tangents = (forward_ad.unpack_dual(value).tangent for value in values)
            return [tangent for tangent in tangents if tangent is not None]

    def of_parameters() -> Tensors:
        found = torch.autograd.grad(
            run(*inputs), list(parameters), weights, allow_unused=True, materialize_grads=True
        )
        # The batch comes first everywhere in a record; here is one element.
        return tuple(part.unsqueeze(0) for part in found)

    if leaves:
        found = attempt(record, "gradient", lambda: made_symmetric(gradient()))
        if any(symmetric):
            attempt(record, "gauge", gradient)
        if found is not None:
            attempt(record, "second", second)
        attempt(record, "tangent", tangent)
    if parameters:
        attempt(record, "parameters", of_parameters)
    return record


# -- layers ----------------------------------------------------------------------------------------


def of_layer(layer: ddn.DeclarativeLayer, inputs: Tensors) -> Record:
    """Solution and derivatives on one batch."""
    record: Record = {"inputs": flattened(inputs)}
    symmetric = symmetries(layer)
    solution = attempt({}, "", lambda: layer.solve(*inputs))
    record |= {"solution": "raised"} if solution is None else of_solution(solution)
    return record | of_function(layer, inputs, symmetric, list(layer.parameters()))


def symmetries(layer: ddn.DeclarativeLayer) -> list[bool]:
    """Which of the layer's inputs are symmetric matrices."""
    declaration = layer.declaration
    if isinstance(declaration, ddn.TorchProblem):
        return [False] * len(declaration.parameters)
    return [leaf.ndim == 2 and leaf.is_symmetric() for leaf in declaration.parameters]


def of_policies(build: Callable[..., ddn.DeclarativeLayer], bad: Tensors, good: Tensors) -> Record:
    """Failures that are raised, float32, ``vmap``, and the audit, with a layer's own choices."""
    record: Record = {}
    raising, layer = build(on_failure="raise"), build(on_failure="nan")

    def failure() -> list[Any]:
        try:
            raising(*bad)
        except ddn.SolveError as error:
            return ["SolveError", *map(str, error.elements), *_statuses(error.solution)]
        return ["nothing"]

    attempt(record, "failure", failure)
    single = tuple(tensor.float() for tensor in good)
    attempt(record, "single precision", lambda: layer(*single))
    attempt(record, "vmap", lambda: torch.func.vmap(layer)(*good))
    attempt(record, "audit", lambda: [f"{f.topic}: {f.good}" for f in layer.check(*good).findings])
    attempt(record, "state dict", lambda: sorted(layer.state_dict()))
    return record


def _statuses(solution: ddn.Solution | None) -> list[str]:
    return [] if solution is None else [str(solution.status.tolist())]
