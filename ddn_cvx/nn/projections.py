"""Euclidean projections as modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddn_cvx.dedicated.projections.sets import SETS
from ddn_cvx.layer import DeclarativeLayer
from ddn_cvx.nn.positive import keep_logarithm


class Projection(torch.nn.Module):
    """The nearest point of a set, by a closed form or a dedicated algorithm.

    Args:
        name: the set, with its data as keyword arguments: "l1_ball", "l2_ball", "linf_ball",
            "l1_sphere", "l2_sphere", "linf_sphere", "simplex" (``radius=1``); "box" (``lower``,
            ``upper``); "hyperplane", "halfspace" (``normal``, ``offset=0``); "second_order_cone",
            "exponential_cone"; "monotone_cone" (``weights=1``); "total_variation" (``weight=1``);
            and of matrices "positive_semidefinite_cone" and "birkhoff_polytope". The function of
            this name in :mod:`ddn_cvx.dedicated.projections` says which point and derivative are
            returned where several points are nearest.
        dim: the projected dimension; for matrices it is the last two.
        learnable: make the data parameters: radius and weights by their logarithm, so that they
            stay positive.
        **data: numbers or tensors, kept in the state dict.

    Shapes:
        Input and output of the same shape and dtype; computed in float64.

    Raises:
        ValueError: an unknown set; a datum that is missing, unknown, or not positive though it has
            to be; ``dim`` for a set of matrices; in use, a shape that does not fit.

    Example:
        >>> import torch
        >>> from ddn_cvx.nn import Projection
        >>> Projection("simplex")(torch.tensor([3.0, 2.5, -1.0]))
        tensor([0.7500, 0.2500, 0.0000])
        >>> Projection("l1_ball", radius=2.0, learnable=True)
        Projection('l1_ball', radius=2, learnable=True)
    """

    def __init__(self, name: str, *, dim: int = -1, learnable: bool = False, **data: Any) -> None:
        super().__init__()
        if name not in SETS:
            raise ValueError(f"Unknown set {name!r}; known are {', '.join(SETS)}.")
        self.name, self.dim, self.learnable = name, dim, learnable
        described = SETS[name]
        if described.matrix and dim != -1:
            raise ValueError(f"{name} is a set of matrices, the last two dimensions; got {dim=}.")
        unknown = [key for key in data if key not in described.data]
        if unknown:
            known = ", ".join(described.data) or "none"
            raise ValueError(f"{name} has no datum {', '.join(unknown)}; its data: {known}.")
        for key, default in described.data.items():
            value = data.get(key, default)
            if value is None:
                raise ValueError(f"{name} needs {key}=.")
            tensor = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
            positive = key in described.positive
            # A fixed radius may be zero: the ball is a point, or a mask.
            if positive and not bool((tensor > 0 if learnable else tensor >= 0).all()):
                raise ValueError(f"{key} must be positive; got {value}.")
            if not learnable:
                self.register_buffer(key, tensor)
            elif positive:
                keep_logarithm(self, key, tensor, learnable)
            else:
                self.register_parameter(key, torch.nn.Parameter(tensor))

    def datum(self, key: str) -> Tensor:
        """The present value of a datum of the set: ``datum("radius")``."""
        logarithm = getattr(self, f"log_{key}", None)
        value: Tensor = getattr(self, key) if logarithm is None else logarithm.exp()
        return value

    def forward(self, x: Tensor) -> Tensor:
        """The nearest points."""
        described = SETS[self.name]
        options = {} if described.matrix else {"dim": self.dim}
        return described.project(x, *map(self.datum, described.data), **options)

    def extra_repr(self) -> str:
        """For ``repr``."""
        parts = [repr(self.name)]
        for key in SETS[self.name].data:
            value = self.datum(key).detach()
            shown = f"{float(value):.4g}" if value.ndim == 0 else f"<{tuple(value.shape)}>"
            parts.append(f"{key}={shown}")
        if self.dim != -1:
            parts.append(f"dim={self.dim}")
        if self.learnable:
            parts.append("learnable=True")
        return ", ".join(parts)


class PolyhedronProjection(torch.nn.Module):
    """The nearest point of ``{u : A u = b, G u <= h}``, by the framework's quadratic programs.

    Args:
        n, m, p: numbers of variables, of inequalities, and of equalities.
        **options: of :class:`ddn_cvx.DeclarativeLayer`: ``solver``, ``adjoint``, ``on_failure``,
            ``solver_args``.

    Shapes:
        Inputs ``x (*batch, n)``, ``G (*batch, m, n)``, ``h (*batch, m)``, and with equalities ``A
        (*batch, p, n)``, ``b (*batch, p)``, whose leading dimensions broadcast; output ``(*batch,
        n)``.

    Raises:
        DeclarationError: a size is out of its range.

    Example:
        >>> import torch
        >>> from ddn_cvx.nn import PolyhedronProjection
        >>> project = PolyhedronProjection(n=2, m=1)
        >>> u = project(torch.tensor([2.0, 2.0]), torch.ones(1, 2), torch.ones(1))
        >>> [round(float(value), 6) for value in u]
        [0.5, 0.5]
    """

    def __init__(self, n: int, m: int, p: int = 0, **options: Any) -> None:
        super().__init__()
        from ddn_cvx.problems import polyhedron_projection

        self.layer = DeclarativeLayer(polyhedron_projection(n, m, p), **options)

    def forward(self, x: Tensor, *data: Tensor) -> Tensor:
        """The nearest points; see the class's shapes."""
        u: Tensor = self.layer(x, *data)[0]
        return u
