"""Translation of cvxpy expressions to torch: every atom against cvxpy's own value."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import cvxpy as cp
import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
import torch
from cvxpy.atoms.quad_form import SymbolicQuadForm
from cvxpy.expressions.constants.callback_param import CallbackParam
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

import ddn_cvx.translation
from ddn_cvx.translation import TorchFunction, TranslationError, translate
from ddn_cvx.translation.registry import _RULES, registered

Array = npt.NDArray[np.float64]
B = 3
H = 1e-6  # of central differences


class Draw:
    """Sizes, constants and leaves of one example; the leaves' values are sampled in their domain."""

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
        return self._leaf(root + root.swapaxes(-1, -2), False, **({} if batch else {"symmetric": 1}))


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

    for name, (atom, _) in atoms.items():
        cases[name] = reduced(name)
        cases[f"{name} of a vector"] = lambda d, f=atom: f(d.real(d.n))
    for axis in (None, 0, 1, (0, 1)):
        cases[f"geo_mean axis={axis}"] = lambda d, a=axis: cp.geo_mean(
            d.positive(d.m, d.n), axis=a, keepdims=a is not None
        )
    for axis in (0, 1):
        cases[f"cumsum axis={axis}"] = lambda d, a=axis: cp.cumsum(d.real(d.m, d.n), axis=a)
        cases[f"cumprod axis={axis}"] = lambda d, a=axis: cp.cumprod(d.real(d.m, d.n), axis=a)
        cases[f"cummax axis={axis}"] = lambda d, a=axis: cp.cummax(d.real(d.m, d.n), axis=a)
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
    "conj": cp.conj, "real": cp.real, "imag": lambda x: cp.imag(x) + x, "log_normcdf": cp.log_normcdf,
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

CASES: dict[str, Case] = {
    **_reductions(),
    **{name: lambda d, f=f: f(d.real(d.n)) for name, f in _REAL.items()},
    **{f"{name} of a positive vector": lambda d, f=f: f(d.positive(d.n))
       for name, f in _POSITIVE.items()},
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


def _subclasses(kind: type) -> Iterator[type]:
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
    gradient = torch.func.vmap(torch.func.grad(scalar, argnums=numbers))

    def stepped(h: float) -> list[torch.Tensor]:
        """At the values, and a step forth and back, as one batch."""
        return [torch.cat([x, x + h * d, x - h * d]) for x, d in zip(values, directions, strict=True)]

    here, forth, back = (function(*stepped(H)) * weights).reshape(3, B, -1).sum(2)
    first = (forth - back) / (2 * H)
    gradients = torch.func.vmap(torch.func.grad(scalar, argnums=numbers))(*stepped(H))
    along = [g.reshape(3, B, -1) * d.reshape(1, B, -1) for g, d in zip(gradients, directions)]
    slope, forth, back = torch.stack([a.sum(2) for a in along]).sum(0)
    scale = 1.0 + first.abs() + here.abs()
    assert ((slope - first).abs() <= 1e-6 * scale).all(), (slope, first)

    def derivative(*element: torch.Tensor) -> torch.Tensor:
        xs, ds = element[: len(values)], element[len(values) :]
        one = torch.func.grad(scalar, argnums=numbers)
        _, tangent = torch.func.jvp(one, tuple(xs), tuple(ds))
        return torch.stack([(t * d).sum() for t, d in zip(tangent, ds, strict=True)]).sum()

    curvature = torch.func.vmap(derivative)(*values, *directions)
    second = (forth - back) / (2 * H)
    scale = 1.0 + second.abs() + slope.abs()
    assert ((curvature - second).abs() <= 1e-5 * scale).all(), (curvature, second)


def _close(result: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-10) -> None:
    assert result.shape == expected.shape
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [*CASES, *OWN_REFERENCE])
@settings(derandomize=True, deadline=None, max_examples=3, database=None)
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
    atoms = {_name(kind): kind for kind in _all_atoms()}
    missing = sorted(set(atoms) - covered - set(EXCLUDED))
    assert not missing, (
        f"cvxpy {cp.__version__} has atoms without a test: {missing}. Register a rule in "
        "ddn_cvx/translation and add a case here, or name them in EXCLUDED with the reason."
    )
    both = sorted(covered & set(EXCLUDED))
    assert not both, f"excluded, but there is a case: {both}"
    unregistered = sorted(n for n, kind in atoms.items() if n in covered and not registered(kind))
    assert not unregistered
    assert set(_RULES) <= set(atoms), f"no such atoms: {sorted(set(_RULES) - set(atoms))}"
