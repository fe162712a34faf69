"""Values and derivatives of a nonlinear program at given inputs, for a whole batch at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.func import grad, jvp, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from ddn_cvx.programs.nonlinear.program import NonlinearProgram
from ddn_cvx.programs.nonlinear.replay import Outputs, Replayed

# Entries of all directions taken together when a Jacobian or Hessian is formed: 128 MiB of float64
# for each intermediate result.
_CHUNK_ENTRIES = 1 << 24


class Derivatives:
    """The derivatives of a program's functions; recorded per shape where the program allows it.

    All take ``u`` of shape ``(B, n)``, multipliers ``dual`` of shape ``(B, m)``, and the inputs.
    Elements are independent, so that the gradient of a sum over the batch holds every element's
    gradient.
    """

    def __init__(self, program: NonlinearProgram) -> None:
        self.program = program

        recorded = functools.partial(Replayed, record=program.traceable)
        self.values = recorded(self._values)
        self.first = recorded(self._first)
        self.second = recorded(self._second)
        self.product = recorded(self._product)
        self.gradient = recorded(self._gradient)
        self.residuals = recorded(self._residuals)
        self.residual_jacobian = recorded(self._residual_jacobian)
        self.pull_back = recorded(self._pull_back)

    # -- with respect to the unknown ------------------------------------------------------------

    def _values(self, u: torch.Tensor, *inputs: torch.Tensor) -> Outputs:
        """``f`` of shape ``(B,)`` and ``c`` of shape ``(B, m)``."""
        return self.program.objective(u, *inputs), self.program.constraints(u, *inputs)

    def _gradient(self, u: torch.Tensor, *inputs: torch.Tensor) -> Outputs:
        """``f`` and its gradient, shape ``(B, n)``."""

        def total(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            value = self.program.objective(u, *inputs)
            return value.sum(), value

        gradient, value = grad(total, has_aux=True)(u)
        return value, gradient

    def _first(self, u: torch.Tensor, *inputs: torch.Tensor) -> Outputs:
        """``f``, its gradient, ``c``, and its Jacobian, shape ``(B, m, n)``."""
        value, gradient = self._gradient(u, *inputs)
        if not self.program.is_constrained:
            return value, gradient, u.new_zeros((len(u), 0)), u.new_zeros((len(u), 0, u.shape[1]))
        constraint, jacobian = jacobian_of(lambda u: self.program.constraints(u, *inputs), u)
        return value, gradient, constraint, jacobian

    def _second(self, u: torch.Tensor, dual: torch.Tensor, *inputs: torch.Tensor) -> Outputs:
        """``f``, its gradient, ``c``, its Jacobian, the Hessian of the Lagrangian ``(B, n, n)``."""
        if not self.program.is_constrained:
            hessian = _forward_jacobian(lambda u: self._gradient(u, *inputs)[1], u)
            return *self._first(u, *inputs), _symmetric(hessian)
        value, gradient = self._gradient(u, *inputs)
        constraint = self.program.constraints(u, *inputs)
        hessian, jacobian = _forward_jacobian(lambda u: self.stationarity(u, dual, *inputs), u)
        return value, gradient, constraint, jacobian, _symmetric(hessian)

    def _product(
        self, u: torch.Tensor, dual: torch.Tensor, direction: torch.Tensor, *inputs: torch.Tensor
    ) -> Outputs:
        """The Lagrangian's Hessian times ``direction``, shape ``(B, n)``."""

        def gradient(u: torch.Tensor) -> torch.Tensor:
            return self.stationarity(u, dual, *inputs)[0]

        return (directional(gradient, (u,), (direction,))[1],)

    def _residuals(self, u: torch.Tensor, *inputs: torch.Tensor) -> Outputs:
        """``r``, shape ``(B, k)``."""
        assert self.program.residuals is not None
        return (self.program.residuals(u, *inputs),)

    def _residual_jacobian(self, u: torch.Tensor, *inputs: torch.Tensor) -> Outputs:
        """``r`` and its Jacobian, shape ``(B, k, n)``."""
        function = self.program.residuals
        assert function is not None
        return jacobian_of(lambda u: function(u, *inputs), u)

    # -- with respect to the inputs -------------------------------------------------------------

    def stationarity(
        self, u: torch.Tensor, dual: torch.Tensor, *inputs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``grad_u L(u, y, x)``, shape ``(B, n)``, and ``c(u, x)``, shape ``(B, m)``."""

        def total(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            value, constraint = self.program.lagrangian(u, dual, *inputs)
            return value.sum(), constraint

        gradient, constraint = grad(total, has_aux=True)(u)
        return gradient, constraint

    def _pull_back(
        self,
        u: torch.Tensor,
        dual: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        *inputs: torch.Tensor,
    ) -> Outputs:
        """Gradient of ``<a, grad_u L(u, y, x)> + <b, c(u, x)>`` with respect to each input.

        ``<a, grad_u L>`` is the directional derivative of ``L`` along ``a``: forward mode first,
        then one reverse pass, so that no mixed Hessian is formed.
        """

        def paired(*inputs: torch.Tensor) -> torch.Tensor:
            def along(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return self.program.lagrangian(u, dual, *inputs)

            (_, constraint), (slope, _) = directional(along, (u,), (a,))
            total: torch.Tensor = slope.sum() + (b * constraint).sum()
            return total

        return grad(paired, argnums=tuple(range(len(inputs))))(*inputs)  # type: ignore[no-any-return]

    def push_forward(
        self, u: torch.Tensor, dual: torch.Tensor, inputs: Outputs, tangents: Outputs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Change of ``grad_u L`` and of ``c`` along tangents of the inputs."""

        def stationarity(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.stationarity(u, dual, *inputs)

        return directional(stationarity, inputs, tangents)[1]  # type: ignore[no-any-return]


def directional(function: Callable[..., Any], primals: Outputs, tangents: Outputs) -> Any:
    """Value and directional derivative of a function of tensors, tuples of tensors allowed.

    Forward mode; inside a ``torch.autograd.forward_ad`` level, which cannot be nested, two reverse
    passes: the derivative of ``<J' w, t>`` with respect to ``w`` is ``J t``.
    """
    if torch.autograd.forward_ad._current_level < 0 or _in_functorch_jvp():
        return jvp(function, primals, tangents)
    value, pull = vjp(function, *primals)[:2]
    leaves, structure = tree_flatten(value)
    weights = tuple(torch.zeros_like(leaf) for leaf in leaves)

    def pairing(*weights: torch.Tensor) -> torch.Tensor:
        parts = pull(tree_unflatten(list(weights), structure))
        products = [(part * t).sum() for part, t in zip(parts, tangents, strict=True)]
        return torch.stack(products).sum()

    changes = grad(pairing, argnums=tuple(range(len(weights))))(*weights)
    return value, tree_unflatten(list(changes), structure)


def _in_functorch_jvp() -> bool:
    from torch._functorch import eager_transforms

    return eager_transforms.JVP_NESTING > 0


def jacobian_of(
    function: Callable[[torch.Tensor], torch.Tensor], u: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``r(u)`` of shape ``(B, k)`` and its Jacobian ``(B, k, n)``, by the cheaper mode."""
    value = function(u)
    rows, n = value.shape[1], u.shape[1]
    if rows >= n:
        return value, _forward_jacobian(function, u)
    pull = vjp(function, u)[1]
    basis = torch.eye(rows, dtype=u.dtype, device=u.device)
    basis = basis.unsqueeze(1).expand(rows, len(u), rows)
    (jacobian,) = vmap(pull, chunk_size=_chunk(u))(basis)  # (k, B, n)
    return value, jacobian.movedim(0, 1)


def _forward_jacobian(function: Callable[[torch.Tensor], Any], u: torch.Tensor) -> Any:
    """Jacobians ``(B, k, n)`` of one function, or of each of a tuple, by ``n`` forward passes."""
    n = u.shape[1]
    basis = torch.eye(n, dtype=u.dtype, device=u.device).unsqueeze(1).expand(n, *u.shape)

    def along(direction: torch.Tensor) -> Any:
        return directional(function, (u,), (direction,))[1]

    columns = vmap(along, chunk_size=_chunk(u))(basis)  # each (n, B, k)
    if isinstance(columns, tuple):
        return tuple(column.movedim(0, 2) for column in columns)
    return columns.movedim(0, 2)


def _chunk(u: torch.Tensor) -> int | None:
    chunk = max(1, _CHUNK_ENTRIES // max(1, u.numel()))
    return None if chunk >= u.shape[1] else chunk


def _symmetric(matrix: torch.Tensor) -> torch.Tensor:
    return 0.5 * (matrix + matrix.mT)
