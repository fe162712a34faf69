"""How much memory compiling a problem takes, before compiling it.

cvxpy turns a problem into the map from its parameters to the data of a cone program: a sparse
tensor (rows x variables x parameters) with an entry wherever a parameter, or a constant, touches a
variable in a row. A matrix of parameters ``(m, k)`` times a variable ``(k, n)`` has ``m k n`` of
them, whatever its own size, so that an innocent product can need terabytes.

The estimate walks the expression tree with shapes alone. For each expression it bounds the number
of entries of the tensor of its canonical form, by these rules:

- a leaf has one entry for each of its numbers;
- a sum, a stack or a slice has those of its arguments, broadcast;
- a product of ``(m, k)`` by ``(k, n)`` has each entry of the one for each column, or row, of the
  other;
- an atom that is not affine gets rows and variables of its own: its arguments' entries become rows
  of the constraints, and what is built upon it starts from its (few) new variables.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddn_cvx.diagnosis.wording import kind, shorten
from ddn_cvx.errors import DeclarationError

if TYPE_CHECKING:
    import cvxpy as cp

BYTES_PER_ENTRY = 150
_SQUARED = frozenset({"QuadForm", "MatrixFrac"})
_MATRIX_ATOMS = frozenset({"lambda_max", "lambda_sum_largest", "sigma_max", "normNuc", "log_det"})


@dataclass
class Tally:
    """Entries counted so far, and the expression that brings the most.

    Attributes:
        entries: of the rows that nonaffine atoms and constraints make.
        largest: entries that the worst expression alone brings.
        culprit: the expression.
    """

    entries: float = 0.0
    largest: float = 0.0
    culprit: Any = None


def estimate(problem: cp.Problem) -> int:
    """Peak memory, in bytes, of canonicalising the problem with cvxpylayers; a rough upper bound.

    Takes time proportional to the number of expressions, whatever their sizes.
    """
    return _bytes(_count(problem))


def available() -> int:
    """Bytes of memory that a program can still get without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def refuse_if_too_large(problem: cp.Problem) -> None:
    """Raise if compiling the problem would need more memory than there is.

    Raises:
        DeclarationError: with the estimate, what is available, the expression that is to blame, and
            what to write instead.
    """
    tally = _count(problem)
    needed = _bytes(tally)
    if needed <= _SMALL:
        return
    there = available()
    if needed <= there:
        return
    raise DeclarationError(
        f"Compiling this problem would need about {_gib(needed)} of memory; {_gib(there)} are "
        f"available. Most of it is for `{shorten(tally.culprit)}`: about {tally.largest:.2g} pairs "
        "of a parameter or constant and a variable.\n" + _advice(tally.culprit)
    )


_SMALL = 2**28  # smaller than what importing torch takes: not worth asking the system


def _bytes(tally: Tally) -> int:
    return int(BYTES_PER_ENTRY * tally.entries)


def _gib(number: float) -> str:
    return f"{number / 2**30:.3g} GiB"


def _count(problem: cp.Problem) -> Tally:
    tally = Tally()
    seen: dict[int, float] = {}
    for part in (problem.objective, *problem.constraints):
        for argument in part.args:
            tally.entries += _entries(argument, tally, seen)
        if type(part).__name__ == "PSD":
            tally.entries += part.args[0].size
    return tally


def _entries(expression: Any, tally: Tally, seen: dict[int, float]) -> float:
    """Entries of the tensor of an expression's canonical form; counts new rows in the tally."""
    found = seen.get(id(expression))
    if found is not None:
        return found
    if not expression.args:
        entries = _leaf(expression)
    else:
        counts = [_entries(argument, tally, seen) for argument in expression.args]
        entries = _atom(expression, counts, tally)
    if entries > tally.largest:
        tally.largest, tally.culprit = entries, expression
    seen[id(expression)] = entries
    return entries


def _leaf(expression: Any) -> float:
    value = expression.value if type(expression).__name__ == "Constant" else None
    return float(getattr(value, "nnz", expression.size))


def _atom(expression: Any, counts: list[float], tally: Tally) -> float:
    name = kind(expression)
    if not expression.variables():
        return max(float(expression.size), *counts)
    if name in ("MulExpression", "kron", "convolve"):
        return _product(expression, counts)
    if name == "multiply":
        return max(float(expression.size), *counts)
    if name in ("index", "special_index"):
        argument = expression.args[0]
        return counts[0] * expression.size / max(argument.size, 1)
    if name in ("Promote", "broadcast_to"):
        return counts[0] * expression.size / max(expression.args[0].size, 1)
    if expression.is_atom_convex() and expression.is_atom_concave():
        return sum(counts)
    rows = sum(counts)
    if name in _SQUARED:
        rows += expression.args[1].size
    if name in _MATRIX_ATOMS:
        rows += expression.args[0].size
    tally.entries += rows
    return float(expression.size)


def _product(expression: Any, counts: list[float]) -> float:
    """Each entry of a factor, as often as the other factor has columns (or rows) for it."""
    left, right = expression.args
    if kind(expression) != "MulExpression":
        return counts[0] * counts[1]
    inner = left.shape[-1] if left.shape else 1
    rows = math.prod(left.shape) / max(inner, 1)
    columns = math.prod(right.shape) / max(inner, 1)
    if left.variables():
        # each row of the left factor meets each entry of the right one
        return max(counts[1] * rows, counts[0] * columns)
    return max(counts[0] * columns, counts[1] * rows)


def _advice(culprit: Any) -> str:
    lines = ["What helps:"]
    if culprit.parameters():
        lines.append(
            "- make the large parameter a constant, if it is the same in every call: constants "
            "cost one entry for each number"
        )
    if kind(culprit) == "MulExpression" and min(a.ndim for a in culprit.args) == 2:
        lines.append(
            "- a product of matrices costs rows x inner x columns: if the columns are independent, "
            "make one column the problem and the columns the batch"
        )
    lines += [
        "- factor the matrix: for A of low rank, A = U V, write U @ z with a new variable "
        "z == V @ x",
        "- split the problem into smaller blocks, or use a coarser grid.",
    ]
    return "\n".join(lines)
