"""Pose: rotations, three points, the node's optimality and derivatives, bad elements."""

import math
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from helpers import assert_derivatives, draw
from torch.autograd import gradcheck

from ddn_cvx import DeclarativeLayer, Status
from ddn_cvx.datasets import make_camera_scenes
from ddn_cvx.dedicated.common import cached_table as table
from ddn_cvx.dedicated.pose.damped_newton import moved
from ddn_cvx.dedicated.pose.expansion import Expander
from ddn_cvx.dedicated.pose.inputs import checked
from ddn_cvx.dedicated.pose.objective import COSTS, Pose
from ddn_cvx.dedicated.pose.perspective import solve_pose
from ddn_cvx.dedicated.pose.rotations import (
    cross_matrix,
    exponential,
    from_quaternion,
    logarithm,
    quaternion,
)
from ddn_cvx.dedicated.pose.three_points import quartic_roots, three_point_poses
from ddn_cvx.nn import PerspectiveNPoint
from ddn_cvx.problems import perspective_n_point

DOUBLE = torch.float64
SCALES = {"squared": 1.0, "huber": 4.0, "cauchy": 4.0, "geman_mcclure": 12.0, "cosine": 1.0}


def angles(R: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    angle: torch.Tensor = logarithm(R @ other.mT).norm(dim=-1)
    return angle


# -- rotations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 0.0316, 0.0317, 0.5, 2.0, 3.1, math.pi])
def test_rotations_are_exact_at_every_angle(angle: float) -> None:
    axis = draw(50, 3)
    v = angle * axis / axis.norm(dim=1, keepdim=True)
    R = exponential(v)
    torch.testing.assert_close(R, torch.linalg.matrix_exp(cross_matrix(v)), rtol=0, atol=1e-14)
    torch.testing.assert_close(from_quaternion(quaternion(R)), R, rtol=0, atol=1e-14)
    w = logarithm(R)
    if angle == math.pi:  # both signs are right
        w = torch.where((w * v).sum(1, keepdim=True) < 0, -w, w)
    torch.testing.assert_close(w, v, rtol=0, atol=1e-14)
    if angle < math.pi:
        leaf = v[:2].clone().requires_grad_()
        for function in (exponential, lambda v: logarithm(exponential(v))):
            assert_derivatives(function, leaf)


def test_quartics_have_their_roots() -> None:
    roots = torch.tensor([[1.0, 2, 3, 4], [-1, 0, 5, 100], [0.1, 0.2, -7, 2]], dtype=DOUBLE)
    coefficients = torch.zeros(3, 5, dtype=DOUBLE)
    coefficients[:, 0] = 1
    for k in range(4):  # times (x - root)
        shifted = torch.roll(coefficients, 1, dims=1)
        coefficients = shifted - roots[:, k : k + 1] * coefficients
    found, real = quartic_roots(coefficients)
    assert bool(real.all())
    torch.testing.assert_close(found.sort(1).values, roots.sort(1).values, rtol=1e-9, atol=1e-9)
    assert not quartic_roots(torch.tensor([[1.0, 0, 2, 0, 1.5]], dtype=DOUBLE))[1].any()


def test_one_of_the_poses_of_three_points_is_the_true_one() -> None:
    scene = make_camera_scenes(2000, 3, depth=3.0)
    y = scene.points @ scene.R.mT + scene.t.unsqueeze(1)
    R, t, good = three_point_poses(y / y.norm(dim=-1, keepdim=True), scene.points)
    error = (R - scene.R.unsqueeze(1)).abs().amax((-1, -2))
    error = error + (t - scene.t.unsqueeze(1)).abs().amax(-1)
    error = torch.where(good, error, torch.inf).amin(1)
    assert float((error > 1e-6).double().mean()) < 2e-3  # some triangles are nearly lines
    seen = scene.points.unsqueeze(1) @ R.mT + t.unsqueeze(2)
    ray, known = seen / seen.norm(dim=-1, keepdim=True), y / y.norm(dim=-1, keepdim=True)
    gap = (ray - known.unsqueeze(1)).abs().amax((-1, -2))
    assert float(gap[good].max()) < 1e-6  # whatever counts as a solution is one
    line = torch.linspace(0, 1, 3, dtype=DOUBLE)[None, :, None] * torch.ones(1, 3, 3).double()
    assert not three_point_poses(known[:1], line)[2].any()


# -- the node --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", COSTS)
def test_the_tangent_derivatives_are_exact(cost: str) -> None:
    scene = make_camera_scenes(2, 8, noise=5.0)
    camera = torch.tensor([[800.0, 3, 320], [0, 790, 300], [0, 0, 1]], dtype=DOUBLE)
    weights = torch.rand(2, 8, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    scale = torch.full((2,), SCALES[cost], dtype=DOUBLE)
    pose = Pose(scene.R, scene.t)
    objective, _, _ = checked(scene.image, scene.points, weights, camera, cost, scale)

    def value(step: torch.Tensor) -> torch.Tensor:
        return objective.value(moved(pose, step)).sum()

    zero = torch.zeros(2, 6, dtype=DOUBLE)
    expander = Expander(objective)
    found = expander(pose)
    torch.testing.assert_close(found.value, objective.value(pose))
    gradient = torch.func.grad(value)(zero)
    torch.testing.assert_close(objective.gradient(pose), gradient, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-12, atol=1e-9)
    H = torch.func.hessian(value)(zero)
    for element in range(2):
        expected = H[element, :, element]
        torch.testing.assert_close(
            found.hessian[element], expected, rtol=1e-11, atol=1e-11 * expected.abs().max()
        )
    normal = expander.normal(pose)
    assert float(torch.linalg.eigvalsh(normal).min()) > 0


@pytest.mark.parametrize("cost", COSTS)
def test_the_cost_is_infinite_behind_the_camera(cost: str) -> None:
    scene = make_camera_scenes(3, 8)
    objective, _, _ = checked(scene.image, scene.points, None, scene.camera, cost, SCALES[cost])
    t = scene.t.clone()
    t[0, 2] = -5
    t[1, 2] = -(scene.points[1] @ scene.R[1, 2]).median()  # some are in front of it
    expander = Expander(objective)
    for value in (
        expander(Pose(scene.R, t)).value,
        expander.single()(Pose(scene.R.float(), t.float())).value,
        objective.value(Pose(scene.R, t)),
    ):
        assert value.isinf().tolist() == [True, True, False]


@pytest.mark.parametrize("n", [6, 7, 30])
def test_gross_outliers_leave_a_pose_in_front_of_the_camera(n: int) -> None:
    scene = make_camera_scenes(200, n, noise=2.0, outliers=0.3, seed=3)
    found = solve_pose(scene.image, scene.points, None, scene.camera)
    assert bool((found.status == Status.SOLVED).all())
    depth = (scene.points @ found.R.mT + found.t.unsqueeze(1))[..., 2]
    assert bool((depth > 0).all())
    # Huber's cost with a large scale is the same one.
    same = solve_pose(scene.image, scene.points, None, scene.camera, cost="huber", scale=1e9)
    assert float((found.cost > same.cost * (1 + 1e-6)).double().mean()) < 0.05


def test_starts_of_no_curvature_are_not_the_last_word() -> None:
    scene = make_camera_scenes(200, 20, noise=0.1, depth=1e4)
    found = solve_pose(scene.image, scene.points, None, scene.camera)
    assert bool((found.status == Status.SOLVED).all())


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("n", [3, 4, 5, 6, 20, 100])
def test_poses_without_noise_are_the_true_ones(n: int, planar: bool) -> None:
    scene = make_camera_scenes(40, n, planar=planar)
    found = solve_pose(scene.image, scene.points, None, scene.camera)
    assert bool((found.status == Status.SOLVED).all())
    assert float(found.cost.max()) < 1e-12
    if n > 4:
        assert float(angles(found.R, scene.R).max()) < 1e-6
        torch.testing.assert_close(found.t, scene.t, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.R @ found.R.mT, torch.eye(3).double().expand(40, 3, 3))


@pytest.mark.parametrize("depth", [1.0, 10.0, 50.0])
@pytest.mark.parametrize("cost", ["squared", "huber"])
def test_no_pose_is_worse_than_the_true_one(cost: str, depth: float) -> None:
    for n, planar in ((4, False), (10, True), (60, False)):
        scene = make_camera_scenes(50, n, noise=5.0, planar=planar, depth=depth, seed=n)
        found = solve_pose(
            scene.image, scene.points, None, scene.camera, cost=cost, scale=SCALES[cost]
        )
        true = solve_pose(
            scene.image, scene.points, None, scene.camera, cost=cost, scale=SCALES[cost],
            initial=(scene.R, scene.t),
        )  # fmt: skip
        assert bool((found.status == Status.SOLVED).all())
        assert bool((found.cost <= true.cost * (1 + 1e-6) + 1e-12).all())


@pytest.mark.parametrize("cost", COSTS)
def test_derivatives_for_points_weights_camera_and_scale(cost: str) -> None:
    scene = make_camera_scenes(2, 8, noise=5.0)
    weights = 0.5 + torch.rand(2, 8, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    scale = SCALES[cost] * torch.tensor([1.0, 1.2], dtype=DOUBLE)
    camera = scene.camera.expand(2, 4).clone()
    inputs = [t.requires_grad_() for t in (scene.image, scene.points, weights, camera, scale)]

    def pose(
        x: torch.Tensor, X: torch.Tensor, w: torch.Tensor, K: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        R, t, *_ = solve_pose(x, X, w, K, cost=cost, scale=scale)
        return torch.cat([R.flatten(1), t], 1)

    assert_derivatives(pose, inputs, eps=1e-5, first=(1e-6, 1e-6), second=(1e-5, 1e-4), fast=True)


@pytest.mark.parametrize("rotation", ["axis_angle", "quaternion"])
@pytest.mark.parametrize("angle", [0.0, 1e-6, math.pi - 1e-3])
def test_derivatives_of_angles_and_quaternions(rotation: str, angle: float) -> None:
    scene = make_camera_scenes(1, 8, depth=5.0)
    axis = torch.tensor([[0.6, 0.0, 0.8]], dtype=DOUBLE)
    y = scene.points @ exponential(angle * axis).mT + torch.tensor([0.1, 0.2, 9.0]).double()
    noise = draw(1, 8, 2, seed=2)
    image = 800 * y[..., :2] / y[..., 2:] + 320
    image = (image + (5 if angle == 0.0 else 1e-3) * noise).requires_grad_()
    module = PerspectiveNPoint(rotation=rotation)

    def turn(image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = module(image, scene.points, None, scene.camera)[0]
        return found

    assert gradcheck(turn, image, eps=1e-6, atol=1e-6, rtol=1e-6)


def test_it_is_the_declaration_s_solution_and_gradient() -> None:
    declaration = perspective_n_point(n=9)
    x, X, weight = (t.requires_grad_() for t in declaration.inputs(batch=3, seed=0))
    R, t = DeclarativeLayer(declaration, solver="TORCH")(x, X, weight)
    found = solve_pose(x, X, weight)
    torch.testing.assert_close(found.R, R, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.t, t, rtol=1e-7, atol=1e-7)
    incoming = draw(3, 3, 3)
    ours = torch.autograd.grad((found.R * incoming).sum(), (x, X, weight))
    theirs = torch.autograd.grad((R * incoming).sum(), (x, X, weight))
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


def test_bad_elements_have_a_status_and_cost_no_others() -> None:
    scene = make_camera_scenes(8, 10, noise=1.0)
    weights = torch.ones(8, 10, dtype=DOUBLE)
    asked = scene.image.clone().requires_grad_()
    good = solve_pose(asked, scene.points, weights, scene.camera)
    image, points = scene.image.clone(), scene.points.clone()
    image[1, 3] = torch.nan
    weights[2, 2:] = 0  # two points are left
    points[3] = points[3, :1] + torch.linspace(0, 1, 10, dtype=DOUBLE).unsqueeze(1)  # a line
    weights[4], weights[5, 0] = 0, -1
    points[6, 2, 0] = torch.inf
    leaves = [t.requires_grad_() for t in (image, points, weights)]
    found = solve_pose(image, points, weights, scene.camera)
    bad, failed = int(Status.BAD_INPUT), int(Status.FAILED)
    assert found.status.tolist() == [0, bad, bad, failed, bad, bad, bad, 0]
    for k in (0, 7):
        torch.testing.assert_close(found.R[k], good.R[k], rtol=0, atol=1e-12)
    for field in (found.R, found.t, found.cost, found.hessian, found.covariance):
        assert bool(field[1:7].isnan().all())
        assert bool(field[[0, 7]].isfinite().all())
    for gradient in torch.autograd.grad(found.t.nan_to_num().sum(), leaves):
        assert bool(gradient.isfinite().all())
        assert bool((gradient[1:7] == 0).all())


def test_a_scene_beyond_single_precision_costs_no_others() -> None:
    scene = make_camera_scenes(4, 20, noise=1.0)
    alone = solve_pose(scene.image[1:], scene.points[1:], None, scene.camera)
    for size in (1e19, 1e25):
        points = scene.points.clone()
        points[0] *= size
        found = solve_pose(scene.image, points, None, scene.camera)
        assert found.status[1:].tolist() == [0, 0, 0]
        torch.testing.assert_close(found.R[1:], alone.R, rtol=0, atol=1e-12)


def test_a_mask_removes_points_and_batches_change_nothing() -> None:
    scene = make_camera_scenes(4, 12, noise=2.0)
    weights = torch.ones(4, 12, dtype=DOUBLE)
    weights[:, 9:] = 0
    image = scene.image.clone()
    image[:, 9:] = torch.nan
    masked = solve_pose(image, scene.points, weights, scene.camera)
    kept = solve_pose(scene.image[:, :9], scene.points[:, :9], None, scene.camera)
    torch.testing.assert_close(masked.R, kept.R, rtol=0, atol=1e-9)
    alone = solve_pose(scene.image[2], scene.points[2], None, scene.camera)
    whole = solve_pose(scene.image, scene.points, None, scene.camera)
    torch.testing.assert_close(alone.R, whole.R[2], rtol=0, atol=1e-9)
    mapped = torch.func.vmap(lambda x, X: solve_pose(x, X, None, scene.camera).t)
    torch.testing.assert_close(mapped(scene.image, scene.points), whole.t, rtol=0, atol=1e-9)
    normalised = (scene.image - 320) / 800
    torch.testing.assert_close(solve_pose(normalised, scene.points).R, whole.R, atol=1e-9, rtol=0)
    K = torch.tensor([[800.0, 0, 320], [0, 800, 320], [0, 0, 1]], dtype=DOUBLE)
    torch.testing.assert_close(solve_pose(scene.image, scene.points, None, K).R, whole.R)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("cost", ["squared", "cosine"])
@pytest.mark.parametrize("n", [3, 4, 5])
def test_a_mask_that_leaves_few_points_is_as_without_the_others(
    n: int, cost: str, planar: bool
) -> None:
    scene = make_camera_scenes(100, n, noise=1.0, planar=planar, seed=7)
    alone = solve_pose(scene.image, scene.points, None, scene.camera, cost=cost)
    # Every second point is left out, and at the end of the batch others are not.
    image = torch.full((101, 10, 2), torch.nan, dtype=DOUBLE)
    points, weights = torch.zeros(101, 10, 3, dtype=DOUBLE), torch.zeros(101, 10, dtype=DOUBLE)
    image[:100, : 2 * n : 2], points[:100, : 2 * n : 2] = scene.image, scene.points
    weights[:100, : 2 * n : 2] = 1
    other = make_camera_scenes(1, 10, noise=1.0)
    image[100], points[100], weights[100] = other.image[0], other.points[0], 1
    masked = solve_pose(image, points, weights, scene.camera, cost=cost)
    assert torch.equal(masked.status[:100], alone.status)
    torch.testing.assert_close(masked.cost[:100], alone.cost, rtol=1e-6, atol=1e-9)
    if n > 3:  # three points have several poses of cost zero
        torch.testing.assert_close(masked.R[:100], alone.R, rtol=0, atol=1e-6)
    apart = solve_pose(other.image, other.points, None, scene.camera, cost=cost)
    torch.testing.assert_close(masked.R[100:], apart.R, rtol=0, atol=1e-9)


def test_a_weight_of_zero_is_a_mask_with_gradient_zero() -> None:
    scene = make_camera_scenes(2, 10, noise=1.0)
    weights = torch.ones(2, 10, dtype=DOUBLE)
    weights[:, 3] = 0
    leaves = [t.requires_grad_() for t in (scene.image, scene.points, weights)]
    found = solve_pose(scene.image, scene.points, weights, scene.camera)
    masked = torch.arange(10) == 3
    for gradient in torch.autograd.grad(found.t.sum(), leaves):
        assert bool((gradient[:, masked] == 0).all())
        assert bool((gradient[:, ~masked] != 0).all())


# -- what is set for all of torch ------------------------------------------------------------------


@pytest.fixture(params=[torch.float64, torch.bfloat16])
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("cost", COSTS)
def test_the_default_dtype_does_not_matter(cost: str, default_dtype: torch.dtype) -> None:
    scene = make_camera_scenes(3, 10, noise=1.0)
    found = solve_pose(scene.image, scene.points, None, scene.camera, cost=cost, scale=SCALES[cost])
    torch.set_default_dtype(torch.float32)
    same = solve_pose(scene.image, scene.points, None, scene.camera, cost=cost, scale=SCALES[cost])
    torch.testing.assert_close(found.R, same.R, rtol=0, atol=0)
    assert default_dtype != torch.float32


@pytest.mark.parametrize("cost", COSTS)
def test_autocast_does_not_matter(cost: str) -> None:
    scene = make_camera_scenes(3, 10, noise=1.0)
    inputs = (scene.image.float(), scene.points.float(), None, scene.camera.float())
    outside = solve_pose(*inputs, cost=cost, scale=SCALES[cost])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = solve_pose(*inputs, cost=cost, scale=SCALES[cost])
    torch.testing.assert_close(inside.t, outside.t, rtol=0, atol=0)


def test_tables_that_are_made_in_inference_mode_serve_to_train() -> None:
    @table
    def doubling(dtype: torch.dtype) -> torch.Tensor:
        return 2 * torch.eye(3, dtype=dtype)

    with torch.inference_mode(), torch.device("meta"):
        first = doubling(DOUBLE)
    x = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad((doubling(DOUBLE) @ x).sum(), x)
    assert gradient.tolist() == [2, 2, 2]
    assert doubling(DOUBLE) is first


def test_a_first_call_in_inference_mode_leaves_all_as_it_is() -> None:
    code = """
import torch
torch.set_default_dtype(torch.bfloat16)
from ddn_cvx.datasets import make_camera_scenes
from ddn_cvx.dedicated.pose.perspective import solve_pose
scene = make_camera_scenes(2, 10, noise=1.0)
for cost in ("squared", "huber"):
    with torch.inference_mode():
        first = solve_pose(scene.image, scene.points, None, scene.camera, cost=cost)
    image = scene.image.clone().requires_grad_()
    found = solve_pose(image, scene.points, None, scene.camera, cost=cost)
    torch.testing.assert_close(found.t, first.t, rtol=0, atol=1e-7)
    assert torch.autograd.grad(found.t.sum(), image)[0].isfinite().all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# -- the rest of the node --------------------------------------------------------------------------


def test_the_covariance_is_that_of_repeated_noise() -> None:
    scene = make_camera_scenes(1, 30)
    generator = torch.Generator().manual_seed(3)
    shape = (4000, 30, 2)
    image = scene.image + 0.5 * torch.randn(shape, dtype=DOUBLE, generator=generator)
    found = solve_pose(image, scene.points, None, scene.camera)
    moves = torch.cat([logarithm(found.R @ scene.R.mT), found.t - scene.t], 1)
    expected = solve_pose(scene.image, scene.points, None, scene.camera).covariance[0] / 4
    root = torch.linalg.cholesky(expected)
    white = torch.linalg.solve_triangular(root, moves.mT, upper=False)
    torch.testing.assert_close(
        white @ white.mT / 4000, torch.eye(6, dtype=DOUBLE), rtol=0, atol=0.1
    )


def test_a_far_origin_costs_no_digits() -> None:
    scene = make_camera_scenes(4, 20, noise=1.0)
    near = solve_pose(scene.image, scene.points, None, scene.camera)
    away = torch.tensor([1e4, -2e4, 5e3], dtype=DOUBLE)
    far = solve_pose(scene.image, scene.points + away, None, scene.camera)
    torch.testing.assert_close(far.R, near.R, rtol=0, atol=1e-8)
    torch.testing.assert_close(far.t + far.R @ away, near.t, rtol=0, atol=1e-5)


def test_an_empty_batch_has_no_poses() -> None:
    for n in (5, 50):
        assert solve_pose(torch.zeros(0, n, 2), torch.zeros(0, n, 3)).R.shape == (0, 3, 3)


def test_the_module_and_its_messages() -> None:
    scene = make_camera_scenes(2, 8, noise=1.0)
    inputs = (scene.image, scene.points, None, scene.camera)
    R, t = PerspectiveNPoint()(*inputs)
    assert (R.shape, t.shape) == ((2, 3, 3), (2, 3))
    v, _ = PerspectiveNPoint(rotation="axis_angle")(*inputs)
    torch.testing.assert_close(exponential(v), R)
    q, _ = PerspectiveNPoint(rotation="quaternion")(*inputs)
    torch.testing.assert_close(from_quaternion(q), R)
    module = PerspectiveNPoint("cauchy", scale=3.0, learnable=True)
    assert repr(module) == "PerspectiveNPoint('cauchy', scale=3, learnable=True)"
    module(*inputs)[1].sum().backward()
    assert module.log_scale.grad is not None
    assert module(*(None if t is None else t.float() for t in inputs))[0].dtype == torch.float32
    with pytest.raises(ValueError, match="Unknown cost 'l1'"):
        PerspectiveNPoint("l1")
    with pytest.raises(ValueError, match="Unknown rotation"):
        PerspectiveNPoint(rotation="euler")
    with pytest.raises(ValueError, match="scale must be positive; got 0"):
        PerspectiveNPoint(scale=0)
    with pytest.raises(ValueError, match="at least 3; got 2 and 2"):
        solve_pose(scene.image[:, :2], scene.points[:, :2])
    with pytest.raises(ValueError, match="camera must have shape"):
        solve_pose(scene.image, scene.points, None, torch.ones(5))
    with pytest.raises(ValueError, match="weights must end in 8"):
        solve_pose(scene.image, scene.points, torch.ones(7))
    with pytest.raises(ValueError, match="do not broadcast"):
        solve_pose(scene.image, scene.points[:1].expand(3, 8, 3))
