"""Common ground of the dedicated solvers: arguments, batches, derivatives and constants.

A call goes through the same stages in each of them:

1. **check**: :func:`check_floating`, :func:`check_positive`, and the shapes that the node needs;
2. **flatten**: :func:`flattened` broadcasts the leading dimensions of all arguments, makes them one
   batch dimension, and converts to float64;
3. **mask**: elements with bad data, and points of weight zero (:func:`weighted_points`), get
   harmless numbers, so that they bring NaN into no gradient;
4. **solve**: :func:`nondifferentiable` runs an iteration that autograd does not see, and
   :func:`attached` gives its solution the derivatives of the implicit function theorem;
5. **restore**: :func:`restored` brings back shape and dtype, with NaN for the bad elements.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ddn_cvx.batch.elements import chunks, select
from ddn_cvx.batch.inputs import fold_mapped, unfold_mapped

# Numbers of one chunk of rows: 1 MiB of float64, about what a core's level-2 cache holds.
CACHED_NUMBERS = 1 << 17
# Orders of the derivatives that `attached` makes exact: gradients, and gradients of gradients.
_DERIVATIVE_ORDERS = 2

P = ParamSpec("P")
R = TypeVar("R")


# -- arguments -------------------------------------------------------------------------------------


def check_floating(name: str, value: Any) -> None:
    """Refuse what is not a tensor of real floating-point numbers.

    Raises:
        TypeError: with the argument's name and its dtype or type.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"{name} must be floating-point; got {kind}, not a tensor of real floating-point "
            "numbers."
        )


def check_positive(name: str, value: Any) -> None:
    """Refuse a Python number that is not positive; a tensor's elements are judged one by one.

    Raises:
        ValueError: with the argument's name and its value.
    """
    if not isinstance(value, Tensor) and not value > 0:
        raise ValueError(f"{name} must be positive; got {value!r}.")


def batch_shape(*arguments: tuple[str, Tensor, int]) -> torch.Size:
    """The shape to which the leading dimensions of all arguments broadcast.

    Args:
        arguments: name, tensor, and number of trailing dimensions that belong to one element.

    Raises:
        ValueError: leading dimensions do not broadcast; the message names the first such argument.
    """
    batch = torch.Size()
    for number, (name, tensor, core) in enumerate(arguments):
        own = tensor.shape[: tensor.ndim - core]
        if own in (batch, ()):
            continue
        try:
            batch = own if not batch else torch.broadcast_shapes(batch, own)
        except RuntimeError:
            before = ", ".join(f"{n} of shape {tuple(t.shape)}" for n, t, _ in arguments[:number])
            raise ValueError(
                f"Batch shapes do not broadcast: {name} of shape {tuple(tensor.shape)} does not "
                f"broadcast with {before}."
            ) from None
    return batch


def flattened(*arguments: tuple[str, Tensor | float, int]) -> tuple[list[Tensor], torch.Size]:
    """Arguments in float64 with one common batch dimension, ``(B, *core)``, and the batch shape.

    A tensor that all elements share stays one element in memory (stride zero).

    Args:
        arguments: as for :func:`batch_shape`; a number, too, and moved to the first one's device.

    Raises:
        ValueError: leading dimensions do not broadcast.

    Example:
        >>> points = torch.zeros(2, 5, 3)
        >>> (points, scale), batch = flattened(("points", points, 1), ("scale", 0.1, 0))
        >>> points.shape, scale.shape, batch
        (torch.Size([10, 3]), torch.Size([10]), torch.Size([2, 5]))
    """
    device = arguments[0][1].device if isinstance(arguments[0][1], Tensor) else None
    doubles = []
    for name, value, core in arguments:
        # Not through float32, whose 0.1 is another number.
        doubles.append((name, torch.as_tensor(value, dtype=torch.float64, device=device), core))
    batch = batch_shape(*doubles)
    count, tensors = batch.numel(), []
    for _, tensor, core in doubles:
        own = tensor.shape[tensor.ndim - core :]
        tensors.append(tensor.expand((*batch, *own)).reshape((count, *own)))
    return tensors, batch


def weighted_points(finite: Tensor, weights: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Elements whose weighted points can be used, ``(B,)``, and the points that count, ``(B, n)``.

    A weight of zero is a mask: the point may be anything. An element is valid if its weights are
    finite and nonnegative, at least ``least`` of them positive, and the points of these finite.

    Args:
        finite: which points are finite, shape ``(B, n)``.
        weights: shape ``(B, n)``.
        least: number of points that an element needs.
    """
    counts = weights > 0
    valid = ((finite | ~counts) & (weights >= 0) & (weights < torch.inf)).all(-1)
    enough = counts.any(-1) if least == 1 else counts.sum(-1) >= least
    return valid & enough, counts


def restored(
    value: Tensor, batch: torch.Size, dtype: torch.dtype, valid: Tensor | None = None
) -> Tensor:
    """A result ``(B, *core)`` as ``(*batch, *core)`` in ``dtype``, NaN where it is not valid."""
    if valid is not None:
        value = torch.where(valid.reshape(-1, *[1] * (value.ndim - 1)), value, torch.nan)
    return value.reshape((*batch, *value.shape[1:])).to(dtype)


def cached_chunks(
    batch: int, entries: int, device: torch.device, limit: int = CACHED_NUMBERS
) -> list[slice]:
    """The batch in chunks whose numbers the processor's cache holds; whole on other devices.

    Args:
        entries: numbers (or points, in the unit of ``limit``) of one element.
        limit: numbers of one chunk.
    """
    if batch * entries <= limit or device.type != "cpu":
        return [slice(0, batch)] if batch else []
    return list(chunks(batch, entries, limit))


def in_chunks(function: Callable[..., Any], slices: Sequence[slice], *tensors: Any) -> Any:
    """``function(*tensors)``, a tensor or a tuple, computed on one slice of the batch at a time.

    Args:
        function: takes tensors ``(B, ...)`` or None to tensors ``(B, ...)`` or None; no element may
            depend on another.
    """
    if len(slices) <= 1:
        return function(*tensors)
    whole: list[Tensor | None] = []
    for rows in slices:
        result = function(*select(tensors, rows))
        parts = (result,) if isinstance(result, Tensor) else result
        if not whole:
            batch = slices[-1].stop
            whole = [p if p is None else p.new_empty(batch, *p.shape[1:]) for p in parts]
        for total, part in zip(whole, parts, strict=True):
            if total is not None:
                total[rows] = part  # while the processor's cache has it
    return whole[0] if isinstance(result, Tensor) else tuple(whole)


# -- derivatives -----------------------------------------------------------------------------------


def outside_transforms() -> bool:
    """Whether no ``torch.func`` transform and no forward mode is active."""
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


def attached(
    u: Tensor,
    residual: Callable[[Tensor], Tensor],
    inverse: Tensor | Callable[[Tensor], Tensor],
    *data: Tensor,
    inexact: Tensor | None = None,
) -> Tensor:
    """The solution ``u`` of ``F(u, data) = 0`` with its derivatives of first and second order.

    Chord steps ``u <- u - H^{-1} F(u, data)`` with ``H = dF/du`` held constant. The first one has
    the derivative of the implicit function theorem, ``du = -H^{-1} dF``; as ``H`` is right at the
    solution, each further one makes one more order right, in reverse and in forward mode (Bolte,
    Pauwels and Vaiter, "One-step differentiation of iterative algorithms", 2023, is the case of one
    step). The value of ``F`` is rounding error, which an ill-conditioned ``H`` would amplify: it is
    subtracted, so that ``u`` keeps its value.

    Args:
        u: the solution, constant, shape ``(B, k)``.
        residual: ``u`` to ``F(u, data)``, in differentiable operations.
        inverse: ``H^{-1}``, constant: matrices ``(B, k, k)``, or a function of vectors ``(B, k)``.
        data: tensors that the residual depends on; if none is differentiated, ``u`` is returned.
        inexact: mask that broadcasts with ``F``: where it is set, ``u`` is not a solution to
            rounding, and the value of ``F`` is kept, as a last Newton step.

    Example:
        >>> a = torch.tensor([4.0], requires_grad=True)
        >>> root = attached(torch.tensor([2.0]), lambda u: u * u - a, lambda v: v / 4, a)
        >>> torch.autograd.grad(root, a)  # 1 / (2 sqrt(a))
        (tensor([0.2500]),)
    """
    if outside_transforms() and not any(tensor.requires_grad for tensor in data):
        return u
    for _ in range(_DERIVATIVE_ORDERS):
        F = residual(u)
        value = F.detach()
        F = F - (value if inexact is None else torch.where(inexact, 0.0, value))
        if isinstance(inverse, Tensor):
            u = u - torch.bmm(inverse, F.unsqueeze(-1)).squeeze(-1)
        else:
            u = u - inverse(F)
    return u


def matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrices ``(B, m, n)`` times vectors ``(B, n)``."""
    product: Tensor = (matrix @ vector.unsqueeze(-1)).squeeze(-1)
    return product


def nondifferentiable(solve: Callable[..., Any], *tensors: Tensor, chunked: bool = True) -> Any:
    """``solve(*tensors)`` without derivatives, also under ``vmap`` and forward mode.

    For discrete structure, which is constant near a regular point (entries that are active, tied or
    fused), and for solutions whose derivatives :func:`attached` adds.

    Args:
        solve: takes tensors ``(B, ...)`` to a tensor ``(B, ...)`` or a tuple of them; no element
            may depend on another.
        tensors: with the same ``B``.
        chunked: call it on as many elements at a time as the processor's cache holds.
    """
    detached = [tensor.detach() for tensor in tensors]
    found = _Nondifferentiable.apply(solve, chunked, *detached)  # type: ignore[no-untyped-call]
    return found[0] if len(found) == 1 else found


class _Nondifferentiable(torch.autograd.Function):
    """Runs without derivatives; a mapped dimension becomes part of the batch."""

    @staticmethod
    def forward(solve: Callable[..., Any], chunked: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        first = tensors[0]
        slices = cached_chunks(len(first), first.shape[1:].numel(), first.device)
        result = in_chunks(solve, slices if chunked else [], *tensors)
        return result if isinstance(result, tuple) else (result,)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, solve: Any, chunked: bool, *tensors: Any) -> Any:
        folded = fold_mapped(info.batch_size, in_dims[2:], tensors)
        found = _Nondifferentiable.apply(solve, chunked, *folded)  # type: ignore[no-untyped-call]
        return unfold_mapped(info.batch_size, found)


# -- wrappers --------------------------------------------------------------------------------------


def isolated(function: Callable[P, R]) -> Callable[P, R]:
    """Keep ``torch.compile`` and autocast (of the first tensor's device) out of a solver.

    The loops of a solver run until they converge, and its digits count.
    """

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            result: R = torch.compiler.disable(run)(*args, **options)
            return result
        values = (*args, *options.values())
        kind = next((value.device.type for value in values if isinstance(value, Tensor)), "cpu")
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return function(*args, **options)
        return function(*args, **options)

    return run


def cached_table(function: Callable[P, R]) -> Callable[P, R]:
    """Call ``function``, which makes constant tensors, once for each of its arguments.

    The tensors are made on the CPU and outside of inference mode, even if the first call stands
    inside of it: an inference tensor could never take part in training. ``function`` moves them to
    the device that it is given.
    """

    @functools.wraps(function)
    def made(*args: P.args, **options: P.kwargs) -> R:
        with torch.inference_mode(False), torch.device("cpu"):
            return function(*args, **options)

    return cast("Callable[P, R]", functools.cache(made))
