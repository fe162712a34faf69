"""The one table that translates the solvers' own statuses; what it does not hold is a failure."""

from __future__ import annotations

from ddn_cvx.status import Status

# Clarabel's names, which Moreau shares. An "almost" optimal or stalled point is judged by its
# computed residual; an "almost" certificate of infeasibility proves nothing: the ladder goes on.
INTERIOR_POINT = {
    "Solved": Status.SOLVED,
    "AlmostSolved": Status.INACCURATE,
    "PrimalInfeasible": Status.INFEASIBLE,
    "DualInfeasible": Status.UNBOUNDED,
    "MaxIterations": Status.INACCURATE,
    "MaxTime": Status.INACCURATE,
    "InsufficientProgress": Status.INACCURATE,
}

# SCS's integers.
SCS = {
    1: Status.SOLVED,
    2: Status.INACCURATE,
    -1: Status.UNBOUNDED,
    -2: Status.INFEASIBLE,
    -6: Status.INACCURATE,  # unbounded, inaccurate
    -7: Status.INACCURATE,  # infeasible, inaccurate
}
