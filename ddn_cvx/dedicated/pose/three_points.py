"""The pose of three points: up to four solutions, in closed form, batched.

Haralick, Lee, Ottenberg and Noelle, "Review and analysis of solutions of the three point
perspective pose estimation problem" (1994), section 3.1 (Grunert's solution): the law of cosines
for the three distances leads to a quartic, here solved by Ferrari's formula in complex numbers.
Newton steps on the three equations remove the rounding errors of the formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Newton steps on the quartic's roots.
_ROOT_STEPS = 3
# Imaginary part of a root, relative to its size, up to which the root counts as real: rounding
# separates a double root by the root of the precision.
_IMAGINARY_PART = 1e-4
# Residual of the three equations, relative to the triangle's largest squared edge, up to which
# distances are a solution: refined by Newton steps, and straight from the formula.
_REFINED_RESIDUAL = 1e-8
_UNREFINED_RESIDUAL = 1e-2


def three_point_poses(
    bearings: Tensor, points: Tensor, steps: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Poses from which three points are seen in three directions.

    Args:
        bearings: unit vectors in the camera's frame, shape ``(B, 3, 3)``, one in each row.
        points: scene points, shape ``(B, 3, 3)``, one in each row.
        steps: Newton steps on the distances.

    Returns:
        Rotations ``(B, 4, 3, 3)``, orthonormal as far as the distances are exact, translations
        ``(B, 4, 3)``, and a mask of the solutions, ``(B, 4)``; other entries are finite. Three
        points on a line have no solution.
    """
    # Of the pair without the first point, the second, and the third.
    cosines = (bearings.roll(-1, 1) * bearings.roll(-2, 1)).sum(-1)
    squares = _square(points.roll(-1, 1) - points.roll(-2, 1))
    size = squares.amax(-1, keepdim=True)
    proper = size.squeeze(-1) > 0
    squares = squares / torch.where(size > 0, size, 1.0)
    v, real = _ratios(cosines, squares)  # (B, 4)
    distances = _distances(v, cosines.unsqueeze(1), squares.unsqueeze(1))
    distances, error = _polished(distances, cosines.unsqueeze(1), squares.unsqueeze(1), steps)
    small = error < (_REFINED_RESIDUAL if steps else _UNREFINED_RESIDUAL)
    good = real & (distances > 0).all(-1) & small & proper.unsqueeze(-1)
    distances = torch.where(good.unsqueeze(-1), distances, 1.0) * size.sqrt().unsqueeze(1)
    seen = distances.unsqueeze(-1) * bearings.unsqueeze(1)  # (B, 4, 3, 3)
    # The rotation maps the triangle's edges and normal in the scene to those in the camera's frame.
    edges, line = _edges(points)
    seen_edges, _ = _edges(seen)
    a, b, n = edges.unbind(-2)
    cross = [torch.linalg.cross(b, n, dim=-1), torch.linalg.cross(n, a, dim=-1), n]
    area = torch.where(line, 1.0, _square(n))[:, None, None]
    R = seen_edges.mT @ (torch.stack(cross, -2) / area).unsqueeze(1)
    t = seen[:, :, 0] - (R @ points[:, None, 0, :, None]).squeeze(-1)
    return R, t, good & ~line.unsqueeze(-1)


def _square(v: Tensor) -> Tensor:
    return v.square().sum(-1)


def _ratios(cosines: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates of the third distance over the first, ``(B, 4)``, and which of them are real."""
    ca, cb, cc = cosines.unbind(-1)
    a, b, c = squares.unbind(-1)
    b = torch.where(b > 0, b, 1.0)
    minus, plus = (a - c) / b, (a + c) / b
    A4 = (minus - 1).square() - 4 * c / b * ca.square()
    A3 = 4 * (minus * (1 - minus) * cb - (1 - plus) * ca * cc + 2 * c / b * ca.square() * cb)
    A2 = 2 * (
        minus.square() - 1 + 2 * minus.square() * cb.square() + 2 * (b - c) / b * ca.square()
        - 4 * plus * ca * cb * cc + 2 * (b - a) / b * cc.square()
    )  # fmt: skip
    A1 = 4 * (-minus * (1 + minus) * cb + 2 * a / b * cc.square() * cb - (1 - plus) * ca * cc)
    A0 = (1 + minus).square() - 4 * a / b * cc.square()
    return quartic_roots(torch.stack([A0, A1, A2, A3, A4], -1))


def quartic_roots(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Real parts of the four roots of quartics, ``(B, 4)``, and which of the roots are real.

    By Ferrari's formula. A leading coefficient near zero is raised, which moves one root far out.

    Args:
        coefficients: constant term first, ``(B, 5)``.
    """
    size = coefficients.abs().amax(-1, keepdim=True).clamp_min(1e-300)
    scaled = coefficients / size
    e, d, c, b, a = scaled.unbind(-1)
    a = torch.where(a.abs() < 1e-14, 1e-14, a)
    b, c, d, e = b / a, c / a, d / a, e / a
    shift = b / 4
    p = c - 6 * shift.square()
    q = d - 2 * c * shift + 8 * shift**3
    r = e - d * shift + c * shift.square() - 3 * shift**4
    # A nonzero root of the resolvent 8 m^3 + 8 p m^2 + (2 p^2 - 8 r) m - q^2 = 0.
    m = _cubic_root(p, p.square() / 4 - r, -q.square() / 8)
    root = (2 * m).sqrt()
    safe = torch.where(root.abs() > 1e-150, root, 1.0)
    q = q.to(m.dtype)
    first = (-(2 * p + 2 * m) - 2 * q / safe).sqrt()
    second = (-(2 * p + 2 * m) + 2 * q / safe).sqrt()
    roots = torch.stack([root + first, root - first, -root + second, -root - second], -1) / 2
    roots = roots - shift.unsqueeze(-1)
    monic = torch.stack([e, d, c, b, torch.ones_like(a)], -1).unsqueeze(-2)
    real = roots.imag.abs() <= _IMAGINARY_PART * (1 + roots.real.abs())
    x = roots.real
    for _ in range(_ROOT_STEPS):
        value, slope = torch.ones_like(x), torch.zeros_like(x)
        for k in (3, 2, 1, 0):
            slope = slope * x + value
            value = value * x + monic[..., k]
        step = value / torch.where(slope != 0, slope, 1.0)
        x = torch.where(step.abs() < 0.1 * (1 + x.abs()), x - step, x)
    x = torch.where(x.isfinite(), x, 0.0)
    return x, real & roots.real.isfinite()


def _cubic_root(b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The root of ``m^3 + b m^2 + c m + d`` of largest magnitude, complex."""
    shift = b / 3
    p, q = c - b.square() / 3, 2 * b**3 / 27 - b * c / 3 + d
    p, q = p.to(torch.complex128), q.to(torch.complex128)
    root = (q * q / 4 + p**3 / 27).sqrt()
    plus, minus = -q / 2 + root, -q / 2 - root
    u = torch.where(plus.abs() > minus.abs(), plus, minus) ** (1 / 3)
    safe = torch.where(u.abs() > 0, u, 1.0)
    third = torch.arange(3, dtype=torch.float64, device=u.device) * (2 * torch.pi / 3)
    turns = torch.polar(torch.ones_like(third), third).to(u)
    u, safe = u.unsqueeze(-1) * turns, safe.unsqueeze(-1) * turns
    candidates = u - p.unsqueeze(-1) / (3 * safe) - shift.unsqueeze(-1)
    best = candidates.abs().argmax(-1, keepdim=True)
    return candidates.gather(-1, best).squeeze(-1)


def _distances(v: Tensor, cosines: Tensor, squares: Tensor) -> Tensor:
    """Distances ``(B, 4, 3)`` of the three points, from the ratios ``v`` of :func:`_ratios`."""
    ca, cb, cc = cosines.unbind(-1)
    a, b, c = squares.unbind(-1)
    b = torch.where(b > 0, b, 1.0)
    minus = (a - c) / b
    divisor = 2 * (cc - v * ca)
    divisor = torch.where(divisor.abs() > 1e-12, divisor, 1e-12)
    u = ((minus - 1) * v.square() - 2 * minus * cb * v + 1 + minus) / divisor
    first = (b / (1 + v.square() - 2 * v * cb).clamp_min(1e-12)).sqrt()
    return torch.stack([first, u * first, v * first], -1)


def _polished(s: Tensor, cosines: Tensor, squares: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Distances after Newton steps on the law of cosines, and the largest residual."""
    identity = torch.eye(3, dtype=s.dtype, device=s.device)

    def errors(s: Tensor) -> Tensor:
        p, q = s.roll(-1, -1), s.roll(-2, -1)
        return p * p + q * q - 2 * p * q * cosines - squares

    for _ in range(steps):
        gap, p, q = errors(s), s.roll(-1, -1), s.roll(-2, -1)
        # Row k of the Jacobian has the derivatives in the distances k + 1 and k + 2.
        J = torch.diag_embed(p - q * cosines).roll(1, -1)
        J = 2 * (J + torch.diag_embed(q - p * cosines).roll(2, -1))
        normal = J.mT @ J + 1e-14 * identity
        step = torch.linalg.solve_ex(normal, J.mT @ gap.unsqueeze(-1)).result.squeeze(-1)
        moved = s - step
        better = errors(moved).abs().amax(-1) < gap.abs().amax(-1)
        s = torch.where(better.unsqueeze(-1), moved, s)
    return s, torch.nan_to_num(errors(s).abs().amax(-1), nan=torch.inf)


def _edges(points: Tensor) -> tuple[Tensor, Tensor]:
    """Two edges and the normal of triangles, rows ``(..., 3, 3)``, and which triangles are flat."""
    first, second = points[..., 1, :] - points[..., 0, :], points[..., 2, :] - points[..., 0, :]
    normal = torch.linalg.cross(first, second, dim=-1)
    flat = _square(normal) <= 1e-20 * _square(first) * _square(second)
    return torch.stack([first, second, normal], -2), flat
