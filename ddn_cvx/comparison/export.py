"""A comparison as JSON and CSV, and back from JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from ddn_cvx.comparison.result import (
    Errors,
    GradientError,
    ProblemSummary,
    ReferenceSummary,
    Refusal,
    Result,
    Row,
    Spread,
)
from ddn_cvx.comparison.verdict import verdict

Kind = TypeVar("Kind", bound=Result)

_COLUMNS = (
    *("problem", "solver", "adjoint", "is_default", "error", "by_others", "failures", "batch"),
    *("objective_gap", "violation", "solution_gap", "solution_gap_median"),
    *("parameter", "gradient_error", "gradient_error_median", "cosine", "wrong_elements"),
    *("forward_seconds", "forward_low", "forward_high"),
    *("backward_seconds", "backward_low", "backward_high"),
    *("total_seconds", "total_low", "total_high", "repeats", "compile_seconds", "peak_bytes"),
)


def as_json(result: Result) -> str:
    """All fields by name, and the verdict; times in seconds."""
    fields = {**asdict(result), "verdict": verdict(result)}
    return json.dumps(_finite(fields), indent=2, allow_nan=False) + "\n"


def from_json(kind: type[Kind], text: str) -> Kind:
    """Read back the text of :func:`as_json`; the verdict is made anew."""
    fields = json.loads(text)
    problem = fields["problem"]
    for group in ("parameters", "variables"):
        problem[group] = {name: tuple(shape) for name, shape in problem[group].items()}
    return kind(
        problem=ProblemSummary(**problem),
        reference=ReferenceSummary(**fields["reference"]),
        rows=tuple(_row(row) for row in fields["rows"]),
        environment=fields["environment"],
        tolerance=fields["tolerance"],
        refusals=tuple(_refusal(refusal) for refusal in fields.get("refusals", ())),
    )


def as_csv(results: Iterable[Result]) -> str:
    """One line for each row and parameter, and for each refusal, whose reason is its error.

    Errors are the worst element's, times in seconds.
    """
    target = io.StringIO()
    writer = csv.DictWriter(target, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in results:
        for row in result.rows:
            shared = _shared_cells(result, row)
            for name, gradient in row.gradients.items() or [("", None)]:
                writer.writerow({**shared, "parameter": name, **_gradient_cells(gradient)})
        for refusal in result.refusals:
            row = Row(refusal.solver, "/".join(refusal.adjoints), error=refusal.reason)
            writer.writerow(_shared_cells(result, row))
    return target.getvalue()


def _shared_cells(result: Result, row: Row) -> dict[str, Any]:
    cells: dict[str, Any] = {
        "problem": result.problem.name,
        "solver": row.solver,
        "adjoint": row.adjoint,
        "is_default": row.is_default,
        "error": row.error,
        "by_others": row.by_others,
        "failures": row.failures,
        "batch": result.problem.batch,
        "objective_gap": row.objective and row.objective.worst,
        "violation": row.violation and row.violation.worst,
        "solution_gap": row.solution and row.solution.worst,
        "solution_gap_median": row.solution and row.solution.median,
        "repeats": row.repeats,
        "compile_seconds": row.compile_seconds,
        "peak_bytes": row.peak_memory,
    }
    for name in ("forward", "backward", "total"):
        spread = getattr(row, name)
        if spread is not None:
            cells[f"{name}_seconds"] = spread.median
            cells[f"{name}_low"], cells[f"{name}_high"] = spread.low, spread.high
    return cells


def _gradient_cells(gradient: GradientError | None) -> dict[str, Any]:
    if gradient is None:
        return {}
    return {
        "gradient_error": gradient.relative.worst,
        "gradient_error_median": gradient.relative.median,
        "cosine": gradient.cosine,
        "wrong_elements": gradient.wrong,
    }


def _row(fields: dict[str, Any]) -> Row:
    for name in ("objective", "violation", "solution"):
        fields[name] = fields[name] and Errors(**fields[name])
    for name in ("forward", "backward", "total"):
        fields[name] = fields[name] and Spread(**fields[name])
    fields["gradients"] = {
        name: GradientError(Errors(**entry["relative"]), entry["cosine"], entry["wrong"])
        for name, entry in fields["gradients"].items()
    }
    return Row(**fields)


def _refusal(fields: dict[str, Any]) -> Refusal:
    return Refusal(fields["solver"], tuple(fields["adjoints"]), fields["reason"])


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
