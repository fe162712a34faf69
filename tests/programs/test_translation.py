"""Translation of cvxpy expressions to torch: every atom against cvxpy's own value."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import cvxpy
import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
import torch
from cvxpy.atoms.quad_form import SymbolicQuadForm
from cvxpy.expressions.constants.callback_param import CallbackParam
from cvxpy.transforms.indicator import indicator
from cvxpy.transforms.partial_optimize import partial_optimize
from cvxpy.transforms.suppfunc import SuppFunc
from helpers import central_difference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

import ddn_cvx.programs.translation
from ddn_cvx.programs.translation import TorchFunction, TranslationError, translate
from ddn_cvx.programs.translation.registry import _RULES

cp: Any = cvxpy  # its annotations are narrower than what it accepts
Array = npt.NDArray[np.float64]
B = 3
H = 1e-6  # of central differences


class Draw:
    """Sizes, constants and leaves of one example, the leaves' values sampled in their domain."""

    def __init__(self, seed: int, m: int = 2, n: int = 3) -> None:
        self.rng = np.random.default_rng(seed)
        self.m, self.n = m, n
        self.leaves: list[Any] = []
        self.values: list[torch.Tensor] = []

    def const(self, *shape: int) -> Array:
        return np.asarray(self.rng.standard_normal(shape))

    def _leaf(self, sample: Array, parameter: bool, **attributes: bool) -> Any:
        kind = cp.Parameter if parameter else cp.Variable
        leaf = kind(sample.shape[1:], **attributes)
        self.leaves.append(leaf)
        self.values.append(torch.from_numpy(np.ascontiguousarray(sample)))
        return leaf

    def real(self, *shape: int, parameter: bool = False) -> Any:
        return self._leaf(self.rng.standard_normal((B, *shape)), parameter)

    def positive(self, *shape: int, parameter: bool = False, least: float = 0.3) -> Any:
        sample = least + self.rng.random((B, *shape))
        return self._leaf(sample, parameter, pos=True)

    def inside(self, low: float, high: float, *shape: int) -> Any:
        return self._leaf(low + (high - low) * self.rng.random((B, *shape)), False)

    def boolean(self, *shape: int) -> Any:
        return self._leaf(self.rng.integers(0, 2, (B, *shape)).astype(float), False, boolean=True)

    def definite(self, n: int, *batch: int, parameter: bool = False, trace: bool = False) -> Any:
        root = self.rng.standard_normal((B, *batch, n, n))
        sample = root @ root.swapaxes(-1, -2) + 0.5 * np.eye(n)
        if trace:
            sample /= np.trace(sample, axis1=-2, axis2=-1)[..., None, None]
        attributes = {} if batch else ({"PSD": True} if parameter else {"symmetric": True})
        return self._leaf(sample, parameter, **attributes)

    def symmetric(self, n: int, *batch: int) -> Any:
        root = self.rng.standard_normal((B, *batch, n, n))
        sample = root + root.swapaxes(-1, -2)
        attributes: dict[str, bool] = {} if batch else {"symmetric": True}
        return self._leaf(sample, False, **attributes)


Case = Callable[[Draw], Any]
AXES = (None, 0, 1, -1, (0, 1))


def _conv(d: Draw) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cp.conv(d.const(d.m, 1), d.real(d.n, 1))


def _symbolic(d: Draw) -> Any:
    x = d.real(d.m, d.n)
    t = d.positive(parameter=True)
    expr = cp.quad_over_lin(x, t, axis=1)
    index = np.arange(d.m * d.n).reshape((d.m, d.n), order="F")
    blocks = [index[i] for i in range(d.m)]
    return SymbolicQuadForm(x, np.eye(d.m * d.n) / t, expr, block_indices=blocks)


def _perspective(d: Draw, recession: bool = False, parameter: bool = False) -> Any:
    s = d.positive()
    x = d.real(d.n)
    weight = d.positive(parameter=True) if parameter else 2.0
    f = cp.sum_squares(x) + weight * cp.sum(x)
    return cp.perspective(f, s, f_recession=cp.sum(cp.abs(x)) if recession else None)


def _reductions() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    atoms: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "sum": (cp.sum, AXES),
        "max": (cp.max, AXES),
        "min": (cp.min, AXES),
        "log_sum_exp": (cp.log_sum_exp, AXES),
        "prod": (cp.prod, AXES),
        "norm1": (cp.norm1, AXES[:-1]),
        "norm_inf": (cp.norm_inf, AXES[:-1]),
        "pnorm2": (lambda x, **k: cp.pnorm(x, 2, **k), AXES[:-1]),
        "mean": (cp.mean, AXES),
        "std": (cp.std, AXES[:-1]),
        "var": (cp.var, (None,)),
        "ptp": (cp.ptp, AXES[:-1]),
        "sum_largest": (lambda x, **k: cp.sum_largest(x, 2, **k), AXES),
        "sum_largest_fraction": (lambda x, **k: cp.sum_largest(x, 1.5, **k), AXES),
        "quad_over_lin": (lambda x, **k: cp.quad_over_lin(x, 2.5, **k), AXES),
    }

    def reduced(name: str) -> Case:
        atom, axes = atoms[name]

        def build(d: Draw) -> Any:
            axis = axes[d.rng.integers(len(axes))]
            keep = bool(d.rng.integers(2)) and name not in ("std", "var")
            if "sum_largest" in name and axis is None:
                keep = False  # cvxpy's own value then lacks the kept dimensions
            return atom(d.real(d.m, d.n), axis=axis, keepdims=keep)

        return build

    def of_a_vector(name: str) -> Case:
        return lambda d: atoms[name][0](d.real(d.n))

    def along(atom: Any, axis: Any) -> Case:
        return lambda d: atom(d.positive(d.m, d.n), axis=axis)

    for name in atoms:
        cases[name] = reduced(name)
        cases[f"{name} of a vector"] = of_a_vector(name)
    for axis in (None, 0, 1, (0, 1)):
        cases[f"geo_mean axis={axis}"] = along(cp.geo_mean, axis)
    for axis in (0, 1):
        for atom in (cp.cumsum, cp.cumprod, cp.cummax):
            cases[f"{atom.__name__} axis={axis}"] = along(atom, axis)
    return cases


_REAL = {
    "abs": cp.abs, "ceil": cp.ceil, "floor": cp.floor, "exp": cp.exp, "logistic": cp.logistic,
    "huber": cp.huber, "huber of a small threshold": lambda x: cp.huber(x, 0.3), "pos": cp.pos,
    "neg": cp.neg, "square": cp.square, "cube": lambda x: cp.power(x, 3), "sign": cp.sign,
    "power four": lambda x: cp.power(x, 4), "scalene": lambda x: cp.scalene(x, 2, 3),
    "power zero": lambda x: cp.power(x, 0) + 0 * x, "power one": lambda x: cp.power(x, 1) + x,
    "one_minus_pos": lambda x: cp.one_minus_pos(x), "neg expression": lambda x: -x,
    "sin": cp.nlp.sin, "cos": cp.nlp.cos, "sinh": cp.nlp.sinh, "tanh": cp.nlp.tanh,
    "asinh": cp.nlp.asinh, "normcdf": cp.nlp.normcdf, "xexp": cp.xexp, "length": cp.length,
    "conj": cp.conj, "real": cp.real, "imag": lambda x: cp.imag(x) + x,
    "log_normcdf": cp.log_normcdf,
    "nonneg_wrap": cp.atoms.affine.wraps.nonneg_wrap, "Wrap": cp.atoms.affine.wraps.Wrap,
    "nonpos_wrap": cp.atoms.affine.wraps.nonpos_wrap, "tan": lambda x: cp.nlp.tan(0.3 * x),
}  # fmt: skip

_POSITIVE = {
    "log": cp.log, "log1p": cp.log1p, "entr": cp.entr, "sqrt": cp.sqrt, "inv_pos": cp.inv_pos,
    "power 1.7": lambda x: cp.power(x, 1.7), "power -1.3": lambda x: cp.power(x, -1.3),
    "exact power": lambda x: cp.power(x, 0.37, approx=False), "loggamma": cp.loggamma,
    "harmonic_mean": cp.harmonic_mean, "inv_prod": cp.inv_prod,
    "weighted geo_mean": lambda x: cp.geo_mean(x, np.arange(1.0, x.size + 1)),
    "exact geo_mean": lambda x: cp.geo_mean(x, approx=False),
    "geo_mean of some": lambda x: cp.geo_mean(x, np.arange(x.size) + 1.0 * (x.size < 2)),
    "geo_mean of one": lambda x: cp.geo_mean(x, np.eye(x.size)[-1]),
    "pnorm 3": lambda x: cp.pnorm(x - 0.5, 3), "pnorm 2.5": lambda x: cp.pnorm(x - 0.5, 2.5),
    "exact pnorm": lambda x: cp.pnorm(x - 0.5, 1.9, approx=False),
    "pnorm 4": lambda x: cp.pnorm(x - 0.5, 4), "pnorm 0.5": lambda x: cp.pnorm(x, 0.5),
    "pnorm -1": lambda x: cp.pnorm(x, -1), "pnorm -2.5": lambda x: cp.pnorm(x, -2.5),
    "gmatmul": lambda x: cp.gmatmul(np.arange(2.0 * x.size).reshape(2, -1) / 3 - 1, x),
}  # fmt: skip


def _of_real(function: Any) -> Case:
    return lambda d: function(d.real(d.n))


def _of_positive(function: Any) -> Case:
    return lambda d: function(d.positive(d.n))


CASES: dict[str, Case] = {
    **_reductions(),
    **{name: _of_real(f) for name, f in _REAL.items()},
    **{f"{name} of a positive vector": _of_positive(f) for name, f in _POSITIVE.items()},
    # elementwise, of matrices and of several arguments
    "atanh": lambda d: cp.nlp.atanh(d.inside(-0.9, 0.9, d.m, d.n)),
    "log of a matrix": lambda d: cp.log(d.positive(d.m, d.n)),
    "exp of a scalar": lambda d: cp.exp(d.real()),
    "kl_div": lambda d: cp.kl_div(d.positive(d.m, d.n), d.positive(d.m, d.n)),
    "kl_div of a scalar": lambda d: cp.kl_div(d.positive(d.n), d.positive()),
    "kl_div of a constant": lambda d: cp.kl_div(np.full(d.n, 0.7), d.positive(d.n)),
    "rel_entr": lambda d: cp.rel_entr(d.positive(d.n), d.positive(d.n)),
    "rel_entr of a constant": lambda d: cp.rel_entr(d.positive(d.n), 2.0),
    "maximum": lambda d: cp.maximum(d.real(d.m, d.n), d.const(d.m, d.n), 0.2, d.real()),
    "maximum with a number": lambda d: cp.maximum(d.real(), np.zeros(d.n)),
    "minimum": lambda d: cp.minimum(d.real(d.n), d.real(d.n), d.const(), 0.4),
    "huber of a parameter": lambda d: cp.huber(d.real(d.m, d.n), d.positive(parameter=True)),
    "power of a parameter": lambda d: cp.power(d.positive(d.m, d.n), d.positive(parameter=True)),
    "power of a number": lambda d: 2.0 ** d.real(d.n),
    "and or not xor": lambda d: cp.logic.And(
        cp.logic.Or(d.boolean(d.n), cp.logic.Not(d.boolean(d.n))),
        cp.logic.Xor(d.boolean(d.n), d.boolean(d.n)), d.boolean(d.n)),
    # sums, products, quotients
    "affine": lambda d: 2 * d.real(d.n) - d.real(d.n) / 3 + d.const(d.n) - d.real() + 1,
    "difference of a number": lambda d: 1 - d.real(d.m, d.n) - d.real(d.m, d.n),
    "number plus scalar": lambda d: d.const(d.n) - d.real() + np.ones(d.n),
    "ones minus scalar": lambda d: np.ones(d.n) - d.real(),
    "scalars": lambda d: d.real() - 2 * d.real() + 3,
    "broadcast sum": lambda d: d.real(d.m, d.n) + d.real(d.n) + d.const(d.m, 1) + d.real(d.m, 1),
    "sum of broadcasts": lambda d: d.real(1, d.n) + d.real(d.m, 1),
    "multiply": lambda d: cp.multiply(d.real(d.m, d.n), d.const(d.m, d.n)) * d.real(parameter=True),
    "multiply broadcast": lambda d: cp.multiply(d.real(d.n), d.real(d.m, d.n)),
    "multiply negative one": lambda d: cp.multiply(-np.ones(d.n), d.real(d.n)),
    "multiply scalar by ones": lambda d: cp.multiply(np.ones((d.m, d.n)), d.real()),
    "quotient": lambda d: d.real(d.n) / d.positive(d.n, parameter=True),
    "quotient by a scalar": lambda d: d.real(d.m, d.n) / d.positive(parameter=True),
    "quotient by a constant": lambda d: d.real(d.n) / np.exp(d.const(d.n)),
    "quotient of a constant": lambda d: d.const(d.n) / d.positive(parameter=True),
    "promote": lambda d: cp.promote(d.real(), (d.m, d.n)),
    "sum with a (1, 1)": lambda d: d.real(1, 1) + d.real(d.n) + cp.promote(d.real(1, 1), (d.n,)),
    "promote (1, 1)": lambda d: cp.promote(d.real(1, 1), (d.m, d.n)),
    "broadcast_to": lambda d: cp.broadcast_to(d.real(d.n), (d.m, d.n)),
    # matrix products
    "A x": lambda d: d.const(d.m, d.n) @ d.real(d.n),
    "x A": lambda d: d.real(d.m) @ d.const(d.m, d.n),
    "A X": lambda d: d.const(d.m, d.n) @ d.real(d.n, 2),
    "X A": lambda d: d.real(2, d.m) @ d.const(d.m, d.n),
    "c x": lambda d: d.const(d.n) @ d.real(d.n),
    "x c": lambda d: d.real(d.n) @ d.const(d.n),
    "c X": lambda d: d.const(d.m) @ d.real(d.m, d.n),
    "X c": lambda d: d.real(d.m, d.n) @ d.const(d.n),
    "sparse A x": lambda d: sp.csc_array(d.const(d.m, d.n)) @ d.real(d.n),
    "P x": lambda d: d.real(d.m, d.n, parameter=True) @ d.real(d.n),
    "x P": lambda d: d.real(d.m) @ d.real(d.m, d.n, parameter=True),
    "p x": lambda d: d.real(d.n, parameter=True) @ d.real(d.n),
    "P X": lambda d: d.real(d.m, d.n, parameter=True) @ d.real(d.n, d.m),
    "batched A X": lambda d: d.const(2, d.m, d.n) @ d.real(d.n, 2),
    "batched X Y": lambda d: d.real(2, d.m, d.n) @ d.real(d.n, 2, parameter=True),
    "batched X c": lambda d: d.real(2, d.m, d.n) @ d.const(d.n),
    "batched c X": lambda d: d.const(d.m) @ d.real(2, d.m, d.n),
    "outer": lambda d: cp.outer(d.const(d.m), d.real(d.n)),
    "vdot": lambda d: cp.vdot(d.const(d.m, d.n), d.real(d.m, d.n)),
    "scalar product": lambda d: cp.scalar_product(d.real(d.n), d.real(d.n)),
    "einsum": lambda d: cp.einsum("ij,jk->ik", d.const(d.m, d.n), d.real(d.n, 2)),
    "einsum of three": lambda d: cp.einsum("ijk,k->ji", d.real(2, d.m, d.n), d.const(d.n)),
    "kron left": lambda d: cp.kron(d.const(d.m, d.n), d.real(2, 3)),
    "kron right": lambda d: cp.kron(d.real(2, 3), d.const(d.m, d.n)),
    "kron of a parameter": lambda d: cp.kron(d.real(d.m, d.n, parameter=True), d.real(2, 3)),
    "conv": _conv,
    "convolve": lambda d: cp.convolve(d.const(d.m), d.real(d.n)),
    "convolve with a parameter": lambda d: cp.convolve(d.real(d.m, parameter=True), d.real(d.n)),
    "quad_form": lambda d: cp.quad_form(d.real(d.n), np.eye(d.n) + np.ones((d.n, d.n))),
    "quad_form of a column": lambda d: cp.quad_form(d.real(d.n, 1), np.eye(d.n)),
    "quad_form of a parameter": lambda d: cp.quad_form(
        d.real(d.n), d.definite(d.n, parameter=True)),
    "quad_form of sparse": lambda d: cp.quad_form(d.real(d.n), sp.eye_array(d.n, format="csc")),
    "constant in quad_form": lambda d: cp.quad_form(d.const(d.n), d.definite(d.n)),
    "psd_wrap": lambda d: cp.quad_form(
        d.real(d.n), cp.psd_wrap(d.definite(d.n, parameter=True) * 2)),
    "quad_over_lin of a parameter": lambda d: cp.quad_over_lin(
        d.real(d.m, d.n), d.positive(parameter=True), axis=0, keepdims=True),
    "quad_over_lin of a constant": lambda d: cp.quad_over_lin(d.const(d.m, d.n), d.positive()),
    "sum_squares": lambda d: cp.sum_squares(d.const(d.m, d.n) @ d.real(d.n) - d.real(d.m)),
    "gmatmul of a parameter": lambda d: cp.gmatmul(
        d.real(d.m, d.n, parameter=True), d.positive(d.n, 2)),
    # shapes
    "index": lambda d: d.real(d.m + 1, d.n + 1)[0, 1:],
    "negative index": lambda d: d.real(d.n)[-1],
    "reversed": lambda d: d.real(d.m, d.n)[::-1, ::2],
    "new axis": lambda d: d.real(d.m, d.n)[..., None, 0],
    "nd index": lambda d: d.real(2, d.m, d.n)[1, :, 0:1],
    "list index": lambda d: d.real(d.m, d.n)[:, [0, d.n - 1, 0]],
    "mask": lambda d: d.real(d.m, d.n)[np.eye(d.m, d.n) > 0],
    "pairs": lambda d: d.real(d.m, d.n)[[0, d.m - 1], [d.n - 1, 0]],
    "reshape F": lambda d: cp.reshape(d.real(d.m, d.n), (d.n, d.m), order="F"),
    "reshape C": lambda d: cp.reshape(d.real(d.m, d.n), (d.n, d.m), order="C"),
    "reshape nd F": lambda d: cp.reshape(d.real(2, d.m, d.n), (d.n, 2, d.m), order="F"),
    "vec F": lambda d: cp.vec(d.real(d.m, d.n), order="F"),
    "vec C": lambda d: cp.vec(d.real(d.m, d.n), order="C"),
    "unvec": lambda d: cp.reshape(d.real(d.m * d.n), (d.m, d.n), order="F"),
    "reshape column": lambda d: cp.reshape(d.real(d.n), (d.n, 1), order="F"),
    "deep_flatten": lambda d: cp.deep_flatten([[d.real(d.m, d.n), d.real()], d.real(2)]),
    "squeeze": lambda d: cp.squeeze(d.real(d.m, 1, d.n)),
    "transpose": lambda d: d.const(d.m) @ d.real(d.n, d.m).T,
    "transpose of a vector": lambda d: d.real(d.n).T + 1,
    "permute_dims": lambda d: cp.permute_dims(d.real(2, d.m, d.n), [2, 0, 1]),
    "swapaxes": lambda d: cp.swapaxes(d.real(2, d.m, d.n), 0, 2),
    "moveaxis": lambda d: cp.moveaxis(d.real(2, d.m, d.n), 0, -1),
    "hstack": lambda d: cp.hstack([d.real(d.m), d.const(d.n), d.real()]),
    "hstack of matrices": lambda d: cp.hstack([d.const(d.m, 2), d.real(d.m, d.n)]),
    "vstack": lambda d: cp.vstack([d.const(d.n), d.real(d.n), d.real(2, d.n)]),
    "vstack of scalars": lambda d: cp.vstack([d.real(), 1.0, d.real()]),
    "bmat": lambda d: cp.bmat([[d.real(d.m, d.m), d.const(d.m, d.n)],
                               [np.zeros((d.n, d.m)), d.real(d.n, d.n)]]),
    "stack": lambda d: cp.stack([d.real(d.m, d.n), d.const(d.m, d.n)], axis=1),
    "concatenate": lambda d: cp.concatenate([d.real(d.m, d.n), d.const(d.m, 2)], axis=1),
    "concatenate flat": lambda d: cp.concatenate([d.real(d.m, d.n), d.const(2)], axis=None),
    "diag_mat": lambda d: cp.diag(d.real(d.n + 1, d.n + 1), k=1),
    "diag_vec": lambda d: cp.diag(d.real(d.n), k=-1),
    "trace": lambda d: cp.trace(d.real(d.n, d.n)),
    "trace of a product": lambda d: cp.trace(d.const(d.m, d.n) @ d.real(d.n, d.m)),
    "nd trace": lambda d: cp.trace(d.real(2, d.n, d.n)),
    "upper_tri": lambda d: cp.upper_tri(d.real(d.n + 1, d.n + 1)),
    "nd upper_tri": lambda d: cp.upper_tri(d.real(2, d.n + 1, d.n + 1)),
    "vec_to_upper_tri": lambda d: cp.vec_to_upper_tri(d.real(6), strict=d.n > 2),
    "diff": lambda d: cp.diff(d.real(d.m + 1, d.n), axis=0),
    "partial_trace": lambda d: cp.partial_trace(d.real(6, 6), [2, 3], axis=d.n % 2),
    "partial_transpose": lambda d: cp.partial_transpose(d.real(6, 6), [2, 3], axis=d.n % 2),
    "symmetric_wrap": lambda d: cp.symmetric_wrap(d.symmetric(d.n)),
    "hermitian_wrap": lambda d: cp.hermitian_wrap(d.symmetric(d.n)),
    "nsd_wrap": lambda d: cp.atoms.affine.wraps.nsd_wrap(-d.definite(d.n)),
    "skew_symmetric_wrap": lambda d: cp.skew_symmetric_wrap(d.real(d.n, d.n)),
    # reductions with more to them
    "flat cumsum": lambda d: cp.cumsum(d.real(d.m, d.n), axis=None),
    "cumsum of a vector": lambda d: cp.cumsum(d.real(d.n)),
    "cummax of a vector": lambda d: cp.cummax(d.real(d.n)),
    "nd sum": lambda d: cp.sum(d.real(2, d.m, d.n), axis=(0, 2)),
    "sum of a scalar": lambda d: cp.sum(d.real()),
    "sum over no axis": lambda d: cp.sum(d.real(d.m, d.n), axis=()),
    "nd max": lambda d: cp.max(d.real(2, d.m, d.n), axis=(0, 2), keepdims=True),
    "max of a scalar": lambda d: cp.max(d.real()),
    "nd prod": lambda d: cp.prod(d.real(2, d.m, d.n), axis=(0, 2)),
    "nd geo_mean": lambda d: cp.geo_mean(
        d.positive(2, d.m, d.n), list(range(1, 2 * d.n + 1)), axis=(0, 2)),
    "nd sum_largest": lambda d: cp.sum_largest(d.real(2, d.m, d.n), 1.5, axis=(0, 2)),
    "all of sum_largest": lambda d: cp.sum_largest(d.real(d.n), 10),
    "sum_smallest": lambda d: cp.sum_smallest(d.real(d.n), 2),
    "norm 2": lambda d: cp.norm(d.real(d.n), 2),
    "norm fro": lambda d: cp.norm(d.real(d.m, d.n), "fro"),
    "norm of a matrix": lambda d: cp.norm(d.real(d.m, d.n), 1) + cp.norm(d.real(d.m, d.n), "inf"),
    "mixed_norm": lambda d: cp.mixed_norm(d.real(d.m, d.n), 2, 1),
    "norm of a scalar": lambda d: cp.norm(d.real()),
    "cvar": lambda d: cp.cvar(d.real(d.n + 2), 0.6),
    "tv": lambda d: cp.tv(d.real(d.n + 1)),
    "tv of matrices": lambda d: cp.tv(d.real(d.m + 1, d.n + 1), d.real(d.m + 1, d.n + 1)),
    "dotsort": lambda d: cp.dotsort(d.real(d.m, d.n), d.const(1 + d.m)[: d.m * d.n]),
    "dotsort of a parameter": lambda d: cp.dotsort(d.real(d.n + 1), d.real(d.n, parameter=True)),
    "dist_ratio": lambda d: cp.dist_ratio(d.real(d.n), np.ones(d.n), 3 + np.zeros(d.n)),
    # matrices
    "lambda_max": lambda d: cp.lambda_max(d.symmetric(d.n)),
    "lambda_min": lambda d: cp.lambda_min(d.symmetric(d.n)),
    "nd lambda_max": lambda d: cp.lambda_max(d.symmetric(d.n, 2)),
    "lambda_sum_largest": lambda d: cp.lambda_sum_largest(d.symmetric(d.n + 1), 2),
    "lambda_sum_largest of a fraction": lambda d: cp.lambda_sum_largest(d.symmetric(d.n), 1.3),
    "all of lambda_sum_largest": lambda d: cp.lambda_sum_largest(d.symmetric(d.n), d.n + 1),
    "lambda_sum_smallest": lambda d: cp.lambda_sum_smallest(d.symmetric(d.n + 1), 2),
    "condition_number": lambda d: cp.condition_number(d.definite(d.n)),
    "gen_lambda_max": lambda d: cp.gen_lambda_max(d.symmetric(d.n), d.definite(d.n)),
    "sigma_max": lambda d: cp.sigma_max(d.real(d.m, d.n)),
    "normNuc": lambda d: cp.normNuc(d.real(d.m, d.n)),
    "von_neumann_entr": lambda d: cp.von_neumann_entr(d.definite(d.n)),
    "quantum_rel_entr": lambda d: cp.quantum_rel_entr(d.definite(d.n, trace=True), d.definite(d.n)),
    "pf_eigenvalue": lambda d: cp.pf_eigenvalue(d.positive(d.n, d.n)),
    "log_det": lambda d: cp.log_det(d.definite(d.n)),
    "tr_inv": lambda d: cp.tr_inv(d.definite(d.n)),
    "matrix_frac": lambda d: cp.matrix_frac(d.real(d.n), d.definite(d.n)),
    "matrix_frac of a matrix": lambda d: cp.matrix_frac(d.real(d.n, d.m), d.definite(d.n)),
    "matrix_frac of a constant": lambda d: cp.matrix_frac(
        d.real(d.n), 2 * np.eye(d.n) + np.ones((d.n, d.n))),
    "constant in matrix_frac": lambda d: cp.matrix_frac(d.const(d.n), d.definite(d.n)),
    "eye_minus_inv": lambda d: cp.eye_minus_inv(d.positive(d.n, d.n) / (3 * d.n)),
    "resolvent": lambda d: cp.resolvent(d.positive(d.n, d.n), 10.0),
    "perspective": _perspective,
    "perspective with recession": lambda d: _perspective(d, recession=True),
    "perspective with a parameter": lambda d: _perspective(d, parameter=True),
}  # fmt: skip

# Compared with something else than cvxpy's value.
OWN_REFERENCE: dict[str, Case] = {"symbolic quad form": _symbolic}

EXCLUDED = {
    "cvxpy.atoms.suppfunc.SuppFuncAtom": "the optimal value of an inner problem",
    "cvxpy.atoms.affine.affine_atom.AffAtom": "abstract",
    "cvxpy.atoms.affine.binary_operators.BinaryOperator": "abstract",
    "cvxpy.atoms.affine.unary_operators.UnaryOperator": "abstract",
    "cvxpy.atoms.axis_atom.AxisAtom": "abstract",
    "cvxpy.atoms.elementwise.elementwise.Elementwise": "abstract",
    "cvxpy.atoms.elementwise.logic.LogicExpression": "abstract",
    "cvxpy.atoms.elementwise.logic._NaryLogicExpression": "abstract",
}

# Piecewise constant ones have derivative zero, which differences confirm away from the jumps;
# these have jumps anywhere in the sampled domain, or are sampled at their kinks only.
NO_DIFFERENCES = {"and or not xor"}
# Second derivatives at a kink's distance from the samples are not what differences see.
FLOAT32_TOLERANCE = 2e-3


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _subclasses(kind: Any) -> Iterator[Any]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _all_atoms() -> set[type]:
    for module in pkgutil.walk_packages(cp.atoms.__path__, "cvxpy.atoms."):
        importlib.import_module(module.name)
    return {k for k in _subclasses(cp.atoms.atom.Atom) if k.__module__.startswith("cvxpy.atoms.")}


def _atoms_of(expression: Any) -> set[type]:
    if not expression.variables() and not expression.parameters():
        return set()
    return {type(expression)}.union(*(_atoms_of(argument) for argument in expression.args))


def _expected(expression: Any, leaves: list[Any], values: list[torch.Tensor]) -> torch.Tensor:
    results = []
    for element in zip(*values, strict=True):
        for leaf, value in zip(leaves, element, strict=True):
            leaf.value = value.numpy()
        value = expression.value
        value = value.toarray() if sp.issparse(value) else value
        results.append(torch.as_tensor(np.array(value, dtype=float).reshape(expression.shape)))
    return torch.stack(results)


def _scalar(function: TorchFunction, weights: torch.Tensor) -> Callable[..., torch.Tensor]:
    """One number for one element of the batch, for torch.func."""

    def evaluate(*element: torch.Tensor) -> torch.Tensor:
        return (function(*(x.unsqueeze(0) for x in element))[0] * weights).sum()

    return evaluate


def _check_derivatives(function: TorchFunction, values: list[torch.Tensor], seed: int) -> None:
    """First and second derivatives along a direction, against central differences."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(function.shape, generator=generator, dtype=torch.float64)
    directions = []
    for value in values:
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        square = value.dim() > 2 and value.shape[-1] == value.shape[-2]
        symmetric = square and bool(torch.allclose(value, value.mT, rtol=0, atol=1e-12))
        directions.append(direction + direction.mT if symmetric else direction)
    numbers = tuple(range(len(values)))
    scalar = _scalar(function, weights)

    def stepped(h: float) -> list[torch.Tensor]:
        """At the values, and a step forth and back, as one batch."""
        return [
            torch.cat([x, x + h * d, x - h * d]) for x, d in zip(values, directions, strict=True)
        ]

    here, forth, back = (function(*stepped(H)) * weights).reshape(3, B, -1).sum(2)
    first = (forth - back) / (2 * H)
    gradients = torch.func.vmap(torch.func.grad(scalar, argnums=numbers))(*stepped(H))
    pairs = zip(gradients, directions, strict=True)
    along = [g.reshape(3, B, -1) * d.reshape(1, B, -1) for g, d in pairs]
    slope, forth, back = torch.stack([a.sum(2) for a in along]).sum(0)
    scale = 1.0 + first.abs() + here.abs()
    assert ((slope - first).abs() <= 1e-6 * scale).all(), (slope, first)

    def derivative(*element: torch.Tensor) -> torch.Tensor:
        xs, ds = element[: len(values)], element[len(values) :]
        one = torch.func.grad(scalar, argnums=numbers)
        tangent = torch.func.jvp(one, tuple(xs), tuple(ds))[1]
        return torch.stack([(t * d).sum() for t, d in zip(tangent, ds, strict=True)]).sum()

    curvature = torch.func.vmap(derivative)(*values, *directions)
    second = (forth - back) / (2 * H)
    scale = 1.0 + second.abs() + slope.abs()
    assert ((curvature - second).abs() <= 1e-5 * scale).all(), (curvature, second)


def _close(result: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-10) -> None:
    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [*CASES, *OWN_REFERENCE])
@settings(derandomize=True, deadline=None, max_examples=7, database=None)
@given(seed=st.integers(0, 10_000), m=st.integers(1, 4), n=st.integers(1, 4))
def test_an_atom(name: str, seed: int, m: int, n: int) -> None:
    draw = Draw(seed, m, n)
    expression = {**CASES, **OWN_REFERENCE}[name](draw)
    function = translate(expression, draw.leaves)
    values = draw.values
    result = function(*values)
    assert result.dtype == torch.float64
    reference = expression.original_expression if name in OWN_REFERENCE else expression
    _close(result, _expected(reference, draw.leaves, values))

    order = torch.tensor([2, 0, 1])
    _close(function(*(x[order] for x in values)), result[order], 1e-12)
    _close(torch.cat([function(*(x[k : k + 1] for x in values)) for k in range(B)]), result, 1e-12)

    single = function(*(x.float() for x in values))
    assert single.dtype == torch.float32
    torch.testing.assert_close(
        single.double(), result, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE
    )
    if name not in NO_DIFFERENCES:
        _check_derivatives(function, values, seed)


def test_every_atom_of_cvxpy_is_covered() -> None:
    covered: set[str] = set()
    for build in [*CASES.values(), *OWN_REFERENCE.values()]:
        covered |= {_name(kind) for kind in _atoms_of(build(Draw(0)))}
    atoms = {_name(kind) for kind in _all_atoms()}
    missing = sorted(atoms - covered - set(EXCLUDED))
    assert not missing, (
        f"cvxpy {cp.__version__} has atoms without a test: {missing}. Register a rule in "
        "ddn_cvx/programs/translation and add a case here, or name them in EXCLUDED with the "
        "reason."
    )
    both = sorted(covered & set(EXCLUDED))
    assert not both, f"excluded, but there is a case: {both}"
    unregistered = sorted(atoms & covered - set(_RULES))
    assert not unregistered
    assert set(_RULES) <= atoms, f"no such atoms: {sorted(set(_RULES) - atoms)}"


def _of(expression: Any, *leaves: Any) -> TorchFunction:
    return translate(expression, leaves or expression.variables())


def _t(*numbers: Any) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# --- values at the edge, and derivatives at kinks


def _x(n: int = 2) -> Any:
    return cp.Variable(n)


_S = cp.Variable((2, 2), symmetric=True)
_RECTANGLE = cp.Variable((2, 3))
_SCALAR = cp.Variable()

# expression, point, value, a subgradient or None for any finite one
KINKS: dict[str, tuple[Any, Any, float, Any]] = {
    "norm at zero": (cp.norm(_x()), [0, 0], 0, [0, 0]),
    "norm fro at zero": (cp.norm(_RECTANGLE, "fro"), np.zeros((2, 3)), 0, np.zeros((2, 3))),
    "norm 3 at zero": (cp.pnorm(_x(), 3), [0, 0], 0, [0, 0]),
    "norm 1.5 with a zero": (cp.pnorm(_x(), 1.5), [0, 2], 2, [0, 1]),
    "pnorm 0.5 at zero": (cp.pnorm(_x(), 0.5), [0, 0], 0, None),
    "pnorm -1 at zero": (cp.pnorm(_x(), -1), [0, 0], 0, None),
    "pnorm -1 with a zero": (cp.pnorm(_x(), -1), [0, 2], 0, [1, 0]),
    "harmonic mean with a zero": (cp.harmonic_mean(_x()), [0, 2], 0, [2, 0]),
    "geo_mean at zero": (cp.geo_mean(_x()), [0, 0], 0, [0.5, 0.5]),
    "abs": (cp.sum(cp.abs(_x())), [0, -1], 1, [0, -1]),
    "norm1": (cp.norm1(_x()), [0, 0], 0, None),
    "norm_inf": (cp.norm_inf(_x()), [0, 0], 0, None),
    "norm_inf of equals": (cp.norm_inf(_x()), [2, -2], 2, None),
    "max of equals": (cp.max(_x()), [1, 1], 1, None),
    "min of equals": (cp.min(_x()), [1, 1], 1, None),
    "maximum": (cp.sum(cp.maximum(_x(), 0)), [0, 0], 0, None),
    "maximum of an expression": (cp.maximum(_SCALAR, -_SCALAR), 0.0, 0, None),
    "cummax of equals": (cp.sum(cp.cummax(_x())), [1, 1], 2, None),
    "sum_largest of equals": (cp.sum_largest(_x(3), 2), [1, 1, 1], 2, None),
    "dotsort of equals": (cp.dotsort(_x(), [1, 2]), [1, 1], 3, None),
    "huber": (cp.sum(cp.huber(_x())), [0, 1], 1, [0, 2]),
    "square": (cp.sum_squares(_x()), [0, -1], 1, [0, -2]),
    "cube": (cp.sum(cp.power(_x(), 3)), [0, -2], -8, [0, 12]),
    "power 1.5": (cp.sum(cp.power(_x(), 1.5)), [0, 4], 8, [0, 3]),
    "power one": (cp.sum(cp.power(_x(), 1)), [0, -1], -1, [1, 1]),
    "power zero": (cp.sum(cp.power(_x(), 0) + _x()), [0, -1], 1, None),
    "square over linear": (cp.quad_over_lin(_x(), 2), [0, 0], 0, [0, 0]),
    "entr at zero": (cp.sum(cp.entr(_x())), [0, 1], 0, None),
    "rel_entr at zero": (cp.sum(cp.rel_entr(_x(), [1, 1])), [0, 1], 0, None),
    "rel_entr of two zeros": (cp.sum(cp.rel_entr(_x(), _x())), [0, 0], 0, None),
    "kl_div at zero": (cp.sum(cp.kl_div(_x(), [1, 1])), [0, 1], 1, None),
    "kl_div of equals": (cp.sum(cp.kl_div(_x(), [1, 1])), [1, 1], 0, [0, 0]),
    "prod with zeros": (cp.prod(_x(3)), [0, 2, 3], 0, [6, 0, 0]),
    "prod of zeros": (cp.prod(_x(3)), [0, 0, 3], 0, [0, 0, 0]),
    "cumprod with zeros": (cp.sum(cp.cumprod(_x(3))), [0, 2, 3], 0, [9, 0, 0]),
    "tv at a constant": (cp.tv(_x(3)), [1, 1, 1], 0, None),
    "tv of a constant matrix": (cp.tv(_RECTANGLE), np.ones((2, 3)), 0, np.zeros((2, 3))),
    "std of equals": (cp.std(_x()), [1, 1], 0, None),
    "mixed_norm at zero": (cp.mixed_norm(_RECTANGLE), np.zeros((2, 3)), 0, np.zeros((2, 3))),
    "dist_ratio at a": (cp.dist_ratio(_x(), [1, 1], [2, 1]), [1, 1], 0, None),
    "logistic far left": (cp.sum(cp.logistic(_x())), [-800, -900], 0, [0, 0]),
    "logistic far right": (cp.sum(cp.logistic(_x())), [800, 900], 1700, [1, 1]),
    "log_sum_exp far": (cp.log_sum_exp(_x()), [1000, 0], 1000, [1, 0]),
    "log1p": (cp.sum(cp.log1p(_x())), [1e-20, 0], 1e-20, [1, 1]),
    "lambda_max of the identity": (cp.lambda_max(_S), np.eye(2), 1, None),
    "lambda_max at zero": (cp.lambda_max(_S), np.zeros((2, 2)), 0, None),
    "lambda_sum_largest": (cp.lambda_sum_largest(_S, 1.5), np.eye(2), 1.5, None),
    "condition_number": (cp.condition_number(_S), np.eye(2), 1, None),
    "sigma_max at zero": (cp.sigma_max(_RECTANGLE), np.zeros((2, 3)), 0, None),
    "sigma_max of equals": (cp.sigma_max(_RECTANGLE), np.eye(2, 3), 1, None),
    "normNuc at zero": (cp.normNuc(_RECTANGLE), np.zeros((2, 3)), 0, None),
    "normNuc of equals": (cp.normNuc(_RECTANGLE), np.eye(2, 3), 2, np.eye(2, 3)),
    "von_neumann_entr singular": (cp.von_neumann_entr(_S), np.diag([1.0, 0]), 0, None),
    "von_neumann_entr at I": (cp.von_neumann_entr(_S), np.eye(2), 0, -np.eye(2)),
    "quantum_rel_entr": (cp.quantum_rel_entr(_S, np.eye(2)), np.diag([1.0, 0]), 0, None),
    "log_det at I": (cp.log_det(_S), np.eye(2), 0, np.eye(2)),
    "tr_inv at I": (cp.tr_inv(_S), np.eye(2), 2, -np.eye(2)),
    "pf_eigenvalue at I": (cp.pf_eigenvalue(cp.Variable((2, 2), pos=True)), np.eye(2), 1, None),
}  # fmt: skip


@pytest.mark.parametrize("name", KINKS)
def test_values_and_derivatives_at_a_kink_are_finite(name: str) -> None:
    expression, point, value, subgradient = KINKS[name]
    leaves = expression.variables()
    function = translate(expression, leaves)
    points = [torch.as_tensor(np.asarray(point, dtype=float))[None] for _ in leaves]
    numbers = tuple(range(len(leaves)))

    def scalar(*xs: torch.Tensor) -> torch.Tensor:
        return function(*(x[None] for x in xs))[0]

    element = tuple(x[0] for x in points)
    _close(scalar(*element), torch.tensor(value, dtype=torch.float64))
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        gradients = transform(scalar, argnums=numbers)(*element)
        assert all(g.isfinite().all() for g in gradients), gradients
        # x also has to be a number of the batch, and zero times the function harmless
        assert all((0 * g).isfinite().all() for g in gradients)
    if subgradient is not None:
        _close(gradients[0], torch.as_tensor(np.asarray(subgradient, dtype=float)), 1e-9)
    # Second derivatives are infinite at some of these points, but never NaN without that.
    hessians = torch.func.jacfwd(torch.func.jacrev(scalar, argnums=numbers), argnums=numbers)
    infinite = ("power 1.5", "norm 1.5", "von_neumann_entr sing", "quantum_rel_entr", "pnorm -1 w",
                "harmonic")  # fmt: skip
    if not name.startswith(infinite):
        for row in hessians(*element):
            assert all(h.isfinite().all() for h in row), row


def test_a_parametric_exponent_at_zero() -> None:
    x, p = cp.Variable(2), cp.Parameter()
    function = translate(cp.sum(cp.power(x, p)), [x, p])

    def scalar(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return function(x[None], p[None])[0]

    for exponent in (1.0, 1.5, 2.0, 3.0):
        point = _t(0, 2), torch.tensor(exponent, dtype=torch.float64)
        gradients = torch.func.jacrev(scalar, argnums=(0, 1))(*point)
        _close(gradients[0], _t(1.0 if exponent == 1 else 0.0, exponent * 2 ** (exponent - 1)))
        _close(gradients[1], torch.tensor(2**exponent * np.log(2)))
        if exponent >= 2:
            hessian = torch.func.hessian(scalar, argnums=(0, 1))(*point)
            assert all(block.isfinite().all() for row in hessian for block in row)


OUTSIDE: dict[str, tuple[Any, Any]] = {
    "log": (cp.log(_SCALAR), -1.0),
    "sqrt": (cp.sqrt(_SCALAR), -1.0),
    "entr": (cp.entr(_SCALAR), -1.0),
    "rel_entr": (cp.rel_entr(_SCALAR, 1), -1.0),
    "kl_div": (cp.kl_div(1, _SCALAR), 0.0),
    "log_det": (cp.log_det(_S), -np.eye(2)),
    "log_det of a singular matrix": (cp.log_det(_S), np.zeros((2, 2))),
    "tr_inv": (cp.tr_inv(_S), np.diag([1.0, -1.0])),
    "matrix_frac": (cp.matrix_frac([1, 1], _S), np.zeros((2, 2))),
    "gen_lambda_max": (cp.gen_lambda_max(np.eye(2), _S), np.zeros((2, 2))),
    "von_neumann_entr": (cp.von_neumann_entr(_S), np.diag([1.0, -1.0])),
    "quantum_rel_entr": (cp.quantum_rel_entr(np.eye(2), _S), np.diag([1.0, -1.0])),
    "pnorm": (cp.pnorm(_x(), 0.5), [1.0, -1.0]),
    "lambda_max of NaN": (cp.lambda_max(_S), np.full((2, 2), np.nan)),
    "pf_eigenvalue of NaN": (cp.pf_eigenvalue(_S), np.full((2, 2), np.nan)),
    "normNuc of infinity": (cp.normNuc(_S), np.full((2, 2), np.inf)),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside_the_domain_only_that_element_suffers(name: str) -> None:
    expression, point = OUTSIDE[name]
    bad = torch.as_tensor(np.asarray(point, dtype=float))
    good = (
        torch.eye(2, dtype=torch.float64) * _t(1, 2) if bad.dim() == 2 else torch.full_like(bad, 2)
    )
    function = _of(expression)
    both = torch.stack([good, bad]).requires_grad_()
    result = function(both)
    assert not result[1].isfinite()
    alone = good[None].clone().requires_grad_()
    _close(result[0], function(alone)[0], 1e-12)
    (gradient,) = torch.autograd.grad(result[0], both)
    (expected,) = torch.autograd.grad(function(alone)[0], alone)
    _close(gradient[0], expected[0], 1e-12)


# --- eigenvalues


SPECTRAL: dict[str, tuple[Callable[[Any], Any], list[float], int]] = {
    # function, eigenvalues at which it is smooth, order of the last derivative that it has
    "lambda_max": (cp.lambda_max, [1, 1, 3], 5),
    "lambda_sum_largest": (lambda X: cp.lambda_sum_largest(X, 2), [1, 3, 3], 5),
    "von_neumann_entr": (cp.von_neumann_entr, [2, 2, 2], 3),
    "von_neumann_entr of neighbours": (cp.von_neumann_entr, [2, 2.01, 2.03], 3),
    "von_neumann_entr far": (cp.von_neumann_entr, [0.1, 2, 2], 3),
    "quantum_rel_entr": (lambda X: cp.quantum_rel_entr(np.diag([1.0, 2, 4]), X), [2, 2, 5], 2),
    "log_det": (cp.log_det, [2, 2, 2], 4),
    "tr_inv": (cp.tr_inv, [2, 2, 2], 4),
    "normNuc": (cp.normNuc, [2, 2, 1], 5),
    "pf_eigenvalue": (cp.pf_eigenvalue, [1, 1, 3], 7),
}


@pytest.mark.parametrize("name", SPECTRAL)
def test_derivatives_at_repeated_eigenvalues(name: str) -> None:
    """Each order along a line, by nested forward mode, against differences of the previous one."""
    atom, eigenvalues, order = SPECTRAL[name]
    X = cp.Variable((3, 3), symmetric=True)
    function = _of(atom(X))
    generator = torch.Generator().manual_seed(1)
    Q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    start = Q @ torch.diag(_t(*eigenvalues)) @ Q.mT
    direction = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    direction = direction + direction.mT

    def line(t: torch.Tensor) -> torch.Tensor:
        return function((start + t * direction)[None])[0]

    def differences(of: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        return central_difference(lambda t: of(start.new_tensor(t)), 1e-5)

    derivative = line
    for _ in range(min(order, 3)):
        expected = differences(derivative)
        derivative = torch.func.jacfwd(derivative)
        exact = derivative(start.new_tensor(0.0))
        torch.testing.assert_close(exact, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["lambda_max", "von_neumann_entr", "quantum_rel_entr"])
def test_beyond_the_last_order_derivatives_are_not_silently_wrong(name: str) -> None:
    atom, eigenvalues, order = SPECTRAL[name]
    function = _of(atom(cp.Variable((3, 3), symmetric=True)))
    derivative: Callable[[torch.Tensor], torch.Tensor] = lambda t: function(  # noqa: E731
        (torch.diag(_t(*eigenvalues)) + t * torch.ones(3, 3))[None]
    )[0]
    for n in range(order + 2):
        value = derivative(torch.tensor(0.0, dtype=torch.float64))
        assert value.isfinite() == (n <= order), n
        derivative = torch.func.jacfwd(derivative)


def test_quantum_relative_entropy_does_not_assume_a_unit_trace() -> None:
    rng = np.random.default_rng(0)
    X, Y = (r @ r.T + np.eye(3) for r in rng.standard_normal((2, 3, 3)))
    (x, U), (y, V) = np.linalg.eigh(X), np.linalg.eigh(Y)
    logs = (U * np.log(x)) @ U.T - (V * np.log(y)) @ V.T
    a, b = (cp.Variable((3, 3), symmetric=True) for _ in range(2))
    function = translate(cp.quantum_rel_entr(a, b), [a, b])
    result = function(torch.from_numpy(X)[None], torch.from_numpy(Y)[None])
    _close(result, _t(np.trace(X @ logs)))


def test_quantum_conditional_entropy() -> None:
    rho = cp.Variable((4, 4), symmetric=True)
    function = _of(cp.quantum_cond_entr(rho, [2, 2]))
    bell = np.zeros((4, 4))
    bell[np.ix_([0, 3], [0, 3])] = 0.5
    mixed = 0.999 * bell + 0.001 * np.eye(4) / 4
    w = np.linalg.eigvalsh(mixed)
    # minus the entropy of the pair plus that of the part, whose state is I / 2
    expected = -(w * np.log(w)).sum() - np.log(2)
    assert abs(abs(function(torch.from_numpy(mixed)[None]).item()) - abs(expected)) < 1e-9


# --- torch


def _many() -> tuple[TorchFunction, list[torch.Tensor]]:
    """Many atoms at once."""
    draw = Draw(3, 3, 3)
    x, p, X = draw.positive(3), draw.real(3, 3, parameter=True), draw.definite(3)
    parts = [
        cp.norm(p @ x), cp.log_sum_exp(x), cp.log_det(X), cp.matrix_frac(x, X), cp.lambda_max(X),
        cp.prod(x), cp.geo_mean(x), cp.sum(cp.cumprod(x)), cp.max(cp.cummax(p @ x)), cp.normNuc(p),
        cp.sum(cp.convolve([1, 2], x)), x[[0, 2]] @ np.ones(2), cp.trace(cp.kron(np.eye(2), X)),
        cp.sum(cp.huber(p)), cp.sum_largest(x, 2), cp.sum(cp.entr(x)), cp.quad_form(x, np.eye(3)),
        cp.von_neumann_entr(X), cp.pf_eigenvalue(X + 3), cp.sum(cp.upper_tri(X)),
        cp.dotsort(x, [1, 2]),
    ]  # fmt: skip
    return translate(cp.hstack(parts), draw.leaves), draw.values


def test_transforms_of_torch_func_agree() -> None:
    function, values = _many()

    def one(*xs: torch.Tensor) -> torch.Tensor:
        return function(*(x[None] for x in xs))[0]

    numbers = (0, 1, 2)
    transforms = (torch.func.jacrev, torch.func.jacfwd)
    first = [torch.func.vmap(t(one, argnums=numbers))(*values) for t in transforms]
    for a, b in zip(*first, strict=True):
        _close(a, b, 1e-9)
    second = [
        torch.func.vmap(s(t(one, argnums=numbers), argnums=numbers))(*values)
        for s in transforms
        for t in transforms
    ]
    for other in second[1:]:
        for rows, others in zip(second[0], other, strict=True):
            for a, b in zip(rows, others, strict=True):
                _close(a, b, 1e-7)
    # autograd, one element at a time
    jacobian = torch.autograd.functional.jacobian(one, tuple(v[0] for v in values))
    for a, b in zip(jacobian, first[0], strict=True):
        _close(a, b[0], 1e-9)


def test_gradgradcheck() -> None:
    X = cp.Variable((2, 2), symmetric=True)
    x = cp.Variable(2)
    p = cp.Parameter(pos=True)
    expression = cp.hstack([
        cp.matrix_frac(x, X), cp.power(cp.pnorm(x, 3), p), cp.log_det(X), cp.lambda_max(X) / p,
        cp.sum(cp.kl_div(cp.exp(x), cp.square(x))), cp.quad_over_lin(x, p),
    ])  # fmt: skip
    function = translate(expression, [X, x, p])
    point = (torch.tensor([[[2.0, 0.3], [0.3, 1.0]]]), _t([0.7, 1.2]), _t(1.7))
    inputs = tuple(t.double().requires_grad_() for t in point)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_tracing(mode: Any) -> None:
    function, values = _many()
    graph = make_fx(function, tracing_mode=mode, _allow_non_fake_inputs=True)(*values)
    other = [v + 0.01 * torch.eye(3).double() if v.dim() > 2 else 1.1 * v for v in values]
    _close(graph(*other), function(*other), 1e-12)
    # What was cached while tracing is as good as new.
    assert all(type(t) is torch.Tensor for tensors in function._cache.values() for t in tensors)
    gradient = torch.func.grad(lambda *v: function(*v).sum())
    _close(make_fx(gradient)(*values)(*other), gradient(*other), 1e-10)


def test_constants_made_in_inference_mode_serve_in_training() -> None:
    function, values = _many()
    with torch.inference_mode():
        function(*values)
    values[0].requires_grad_()
    function(*values).sum().backward()


def test_constants_made_inside_a_transform_serve_outside() -> None:
    function, values = _many()
    torch.func.vmap(torch.func.jacfwd(lambda *v: function(*(x[None] for x in v))))(*values)
    reference, _ = _many()
    _close(function(*values), reference(*values), 1e-12)


def test_pickle_and_deepcopy() -> None:
    function, values = _many()
    expected = function(*values)
    for other in (pickle.loads(pickle.dumps(function)), copy.deepcopy(function)):
        _close(other(*values), expected, 0.0)
    draw = Draw(0)
    perspective = translate(_perspective(draw, recession=True, parameter=True), draw.leaves)
    again = pickle.loads(pickle.dumps(perspective))
    _close(again(*draw.values), perspective(*draw.values), 0.0)


def test_every_case_pickles() -> None:
    for build in CASES.values():
        draw = Draw(0)
        function = translate(build(draw), draw.leaves)
        pickle.loads(pickle.dumps(function))


def test_a_constant_times_a_vector_is_one_product() -> None:
    x = cp.Variable(3)
    function = _of(np.ones((2, 3)) @ x)
    graph = make_fx(function)(torch.ones(4, 3)).graph
    called = [str(n.target) for n in graph.nodes if n.op == "call_function"]
    assert [c for c in called if "bmm" in c or "expand" in c] == []
    assert sum("mm" in c for c in called) == 1


def test_shared_subexpressions_are_computed_once() -> None:
    x = cp.Variable(3)
    exponential = cp.exp(x)
    function = _of(cp.sum(exponential) + cp.max(exponential) + exponential @ exponential)
    graph = make_fx(function)(torch.ones(4, 3)).graph
    assert sum("exp" in str(node.target) for node in graph.nodes) == 1


def test_differences_and_numbers_take_one_operation() -> None:
    x, y = cp.Variable(3), cp.Variable(3)
    assert len(translate(x - y, [x, y])._steps) == 1
    assert len(translate(3 * x, [x])._steps) == 1
    assert len(translate(1 * x + 0, [x])._steps) == 0
    assert len(translate(x[1:] - x[:-1], [x])._steps) == 3


def test_a_deep_expression() -> None:
    x = cp.Variable()
    expression: Any = x
    for k in range(3000):
        expression = cp.nlp.sin(expression) if k % 2 else -expression
    assert translate(expression, [x])(_t(0.3)).isfinite().all()


# --- leaves and constants


def test_an_expression_without_leaves_has_a_batch() -> None:
    x = cp.Variable(2)
    function = translate(cp.Constant(sp.eye_array(2, format="csc")) @ np.ones((2, 1)), [x])
    assert function(torch.zeros(5, 2)).shape == (5, 2, 1)
    assert function(torch.zeros(5, 2)).dtype == torch.float32
    assert translate(cp.power(x, 0), [x])(torch.zeros(5, 2)).tolist() == [[1, 1]] * 5
    assert translate(cp.sum(cp.imag(x)), [x])(torch.zeros(5, 2)).tolist() == [0] * 5
    assert translate(cp.hstack([1, 2]), [x])(torch.zeros(0, 2)).shape == (0, 2)


def test_a_leaf_is_itself_and_others_may_be_unused() -> None:
    x, y = cp.Variable((2, 2), PSD=True), cp.Parameter(3)
    value = torch.rand(4, 2, 2)
    assert translate(x, [y, x])(torch.zeros(4, 3), value) is value


@pytest.mark.parametrize(
    "attribute", ["symmetric", "PSD", "NSD", "diag", "nonneg", "hermitian_real", "sparsity"]
)
def test_leaves_with_attributes_are_given_in_full(attribute: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: dict[str, Any] = {attribute: True}
        if attribute == "sparsity":
            options = {"sparsity": ([0, 1], [1, 0])}
        elif attribute == "hermitian_real":
            options = {"symmetric": True, "bounds": None}
        X = cp.Variable((2, 2), **options)
    function = translate(np.arange(4.0).reshape(2, 2) @ X, [X])
    value = torch.rand(3, 2, 2, dtype=torch.float64)
    expected = torch.arange(4.0, dtype=torch.float64).reshape(2, 2) @ value
    _close(function(value), expected, 1e-12)


def test_an_empty_batch() -> None:
    function, values = _many()
    assert function(*(v[:0] for v in values)).shape == (0, *function.shape)


# --- messages


def test_an_atom_without_translation() -> None:
    x = cp.Variable(2)
    support = SuppFunc(cp.Variable(2, name="s"), [])
    expression = cp.sum(2 * cp.exp(support(x)))
    with pytest.raises(TranslationError) as caught:
        translate(expression, [x])
    message = str(caught.value)
    assert "atom SuppFuncAtom" in message
    assert "Sum(multiply(exp(<SuppFuncAtom>(...))))" in message
    assert "closed form" in message


def test_an_unknown_atom() -> None:
    class Own(cp.atoms.elementwise.exp.exp):  # type: ignore[misc]
        def numeric(self, values: list[Array]) -> Array:
            return np.exp(2 * values[0])

    x = cp.Variable(2)
    with pytest.raises(TranslationError, match=r"atom Own has no translation.*Sum\(<Own>"):
        translate(cp.sum(Own(x)), [x])


def test_a_subclass_with_the_same_meaning() -> None:
    class Own(cp.atoms.elementwise.exp.exp):  # type: ignore[misc]
        pass

    x = cp.Variable(2)
    _close(translate(Own(x), [x])(torch.zeros(1, 2)), torch.ones(1, 2))


def test_a_long_text_is_shortened() -> None:
    x = cp.Variable(2, name="a" * 300)
    with pytest.raises(TranslationError) as caught:
        translate(cp.sum(x), [])
    assert "variable aaa" in str(caught.value)
    assert "is not among the leaves" in str(caught.value)
    x = cp.Variable(2)
    support = SuppFunc(cp.Variable(2), [])
    with pytest.raises(TranslationError) as caught:
        translate(cp.exp(support(sum(k * x for k in range(60)))), [x])
    assert len(str(caught.value)) < 500


def test_leaves_that_are_no_leaves() -> None:
    p, q = cp.Parameter(name="p"), cp.Parameter(name="q")
    product = CallbackParam(lambda: p.value * q.value, name="pq")
    x = cp.Variable()
    with pytest.raises(TranslationError, match="callback parameter pq"):
        translate(product * x, [x])
    with pytest.raises(TranslationError, match="callback parameter pq"):
        translate(x, [x, product])
    with pytest.raises(TranslationError, match="parameter p is not among the leaves"):
        translate(p * x, [x])
    with pytest.raises(TranslationError, match="variable x is not among the leaves"):
        translate(p * cp.Variable(name="x"), [p])
    with pytest.raises(TranslationError, match="parameter p is not among the leaves"):
        translate(cp.huber(x, cp.Parameter(nonneg=True, name="p")), [x])
    with pytest.raises(TypeError, match="cvxpy expression is expected"):
        translate(3.0, [x])  # type: ignore[arg-type]


def test_complex_expressions() -> None:
    z, x = cp.Variable(2, complex=True), cp.Variable(2)
    with pytest.raises(TranslationError, match=r"complex.*real expressions"):
        translate(cp.norm(z), [z])
    with pytest.raises(TranslationError, match="complex"):
        translate(cp.abs(1j * x), [x])
    with pytest.raises(TranslationError, match="complex"):
        translate(x + cp.real(cp.multiply(np.array([1j, 0]), x)), [x])
    # Constants may be complex where what is read of them is real.
    function = translate(cp.real(cp.Constant([1j, 2])) + x, [x])
    assert function(torch.zeros(1, 2)).tolist() == [[0, 2]]


def test_expressions_that_are_no_atoms() -> None:
    x = cp.Variable(2)
    with pytest.raises(TranslationError, match=r"indicator.*problem's constraints"):
        translate(1 + indicator([x >= 0]), [x])
    t = cp.Variable(2)
    inner = cp.Problem(cp.Minimize(cp.sum(t)), [t >= x])
    with pytest.raises(TranslationError, match=r"PartialProblem.*outer problem"):
        translate(partial_optimize(inner, [t], [x]), [x])


def test_calls_with_other_tensors() -> None:
    x, y = cp.Variable(2), cp.Variable()
    function = translate(x * y, [x, y])
    with pytest.raises(TypeError, match="2 tensors are expected, got 1"):
        function(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"tensor 0 has shape \(1, 3\)"):
        function(torch.zeros(1, 3), torch.zeros(1))
    with pytest.raises(ValueError, match="batch size"):
        translate(cp.Constant(1.0), [])()


def test_the_package_knows_nothing_else_of_ddn_cvx() -> None:
    for module in pkgutil.iter_modules(ddn_cvx.programs.translation.__path__):
        source = importlib.import_module(f"ddn_cvx.programs.translation.{module.name}")
        assert source.__file__ is not None
        with open(source.__file__) as file:  # noqa: PTH123
            imports = [line for line in file if line.strip().startswith(("from ddn", "import ddn"))]
        assert all("ddn_cvx.programs.translation" in line for line in imports)
