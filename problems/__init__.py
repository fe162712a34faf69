"""The catalogue: named problems, each with example inputs, a citation and, where there is one, a
closed form.

A catalogue entry says *what* is to be solved, never how. To add one to a family, in its one file:

1. Write a function under ``@entry(n=1)`` that builds the ``cvxpy.Problem`` and returns a
   :class:`~ddn_cvx.Declaration`; every size has a default, and the decorator gets its smallest
   value. ``orthant_projection`` in ``projections.py`` is a short one to start from. Convex or not:
   what is not DCP and DPP becomes a nonlinear program; give that a ``start`` if zero is a bad one.
2. Give it ``example(batch, generator)``: regular inputs, drawn with the helpers of
   ``_sampling.py``. Bind sizes with ``functools.partial``, so that the declaration can be pickled.

The decorator registers the function: it can then be imported from here, :func:`catalogue` lists it,
and ``tests/problems/`` checks it. A new family's file is named in one more line below.
"""

if __name__ != "ddn_cvx.problems":
    raise ImportError(
        f"this package is imported as `ddn_cvx.problems`, not as `{__name__}`; write `from "
        "ddn_cvx.problems import ...`, and take the checkout's root off sys.path if it is there "
        "only for this"
    )

# ruff: noqa: F403  (type checkers find the entries through the stars)
from collections.abc import Callable

from ddn_cvx.declaration import Declaration
from ddn_cvx.problems._entry import ENTRIES
from ddn_cvx.problems.classification import *
from ddn_cvx.problems.cone_projections import *
from ddn_cvx.problems.conic import *
from ddn_cvx.problems.control import *
from ddn_cvx.problems.denoising import *
from ddn_cvx.problems.eigen import *
from ddn_cvx.problems.entropy import *
from ddn_cvx.problems.games import *
from ddn_cvx.problems.least_squares import *
from ddn_cvx.problems.linear_set_projections import *
from ddn_cvx.problems.pooling import *
from ddn_cvx.problems.portfolio import *
from ddn_cvx.problems.pose import *
from ddn_cvx.problems.projections import *
from ddn_cvx.problems.quadratic import *

__all__ = sorted(["catalogue", *ENTRIES])  # noqa: PLE0605  (computed, so that no name is listed twice)


def catalogue() -> dict[str, Callable[..., Declaration]]:
    """Every entry's name and constructor; called without arguments, it takes its default size.

    Example:
        >>> from ddn_cvx.problems import catalogue
        >>> catalogue()["lasso"]().parameters[0].shape
        (12, 8)
    """
    return dict(ENTRIES)
