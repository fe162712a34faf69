"""A declaration compiled to a cone program: structure, and affine maps from parameters to data.

The program of one batch element, and its optimality conditions, with the multipliers' signs that
hold everywhere in this package:

    minimise    1/2 x' P x + q' x                 P x + q + A' y = 0
    subject to  A x + s = b,  s in K              A x + s = b
                                                  s in K, y in K*, <s, y> = 0

The Lagrangian is ``1/2 x'Px + q'x + y'(Ax + s - b)``. The rows are ordered as SCS orders them (see
:mod:`ddn_cvx.cones.product`). Canonicalisation is cvxpylayers' and cvxpy's.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ddn_cvx.batch.columns import picked, placed
from ddn_cvx.batch.device import OnDevice
from ddn_cvx.cones.product import Cones
from ddn_cvx.programs.cone.affine_map import AffineMap
from ddn_cvx.programs.cone.quadratic_forms import FactoredProblem, factor_quadratic_forms
from ddn_cvx.solution import quiet_sparse_values, restored_values

if TYPE_CHECKING:
    import cvxpy as cp

    from ddn_cvx.declaration import Declaration


@dataclass(frozen=True, eq=False)
class Pattern:
    """Sparsity of a matrix whose values are stored column by column (CSC).

    Attributes:
        indices, indptr: scipy's CSC structure.
        shape: number of rows and columns.
    """

    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, int]

    @cached_property
    def rows(self) -> np.ndarray:
        """Row of each stored value."""
        return np.asarray(self.indices, dtype=np.int64)

    @cached_property
    def columns(self) -> np.ndarray:
        """Column of each stored value."""
        return np.repeat(np.arange(self.shape[1], dtype=np.int64), np.diff(self.indptr))

    @cached_property
    def places(self) -> OnDevice:
        """Rows, columns and row-major positions of the stored values, as tensors."""
        return OnDevice(self.rows, self.columns, self.rows * self.shape[1] + self.columns)

    @property
    def stored(self) -> int:
        """Number of stored values."""
        return len(self.indices)

    def sparse(self, values: np.ndarray) -> Any:
        """The scipy CSC matrix with these values, shape ``(stored,)``."""
        import scipy.sparse

        return scipy.sparse.csc_matrix((values, self.indices, self.indptr), shape=self.shape)

    def dense(self, values: torch.Tensor) -> torch.Tensor:
        """Dense matrices ``(B, rows, columns)`` from values of shape ``(B, stored)``."""
        rows, columns = self.shape
        _, _, flat = self.places(values.device)
        dense: torch.Tensor = placed(values, flat, rows * columns).unflatten(1, (rows, columns))
        return dense


@dataclass(frozen=True, eq=False)
class Recovery:
    """How a variable is read from the primal or dual vector: a gather and a scale.

    Attributes:
        source: ``"primal"`` or ``"dual"``.
        index: position of each entry of the variable (row-major) in the vector.
        scale: factor of each entry; zero where the variable's structure makes the entry zero.
        shape: the variable's shape.
        exponential: take the exponential (geometric programs are solved in logarithms).
    """

    source: str
    index: np.ndarray
    scale: np.ndarray
    shape: tuple[int, ...]
    exponential: bool = False

    @cached_property
    def _places(self) -> OnDevice:
        return OnDevice(self.index, self.scale)

    def __call__(self, primal: torch.Tensor, dual: torch.Tensor) -> torch.Tensor:
        """The variable, shape ``(B, *shape)``, from ``(B, n)`` and ``(B, m)``."""
        vector = primal if self.source == "primal" else dual
        index, scale = self._places(vector.device)
        value = picked(vector, index) * scale
        if self.exponential:
            value = value.exp()
        return value.reshape((value.shape[0], *self.shape))


@dataclass(frozen=True, eq=False)
class ConeData:
    """The data of a batch of cone programs: values over the program's patterns.

    Attributes:
        P: shape ``(B, P_pattern.stored)``; the full symmetric matrix, or no columns if linear.
        q: shape ``(B, n)``.
        A: shape ``(B, A_pattern.stored)``.
        b: shape ``(B, m)``.
    """

    P: torch.Tensor
    q: torch.Tensor
    A: torch.Tensor
    b: torch.Tensor

    @property
    def batch(self) -> int:
        """Number of elements ``B``."""
        return self.q.shape[0]

    def select(self, elements: torch.Tensor | slice) -> ConeData:
        """The data of some elements."""
        return ConeData(self.P[elements], self.q[elements], self.A[elements], self.b[elements])

    def detach(self) -> ConeData:
        """The same values without derivatives."""
        tensors = (self.P, self.q, self.A, self.b)
        return ConeData(*(tensor.detach() for tensor in tensors))

    def detach_to_host(self) -> ConeData:
        """Detached copies in host memory, for the external solvers."""
        tensors = (self.P, self.q, self.A, self.b)
        return ConeData(*(tensor.detach().cpu().contiguous() for tensor in tensors))


@dataclass(frozen=True, eq=False)
class ConeProgram:
    """The compiled program: everything but the parameters' values.

    Attributes:
        variables: number of canonical variables ``n``.
        cones: the product of cones ``K``.
        P_pattern, A_pattern: sparsity of ``P`` (full symmetric) and ``A``.
        P_map, q_map, A_map, b_map: affine maps from the stacked parameters.
        recoveries: one for each variable the layer returns.
        primal_recoveries: one for each of ``problem.variables()``.
        dual_recoveries: for each constraint of the problem, one for each of its dual variables,
            or None where cvxpy does not report the constraint's multipliers.
        logarithm: which parameters enter through their logarithm (geometric programs).
        factored: the rewriting of parametric quadratic forms that came first, if one was needed.
        context: cvxpylayers' own context, kept only when a foreign interface needs it.
    """

    variables: int
    cones: Cones
    P_pattern: Pattern
    A_pattern: Pattern
    P_map: AffineMap
    q_map: AffineMap
    A_map: AffineMap
    b_map: AffineMap
    recoveries: tuple[Recovery, ...]
    primal_recoveries: tuple[Recovery, ...]
    dual_recoveries: tuple[tuple[Recovery, ...] | None, ...]
    logarithm: tuple[bool, ...]
    factored: FactoredProblem | None = None
    context: Any = field(default=None, repr=False)

    has_pattern: ClassVar[bool] = True

    @property
    def rows(self) -> int:
        """Number of rows ``m``."""
        return self.cones.rows

    @property
    def is_checked(self) -> bool:
        """Rows are ordered as SCS orders them, so that the residual can be computed.

        A foreign interface may ask cvxpy for another order of semidefinite rows.
        """
        if self.context is None or not self.cones.semidefinite:
            return True
        return self.context.solver.canon_solver_name in ("SCS", "DIFFCP")

    @property
    def is_quadratic(self) -> bool:
        """The objective has a quadratic term."""
        return self.P_pattern.stored > 0

    def data(self, stacked: torch.Tensor) -> ConeData:
        """Problem data from stacked parameters of shape ``(B, N)``, float64."""
        together, apart = self._maps
        parts = {name: affine(stacked) for name, affine in apart.items()}
        if together:
            joint, *names = together
            sizes = [getattr(self, f"{name}_map").outputs for name in names]
            parts.update(zip(names, joint(stacked).split(sizes, 1), strict=True))
        return ConeData(**parts)

    @cached_property
    def _maps(self) -> tuple[tuple[Any, ...], dict[str, AffineMap]]:
        """Maps that only gather, joined to one with the names of its parts, and the others.

        One pass forward and one back is less than one for each.
        """
        maps = {name: getattr(self, f"{name}_map") for name in ("P", "q", "A", "b")}
        gathers = {name: affine for name, affine in maps.items() if affine.is_gather}
        if len(gathers) < 2:
            return (), maps
        apart = {name: affine for name, affine in maps.items() if name not in gathers}
        return (AffineMap.stacked(tuple(gathers.values())), *gathers), apart


def compile_program(
    declaration: Declaration,
    *,
    interface: Any = None,
    quadratic_objective: bool = True,
    verbose: bool = False,
    canon_backend: str | None = None,
) -> ConeProgram:
    """Canonicalise a declaration through cvxpylayers.

    Args:
        declaration: a DCP and DPP problem (or log-log convex, with ``gp``).
        interface: a foreign ``SolverInterface`` whose form of the data is wanted.
        quadratic_objective: keep a quadratic objective (``P``); otherwise it becomes a
            second-order cone, the only form diffcp's adjoint takes.
        verbose: let cvxpy print what it compiles.
        canon_backend: cvxpy's canonicalisation backend.
    """
    solver = interface if interface is not None else _canonicaliser(quadratic_objective)
    problem, gp = declaration.problem, declaration.gp
    parameters, chosen = declaration.parameters, list(declaration.variables)
    factored = None
    if not gp and not _is_parametrized(problem, quadratic_objective):
        factored = factor_quadratic_forms(problem, parameters)
    if factored is not None:
        problem, parameters = factored.problem, factored.parameters
        chosen = [factored.duals.get(variable.id, variable) for variable in chosen]
    primal = list(declaration.problem.variables())
    duals = [list(constraint.dual_variables) for constraint in problem.constraints]

    import cvxpy as cp

    from ddn_cvx.programs.cone.presolve import presolved

    # cvxpy caches what it compiled with the problem, and cvxpylayers permutes that cache in place
    # for some solvers: a shell of our own, which shares all but the cache, is never touched.
    problem = cp.Problem(problem.objective, problem.constraints)

    def parse(variables: list[cp.Variable]) -> Any:
        import cvxpylayers.utils.parse_args as pa

        with _quiet_compilation():
            return pa.parse_args(
                problem,
                variables,
                list(parameters),
                None,
                gp=gp,
                verbose=verbose,
                canon_backend=canon_backend,
                custom_solver=solver,
            )

    try:
        context = parse(chosen + primal + [dual for group in duals for dual in group])
        reported = [True] * len(duals)
    except KeyError:  # cvxpy drops the multipliers of some constraints; find out which
        context, reported = parse(chosen + primal), [False] * len(duals)
        for position, group in enumerate(duals):
            with contextlib.suppress(KeyError):
                parse(group)
                reported[position] = True
        kept = [dual for group, good in zip(duals, reported, strict=True) if good for dual in group]
        context = parse(chosen + primal + kept)
    parents = {
        dual.id: constraint
        for constraint, group in zip(problem.constraints, duals, strict=True)
        for dual in group
    }
    recoveries = iter(
        _recovery(entry, variable, gp, parents.get(variable.id))
        for entry, variable in zip(context.var_recover, context.variables, strict=True)
    )
    shape, maps = _maps(context, parameters)
    program = ConeProgram(
        variables=shape["n"],
        cones=Cones.from_cvxpy(context.cone_dims),
        P_pattern=shape["P"],
        A_pattern=shape["A"],
        **maps,
        recoveries=tuple(next(recoveries) for _ in chosen),
        primal_recoveries=tuple(next(recoveries) for _ in primal),
        dual_recoveries=tuple(
            tuple(next(recoveries) for _ in group) if good else None
            for group, good in zip(duals, reported, strict=True)
        ),
        logarithm=tuple(context.gp_log_mask or [False] * len(parameters)),
        factored=factored,
        context=context if interface is not None else None,
    )
    return program if interface is not None else presolved(program)


def _is_parametrized(problem: cp.Problem, quadratic_objective: bool) -> bool:
    """The problem is DPP; a parametric matrix in a quadratic objective counts only if asked."""
    if quadratic_objective:
        return bool(problem.is_dpp(quad_form_dpp="qp"))  # type: ignore[call-arg]
    return bool(problem.is_dpp())


def _canonicaliser(quadratic_objective: bool) -> Any:
    """A ``SolverInterface`` that asks cvxpylayers for the wanted form and never solves."""
    from cvxpylayers.interfaces.base import SolverInterface

    def never(*_: Any) -> Any:
        raise NotImplementedError("this interface only canonicalises")

    return SolverInterface.from_functions(
        never,
        never,
        canon_solver="SCS" if quadratic_objective else "DIFFCP",
        supports_quad_obj=quadratic_objective,
    )


@contextlib.contextmanager
def _quiet_compilation() -> Any:
    """Without cvxpy's warnings that the user cannot act on.

    That powers become second-order cones, and that cvxpy reads its own sparse variables.
    """
    import warnings

    with quiet_sparse_values(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Power atom with exponent")
        yield


def _recovery(entry: Any, variable: cp.Variable, gp: bool, constraint: Any) -> Recovery:
    if entry.source == "dual":
        return _dual_recovery(entry, variable, constraint)
    from cvxpy.reductions.cvx_attr2constr import recover_value_for_leaf

    # cvxpy stores a structured variable in fewer entries. Recovering the numbers 1, 2, ... tells
    # which stored entry each entry of the variable reads, zero meaning none.
    size = _stored_size(variable)
    if size is None:
        numbers = np.arange(1.0, variable.size + 1.0).reshape(variable.shape, order="F")
    else:
        value = recover_value_for_leaf(variable, np.arange(1.0, size + 1.0), project=False)
        numbers = value.toarray() if hasattr(value, "toarray") else np.asarray(value)
    flat = numbers.reshape(-1).astype(np.int64)
    start = entry.primal.start
    return Recovery(
        "primal",
        np.where(flat > 0, start + flat - 1, start),
        (flat > 0).astype(np.float64),
        tuple(variable.shape),
        exponential=gp,
    )


def _stored_size(variable: cp.Variable) -> int | None:
    """Number of entries in which cvxpy stores a structured variable; None without structure."""
    attributes = variable.attributes
    if attributes["diag"]:
        return int(variable.shape[0])
    if any(attributes[name] for name in ("symmetric", "PSD", "NSD")):
        side = variable.shape[-1]
        return int(variable.size // (side * side)) * (side * (side + 1) // 2)
    if attributes["sparsity"]:
        return len(variable.sparse_idx[0])
    return None


def _dual_recovery(entry: Any, variable: cp.Variable, constraint: Any) -> Recovery:
    start = entry.dual.start
    if entry.unpack_fn == "svec_dual":
        side = entry.shape[0]
        columns, rows = np.triu_indices(side)
        index = np.zeros((side, side), dtype=np.int64)
        index[rows, columns] = index[columns, rows] = start + np.arange(len(rows))
        scale = np.full((side, side), np.sqrt(0.5))
        np.fill_diagonal(scale, 1.0)
        return Recovery("dual", index.reshape(-1), scale.reshape(-1), tuple(entry.shape))
    size = int(np.prod(entry.shape, dtype=np.int64))
    if len(constraint.dual_variables) == 1:
        index = (start + np.arange(size)).reshape(entry.shape, order="F").reshape(-1)
        return Recovery("dual", index, np.ones(size), tuple(entry.shape))
    # cvxpylayers takes a constraint's dual variables to lie behind one another; they take turns,
    # cone by cone.
    for dual, rows in zip(constraint.dual_variables, _rows_of_cones(constraint), strict=True):
        if dual.id == variable.id:
            return Recovery("dual", start + rows.reshape(-1), np.ones(size), tuple(entry.shape))
        start -= dual.size
    raise AssertionError(f"{variable} is not a dual variable of {constraint}")


def _rows_of_cones(constraint: Any) -> list[np.ndarray]:
    """Row of each entry of each dual variable, counted from the constraint's first row.

    Recovering the numbers 0, 1, ... by cvxpy's own methods tells.
    """
    import cvxpy as cp

    duals = constraint.dual_variables
    with restored_values(duals):
        if isinstance(constraint, cp.PowConeND):
            constraint.save_dual_value(_three_dimensional_rows(constraint))
        elif isinstance(constraint, cp.PowCone3D):
            constraint.save_dual_value(np.arange(constraint.size).reshape(3, -1, order="F"))
        else:
            constraint.save_dual_value(np.arange(constraint.size))
        return [np.asarray(dual._value).reshape(dual.shape).astype(np.int64) for dual in duals]


def _three_dimensional_rows(constraint: Any) -> np.ndarray:
    """As :func:`_rows_of_cones` for a ``PowConeND``, which becomes a tree of ``PowCone3D``."""
    from types import SimpleNamespace

    from cvxpy.reductions.cone2cone.exact import PowNDConversion

    lowered, _ = PowNDConversion.canonicalize(constraint, constraint.args)
    inverse = SimpleNamespace()
    PowNDConversion.apply_hook(constraint, lowered, [], inverse)
    numbers = np.arange(lowered.size).reshape(3, -1, order="F")
    return np.asarray(PowNDConversion.recover_dual(constraint, numbers, inverse, None))


def _maps(context: Any, parameters: Any) -> tuple[dict[str, Any], dict[str, AffineMap]]:
    import scipy.sparse

    matrix_q = scipy.sparse.csr_array(context.q)
    n = matrix_q.shape[0] - 1  # the last row is the objective's constant
    columns = _parameter_columns(context, parameters)

    def affine(matrix: Any) -> AffineMap:
        matrix = scipy.sparse.csc_array(matrix)
        padded = scipy.sparse.hstack([matrix, scipy.sparse.csc_array((matrix.shape[0], 1))])
        chosen = scipy.sparse.csc_array(padded)[:, columns]
        offset = np.asarray(matrix[:, [-1]].todense()).reshape(-1)
        return AffineMap.from_sparse(chosen, offset)

    if context.reduced_P is not None and context.reduced_P.reduced_mat is not None:
        indices, indptr, shape = context.reduced_P.problem_data_index
        P_pattern = Pattern(indices, indptr, (int(shape[0]), int(shape[1])))
        P_matrix = context.reduced_P.reduced_mat
    else:
        P_pattern = Pattern(np.zeros(0, np.int32), np.zeros(n + 1, np.int32), (n, n))
        P_matrix = scipy.sparse.csr_array((0, matrix_q.shape[1]))

    A_structure = context.reduced_A.problem_data_index
    if A_structure is None:
        indices, indptr, m = np.zeros(0, np.int32), np.zeros(n + 2, np.int32), 0
        A_matrix = scipy.sparse.csr_array((0, matrix_q.shape[1]))
    else:
        indices, indptr, (m, _) = A_structure
        A_matrix = scipy.sparse.csr_array(context.reduced_A.reduced_mat)
    # cvxpy stores [A | b] with s = A x + b; ours is A x + s = b.
    stored = int(indptr[-2])
    A_pattern = Pattern(indices[:stored], indptr[:-1], (int(m), n))
    b_rows = np.asarray(indices[stored:], dtype=np.int64)
    scatter = scipy.sparse.csr_array(
        (np.ones(len(b_rows)), (b_rows, np.arange(len(b_rows)))), shape=(int(m), len(b_rows))
    )
    shapes = {"n": n, "P": P_pattern, "A": A_pattern}
    maps = {
        "P_map": affine(P_matrix),
        "q_map": affine(matrix_q[:-1]),
        "A_map": affine(-A_matrix[:stored]),
        "b_map": affine(scatter @ A_matrix[stored:]),
    }
    return shapes, maps


def _parameter_columns(context: Any, parameters: Any) -> np.ndarray:
    """Column of cvxpy's parameter vector for each entry of the stacked parameters (row-major).

    Entries that cvxpy does not read (below the diagonal of symmetric parameters) get -1.
    """
    sizes = []
    for position, parameter in enumerate(parameters):
        triangle = context.param_triu_indices[position] if context.param_triu_indices else None
        sizes.append(parameter.size if triangle is None else len(triangle[0]))
    start_of = {}
    start = 0
    for position in np.argsort(context.user_order_to_col_order):
        start_of[int(position)] = start
        start += sizes[int(position)]
    columns = []
    for position, parameter in enumerate(parameters):
        triangle = context.param_triu_indices[position] if context.param_triu_indices else None
        numbers = start_of[position] + np.arange(sizes[position])
        if triangle is None:
            columns.append(numbers.reshape(parameter.shape, order="F").reshape(-1))
        else:
            full = np.full(parameter.shape, -1, dtype=np.int64)
            full[np.array(triangle[0]), np.array(triangle[1])] = numbers
            columns.append(full.reshape(-1))
    stacked = np.concatenate(columns) if columns else np.zeros(0, dtype=np.int64)
    return stacked.astype(np.int64)
