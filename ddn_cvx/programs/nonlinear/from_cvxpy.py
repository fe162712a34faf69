"""A cvxpy problem as a nonlinear program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ddn_cvx.batch.inputs import flat
from ddn_cvx.cones.product import Cones
from ddn_cvx.declaration import Declaration
from ddn_cvx.errors import DeclarationError
from ddn_cvx.programs.nonlinear.least_squares import squared_terms
from ddn_cvx.programs.nonlinear.program import NonlinearProgram
from ddn_cvx.programs.nonlinear.smoothing import smoothed
from ddn_cvx.programs.nonlinear.unknown import Unknown
from ddn_cvx.programs.translation import TranslationError, translate
from ddn_cvx.solution import quiet_sparse_values

if TYPE_CHECKING:
    pass

Tensors = tuple[torch.Tensor, ...]
Rows = Callable[[torch.Tensor], torch.Tensor]

# Default start of a variable without a value, bounds aside: not zero, where many functions have a
# kink or a stationary point, but near it.
_DEFAULT_START = 0.0


@dataclass(frozen=True, eq=False)
class Compiled:
    """A program with what connects it to the declaration.

    Attributes:
        program: the functions.
        unknown: packs and unpacks ``u``.
        requested: for each of the declaration's variables, the slot among the unknowns' variables,
            or the dual variable's place.
        duals: for each of ``problem.constraints``, how its multipliers are read off ``y``.
        start: ``start(*inputs, given) -> (B, n)``.
    """

    program: NonlinearProgram
    unknown: Unknown
    requested: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]
    duals: list[tuple[Callable[[torch.Tensor], torch.Tensor], ...] | None]
    variables: list[Any]
    original: int
    auxiliary: list[tuple[int, Any]]
    symmetric: tuple[bool, ...]
    notes: tuple[str, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        """A program is immutable, and the declaration finds its variables by their identity."""
        return self

    def primal(self, u: torch.Tensor) -> list[torch.Tensor]:
        """Values of ``problem.variables()``, each ``(B, *shape)``."""
        return self.unknown.unpack(u)[: self.original]

    def inputs(self, tensors: Tensors) -> Tensors:
        """Symmetric parameters are read from their upper triangle, as in the cone programs."""
        return tuple(
            tensor.triu() + tensor.triu(1).mT if symmetric else tensor
            for tensor, symmetric in zip(tensors, self.symmetric, strict=True)
        )

    def start(
        self, inputs: Tensors, given: dict[int, torch.Tensor], batch: int, device: torch.device
    ) -> torch.Tensor:
        """The start, shape ``(B, n)``.

        Args:
            given: starts ``(B, *shape)`` by variable id; the others start at their ``value``, else
                near zero.
        """
        values: list[torch.Tensor] = []
        for variable in self.variables[: self.original]:
            if variable.id in given:
                values.append(given[variable.id].to(device=device, dtype=torch.float64))
                continue
            with quiet_sparse_values():
                value = variable.value
            if value is None:
                value = np.full(variable.shape, _DEFAULT_START)
            if hasattr(value, "toarray"):
                value = value.toarray()
            tensor = torch.as_tensor(np.asarray(value, dtype=np.float64), device=device)
            values.append(tensor.expand(batch, *variable.shape))
        values += [
            torch.zeros((batch, *variable.shape), dtype=torch.float64, device=device)
            for variable in self.variables[self.original :]
        ]
        for slot, function in self.auxiliary:
            values[slot] = torch.nan_to_num(function(*values, *inputs)).reshape_as(values[slot])
        return self.unknown.pack(values)


def compile_nonlinear(declaration: Declaration) -> Compiled:
    """Translate a declaration.

    Raises:
        DeclarationError: a variable is integer or complex, a constraint or an atom has no meaning
            here; the message says which and what to write.
    """
    problem = declaration.problem
    _refuse_unsuited(problem)
    reduced = smoothed(problem)
    original = list(problem.variables())
    known = {variable.id for variable in original}
    extra = [variable for variable in reduced.problem.variables() if variable.id not in known]
    order = {variable.id: place for place, (variable, _) in enumerate(reduced.values)}
    extra.sort(key=lambda variable: order.get(variable.id, len(order)))
    variables = [*original, *extra]
    leaves: list[Any] = [*variables, *declaration.parameters]
    unknown = Unknown(variables)
    try:
        objective = translate(reduced.problem.objective.expr, leaves)
        residuals = _residuals(reduced.problem.objective.expr, leaves)
        implied = [c for v in variables for c in _attribute_constraints(v)]
        domain = _domain(problem, reduced.problem)
        known_duals = {id(constraint): n for n, constraint in enumerate(reduced.constraints)}
        blocks = [
            _block(constraint, leaves, known_duals.get(id(constraint)))
            for constraint in [*reduced.problem.constraints, *implied, *_without_repeats(domain)]
        ]
        auxiliary = [
            (unknown.slots[variable.id], translate(value, leaves))
            for variable, value in reduced.values
        ]
    except TranslationError as error:
        raise DeclarationError(f"{error}") from error
    parts = [part for block in blocks for part in block.parts]
    parts.sort(key=lambda part: part.rank)
    cones = Cones(
        zero=sum(part.rows for part in parts if part.kind == "zero"),
        nonnegative=sum(part.rows for part in parts if part.kind == "nonnegative"),
        second_order=tuple(
            part.side for part in parts if part.kind == "second order" for _ in range(part.count)
        ),
        semidefinite=tuple(part.side for part in parts if part.kind == "semidefinite"),
    )
    affine = torch.tensor([part.affine for part in parts for _ in range(part.rows)])
    offset = 0
    for part in parts:
        part.start = offset
        offset += part.rows

    functions = _Functions(unknown, objective, parts, residuals)
    duals: list[tuple[Callable[[torch.Tensor], torch.Tensor], ...] | None]
    duals = [None] * len(problem.constraints)
    for block in blocks:
        if block.number is not None:
            duals[block.number] = block.duals()
    program = NonlinearProgram(
        variables=unknown.size,
        objective=functions.objective,
        constraint=functions.constraint if parts else None,
        cones=cones,
        affine=affine if parts else None,
        residuals=functions.residuals if residuals is not None else None,
        traceable=True,
    )
    requested: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = []
    dual_places = {
        variable.id: (number, place)
        for number, constraint in enumerate(problem.constraints)
        for place, variable in enumerate(constraint.dual_variables)
    }
    for variable in declaration.variables:
        if variable.id in known:
            requested.append(_Primal(unknown, unknown.slots[variable.id]))
            continue
        number, place = dual_places[variable.id]
        recovery = duals[number]
        if recovery is None:
            raise DeclarationError(
                f"The multipliers of constraint {problem.constraints[number]} are not available "
                "in a nonlinear program; ask for primal variables only."
            )
        requested.append(_Dual(recovery[place], tuple(variable.shape)))
    symmetric = tuple(
        any(p.attributes[name] for name in ("symmetric", "PSD", "NSD"))
        for p in declaration.parameters
    )
    notes = []
    if extra:
        notes.append(f"{len(extra)} nonsmooth atoms replaced by variables and constraints")
    elif _kinks(problem):
        notes.append(
            "nonsmooth atoms kept: the problem is not DNLP, derivatives at kinks one-sided"
        )
    return Compiled(
        program, unknown, requested, duals, variables, len(original), auxiliary, symmetric,
        tuple(notes),
    )  # fmt: skip


def _kinks(problem: Any) -> bool:
    from ddn_cvx.programs.nonlinear.smoothing import has_kinks

    return has_kinks(problem)


class _Primal:
    """One variable of the solution."""

    def __init__(self, unknown: Unknown, slot: int) -> None:
        self.unknown, self.slot = unknown, slot

    def __call__(self, u: torch.Tensor, dual: torch.Tensor) -> torch.Tensor:
        return self.unknown.unpack(u)[self.slot]


class _Dual:
    """One dual variable of the solution."""

    def __init__(self, recovery: Any, shape: tuple[int, ...]) -> None:
        self.recovery, self.shape = recovery, shape

    def __call__(self, u: torch.Tensor, dual: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.recovery(dual)
        return value.reshape(value.shape[0], *self.shape)


class _Functions:
    """The program's functions, over the flat unknown."""

    def __init__(
        self, unknown: Unknown, objective: Any, parts: list[_Part], residuals: Any
    ) -> None:
        self.unknown, self._objective, self._parts = unknown, objective, parts
        self._residuals = residuals

    def objective(self, u: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self._objective(*self.unknown.unpack(u), *inputs)
        return value.reshape(u.shape[0])

    def constraint(self, u: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        leaves = (*self.unknown.unpack(u), *inputs)
        rows = []
        for part in self._parts:
            arguments = tuple(function(*leaves) for function in part.functions)
            rows.append(part.assemble(*arguments))
        return torch.cat(rows, 1) if len(rows) > 1 else rows[0]

    def residuals(self, u: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        leaves = (*self.unknown.unpack(u), *inputs)
        found = []
        for weight, residual in self._residuals:
            value = residual(*leaves)
            root = weight(*leaves).sqrt()
            if root.ndim != value.ndim:
                root = root.reshape(-1, *[1] * (value.ndim - 1))
            found.append(flat(root * value))
        return torch.cat(found, 1)


def _residuals(expression: Any, leaves: list[Any]) -> list[tuple[Any, Any]] | None:
    terms = squared_terms(expression)
    if terms is None:
        return None
    return [(translate(weight, leaves), translate(value, leaves)) for weight, value in terms]


# -- constraints --------------------------------------------------------------------------------

_RANKS = {"zero": 0, "nonnegative": 1, "second order": 2, "semidefinite": 3}


@dataclass(eq=False)
class _Part:
    """Rows of one kind from one constraint.

    Attributes:
        kind: of cone.
        functions: translated arguments.
        assemble: their values to rows ``(B, rows)``.
        rows, side, count: number of rows; size of one cone and how many there are.
        affine: the rows are affine in the unknown.
        start: first row in ``c``.
    """

    kind: str
    functions: list[Any]
    assemble: Callable[..., torch.Tensor]
    rows: int
    affine: bool
    side: int = 0
    count: int = 1
    start: int = 0

    @property
    def rank(self) -> int:
        return _RANKS[self.kind]


@dataclass(eq=False)
class _Block:
    """One cvxpy constraint: its parts, and which of ``problem.constraints`` it is."""

    parts: list[_Part]
    number: int | None
    read: tuple[Any, ...] | None = None

    def duals(self) -> tuple[Callable[[torch.Tensor], torch.Tensor], ...] | None:
        if self.read is None:
            return None
        part = self.parts[0]
        return tuple(_Read(part, read) for read in self.read)


class _Read:
    def __init__(self, part: _Part, read: Any) -> None:
        self.part, self.read = part, read

    def __call__(self, dual: torch.Tensor) -> torch.Tensor:
        rows = dual[:, self.part.start : self.part.start + self.part.rows]
        value: torch.Tensor = self.read(rows)
        return value


class _Flat:
    """``sign * argument`` as rows."""

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        return flat(value) if self.sign == 1 else -flat(value)


class _Shaped:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.reshape(len(rows), *self.shape)


class _Triangle:
    """A symmetric matrix as its scaled lower triangle, column by column, negated."""

    def __init__(self, side: int) -> None:
        from ddn_cvx.batch.device import OnDevice

        columns, rows = np.triu_indices(side)
        scale = np.where(rows == columns, 1.0, np.sqrt(2.0))
        self.side = side
        self._constants = OnDevice(rows, columns, scale)

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        rows, columns, scale = self._constants(value.device)
        symmetric = 0.5 * (value + value.mT)
        return -symmetric[:, rows, columns] * scale.to(value.dtype)


class _Matrix:
    """The scaled lower triangle as a symmetric matrix."""

    def __init__(self, triangle: _Triangle) -> None:
        self.triangle = triangle

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        rows, columns, scale = self.triangle._constants(vector.device)
        values = vector / scale.to(vector.dtype)
        matrix = vector.new_zeros((len(vector), self.triangle.side, self.triangle.side))
        upper = matrix.index_put((_all(vector), rows, columns), values)
        return upper.index_put((_all(vector), columns, rows), values)


def _all(vector: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(vector), device=vector.device).unsqueeze(1)


class _Cone:
    """Second-order cones ``|X[:, i]| <= t[i]`` as rows ``-(t, X)``, cone by cone."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def __call__(self, t: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
        heights = flat(t).unsqueeze(2)
        # cones by entries: X holds a cone's vector in a column, or in a row
        matrix = X.mT if X.ndim > 2 and self.axis == 0 else X
        rest = flat(matrix).unflatten(1, (heights.shape[1], -1))
        return -torch.cat([heights, rest], 2).flatten(1)


class _ConeHeight:
    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        self.size, self.shape = size, shape

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        heights: torch.Tensor = rows.unflatten(1, (-1, self.size))[:, :, 0]
        return heights.reshape(len(rows), *self.shape)


class _ConeRest:
    def __init__(self, size: int, shape: tuple[int, ...], axis: int) -> None:
        self.size, self.shape, self.axis = size, shape, axis

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        rest: torch.Tensor = rows.unflatten(1, (-1, self.size))[:, :, 1:]
        if len(self.shape) == 2 and self.axis == 0:
            rest = rest.mT
        return rest.reshape(len(rows), *self.shape)


def _block(constraint: Any, leaves: list[Any], number: int | None) -> _Block:
    import cvxpy as cp
    from cvxpy.constraints.nonpos import Inequality
    from cvxpy.constraints.zero import Equality

    def simple(kind: str, expression: Any, sign: float) -> _Block:
        function = translate(expression, leaves)
        part = _Part(kind, [function], _Flat(sign), expression.size, expression.is_affine())
        return _Block([part], number, (_Shaped(tuple(expression.shape)),))

    if isinstance(constraint, Equality):
        return simple("zero", constraint.args[0] - constraint.args[1], 1)
    if isinstance(constraint, cp.Zero):
        return simple("zero", constraint.args[0], 1)
    if isinstance(constraint, Inequality):
        return simple("nonnegative", constraint.args[0] - constraint.args[1], 1)
    if isinstance(constraint, cp.NonNeg):
        return simple("nonnegative", constraint.args[0], -1)
    if isinstance(constraint, cp.NonPos):
        return simple("nonnegative", constraint.args[0], 1)
    if isinstance(constraint, cp.PSD):
        expression = constraint.args[0]
        triangle = _Triangle(expression.shape[0])
        rows = triangle.side * (triangle.side + 1) // 2
        function = translate(expression, leaves)
        part = _Part(
            "semidefinite", [function], triangle, rows, expression.is_affine(), triangle.side
        )
        return _Block([part], number, (_Matrix(triangle),))
    if isinstance(constraint, cp.SOC):
        t, X = constraint.args
        axis = constraint.axis if constraint.axis is not None else 0
        count = max(1, t.size)
        size = 1 + X.size // count
        functions = [translate(t, leaves), translate(X, leaves)]
        affine = t.is_affine() and X.is_affine()
        rows = count * size
        part = _Part("second order", functions, _Cone(axis), rows, affine, size, count)
        read = (_ConeHeight(size, tuple(t.shape)), _ConeRest(size, tuple(X.shape), axis))
        return _Block([part], number, read)
    if isinstance(constraint, cp.ExpCone):
        x, y, z = constraint.args
        # y > 0, x <= y log(z / y): smooth inside, without the overflow of y exp(x / y).
        inside = x + cp.rel_entr(y, z)
        parts = [simple("nonnegative", inside, 1).parts[0]]
        parts += [simple("nonnegative", side, -1).parts[0] for side in (y, z)]
        return _Block(parts, number)
    if isinstance(constraint, cp.PowCone3D | cp.PowConeND):
        factors, z = _power_factors(constraint)
        mean: Any = 1.0
        for factor, exponents in factors:
            mean = cp.multiply(mean, _powers(factor, exponents))
        parts = [simple("nonnegative", z - mean, 1).parts[0]]
        sides = [z + mean, *(factor for factor, _ in factors)]
        parts += [simple("nonnegative", side, -1).parts[0] for side in sides]
        return _Block(parts, number)
    raise DeclarationError(
        f"The constraint {str(constraint)[:120]} ({type(constraint).__name__}) has no meaning in a "
        "nonlinear program; write it with ==, <=, >=, >> or cp.SOC."
    )


def _power_factors(constraint: Any) -> tuple[list[tuple[Any, np.ndarray]], Any]:
    """The factors of the weighted geometric mean, each with its exponents, and what it bounds."""
    import cvxpy as cp

    def vector(expression: Any) -> Any:
        return cp.vec(expression, order="F")

    alpha = np.asarray(constraint.alpha.value, dtype=np.float64)
    if isinstance(constraint, cp.PowCone3D):
        x, y, z = (vector(part) for part in constraint.args)
        alpha = np.broadcast_to(alpha.reshape(-1, order="F"), z.shape)
        return [(x, alpha), (y, 1 - alpha)], z
    W, z = constraint.args
    if constraint.axis == 1:
        W, alpha = W.T, alpha.T
    if W.ndim == 1:
        return [(vector(W[i]), alpha[i].reshape(1)) for i in range(W.shape[0])], vector(z)
    return [(W[i], alpha[i]) for i in range(W.shape[0])], vector(z)


def _powers(base: Any, exponents: np.ndarray) -> Any:
    """Entrywise powers; cvxpy's ``power`` takes one exponent for all."""
    import cvxpy as cp

    if np.ptp(exponents) == 0:
        return cp.power(base, float(exponents[0]))
    return cp.hstack([cp.power(base[i], float(e)) for i, e in enumerate(exponents)])


def _attribute_constraints(variable: Any) -> list[Any]:
    """A variable's declared domain as constraints."""
    attributes = variable.attributes
    found: list[Any] = []
    if attributes["nonneg"] or attributes["pos"]:
        found.append(variable >= 0)
    if attributes["nonpos"] or attributes["neg"]:
        found.append(variable <= 0)
    if attributes["PSD"]:
        found.append(variable >> 0)
    if attributes["NSD"]:
        found.append(variable << 0)
    limits = attributes["bounds"]
    if limits is not None:
        for limit, upper in ((limits[0], False), (limits[1], True)):
            found += _bound(variable, limit, upper=upper)
    return found


def _bound(variable: Any, limit: Any, *, upper: bool) -> list[Any]:
    import cvxpy as cp

    if limit is None:
        return []
    if isinstance(limit, cp.Expression) and limit.parameters():
        return [variable <= limit if upper else variable >= limit]
    value = np.broadcast_to(
        np.asarray(getattr(limit, "value", limit), dtype=np.float64), variable.shape
    )
    finite = np.isfinite(value)
    if not finite.any():
        return []
    if finite.all():
        return [variable <= value if upper else variable >= value]
    kept = np.flatnonzero(finite.reshape(-1, order="C"))
    flat = cp.vec(variable, order="C")[kept]
    limits = value.reshape(-1, order="C")[kept]
    return [flat <= limits if upper else flat >= limits]


def _domain(problem: Any, reduced: Any) -> list[Any]:
    """Where the expressions are defined, as constraints.

    cvxpy's rules for convex problems restrict ``x**3`` to nonnegative ``x``, where it is convex;
    elsewhere an integer power means what it says.
    """
    import cvxpy as cp

    constraints = [a for constraint in reduced.constraints for a in constraint.args]
    expressions = [reduced.objective.expr, *constraints]
    if problem.is_dcp():
        return [c for expression in expressions for c in expression.domain]
    found: list[Any] = []
    seen: set[int] = set()

    def visit(expression: Any) -> None:
        if id(expression) in seen or not expression.variables():
            return
        seen.add(id(expression))
        for argument in expression.args:
            visit(argument)
        if isinstance(expression, cp.Power | cp.PowerApprox):
            exponent = getattr(expression.p, "value", None)
            if exponent is not None and float(exponent) >= 0 and float(exponent).is_integer():
                return
        if isinstance(expression, cp.atoms.atom.Atom):
            found.extend(expression._domain())

    for expression in expressions:
        visit(expression)
    return found


def _without_repeats(constraints: list[Any]) -> list[Any]:
    """Each implied constraint once; cvxpy lists a domain for every place that needs it."""
    seen: set[Any] = set()
    kept = []
    for constraint in constraints:
        if not any(argument.variables() for argument in constraint.args):
            continue
        # The text alone abbreviates large constants, and says names, not variables.
        leaves = tuple(variable.id for variable in constraint.variables())
        numbers = tuple(_dense(c.value).tobytes() for c in constraint.constants())
        key = (str(constraint), leaves, numbers)
        if key not in seen:
            seen.add(key)
            kept.append(constraint)
    return kept


def _dense(value: Any) -> np.ndarray:
    return np.asarray(value.toarray() if hasattr(value, "toarray") else value)


def _refuse_unsuited(problem: Any) -> None:
    for variable in problem.variables():
        if variable.attributes["integer"] or variable.attributes["boolean"]:
            raise DeclarationError(
                f"Variable {variable.name()} is integer or boolean: the solution would jump, and "
                "have no derivative. Relax it to an interval (bounds=[0, 1])."
            )
        if variable.is_complex():
            raise DeclarationError(
                f"Variable {variable.name()} is complex; write real and imaginary part as two "
                "variables."
            )
