"""A declaration compiled to a cone program; canonicalisation is cvxpylayers' and cvxpy's."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ddn_cvx.cones.product import Cones
from ddn_cvx.declaration import Declaration
from ddn_cvx.errors import DeclarationError
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.linalg.triangle import scaled_triangle
from ddn_cvx.programs.cone.affine_map import AffineMap
from ddn_cvx.programs.cone.presolve import presolved
from ddn_cvx.programs.cone.program import ConeProgram
from ddn_cvx.programs.cone.quadratic_forms import FactoredProblem, factor_quadratic_forms
from ddn_cvx.programs.diagnosis import (
    explanation,
    refuse_if_too_large,
    refused_leaf,
    too_large,
)
from ddn_cvx.programs.recovery import Recovery
from ddn_cvx.solution import quiet_sparse_values, restored_values

if TYPE_CHECKING:
    import cvxpy as cp


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

    Raises:
        DeclarationError: the problem is not DCP or not DPP (the message shows the offending
            subexpression and what to write instead), cvxpy cannot canonicalise it, or its
            canonical maps would not fit in memory.
    """
    from cvxpy.error import SolverError

    refused = refused_leaf(declaration.problem)
    if refused is not None:
        raise DeclarationError(refused)
    refuse_if_too_large(declaration.problem, quadratic_objective=quadratic_objective)
    solver = interface if interface is not None else _canonicaliser(quadratic_objective)
    options = {"verbose": verbose, "canon_backend": canon_backend, "custom_solver": solver}
    try:
        request = _request(declaration, quadratic_objective)
        context, reported = _canonicalised(request, options)
        program = _program(request, context, reported)
    except DeclarationError:
        raise
    except MemoryError as error:
        raise too_large(f"not fit in memory: {error}") from error
    except (ValueError, KeyError, NotImplementedError, SolverError) as error:
        why = explanation(declaration)
        message = why.text if why else f"cvxpy cannot compile this problem: {error}"
        raise DeclarationError(message) from error
    if interface is not None:
        return replace(program, context=context)
    return presolved(program)


class _Request(NamedTuple):
    """The problem that is compiled, and whose values are to be read from the cone program.

    Attributes:
        problem: the user's, or one without parametric quadratic forms.
        parameters: its parameters.
        gp: it is a geometric program.
        requested: variables that the layer returns.
        primal: the user's ``problem.variables()``.
        duals: the dual variables of each constraint.
        factored: how the problem was rewritten, if it was.
    """

    problem: cp.Problem
    parameters: Sequence[cp.Parameter]
    gp: bool
    requested: list[cp.Variable]
    primal: list[cp.Variable]
    duals: list[list[cp.Variable]]
    factored: FactoredProblem | None


def _request(declaration: Declaration, quadratic_objective: bool) -> _Request:
    import cvxpy as cp

    problem, parameters = declaration.problem, declaration.parameters
    requested, factored = list(declaration.variables), None
    primal = list(problem.variables())
    if not declaration.gp and not _is_parametrized(problem, quadratic_objective):
        factored = factor_quadratic_forms(problem, parameters)
    if factored is not None:
        problem, parameters = factored.problem, factored.parameters
        requested = [factored.duals.get(variable.id, variable) for variable in requested]
    duals = [list(constraint.dual_variables) for constraint in problem.constraints]
    # cvxpy caches the compiled program with the problem, and cvxpylayers permutes that cache in
    # place for some solvers: a shell that shares all but the cache keeps the user's untouched.
    problem = cp.Problem(problem.objective, problem.constraints)
    return _Request(problem, parameters, declaration.gp, requested, primal, duals, factored)


def _canonicalised(request: _Request, options: dict[str, Any]) -> tuple[Any, list[bool]]:
    """cvxpylayers' context, and for each constraint whether cvxpy reports its multipliers."""

    def parse(variables: list[cp.Variable]) -> Any:
        import cvxpylayers.utils.parse_args as pa

        problem, parameters = request.problem, list(request.parameters)
        with _quiet_compilation():
            return pa.parse_args(problem, variables, parameters, None, gp=request.gp, **options)

    duals, variables = request.duals, request.requested + request.primal
    try:
        return parse(variables + _joined(duals)), [True] * len(duals)
    except KeyError:  # cvxpy drops the multipliers of some constraints: find out which
        pass

    def is_reported(group: list[cp.Variable]) -> bool:
        with contextlib.suppress(KeyError):
            parse(group)
            return True
        return False

    reported = [is_reported(group) for group in duals]
    return parse(variables + _joined(list(itertools.compress(duals, reported)))), reported


def _joined(groups: Iterable[list[cp.Variable]]) -> list[cp.Variable]:
    return list(itertools.chain.from_iterable(groups))


def _program(request: _Request, context: Any, reported: list[bool]) -> ConeProgram:
    """cvxpylayers' context as a program, before any presolve."""
    patterns, maps = _maps(context, request.parameters)
    recoveries = _recoveries(request, context)
    return ConeProgram(
        variables=patterns["P"].shape[1],
        cones=Cones.from_cvxpy(context.cone_dims),
        P_pattern=patterns["P"],
        A_pattern=patterns["A"],
        **maps,
        recoveries=tuple(next(recoveries) for _ in request.requested),
        primal_recoveries=tuple(next(recoveries) for _ in request.primal),
        dual_recoveries=tuple(
            tuple(next(recoveries) for _ in group) if good else None
            for group, good in zip(request.duals, reported, strict=True)
        ),
        logarithm=tuple(context.gp_log_mask or [False] * len(request.parameters)),
        factored=request.factored,
    )


def _recoveries(request: _Request, context: Any) -> Iterator[Recovery]:
    """One for each variable that cvxpylayers was asked for, in that order."""
    constraint_of = {
        dual.id: constraint
        for constraint, group in zip(request.problem.constraints, request.duals, strict=True)
        for dual in group
    }
    for entry, variable in zip(context.var_recover, context.variables, strict=True):
        if entry.source == "dual":
            yield _dual_recovery(entry, variable, constraint_of[variable.id])
        else:
            yield Recovery.of_variable(
                entry.primal.start, _stored(variable), tuple(variable.shape), exponential=request.gp
            )


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
def _quiet_compilation() -> Iterator[None]:
    """Without cvxpy's warnings that the user cannot act on.

    That powers become second-order cones, and that cvxpy reads its own sparse variables.
    """
    with quiet_sparse_values(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Power atom with exponent")
        yield


def _stored(variable: cp.Variable) -> np.ndarray:
    """For each entry (row-major), the number of the stored entry it equals; -1 for a zero.

    cvxpy stores a structured variable in fewer entries. Recovering the numbers 1, 2, ... tells
    which stored entry each entry of the variable reads, zero meaning none.
    """
    from cvxpy.reductions.cvx_attr2constr import recover_value_for_leaf

    size = _stored_size(variable)
    if size is None:
        numbers = np.arange(1.0, variable.size + 1.0).reshape(variable.shape, order="F")
    else:
        value = recover_value_for_leaf(variable, np.arange(1.0, size + 1.0), project=False)
        numbers = value.toarray() if hasattr(value, "toarray") else np.asarray(value)
    return numbers.reshape(-1).astype(np.int64) - 1


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
        index, scale = scaled_triangle(entry.shape[0])
        return Recovery("dual", start + index, scale, tuple(entry.shape))
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


def _maps(context: Any, parameters: Any) -> tuple[dict[str, Pattern], dict[str, AffineMap]]:
    """Patterns of ``P`` and ``A``, and the maps from the stacked parameters to all data."""
    import scipy.sparse

    columns = _parameter_columns(context, parameters)
    q_matrix = scipy.sparse.csr_array(context.q)[:-1]  # the last row is the objective's constant
    n, inputs = q_matrix.shape

    def affine(matrix: Any) -> AffineMap:
        matrix = scipy.sparse.csc_array(matrix)
        padded = scipy.sparse.hstack([matrix, scipy.sparse.csc_array((matrix.shape[0], 1))])
        chosen = scipy.sparse.csc_array(padded)[:, columns]
        offset = np.asarray(matrix[:, [-1]].todense()).reshape(-1)
        return AffineMap.from_sparse(chosen, offset)

    indices, indptr, (m, _), Ab_matrix = _structure(context.reduced_A, (0, n + 1), inputs)
    # cvxpy stores [A | b] with s = A x + b; here A x + s = b.
    stored = int(indptr[-2])
    b_rows = np.asarray(indices[stored:], dtype=np.int64)
    scatter = scipy.sparse.csr_array(
        (np.ones(len(b_rows)), (b_rows, np.arange(len(b_rows)))), shape=(m, len(b_rows))
    )
    P_indices, P_indptr, P_shape, P_matrix = _structure(context.reduced_P, (n, n), inputs)
    patterns = {
        "P": Pattern(P_indices, P_indptr, P_shape),
        "A": Pattern(indices[:stored], indptr[:-1], (m, n)),
    }
    maps = {
        "P_map": affine(P_matrix),
        "q_map": affine(q_matrix),
        "A_map": affine(-Ab_matrix[:stored]),
        "b_map": affine(scatter @ Ab_matrix[stored:]),
    }
    return patterns, maps


def _structure(
    reduced: Any, empty: tuple[int, int], inputs: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int], Any]:
    """Indices, pointers and shape of a matrix that cvxpy reduced, and its map from parameters.

    Args:
        reduced: cvxpy's; without content where the matrix has no entries, then of shape ``empty``.
        inputs: number of columns of the map.
    """
    import scipy.sparse

    if reduced is None or reduced.problem_data_index is None or reduced.reduced_mat is None:
        indptr = np.zeros(empty[1] + 1, np.int32)
        return np.zeros(0, np.int32), indptr, empty, scipy.sparse.csr_array((0, inputs))
    indices, indptr, (rows, columns) = reduced.problem_data_index
    return indices, indptr, (int(rows), int(columns)), scipy.sparse.csr_array(reduced.reduced_mat)


def _parameter_columns(context: Any, parameters: Any) -> np.ndarray:
    """Column of cvxpy's parameter vector for each entry of the stacked parameters (row-major).

    Entries that cvxpy does not read (below the diagonal of symmetric parameters) get -1.
    """
    columns: dict[int, np.ndarray] = {}
    start = 0
    for position in map(int, np.argsort(context.user_order_to_col_order)):
        parameter = parameters[position]
        triangle = context.param_triu_indices[position] if context.param_triu_indices else None
        if triangle is None:
            numbers = start + np.arange(parameter.size)
            columns[position] = numbers.reshape(parameter.shape, order="F").reshape(-1)
        else:
            numbers = start + np.arange(len(triangle[0]))
            full = np.full(parameter.shape, -1, dtype=np.int64)
            full[np.array(triangle[0]), np.array(triangle[1])] = numbers
            columns[position] = full.reshape(-1)
        start += len(numbers)
    ordered = [columns[position] for position in range(len(columns))]
    return np.concatenate([np.zeros(0, dtype=np.int64), *ordered])
