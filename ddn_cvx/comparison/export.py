"""A comparison as JSON and CSV, and back from JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ddn_cvx.comparison.result import Result, Row
from ddn_cvx.comparison.verdict import verdict

# Columns of the CSV, and the attribute that each holds; the parameter's name has none.
_COLUMNS = {
    "problem": "result.problem.name",
    "solver": "row.solver",
    "adjoint": "row.adjoint",
    "is_default": "row.is_default",
    "error": "row.error",
    "by_others": "row.by_others",
    "failures": "row.failures",
    "batch": "result.problem.batch",
    "objective_gap": "row.objective.worst",
    "violation": "row.violation.worst",
    "solution_gap": "row.solution.worst",
    "solution_gap_median": "row.solution.median",
    "parameter": "parameter",
    "gradient_error": "gradient.relative.worst",
    "gradient_error_median": "gradient.relative.median",
    "cosine": "gradient.cosine",
    "wrong_elements": "gradient.wrong",
    **{
        f"{name}_{column}": f"row.{name}.{attribute}"
        for name in ("forward", "backward", "total")
        for column, attribute in {"seconds": "median", "low": "low", "high": "high"}.items()
    },
    "repeats": "row.repeats",
    "compile_seconds": "row.compile_seconds",
    "peak_bytes": "row.peak_memory",
}


def as_json(result: Result) -> str:
    """All fields by name, and the verdict; times in seconds."""
    fields = json.dumps({**asdict(result), "verdict": verdict(result)})
    # JSON has no infinity and no NaN: they become null.
    finite = json.loads(fields, parse_constant=lambda constant: None)
    return json.dumps(finite, indent=2, allow_nan=False) + "\n"


def read(kind: Any, value: Any) -> Any:
    """A field of type ``kind``: a dataclass, a tuple or mapping of fields, or a plain value.

    Keys that are not fields, such as the verdict of :func:`as_json`, are left out.
    """
    if value is None:
        return None
    members = get_args(kind)
    if is_dataclass(kind):
        types = get_type_hints(kind)
        known = {name: read(types[name], entry) for name, entry in value.items() if name in types}
        return kind(**known)  # type: ignore[operator]
    if get_origin(kind) is UnionType:  # of the type and None
        return read(members[0], value)
    if get_origin(kind) is tuple:
        return tuple(read(members[0], entry) for entry in value)
    if get_origin(kind) is Mapping:
        return {name: read(members[1], entry) for name, entry in value.items()}
    return value


def as_csv(results: Iterable[Result]) -> str:
    """One line for each row and parameter, and for each refusal, whose reason is its error.

    Errors are the worst element's, times in seconds.
    """
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for result in results:
        refused = [
            Row(refusal.solver, "/".join(refusal.adjoints), error=refusal.reason)
            for refusal in result.refusals
        ]
        for row in (*result.rows, *refused):
            for name, gradient in row.gradients.items() or [("", None)]:
                records = {"result": result, "row": row, "parameter": name, "gradient": gradient}
                writer.writerow(_cell(records, path) for path in _COLUMNS.values())
    return target.getvalue()


def _cell(records: Mapping[str, Any], path: str) -> Any:
    """An attribute of an attribute of a record; None where one on the way is None."""
    first, *names = path.split(".")
    value = records[first]
    for name in names:
        value = None if value is None else getattr(value, name)
    return value
