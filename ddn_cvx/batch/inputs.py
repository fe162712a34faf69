"""The one home of batching: flatten leading dimensions, broadcast, restore, find bad input."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ddn_cvx.batch.device import perhaps_any

if TYPE_CHECKING:
    import cvxpy as cp

# Relative tolerance of the domain checks: what finite differences and float32 rounding may do.
_DOMAIN = 1e-4
_DOMAINS = ("nonneg", "pos", "nonpos", "neg", "symmetric", "PSD", "NSD")


@dataclass(frozen=True, eq=False)
class BatchedInputs:
    """The tensors of one call, flattened to one batch dimension.

    Attributes:
        tensors: one of shape ``(B, *parameter.shape)`` for each parameter, float64.
        batch_shape: the leading dimensions to restore; ``B`` is their product.
        dtype: dtype of the outputs.
        device: device of the outputs.
        bad: elements with NaN, infinity or values outside a parameter's domain, shape ``(B,)``.
    """

    tensors: tuple[torch.Tensor, ...]
    batch_shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    bad: torch.Tensor

    @property
    def requires_grad(self) -> bool:
        """A derivative may be asked for."""
        return any(tensor.requires_grad for tensor in self.tensors)

    def restore(self, value: torch.Tensor) -> torch.Tensor:
        """From ``(B, *shape)`` to ``(*batch_shape, *shape)``."""
        return value.reshape((*self.batch_shape, *value.shape[1:]))

    def stacked(self, logarithm: Sequence[bool]) -> torch.Tensor:
        """All entries side by side, shape ``(B, N)``; bad elements read one everywhere.

        Args:
            logarithm: parameters whose logarithm is taken.
        """
        batch = self.bad.shape[0]
        if not self.tensors:
            return torch.zeros(batch, 0, dtype=torch.float64, device=self.device)
        rows = [t.flatten(1) if t.ndim > 1 else t.unsqueeze(1) for t in self.tensors]
        whole = torch.cat(rows, 1)
        if torch._C._are_functorch_transforms_active() or perhaps_any(self.bad):
            whole = torch.where(self.bad.unsqueeze(1), 1.0, whole)
        if not any(logarithm):
            return whole
        sizes = [tensor.shape[1:].numel() for tensor in self.tensors]
        parts = zip(whole.split(sizes, 1), logarithm, strict=True)
        return torch.cat([part.log() if log else part for part, log in parts], 1)


def batch_inputs(
    values: Sequence[Any], parameters: Sequence[cp.Parameter], *, gp: bool = False
) -> BatchedInputs:
    """Validate, broadcast and flatten the tensors of a call.

    Args:
        values: one tensor for each parameter, of shape ``(*batch, *parameter.shape)``; the leading
            dimensions of all broadcast against one another.
        parameters: the declaration's parameters.
        gp: parameters of a geometric program that are declared positive must be.

    Raises:
        TypeError: something is not a real tensor.
        ValueError: wrong number of tensors, wrong shape, batch sizes that do not broadcast.
    """
    if len(values) != len(parameters):
        raise ValueError(
            "A tensor must be provided for each CVXPY parameter; "
            f"received {len(values)} tensors, expected {len(parameters)} "
            f"({', '.join(_describe(parameter) for parameter in parameters)})."
        )
    tensors, leading = [], []
    for number, (value, parameter) in enumerate(zip(values, parameters, strict=True)):
        tensor, shape = _checked(value, number, parameter)
        tensors.append(tensor)
        leading.append(shape)
    try:
        same = leading.count(leading[0]) == len(leading) if leading else True
        batch_shape = leading[0] if leading and same else torch.broadcast_shapes(*leading)
    except RuntimeError:
        listed = ", ".join(
            f"{tuple(shape)} for {parameter.name()}"
            for shape, parameter in zip(leading, parameters, strict=True)
        )
        raise ValueError(
            f"Inconsistent batch sizes: the leading dimensions must broadcast, got {listed}."
        ) from None
    dtype = _common_dtype(values, tensors)
    device = _common_device(tensors)
    count = batch_shape.numel()
    flattened = []
    # A sum is finite only if all of its terms are, and costs one pass.
    total = torch.zeros(count, dtype=torch.float64, device=device)
    for tensor, parameter in zip(tensors, parameters, strict=True):
        tensor = tensor.to(device=device, dtype=torch.float64)
        tensor = tensor.expand((*batch_shape, *parameter.shape))
        tensor = tensor.reshape((count, *parameter.shape))
        flattened.append(tensor)
        total = total + (tensor.detach().flatten(1).sum(1) if tensor.ndim > 1 else tensor.detach())
    bad = ~total.isfinite()
    for tensor, parameter in zip(flattened, parameters, strict=True):
        if any(map(parameter.attributes.__getitem__, _DOMAINS)):
            bad = bad | _outside_domain(tensor.detach(), parameter, gp)
    return BatchedInputs(tuple(flattened), batch_shape, dtype, device, bad)


def _common_device(tensors: Sequence[torch.Tensor]) -> torch.device:
    """The device of the first tensor that is not a scalar, as torch's own operations take it."""
    for tensor in tensors:
        if tensor.ndim:
            return tensor.device
    return tensors[0].device if tensors else torch.device("cpu")


def _common_dtype(values: Sequence[Any], tensors: Sequence[torch.Tensor]) -> torch.dtype:
    """Dtype of the outputs, by torch's promotion: tensors before scalar tensors before numbers."""
    kinds = [
        [tensor for tensor in tensors if tensor.ndim],
        [tensor for value, tensor in zip(values, tensors, strict=True) if value is tensor],
    ]
    for kind in kinds:
        floating = [tensor.dtype for tensor in kind if tensor.is_floating_point()]
        if floating:
            common: torch.dtype = functools.reduce(torch.promote_types, floating)
            return common
    return torch.get_default_dtype()


def _describe(parameter: cp.Parameter) -> str:
    return f"{parameter.name()} {tuple(parameter.shape)}"


def _checked(value: Any, number: int, parameter: cp.Parameter) -> tuple[torch.Tensor, torch.Size]:
    """A parameter's value as a tensor, and its leading dimensions."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"Parameter {number} ({_describe(parameter)}) must be a tensor; "
            f"got {type(value).__name__}."
        ) from error
    if tensor.is_complex():
        raise TypeError(
            f"Parameter {number} ({_describe(parameter)}) must be real; got {tensor.dtype}."
        )
    trailing = tensor.ndim - len(parameter.shape)
    if trailing < 0:
        raise ValueError(
            f"Invalid parameter dimensionality for parameter {number} ({_describe(parameter)}): "
            f"expected {len(parameter.shape)} trailing dimensions, got shape {tuple(tensor.shape)}."
        )
    if tuple(tensor.shape[trailing:]) != tuple(parameter.shape):
        raise ValueError(
            f"Invalid parameter shape for parameter {number} ({_describe(parameter)}): expected "
            f"(*batch, {', '.join(map(str, parameter.shape))}), got {tuple(tensor.shape)}."
        )
    return tensor, tensor.shape[:trailing]


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """``(B, *shape)`` as ``(B, entries)``."""
    return tensor.flatten(1) if tensor.ndim > 1 else tensor.unsqueeze(1)


def _outside_domain(tensor: torch.Tensor, parameter: cp.Parameter, gp: bool) -> torch.Tensor:
    """Elements of ``(B, *shape)`` that are not finite or not what the parameter declares."""
    entries = flat(tensor)
    bad = ~entries.isfinite().all(1)
    attributes = parameter.attributes
    slack = _DOMAIN * entries.abs().amax(1, keepdim=True).clamp_min(1.0)  # (B, 1)
    if attributes["nonneg"] or attributes["pos"]:
        bad = bad | (entries < -slack).any(1)
    if attributes["nonpos"] or attributes["neg"]:
        bad = bad | (entries > slack).any(1)
    if gp and attributes["pos"]:
        bad = bad | (entries <= 0).any(1)
    if any(attributes[name] for name in ("symmetric", "PSD", "NSD")):
        bad = bad | ((tensor - tensor.mT).abs().flatten(1) > slack).any(1)
    if attributes["PSD"] or attributes["NSD"]:
        sign = 1.0 if attributes["PSD"] else -1.0
        side = tensor.shape[-1]
        identity = torch.eye(side, dtype=tensor.dtype, device=tensor.device)
        matrix = torch.where(bad[:, None, None], identity, sign * tensor)
        shifted = matrix + slack[..., None] * identity
        bad = bad | (torch.linalg.cholesky_ex(shifted).info != 0)
    return bad


def fold_mapped(size: int, in_dims: Sequence[int | None], tensors: Sequence[Any]) -> list[Any]:
    """Tensors of a ``vmap`` rule with the mapped dimension folded into the batch.

    Args:
        size: size of the mapped dimension.
        in_dims: where it is in each tensor; None where the tensor has none.
        tensors: each of shape ``(B, ...)`` but for the mapped dimension; None stays None.

    Returns:
        Tensors of shape ``(size * B, ...)``.
    """

    def folded(tensor: Any, dim: int | None) -> Any:
        if tensor is None:
            return None
        first = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return first.flatten(0, 1)

    return list(map(folded, tensors, in_dims))


def unfold_mapped(size: int, tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], Any]:
    """The result of a ``vmap`` rule: tensors of shape ``(size, B, ...)``, mapped over the first."""
    # Nothing is mapped where a Jacobian of an empty batch is taken.
    unfolded = tuple(tensor.unflatten(0, (size, len(tensor) // max(size, 1))) for tensor in tensors)
    return unfolded, (0,) * len(unfolded)


def forward_levels() -> int:
    """How many forward-mode transforms of ``torch.func`` are active."""
    if not torch._C._are_functorch_transforms_active():
        return 0
    from torch._C._functorch import TransformType, get_interpreter_stack

    stack = get_interpreter_stack() or []
    return sum(interpreter.key() == TransformType.Jvp for interpreter in stack)
