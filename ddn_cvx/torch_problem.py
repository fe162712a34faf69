"""Problems outside of cvxpy's language: objective and constraints as batched torch functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

from ddn_cvx.errors import DeclarationError

Function = Callable[..., torch.Tensor]

# Fields of a problem that are functions of the unknown and the inputs.
_ROLES = ("objective", "equality", "inequality", "residuals")


@dataclass(frozen=True)
class TorchInput:
    """Label and shape of an input of a :class:`TorchProblem`, in the place of a cvxpy parameter.

    Attributes:
        label: for messages.
        shape: without batch dimensions.
    """

    label: str
    shape: tuple[int, ...]

    @property
    def attributes(self) -> dict[str, bool]:
        """No declared domain."""
        names = ("nonneg", "nonpos", "pos", "neg", "symmetric", "PSD", "NSD", "diag")
        return dict.fromkeys(names, False)

    def name(self) -> str:
        """The label."""
        return self.label


@dataclass(frozen=True, eq=False)
class TorchProblem:
    """``minimise f(u, x)  s.t.  h(u, x) = 0,  g(u, x) <= 0`` in torch, for a batch at once.

    Every function takes ``u`` of shape ``(B, *variable_shape)`` and the inputs, each ``(B,
    *input_shape)``, and treats batch elements independently. It must be twice differentiable by
    torch, and take no decision by its arguments' values. A ``torch.nn.Module`` may have parameters
    of its own: they get gradients, as inputs do.

    Attributes:
        objective: ``f(u, *inputs) -> (B,)``.
        variable_shape: of one element's unknown.
        input_shapes: of one element's inputs, one for each.
        equality: ``h(u, *inputs) -> (B, p)``, or None.
        inequality: ``g(u, *inputs) -> (B, q)``, or None.
        start: ``start(*inputs) -> (B, *variable_shape)``, a tensor of shape ``variable_shape``, or
            None for zero.
        residuals: declares that ``f = |r|^2`` with ``r(u, *inputs) -> (B, k)``.
        recorded: record the derivatives and replay them, which is faster; only for functions of
            nothing but their arguments and of modules' parameters.
        name: short name, for tables.

    Raises:
        DeclarationError: an argument has the wrong type or shape.

    Example:
        >>> import torch, ddn_cvx as ddn
        >>> def distance(u, x):
        ...     return ((u - x) ** 2).sum(-1)
        >>> def sphere(u, x):
        ...     return (u**2).sum(-1, keepdim=True) - 1
        >>> problem = ddn.TorchProblem(
        ...     distance, variable_shape=(2,), input_shapes=[(2,)], equality=sphere,
        ...     start=lambda x: x,
        ... )
        >>> layer = ddn.DeclarativeLayer(problem)
        >>> (nearest,) = layer(torch.tensor([[3.0, 4.0]]))
        >>> nearest
        tensor([[0.6000, 0.8000]])
    """

    objective: Function
    variable_shape: Sequence[int]
    input_shapes: Sequence[Sequence[int]] = ()
    equality: Function | None = None
    inequality: Function | None = None
    start: Function | torch.Tensor | None = None
    residuals: Function | None = None
    recorded: bool = False
    name: str = ""
    gp: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        for label in _ROLES:
            value = getattr(self, label)
            if value is not None and not callable(value):
                raise DeclarationError(
                    f"TorchProblem's {label} must be a function or an nn.Module; "
                    f"got {type(value).__name__}."
                )
        object.__setattr__(self, "variable_shape", _shape("variable_shape", self.variable_shape))
        shapes = tuple(_shape("input_shapes", shape) for shape in self.input_shapes)
        object.__setattr__(self, "input_shapes", shapes)

    @property
    def parameters(self) -> tuple[Any, ...]:
        """A :class:`TorchInput` for each input."""
        shapes = enumerate(self.input_shapes)
        return tuple(TorchInput(f"input {number}", tuple(shape)) for number, shape in shapes)

    @property
    def variables(self) -> tuple[Any, ...]:
        """The unknown's :class:`TorchInput`."""
        return (TorchInput("u", tuple(self.variable_shape)),)

    @property
    def size(self) -> int:
        """Number of unknowns ``n``."""
        return prod(self.variable_shape)

    def modules(self) -> dict[str, torch.nn.Module]:
        """The functions that are modules, by role."""
        roles = {role: getattr(self, role) for role in _ROLES}
        return {role: f for role, f in roles.items() if isinstance(f, torch.nn.Module)}


def _shape(argument: str, value: Any) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in value)
    except TypeError:
        raise DeclarationError(
            f"{argument} must be made of tuples of integers; got {value!r}."
        ) from None
    if any(size < 0 for size in shape):
        raise DeclarationError(f"{argument} must not be negative; got {value!r}.")
    return shape
