"""Errors and warnings without imports; :class:`~ddn_cvx.SolveError` stands beside its solution."""


class DeclarationError(ValueError):
    """A declaration cannot become a layer: wrong parameters, not DCP, not DPP, too large, ..."""


class UnsupportedError(DeclarationError):
    """A solver or an adjoint that was asked for by name does not take the program.

    Attributes:
        reason: in words.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


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
