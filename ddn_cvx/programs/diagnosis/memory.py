"""The guard that refuses a problem whose compilation would not fit in memory.

cvxpy compiles a problem to a sparse tensor, rows x variables x parameters. The guard counts its
entries from shapes alone, in time proportional to the number of expressions: a leaf has one for
each of its numbers, a product of ``(m, k)`` by ``(k, n)`` has ``m k n``, any other expression the
entries of its arguments; an atom that is not affine adds rows and variables of its own. Beside the
tensor, cvxpy 1.9 holds a pointer for each pair of a row and a parameter in three places: an
entrywise product with a parametric factor, the reordering of the rows of cones, and the linear part
of a quadratic objective, of which the pages are asked for and hardly touched.

``tests/programs/test_memory_estimate.py`` compares the estimate with the measured peak.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddn_cvx.errors import DeclarationError
from ddn_cvx.programs.diagnosis.wording import exponent_of, kind, shorten

if TYPE_CHECKING:
    import cvxpy as cp

# Bytes of the resident set for each entry, measured with cvxpy 1.9.3 and cvxpylayers 1.2.
BYTES_PER_ENTRY = 250
_BYTES_PER_POINTER = 8
# Bytes below which nothing is refused: what importing torch takes.
_NEGLIGIBLE = 2**28

_QUADRATIC = frozenset({"quad_over_lin", "QuadForm", "huber"})
# Atoms, and constraints, whose rows belong to second-order, exponential or power cones.
_OF_CONES = (
    _QUADRATIC
    | {"exp", "log", "log1p", "entr", "logistic", "log_sum_exp", "kl_div", "rel_entr", "xexp"}
    | {"Pnorm", "power", "geo_mean", "normNuc", "log_det"}
    | {"SOC", "ExpCone", "PowCone3D", "PowConeND"}
)
_OF_EIGENVALUES = frozenset(
    {"lambda_max", "lambda_sum_largest", "sigma_max", "normNuc", "log_det", "MatrixFrac", "tr_inv"}
)


@dataclass
class Tally:
    """Counts of a walk over a problem.

    Attributes:
        parameters: numbers in all parameters.
        variables: numbers in all variables, auxiliary ones included.
        entries: entries of the tensor's rows so far.
        pointers: the largest number of pairs of a row and a parameter.
        has_cones: there are second-order, exponential or power cones.
        largest: bytes of the expression that brings most.
        culprit: that expression.
        seen: entries of each expression, by its identity.
    """

    parameters: float
    variables: float
    entries: float = 0.0
    pointers: float = 0.0
    has_cones: bool = False
    largest: float = 0.0
    culprit: Any = None
    seen: dict[int, float] = field(default_factory=dict)

    def blame(self, expression: Any, size: float) -> None:
        """Remember an expression that brings clearly more than those that it holds."""
        if size > 1.5 * self.largest:
            self.largest, self.culprit = size, expression

    @property
    def bytes(self) -> int:
        """Peak memory."""
        of_cones = 2 * (self.variables + 1) * (self.parameters + 1) if self.has_cones else 0
        pointers = max(self.pointers, of_cones)
        return int(BYTES_PER_ENTRY * self.entries + _BYTES_PER_POINTER * pointers)


def estimate(problem: cp.Problem, *, quadratic_objective: bool = True) -> int:
    """Peak memory, in bytes, of canonicalising the problem with cvxpylayers; a rough upper bound.

    Args:
        problem: the user's problem.
        quadratic_objective: a quadratic objective stays one; else it becomes a second-order cone.

    Example:
        >>> import cvxpy as cp
        >>> A, X = cp.Parameter((2000, 2000)), cp.Variable((2000, 2000))
        >>> problem = cp.Problem(cp.Minimize(cp.norm(A @ X, 1)))
        >>> estimate(problem) > 2**40  # a product of matrices: 8e9 entries, terabytes
        True
    """
    return _count(problem, quadratic_objective).bytes


def available() -> int:
    """Bytes of memory that a program can still get without swapping."""
    return int(_machine()[0])


def refuse_if_too_large(problem: cp.Problem, *, quadratic_objective: bool = True) -> None:
    """Raise if compiling the problem would need more memory than there is; see :func:`estimate`.

    Raises:
        DeclarationError: with the estimate, the available memory, the expression that brings most,
            and what to write instead.
    """
    tally = _count(problem, quadratic_objective)
    needed, array = tally.bytes, 0
    if quadratic_objective:
        numbers = sum(map(_stored, problem.objective.args[0].variables()))
        array = int(_BYTES_PER_POINTER * (numbers + 1) * (tally.parameters + 1))
    if max(needed, array) <= _NEGLIGIBLE:
        return
    free, granted = _machine()
    if needed > free:
        found = f"need about {_gib(needed)} of memory; {_gib(free)} are available"
    elif array > granted:
        found = f"ask for an array of {_gib(array)}; {_gib(granted)} is the most that is granted"
    else:
        return
    culprit = tally.culprit
    most = "" if culprit is None else f" Most of it is for `{shorten(culprit)}`."
    raise DeclarationError(
        f"Compiling this problem would {found}.{most}\n{_ADVICE.get(kind(culprit), '')}"
        "Make parameters that are the same in every call constants; write a matrix of low rank, "
        "A = U V, as U @ z with a new variable z == V @ x; or split the problem into blocks."
    )


_ADVICE = {
    "MulExpression": "A product of matrices costs rows x inner x columns: if the columns are "
    "independent, make one column the problem and the columns the batch.\n",
    "multiply": "An entrywise product with a parameter costs the square of its size: write "
    "vec(W) @ vec(X) if it is summed anyway; or scale the variable, X = W * Z, in torch.\n",
}


def _machine() -> tuple[float, float]:
    """Bytes that are available, and the largest array that is granted before it is touched.

    Linux refuses an array beyond memory and swap together, unless told always to overcommit.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        pairs = (line.replace(":", "").split()[:2] for line in lines)
        numbers = {name: float(number) * 1024 for name, number in pairs}
        mode = Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip()
        granted = math.inf if mode == "1" else numbers["MemTotal"] + numbers["SwapTotal"]
        return numbers["MemAvailable"], granted
    except (OSError, KeyError):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")), math.inf


def _gib(number: float) -> str:
    return f"{number / 2**30:.3g} GiB"


def _count(problem: cp.Problem, quadratic_objective: bool) -> Tally:
    tally = Tally(
        parameters=sum(map(_stored, problem.parameters())),
        variables=sum(map(_stored, problem.variables())),
    )
    rows = _entries(problem.objective.args[0], tally, quadratic_objective)
    for constraint in problem.constraints:
        rows += sum(_entries(argument, tally, False) for argument in constraint.args)
        tally.has_cones |= type(constraint).__name__ in _OF_CONES
    tally.entries += rows  # after the walk, which adds the rows of atoms itself
    return tally


def _stored(leaf: Any) -> float:
    """Numbers in which cvxpy stores a variable or parameter."""
    if any(leaf.attributes[name] for name in ("symmetric", "PSD", "NSD")):
        return float(leaf.size + leaf.shape[-1]) / 2
    return float(leaf.size)


def _entries(expression: Any, tally: Tally, may_be_quadratic: bool) -> float:
    """Entries of the tensor of an expression's canonical form; new rows go into the tally."""
    found = tally.seen.get(id(expression))
    if found is not None:
        return found
    if not expression.args:
        value = expression.value if kind(expression) == "Constant" else None
        entries = float(expression.size if value is None else getattr(value, "nnz", value.size))
    else:
        inner = may_be_quadratic and (_is_affine(expression) or not expression.variables())
        counts = [_entries(argument, tally, inner) for argument in expression.args]
        if expression.variables():
            entries = _atom(expression, counts, tally, may_be_quadratic)
        else:
            entries = max(float(expression.size), *counts)
        tally.blame(expression, BYTES_PER_ENTRY * entries)
    tally.seen[id(expression)] = entries
    return entries


def _is_affine(expression: Any) -> bool:
    return bool(expression.is_atom_convex() and expression.is_atom_concave())


def _atom(expression: Any, counts: list[float], tally: Tally, may_be_quadratic: bool) -> float:
    name, size = kind(expression), float(expression.size)
    if name in ("kron", "convolve", "conv"):
        return counts[0] * counts[1]
    if name == "MulExpression":  # each entry of a factor meets a row, or column, of the other
        (inner,) = expression.args[0].shape[-1:] or (1,)
        return counts[0] * counts[1] / float(max(inner, 1))
    if name == "multiply":
        factor = next((a for a in expression.args if not a.variables()), None)
        for parameter in factor.parameters() if factor is not None else ():
            tally.pointers = max(tally.pointers, size * parameter.size)
            tally.blame(expression, _BYTES_PER_POINTER * size * parameter.size)
        return max(size, *counts)
    if name in ("index", "special_index", "Promote", "broadcast_to"):
        return counts[0] * size / max(float(expression.args[0].size), 1.0)
    if _is_affine(expression):
        return sum(counts)
    # Rows for the arguments, and new variables for them and for the value.
    tally.entries += sum(counts) + size
    if name in _OF_EIGENVALUES:
        tally.entries += float(expression.args[-1].size)
    is_square = name in _QUADRATIC or (name == "power" and exponent_of(expression) == 2.0)
    tally.has_cones |= name in _OF_CONES and not (may_be_quadratic and is_square)
    tally.variables += size + sum(a.size for a in expression.args if a.variables() and a.args)
    return size
