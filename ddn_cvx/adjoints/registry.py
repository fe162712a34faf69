"""Every adjoint that users ask for by name: the lists of cone programs and of nonlinear ones.

A new adjoint is a class like :class:`~ddn_cvx.adjoints.implicit.Implicit`, see
:class:`~ddn_cvx.engine.plan.Adjoint`, and its line here. One that lets autograd follow the solver,
like :class:`~ddn_cvx.adjoints.unrolled.Unrolled`, has ``solve`` in the place of ``pull_back``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ddn_cvx.adjoints.diffcp import MODES, DiffcpAdjoint
from ddn_cvx.adjoints.implicit import Implicit
from ddn_cvx.adjoints.native import Native, NativeOfDedicated
from ddn_cvx.adjoints.unrolled import Unrolled
from ddn_cvx.errors import DeclarationError

DEFAULT, NONLINEAR_DEFAULT = "kkt", "implicit"

ADJOINTS: dict[str, Callable[[], Any]] = {
    DEFAULT: Implicit,
    **{mode: functools.partial(DiffcpAdjoint, mode) for mode in MODES},
    "native": Native,
}
NONLINEAR_ADJOINTS: dict[str, Any] = {
    adjoint.name: adjoint
    for adjoint in (Implicit(NONLINEAR_DEFAULT), Unrolled(), NativeOfDedicated())
}


def adjoint_by_name(name: str) -> Any:
    """The adjoint for a name.

    Raises:
        DeclarationError: unknown.
    """
    if name not in ADJOINTS:
        raise DeclarationError(
            f"Unknown adjoint {name!r}; choose one of {', '.join(map(repr, ADJOINTS))}. "
            "adjoint='native' takes diffcp's other modes."
        )
    return ADJOINTS[name]()
