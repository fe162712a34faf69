"""Objective and violation of any layer's answer, and its errors against a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ddn_cvx.batch.differences import tangential
from ddn_cvx.comparison.result import WRONG_ERROR, Errors, GradientError
from ddn_cvx.declaration import Declaration
from ddn_cvx.solution import evaluated, largest_violation

if TYPE_CHECKING:
    import cvxpy as cp

# Least size that errors are divided by, as a share of the references' root mean square: an element
# whose reference is (nearly) zero while the others' are not is not wrong for an error of 1e-6.
_LEAST_REFERENCE = 0.1


def evaluate(
    declaration: Declaration,
    tensors: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    counted: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``problem.objective`` and the largest constraint violation: float64, shape ``(B,)`` each.

    Args:
        declaration: from :func:`~ddn_cvx.comparison.reference.with_all_variables`.
        tensors: the inputs, ``(B, *parameter.shape)``, float64.
        values: the answer, ``(B, *variable.shape)``, float64.
        counted: elements to evaluate, bool, ``(B,)``; the others get NaN.
    """
    leaves = (*declaration.parameters, *declaration.variables)
    objective, violation = evaluated(
        declaration.problem,
        leaves,
        (*tensors, *values),
        counted,
        lambda problem: problem.objective.value,
        largest_violation,
    )
    return objective, violation


def relative_error(
    value: torch.Tensor, reference: torch.Tensor, counted: torch.Tensor
) -> torch.Tensor:
    """``|value - reference| / max(|reference|, rms / 10)`` in the Euclidean norm.

    Args:
        value: shape ``(B, *shape)``.
        reference: shape ``(B, *shape)``.
        counted: elements whose norms enter the root mean square; bool, shape ``(B,)``.

    Returns:
        Shape ``(B,)``. Where all counted references are zero, the error is absolute.
    """
    size = _norm(reference)
    return _norm(value - reference) / size.clamp_min(_floor(size[counted]))


def cosine(value: torch.Tensor, reference: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Cosine of the angle between value and reference, ``(B,)``; NaN for a zero reference.

    Arguments as for :func:`relative_error`; a reference below its floor counts as zero.
    """
    product = (value * reference).reshape(len(value), -1).sum(1)
    size = _norm(reference)
    angle = product / (size * _norm(value))
    return torch.where(size > _floor(size[counted]), angle.clamp(-1, 1), torch.nan)


def summarize(errors: torch.Tensor, counted: torch.Tensor) -> Errors | None:
    """Median and worst of the counted elements, None if there are none; both ``(B,)``."""
    kept = errors[counted]
    if kept.numel() == 0:
        return None
    return Errors(float(kept.quantile(0.5)), float(kept.max()))


def gradient_errors(
    parameters: Sequence[cp.Parameter],
    gradients: Sequence[torch.Tensor],
    references: Sequence[torch.Tensor],
    counted: torch.Tensor,
    confirmed: torch.Tensor,
) -> dict[str, GradientError]:
    """Errors by name of the parameter.

    Args:
        parameters: of the declaration.
        gradients: shape ``(B, *parameter.shape)`` each.
        references: of the same shapes.
        counted: elements that enter the figures; bool, shape ``(B,)``.
        confirmed: elements whose reference sets the scale; bool, shape ``(B,)``.
    """
    errors = {}
    for parameter, gradient, reference in zip(parameters, gradients, references, strict=True):
        ours, wanted = tangential(parameter, gradient), tangential(parameter, reference)
        relative = relative_error(ours, wanted, confirmed)
        summary = summarize(relative, counted)
        if summary is None:
            continue
        angles = cosine(ours, wanted, confirmed)[counted]
        angles = angles[~angles.isnan()]
        smallest = float(angles.min()) if angles.numel() else None
        wrong = int((relative[counted] > WRONG_ERROR).sum())
        errors[parameter.name()] = GradientError(summary, smallest, wrong)
    return errors


def _norm(value: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(value.reshape(len(value), -1), dim=1)
    return norm


def _floor(sizes: torch.Tensor) -> float:
    """Least size that errors are divided by; one where all references are zero."""
    unit = float(sizes.square().mean().sqrt()) if sizes.numel() else 0.0
    return _LEAST_REFERENCE * unit if unit > 0 else 1.0
