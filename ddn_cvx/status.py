"""The one home of statuses: what became of a batch element."""

from enum import IntEnum


class Status(IntEnum):
    """What became of one batch element. ``Status.SOLVED == 0``; anything else needs a look.

    The member's :attr:`message` is written for the user: what happened and what to do.

    Example:
        >>> from ddn_cvx import Status
        >>> Status.SOLVED == 0
        True
        >>> Status(2).name
        'INFEASIBLE'
    """

    SOLVED = 0
    INACCURATE = 1
    INFEASIBLE = 2
    UNBOUNDED = 3
    BAD_INPUT = 4
    FAILED = 5

    @property
    def message(self) -> str:
        """One sentence for people: what happened, and what to do about it."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.SOLVED: "solved to the requested accuracy",
    Status.INACCURATE: (
        "the solver stopped short of the requested accuracy; rescale the data, raise the iteration "
        "limit in solver_args, or try another solver"
    ),
    Status.INFEASIBLE: (
        "no point satisfies all constraints for these parameter values; relax a constraint or "
        "check the inputs"
    ),
    Status.UNBOUNDED: (
        "the objective is unbounded for these parameter values; bound the variables or check the "
        "inputs"
    ),
    Status.BAD_INPUT: (
        "a parameter tensor holds NaN, infinity or a value outside the parameter's declared domain"
    ),
    Status.FAILED: "every solver of the ladder failed; rescale the data or try another solver",
}
