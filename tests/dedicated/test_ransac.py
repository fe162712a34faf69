"""Poses among outliers and without correspondences."""

import pytest
import torch
from helpers import assert_derivatives
from test_pose import DOUBLE, SCALES, angles
from torch.autograd import gradcheck

from ddn_cvx import Status
from ddn_cvx.datasets import make_camera_scenes
from ddn_cvx.dedicated.pose.objective import COSTS
from ddn_cvx.dedicated.pose.pairs import COLLAPSED, collapse_pairs, distances
from ddn_cvx.dedicated.pose.perspective import solve_pose
from ddn_cvx.dedicated.pose.ransac import ransac_pose
from ddn_cvx.dedicated.pose.triples import distinct_points as different
from ddn_cvx.dedicated.pose.triples import drawn_points as drawn
from ddn_cvx.nn import BlindPnP, PerspectiveNPoint

THRESHOLD = 3.0


# -- draws -----------------------------------------------------------------------------------------


def test_draws_are_of_different_points_that_count() -> None:
    weights = torch.tensor([[1.0, 0, 2, 3, 0, 1], [0, 1, 1, 0, 1, 0]])
    draws = torch.rand(3000, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    found = different(weights, draws)
    for element, counting in enumerate(({0, 2, 3, 5}, {1, 2, 4})):
        triples = [tuple(row) for row in found[element].tolist()]
        assert {i for row in triples for i in row} == counting
        assert all(len(set(row)) == 3 for row in triples)
        # All ordered triples are as likely: each about 3000 divided by their number.
        expected = 3000 / (len(counting) * (len(counting) - 1) * (len(counting) - 2))
        assert min(triples.count(row) for row in set(triples)) > 0.6 * expected
    assert set(drawn(weights, draws[:, 0])[1].tolist()) == {1, 2, 4}


# -- RANSAC ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.6])
def test_no_pose_is_wrong_by_a_degree(share: float) -> None:
    scene = make_camera_scenes(200, 100, noise=1.0, seed=3, outliers=share)
    image, outlier = scene.image, scene.outlier
    found = ransac_pose(image, scene.points, None, scene.camera, threshold=THRESHOLD)
    assert bool((found.pose.status == Status.SOLVED).all())
    assert float(angles(found.pose.R, scene.R).max().rad2deg()) < 1
    # Nearly all points without gross errors are inliers, and few others.
    assert float((found.inliers & ~outlier).sum() / (~outlier).sum()) > 0.97
    assert float((found.inliers & outlier).sum() / outlier.sum().clamp_min(1)) < 0.01
    assert bool((found.trials >= 32).all())


@pytest.mark.slow
def test_none_of_a_thousand_poses_is_wrong_by_a_degree() -> None:
    for seed in range(3):
        scene = make_camera_scenes(1000, 100, noise=1.0, seed=seed, outliers=0.5)
        image = scene.image
        found = ransac_pose(image, scene.points, None, scene.camera, threshold=THRESHOLD)
        assert float(angles(found.pose.R, scene.R).max().rad2deg()) < 1


def test_the_pose_is_that_of_the_inliers_and_so_are_its_derivatives() -> None:
    scene = make_camera_scenes(2, 20, noise=1.0, outliers=0.3)
    image = scene.image
    camera = scene.camera
    for cost in COSTS:
        threshold, scale = THRESHOLD if cost != "cosine" else THRESHOLD / 800, SCALES[cost]
        found = ransac_pose(
            image, scene.points, None, camera, threshold=threshold, cost=cost, scale=scale
        )
        counting = found.inliers.to(DOUBLE)
        alone = solve_pose(
            image,
            scene.points,
            counting,
            camera,
            cost=cost,
            scale=scale,
            initial=(scene.R, scene.t),
        )
        torch.testing.assert_close(found.pose.R, alone.R, rtol=0, atol=1e-8)
    inputs = [image.requires_grad_(), scene.points.requires_grad_()]

    def pose(x: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
        found = ransac_pose(x, X, None, camera, threshold=THRESHOLD).pose
        return torch.cat([found.R.flatten(1), found.t], 1)

    assert_derivatives(pose, inputs, eps=1e-5, first=(1e-6, 1e-6), second=(1e-5, 1e-4), fast=True)


def test_a_far_origin_costs_no_inliers() -> None:
    scene = make_camera_scenes(4, 50, noise=1.0, outliers=0.5)
    image = scene.image
    away = torch.tensor([1e5, -2e5, 5e4], dtype=DOUBLE)
    near = ransac_pose(image, scene.points, None, scene.camera, threshold=THRESHOLD)
    far = ransac_pose(image, scene.points + away, None, scene.camera, threshold=THRESHOLD)
    assert torch.equal(far.inliers, near.inliers)
    torch.testing.assert_close(far.pose.R, near.pose.R, rtol=0, atol=1e-7)


def test_draws_depend_on_the_seed_alone_and_batches_change_nothing() -> None:
    scene = make_camera_scenes(4, 50, noise=1.0, outliers=0.5)
    image = scene.image
    whole = ransac_pose(image, scene.points, None, scene.camera, threshold=THRESHOLD, seed=5)
    again = ransac_pose(image, scene.points, None, scene.camera, threshold=THRESHOLD, seed=5)
    assert torch.equal(whole.pose.R, again.pose.R)
    none = ransac_pose(image[:0], scene.points[:0], None, scene.camera, threshold=THRESHOLD)
    assert none.inliers.shape == (0, 50)
    for k in range(4):
        alone = ransac_pose(
            image[k], scene.points[k], None, scene.camera, threshold=THRESHOLD, seed=5
        )
        assert torch.equal(alone.inliers, whole.inliers[k])
        torch.testing.assert_close(alone.pose.R, whole.pose.R[k], rtol=0, atol=1e-9)
    mapped = torch.func.vmap(
        lambda x, X: ransac_pose(x, X, None, scene.camera, threshold=THRESHOLD, seed=5).pose.t
    )(image, scene.points)
    torch.testing.assert_close(mapped, whole.pose.t, rtol=0, atol=1e-9)


def test_masked_points_are_no_inliers_and_bad_elements_cost_no_others() -> None:
    scene = make_camera_scenes(5, 30, noise=1.0, outliers=0.3)
    image = scene.image
    weights = torch.ones(5, 30, dtype=DOUBLE)
    good = ransac_pose(image, scene.points, weights, scene.camera, threshold=THRESHOLD)
    weights[0, 20:] = 0
    image[0, 20:] = torch.nan
    image[1, 3] = torch.nan
    image[2] = 640 * torch.rand(30, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    weights[3] = 0
    found = ransac_pose(image, scene.points, weights, scene.camera, threshold=0.05, trials=64)
    status = found.pose.status.tolist()
    assert (status[1], status[2], status[3]) == (Status.BAD_INPUT, Status.FAILED, Status.BAD_INPUT)
    assert bool(found.pose.t[1:4].isnan().all())
    assert not found.inliers[1:4].any()
    found = ransac_pose(image, scene.points, weights, scene.camera, threshold=THRESHOLD)
    assert not found.inliers[0, 20:].any()
    assert float(angles(found.pose.R, scene.R)[0].rad2deg()) < 1
    torch.testing.assert_close(found.pose.R[4], good.pose.R[4], rtol=0, atol=1e-9)


def test_the_module_and_its_messages() -> None:
    scene = make_camera_scenes(2, 40, noise=1.0, outliers=0.4)
    image = scene.image
    module = PerspectiveNPoint("huber", 2.0, ransac=True, threshold=THRESHOLD)
    assert repr(module) == (
        "PerspectiveNPoint('huber', scale=2, ransac=True, threshold=3.0, seed=0)"
    )
    R, _ = module(image, scene.points, None, scene.camera)
    found = module.search(image, scene.points, None, scene.camera)
    torch.testing.assert_close(R, found.pose.R)
    with pytest.raises(ValueError, match="threshold must be positive; got None"):
        PerspectiveNPoint(ransac=True)
    with pytest.raises(ValueError, match="pass ransac=True"):
        PerspectiveNPoint(threshold=1.0)
    with pytest.raises(ValueError, match="Pass ransac=True and a threshold"):
        PerspectiveNPoint().search(image, scene.points)
    with pytest.raises(ValueError, match="confidence must be between 0 and 1; got 1"):
        ransac_pose(image, scene.points, threshold=1.0, confidence=1)
    with pytest.raises(ValueError, match="trials must be positive; got 0"):
        ransac_pose(image, scene.points, threshold=1.0, trials=0)


# -- without correspondences -----------------------------------------------------------------------


@pytest.mark.parametrize("cost", COLLAPSED)
def test_all_pairs_collapse_to_one_term_for_each_point(cost: str) -> None:
    generator = torch.Generator().manual_seed(0)
    n, m = 7, 9
    plan = torch.rand(2, n, m, dtype=DOUBLE, generator=generator)
    plan[:, :, 4] = 0  # a point of the scene without weight
    scene = make_camera_scenes(2, m)
    image = (make_camera_scenes(2, n, seed=1).image - 320) / 800
    points, weights, rest = collapse_pairs(plan, image, cost)
    y = scene.points @ scene.R.mT + scene.t.unsqueeze(1)
    if cost == "cosine":
        ray = y / y.norm(dim=-1, keepdim=True)
        b = torch.nn.functional.pad(image, (0, 1), value=1.0)
        pairs = 1 - (b / b.norm(dim=-1, keepdim=True)) @ ray.mT
        c = torch.nn.functional.pad(points, (0, 1), value=1.0)
        terms = 1 - ((c / c.norm(dim=-1, keepdim=True)) * ray).sum(-1)
    else:
        pairs = (image.unsqueeze(2) - (y[..., :2] / y[..., 2:]).unsqueeze(1)).square().sum(-1)
        terms = (points - y[..., :2] / y[..., 2:]).square().sum(-1)
    torch.testing.assert_close((weights * terms).sum(-1) + rest, (plan * pairs).sum((1, 2)))

    def pose(plan: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        points, weights, _ = collapse_pairs(plan, image, cost)
        return solve_pose(points, scene.points, weights, cost=cost, initial=(scene.R, scene.t)).t

    close = torch.eye(9, dtype=DOUBLE)[:n] + 0.01 * plan
    seen = (scene.image[:, :n] - 320) / 800
    inputs = [close.requires_grad_(), seen.requires_grad_()]
    assert gradcheck(pose, inputs, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True)
    incoming = torch.randn(2, 3, dtype=DOUBLE, generator=generator)
    gradient = torch.autograd.grad((pose(*inputs) * incoming).sum(), close)[0]
    assert float(torch.linalg.svdvals(gradient)[:, 4].max()) < 1e-9 * float(gradient.abs().max())


def test_blind_poses_are_right_and_differentiable() -> None:
    scene = make_camera_scenes(4, 40, noise=0.5)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 40, 8, dtype=DOUBLE, generator=generator)
    order = torch.randperm(40, generator=generator)
    noisy = features[:, order] + 0.2 * torch.randn(4, 40, 8, dtype=DOUBLE, generator=generator)
    image = scene.image[:, order]
    # Some points of the scene are not seen, and some of the image are of nothing.
    f2d, f3d, p2d, p3d = noisy[:, :35], features, image[:, :35], scene.points
    f2d = f2d.requires_grad_()
    module = BlindPnP(gamma=20.0, threshold=2.0)
    found = module.solve(f2d, f3d, p2d, p3d, scene.camera)
    assert found.plan.shape == (4, 35, 40)
    assert bool((found.pose.status == Status.SOLVED).all())
    assert float(angles(found.ransac.pose.R, scene.R).max().rad2deg()) < 1
    assert float(angles(found.pose.R.detach(), scene.R).max().rad2deg()) < 5
    right = order[found.matches[..., 0]] == found.matches[..., 1]
    assert float(right.double().mean()) > 0.8
    gradient = torch.autograd.grad(found.pose.t.sum(), f2d)[0]
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) > 0

    def pose(f: torch.Tensor) -> torch.Tensor:
        R, t, plan = module(f, f3d[:2], p2d[:2], p3d[:2], scene.camera)
        return torch.cat([R.flatten(1), t, plan.flatten(1)], 1)

    assert gradcheck(pose, f2d[:2], eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)
    assert repr(module).splitlines()[0] == "BlindPnP("
    with pytest.raises(ValueError, match="cost must be one of cosine, squared; got 'huber'"):
        BlindPnP(cost="huber")
    with pytest.raises(ValueError, match="Features must have the shapes of their points"):
        module(f2d[:, :3], f3d, p2d, p3d)
    with pytest.raises(ValueError, match="Only cosine and squared collapse"):
        collapse_pairs(found.plan, p2d, "huber")


def test_distances_are_exact_and_so_are_their_derivatives() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 1e3 + torch.randn(2, 30, 5, dtype=DOUBLE, generator=generator)
    y = x.flip(1) + 1e-9 * torch.randn(2, 30, 5, dtype=DOUBLE, generator=generator)
    y[:, 0] = x[:, 0]
    expected = (x.unsqueeze(2) - y.unsqueeze(1)).norm(dim=-1)
    torch.testing.assert_close(distances(x, y), expected, rtol=1e-6, atol=1e-18)
    leaves = [t[:, :4].clone().requires_grad_() for t in (x, y)]
    (gradient, _) = torch.autograd.grad(distances(*leaves)[:, 0, 0].sum(), leaves)
    assert bool((gradient == 0).all())  # of a distance of zero
    leaves[1] = torch.randn(2, 3, 5, dtype=DOUBLE, generator=generator, requires_grad=True)
    for shift in (0.0, 5.0):
        leaves[0] = leaves[1].detach()[:, :2] + shift + 0.1
        leaves[0].requires_grad_()
        assert_derivatives(distances, leaves)
    mapped = torch.func.vmap(distances)(x, y)
    torch.testing.assert_close(mapped, distances(x, y), rtol=0, atol=0)


def blind_inputs(batch: int, n: int = 12) -> tuple[torch.Tensor, ...]:
    scene = make_camera_scenes(batch, n, noise=0.5)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, n, 6, dtype=DOUBLE, generator=generator)
    noisy = features + 0.2 * torch.randn(batch, n, 6, dtype=DOUBLE, generator=generator)
    return noisy, features, scene.image, scene.points, scene.camera


@pytest.mark.parametrize("cost", COLLAPSED)
def test_blind_poses_of_any_batch_shape(cost: str) -> None:
    f2d, f3d, p2d, p3d, camera = blind_inputs(6)
    given = (f2d, f3d, p2d, p3d)
    module = BlindPnP(gamma=20.0, threshold=2.0, cost=cost)
    whole = module.solve(f2d, f3d, p2d, p3d, camera)
    assert bool((whole.pose.status == Status.SOLVED).all())
    folded = [t.unflatten(0, (2, 3)) for t in given]
    square = module.solve(folded[0], folded[1], folded[2], folded[3], camera)
    assert square.pose.status.shape == (2, 3)
    torch.testing.assert_close(square.pose.R.flatten(0, 1), whole.pose.R, rtol=0, atol=1e-9)
    torch.testing.assert_close(square.plan.flatten(0, 1), whole.plan)
    alone = module(*(t[4] for t in given), camera)
    torch.testing.assert_close(alone[0], whole.pose.R[4], rtol=0, atol=1e-9)
    mapped = torch.func.vmap(lambda *inputs: module(*inputs, camera)[1])(*given)
    torch.testing.assert_close(mapped, whole.pose.t, rtol=0, atol=1e-9)
    # One scene for all images, and all images of one scene.
    shared = module(f2d[:3], f3d[0], p2d[:3], p3d[0], camera)
    repeated = module(f2d[:3], f3d[:1].expand(3, -1, -1), p2d[:3], p3d[:1].expand(3, -1, -1))
    torch.testing.assert_close(shared[2], repeated[2])
    again = module(f2d[0], f3d[0], p2d[:1].expand(2, -1, -1), p3d[0], camera)
    assert [t.shape for t in again] == [(2, 3, 3), (2, 3), (2, 12, 12)]
    torch.testing.assert_close(again[0][1], whole.pose.R[0], rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="Batch shapes do not broadcast"):
        module(f2d[:3], f3d[:2], p2d[:3], p3d[:2])
    with pytest.raises(ValueError, match="must be of one length"):
        module(f2d, f3d[..., :5], p2d, p3d)


@pytest.mark.parametrize("cost", COLLAPSED)
def test_bad_elements_of_blind_poses_cost_no_others(cost: str) -> None:
    f2d, f3d, p2d, p3d, camera = blind_inputs(5)
    module = BlindPnP(gamma=20.0, threshold=2.0, cost=cost, learnable=True)
    good = module.solve(f2d, f3d, p2d, p3d, camera)
    f3d, p2d = f3d.clone(), p2d.clone()
    cameras, rest = camera.repeat(5, 1), torch.zeros_like(f2d)
    rest[1, 0, 0], f3d[2, 3, 1], p2d[3, 2, 0], cameras[4, 0] = torch.nan, torch.inf, torch.nan, 0.0
    shared = torch.eye(6, dtype=DOUBLE, requires_grad=True)
    f3d, p2d, p3d, cameras = leaves = [t.requires_grad_() for t in (f3d, p2d, p3d, cameras)]
    found = module.solve(f2d @ shared + rest, f3d, p2d, p3d, cameras)
    assert found.pose.status.tolist() == [Status.SOLVED, *[Status.BAD_INPUT] * 4]
    torch.testing.assert_close(found.pose.R[0], good.pose.R[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(found.plan[[0, 3, 4]], good.plan[[0, 3, 4]])
    assert bool(found.pose.t[1:].isnan().all())
    assert bool(found.plan[1:3].isnan().all())
    parameters = [shared, module.sinkhorn.log_gamma]
    (found.pose.t.nansum() + found.plan[0].sum()).backward()
    for leaf in (*leaves, *parameters):
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())
    for leaf in leaves:
        assert leaf.grad is not None
        assert bool((leaf.grad[1:] == 0).all())
