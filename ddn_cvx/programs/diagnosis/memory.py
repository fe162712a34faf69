"""The guard that refuses a problem whose compilation would not fit in memory.

cvxpy compiles a problem to a sparse tensor, rows x variables x parameters. The guard counts its
entries from shapes alone, in time proportional to the number of expressions: a leaf has one for
each of its numbers, a product of ``(m, k)`` by ``(k, n)`` has ``m k n``, any other expression the
entries of its arguments; an atom that is not affine adds rows and variables of its own. Beside the
tensor, cvxpy 1.9 holds a pointer for each pair of a row and a parameter in two places: an entrywise
product with a parametric factor, and the reordering of the rows of cones. (A third, the linear part
of a quadratic objective, is reserved and hardly touched; the operating system refuses it itself.)

``tests/programs/test_memory_estimate.py`` compares the estimate with the measured peak.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddn_cvx.errors import DeclarationError
from ddn_cvx.programs.diagnosis.wording import kind, shorten

if TYPE_CHECKING:
    import cvxpy as cp

# Bytes of the resident set for each entry, measured with cvxpy 1.9.3 and cvxpylayers 1.2.
BYTES_PER_ENTRY = 250
_BYTES_PER_POINTER = 8
# Bytes below which nothing is refused: what importing torch takes.
_NEGLIGIBLE = 2**28

# Atoms whose rows belong to semidefinite cones, and constraints whose rows belong to no cone that
# is reordered.
_OF_EIGENVALUES = frozenset({"lambda_max", "lambda_sum_largest", "sigma_max", "MatrixFrac"})
_NOT_REORDERED = frozenset({"Zero", "Equality", "Inequality", "NonNeg", "NonPos", "PSD"})

_ADVICE = {
    "MulExpression": "A product of matrices costs rows x inner x columns: if the columns are "
    "independent, make one column the problem and the columns the batch.\n",
    "multiply": "An entrywise product with a parameter costs the square of its size: write "
    "vec(W) @ vec(X) if it is summed anyway; or scale the variable, X = W * Z, in torch.\n",
}


@dataclass
class Tally:
    """Counts of a walk over a problem.

    Attributes:
        parameters, variables: numbers in all of them, auxiliary variables included.
        entries: entries of the tensor's rows so far.
        pointers: the largest number of pairs of a row and a parameter.
        largest: bytes of the expression that brings most.
        culprit: that expression.
        seen: entries of each expression, by its identity.
    """

    parameters: float
    variables: float
    entries: float = 0.0
    pointers: float = 0.0
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
        return int(BYTES_PER_ENTRY * self.entries + _BYTES_PER_POINTER * self.pointers)


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
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(n.split()[1]) for n in lines if n.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def refuse_if_too_large(problem: cp.Problem, *, quadratic_objective: bool = True) -> None:
    """Raise if compiling the problem would need more memory than there is; see :func:`estimate`.

    Raises:
        DeclarationError: with the estimate, the available memory, the expression that brings most,
            and what to write instead.
    """
    tally = _count(problem, quadratic_objective)
    if tally.bytes > _NEGLIGIBLE and tally.bytes > (free := available()):
        gibibytes = [f"{number / 2**30:.3g} GiB" for number in (tally.bytes, free)]
        found = f"need about {gibibytes[0]} of memory; {gibibytes[1]} are available"
        raise too_large(found, tally.culprit)


def too_large(found: str, culprit: Any = None) -> DeclarationError:
    """The error of a problem that does not fit in memory.

    Args:
        found: continues "Compiling this problem would ...".
        culprit: the expression that brings most, if it is known.
    """
    most = "" if culprit is None else f" Most of it is for `{shorten(culprit)}`."
    return DeclarationError(
        f"Compiling this problem would {found}.{most}\n{_ADVICE.get(kind(culprit), '')}"
        "Make parameters that are the same in every call constants; write a matrix of low rank, "
        "A = U V, as U @ z with a new variable z == V @ x; or split the problem into blocks."
    )


def _count(problem: cp.Problem, quadratic_objective: bool) -> Tally:
    tally = Tally(
        parameters=sum(map(_stored, problem.parameters())),
        variables=sum(map(_stored, problem.variables())),
    )
    objective = problem.objective.args[0]
    rows = _entries(objective, tally)
    has_cones = _has_cones(objective) and not (quadratic_objective and objective.is_qpwa())
    for constraint in problem.constraints:
        rows += sum(_entries(argument, tally) for argument in constraint.args)
        has_cones |= type(constraint).__name__ not in _NOT_REORDERED
        has_cones |= any(map(_has_cones, constraint.args))
    tally.entries += rows  # after the walk, which adds the rows of atoms itself
    if has_cones:
        of_cones = 2 * (tally.variables + 1) * (tally.parameters + 1)
        tally.pointers = max(tally.pointers, of_cones)
    return tally


def _has_cones(expression: Any) -> bool:
    """Rows of second-order, exponential or power cones stand for the expression."""
    from cvxpy.atoms.affine.affine_atom import AffAtom

    curved = {atom.__name__ for atom in expression.atoms() if not issubclass(atom, AffAtom)}
    return not (expression.is_pwl() or curved <= _OF_EIGENVALUES)


def _stored(leaf: Any) -> float:
    """Numbers in which cvxpy stores a variable or parameter."""
    if any(leaf.attributes[name] for name in ("symmetric", "PSD", "NSD")):
        return float(leaf.size + leaf.shape[-1]) / 2
    return float(leaf.size)


def _entries(expression: Any, tally: Tally) -> float:
    """Entries of the tensor of an expression's canonical form; new rows go into the tally."""
    found = tally.seen.get(id(expression))
    if found is not None:
        return found
    if not expression.args:
        value = expression.value if kind(expression) == "Constant" else None
        entries = float(expression.size if value is None else getattr(value, "nnz", value.size))
    else:
        counts = [_entries(argument, tally) for argument in expression.args]
        if expression.variables():
            entries = _atom(expression, counts, tally)
        else:
            entries = max(float(expression.size), *counts)
        tally.blame(expression, BYTES_PER_ENTRY * entries)
    tally.seen[id(expression)] = entries
    return entries


def _atom(expression: Any, counts: list[float], tally: Tally) -> float:
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
    if expression.is_atom_convex() and expression.is_atom_concave():
        return sum(counts)
    # Rows for the arguments, and new variables for them and for the value.
    tally.entries += sum(counts) + size
    tally.variables += size + sum(a.size for a in expression.args if a.variables() and a.args)
    return size
