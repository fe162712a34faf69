"""Errors and warnings, one home. Nothing here imports cvxpy or diffcp."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddn_cvx.solution import Solution


class DeclarationError(ValueError):
    """A declaration cannot become a layer: wrong parameters, not DCP, not DPP, too large, ..."""


class SolveError(RuntimeError):
    """Elements of a batch could not be solved, and ``on_failure="raise"``.

    Attributes:
        solution: the :class:`~ddn_cvx.Solution` of the whole batch; elements that were solved
            carry their values, the others NaN.
        elements: index of each failing element in the batch's leading dimensions.

    Where diffcp is the engine, the error raised is also a ``diffcp.SolverError``, so that code
    written for cvxpylayers keeps working.
    """

    def __init__(
        self,
        message: str,
        solution: "Solution | None" = None,
        elements: tuple[tuple[int, ...], ...] = (),
    ) -> None:
        super().__init__(message)
        self.solution = solution
        self.elements = elements


class AdjointError(RuntimeError):
    """The backward pass missed its tolerance on some elements, and ``on_failure="raise"``.

    Attributes:
        elements: flat batch index of each element whose gradient is not to be trusted.
    """

    def __init__(self, message: str, elements: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.elements = elements


class DdnWarning(UserWarning):
    """Base class of this package's warnings."""


class InaccurateWarning(DdnWarning):
    """Some elements were not solved, or not to the requested accuracy."""


class DegenerateWarning(DdnWarning):
    """The solution is not differentiable there, or the gradient is not unique."""
