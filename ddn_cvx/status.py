"""The one home of statuses: what became of a batch element, in our words and in each solver's."""

from enum import IntEnum, IntFlag


class Status(IntEnum):
    """Outcome of one batch element. ``Status.SOLVED == 0``; anything else needs a look.

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
    SADDLE = 6

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
        "a tensor holds NaN, infinity or a value outside the parameter's declared domain, "
        "or a function is undefined at the start: pass initial="
    ),
    Status.FAILED: "every solver of the ladder failed; rescale the data or try another solver",
    Status.SADDLE: (
        "the solver stopped at a stationary point that is not a minimum; give another start"
    ),
}


def translated(solver: str, own: str | int) -> Status:
    """Our status for a solver's own; ``FAILED`` for one that the table does not hold.

    Args:
        solver: "CLARABEL", "MOREAU", "SCS", or "CVXPY" for a solver behind ``problem.solve``.
        own: the status in that solver's words.

    Example:
        >>> from ddn_cvx.status import translated
        >>> translated("CLARABEL", "PrimalInfeasible").name, translated("SCS", 3).name
        ('INFEASIBLE', 'FAILED')
    """
    return _OWN_STATUSES[solver].get(own, Status.FAILED)


# An "almost" optimal or stalled point is judged by its computed residual; an "almost" certificate
# of infeasibility proves nothing: the ladder goes on.
_CLARABEL: dict[str | int, Status] = {
    "Solved": Status.SOLVED,
    "AlmostSolved": Status.INACCURATE,
    "PrimalInfeasible": Status.INFEASIBLE,
    "DualInfeasible": Status.UNBOUNDED,
    "MaxIterations": Status.INACCURATE,
    "MaxTime": Status.INACCURATE,
    "InsufficientProgress": Status.INACCURATE,
}

# The one table of the statuses of every solver that reports any. A cvxpylayers SolverInterface
# reports none: its values are NaN where it failed.
_OWN_STATUSES: dict[str, dict[str | int, Status]] = {
    "CLARABEL": _CLARABEL,
    "MOREAU": _CLARABEL,
    "SCS": {
        1: Status.SOLVED,
        2: Status.INACCURATE,
        -1: Status.UNBOUNDED,
        -2: Status.INFEASIBLE,
        -6: Status.INACCURATE,  # unbounded, inaccurate
        -7: Status.INACCURATE,  # infeasible, inaccurate
    },
    "CVXPY": {
        "optimal": Status.SOLVED,
        "optimal_inaccurate": Status.INACCURATE,
        "user_limit": Status.INACCURATE,
        "infeasible": Status.INFEASIBLE,
        "infeasible_inaccurate": Status.INFEASIBLE,
        "unbounded": Status.UNBOUNDED,
        "unbounded_inaccurate": Status.UNBOUNDED,
    },
}


class Degeneracy(IntFlag):
    """Why a solution's derivative is not the ordinary one; flags of one batch element.

    Example:
        >>> from ddn_cvx import Degeneracy
        >>> Degeneracy.WEAKLY_ACTIVE in Degeneracy(5)
        True
    """

    WEAKLY_ACTIVE = 1
    DEPENDENT_CONSTRAINTS = 2
    NO_CURVATURE = 4

    @property
    def message(self) -> str:
        """Meaning of the flags for the derivative."""
        return "; ".join(text for flag, text in _DEGENERACIES.items() if flag in self)


_DEGENERACIES = {
    Degeneracy.WEAKLY_ACTIVE: (
        "an inequality is active with a zero multiplier: the derivative is one-sided"
    ),
    Degeneracy.DEPENDENT_CONSTRAINTS: (
        "active constraints depend on each other: their multipliers are not unique, and the "
        "minimum-norm adjoint is taken"
    ),
    Degeneracy.NO_CURVATURE: (
        "the objective does not curve along a direction that the constraints leave free: the "
        "solution may not be unique, and the minimum-norm derivative is taken if there is one"
    ),
}
