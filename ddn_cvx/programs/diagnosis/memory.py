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
  of the constraints, and what is built upon it starts from its new variables.

Three steps of cvxpy 1.9 also hold row pointers of a sparse matrix, or a matrix, that is dense in
its number of rows, and then those dominate:

- an entrywise product with a parametric factor (also a trace): output entries x parameters;
- reordering the rows of second-order, exponential and power cones: variables x parameters;
- the linear part of a quadratic objective: variables x parameters, of which few pages are touched.

Calibration (cvxpy 1.9.3, cvxpylayers 1.2, Linux): growth of the resident set while the layer
compiles, in MiB, as ``tests/programs/test_memory_estimate.py`` measures it again.

====================  ====  ========  ========
problem               n     measured  estimate
====================  ====  ========  ========
quadratic program      200        17        24
quadratic program      400        66        96
quadratic program      800       279       382
matrix least squares    40        12        16
matrix least squares    80        83       125
semidefinite program    40        22        21
semidefinite program    60       100       102
constant regression    200        45        38
constant regression    400       169       153
transport               30        29        28
transport               50       249       202
weighted sum            50        50        49
weighted sum            70       184       187
====================  ====  ========  ========
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

# From the table above.
BYTES_PER_ENTRY = 250
_BYTES_PER_POINTER = 8
_POINTERS_OF_PRODUCT = 1
_POINTERS_OF_CONES = 2
# Smaller than what importing torch takes: not worth asking the system what is available.
_SMALL = 2**28

_EXPONENTIAL = frozenset(
    {"exp", "log", "log1p", "entr", "logistic", "log_sum_exp", "kl_div", "rel_entr", "xexp"}
)
_SECOND_ORDER = frozenset(
    {"Pnorm", "quad_over_lin", "power", "QuadForm", "geo_mean", "huber", "normNuc", "log_det"}
)
# Second-order cones, unless they stand in an objective that may be quadratic.
_QUADRATIC = frozenset({"quad_over_lin", "QuadForm", "huber"})
_OF_EIGENVALUES = frozenset(
    {"lambda_max", "lambda_sum_largest", "sigma_max", "normNuc", "log_det", "MatrixFrac", "tr_inv"}
)


@dataclass
class Tally:
    """What a walk over the problem counts.

    Attributes:
        parameters: numbers in all parameters.
        variables: numbers in all variables, auxiliary ones included.
        entries: of the tensor's rows so far.
        pointers: the largest entrywise product, output entries x parameters.
        reserved: numbers in the objective's variables, for what is reserved and not touched.
        reorders: there are second-order, exponential or power cones.
        largest: bytes that the worst expression alone brings.
        culprit: the expression.
        seen: entries of each expression, by its identity.
    """

    parameters: float
    variables: float
    entries: float = 0.0
    pointers: float = 0.0
    reserved: float = 0.0
    reorders: bool = False
    largest: float = 0.0
    culprit: Any = None
    seen: dict[int, float] = field(default_factory=dict)

    def blame(self, expression: Any, size: float) -> None:
        """Remember the expression that brings most, not what merely holds it."""
        if size > 1.5 * self.largest:
            self.largest, self.culprit = size, expression

    @property
    def cone_pointers(self) -> float:
        """Row pointers for reordering the rows of cones."""
        return (self.variables + 1) * (self.parameters + 1) if self.reorders else 0.0

    @property
    def reservation(self) -> float:
        """Bytes of the largest array that cvxpy asks for without filling it."""
        return _BYTES_PER_POINTER * (self.reserved + 1) * (self.parameters + 1)

    @property
    def bytes(self) -> int:
        """Peak memory."""
        pointers = max(
            _POINTERS_OF_PRODUCT * self.pointers, _POINTERS_OF_CONES * self.cone_pointers
        )
        return int(BYTES_PER_ENTRY * self.entries + _BYTES_PER_POINTER * pointers)


def estimate(problem: cp.Problem, *, quadratic_objective: bool = True) -> int:
    """Peak memory, in bytes, of canonicalising the problem with cvxpylayers; a rough upper bound.

    Takes time proportional to the number of expressions, whatever their sizes.

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
        return _meminfo()["MemAvailable"]
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def refuse_if_too_large(problem: cp.Problem, *, quadratic_objective: bool = True) -> None:
    """Raise if compiling the problem would need more memory than there is.

    Args:
        problem: the user's problem.
        quadratic_objective: see :func:`estimate`.

    Raises:
        DeclarationError: with the estimate, what is available, the expression that is to blame, and
            what to write instead.
    """
    tally = _count(problem, quadratic_objective)
    if tally.bytes > _SMALL and tally.bytes > (there := available()):
        raise DeclarationError(
            f"Compiling this problem would need about {_gib(tally.bytes)} of memory; "
            f"{_gib(there)} are available. {_blame(tally)}\n{_advice(tally.culprit)}"
        )
    if tally.reservation > _SMALL and tally.reservation > (limit := _largest_reservation()):
        raise DeclarationError(
            f"Compiling this problem, cvxpy asks for an array of {_gib(tally.reservation)} "
            f"({tally.reserved:.3g} variables of the objective times {tally.parameters:.3g} "
            f"parameters), and this machine grants {_gib(limit)} at most.\n"
            f"{_advice(tally.culprit)}"
        )


def _largest_reservation() -> float:
    """The largest array that the system grants without backing it; infinity where unknown.

    Linux refuses what exceeds memory and swap together, unless it was told always to overcommit.
    """
    try:
        if Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "1":
            return math.inf
        numbers = _meminfo()
    except OSError:
        return math.inf
    return float(numbers["MemTotal"] + numbers["SwapTotal"])


def _meminfo() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    fields = (line.replace(":", "").split() for line in lines)
    return {name: int(number) * 1024 for name, number, *_ in fields}


def _gib(number: float) -> str:
    return f"{number / 2**30:.3g} GiB"


def _count(problem: cp.Problem, quadratic_objective: bool = True) -> Tally:
    tally = Tally(
        parameters=float(sum(_stored(parameter) for parameter in problem.parameters())),
        variables=float(sum(_stored(variable) for variable in problem.variables())),
    )
    objective = problem.objective.args[0]
    if quadratic_objective:
        tally.reserved = float(sum(_stored(variable) for variable in objective.variables()))
    rows = _entries(objective, tally, quadratic_objective)
    tally.entries += rows
    for constraint in problem.constraints:
        rows = sum(_entries(argument, tally, False) for argument in constraint.args)
        if type(constraint).__name__ in ("SOC", "ExpCone", "PowCone3D", "PowConeND"):
            tally.reorders = True
        tally.entries += rows
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
        entries = _leaf(expression)
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


def _leaf(expression: Any) -> float:
    value = expression.value if type(expression).__name__ == "Constant" else None
    return float(expression.size if value is None else getattr(value, "nnz", value.size))


def _atom(expression: Any, counts: list[float], tally: Tally, may_be_quadratic: bool) -> float:
    name = kind(expression)
    if name in ("kron", "convolve", "conv"):
        return counts[0] * counts[1]
    if name == "MulExpression":
        return _product(expression, counts)
    if name == "multiply":
        return _entrywise_product(expression, counts, tally)
    if name in ("index", "special_index", "Promote", "broadcast_to"):
        return counts[0] * float(expression.size) / max(float(expression.args[0].size), 1.0)
    if _is_affine(expression):
        return sum(counts)
    # A nonaffine atom: rows for its arguments, and new variables for them and for its value.
    rows = sum(counts) + expression.size
    if name in _OF_EIGENVALUES:
        rows += float(expression.args[-1].size)
    quadratic = may_be_quadratic and (
        name in _QUADRATIC or (name == "power" and exponent_of(expression) == 2.0)
    )
    if not quadratic and name in _SECOND_ORDER | _EXPONENTIAL:
        tally.reorders = True
    tally.entries += rows
    arguments = [argument for argument in expression.args if argument.variables()]
    tally.variables += expression.size + sum(a.size for a in arguments if a.args)
    return float(expression.size)


def _product(expression: Any, counts: list[float]) -> float:
    """Each entry of a factor meets those in one row, or column, of the other."""
    left = expression.args[0]
    inner = max(int(left.shape[-1]) if left.shape else 1, 1)
    return counts[0] * counts[1] / inner


def _entrywise_product(expression: Any, counts: list[float], tally: Tally) -> float:
    size = float(expression.size)
    factor = next((argument for argument in expression.args if not argument.variables()), None)
    if factor is not None and factor.parameters():
        pointers = size * max(parameter.size for parameter in factor.parameters())
        tally.pointers = max(tally.pointers, pointers)
        tally.blame(expression, _POINTERS_OF_PRODUCT * _BYTES_PER_POINTER * pointers)
    return max(size, *counts)


def _blame(tally: Tally) -> str:
    if tally.culprit is None:
        return ""
    cones = _POINTERS_OF_CONES * _BYTES_PER_POINTER * tally.cone_pointers
    if cones > tally.largest:
        return (
            f"Most of it is for reordering the rows of its second-order and exponential cones, "
            f"which cvxpy does for {tally.variables:.3g} variables times {tally.parameters:.3g} "
            "parameters."
        )
    return f"Most of it is for `{shorten(tally.culprit)}`, about {_gib(tally.largest)}."


def _advice(culprit: Any) -> str:
    lines = ["What helps:"]
    if culprit is not None and kind(culprit) == "MulExpression":
        lines.append(
            "- a product of matrices costs rows x inner x columns: if the columns are independent, "
            "make one column the problem and the columns the batch"
        )
    if culprit is not None and kind(culprit) == "multiply":
        lines.append(
            "- an entrywise product with a parameter costs the square of its size: write "
            "vec(W) @ vec(X), one row, if it is summed anyway; or scale the variable, X = W * Z, "
            "in torch"
        )
    lines += [
        "- make large parameters constants, if they are the same in every call: a constant costs "
        "one entry for each number, and no parameter",
        "- factor the matrix: for A of low rank, A = U V, write U @ z with a new variable "
        "z == V @ x",
        "- split the problem into smaller blocks, or use a coarser grid.",
    ]
    return "\n".join(lines)
