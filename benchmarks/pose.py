"""Perspective-n-point against OpenCV and PoseLib: optimality, time, recall among outliers.

The scenes are those of ``ddn_cvx.datasets.make_camera_scenes``.

- Optimality: our cost against the best of OpenCV's ITERATIVE, EPNP and SQPNP, each refined by
  ``solvePnPRefineLM``, on scenes of 4 to 200 points, planar or not, depth 1 to 50, noise 0 to 5 px.
- Time: against loops of OpenCV's solvers, one call a pose.
- A training step, against what the public node of deep declarative networks does: a loop of
  EPnP-RANSAC for starts (here with OpenCV's own threshold), one L-BFGS (strong Wolfe) shared by the
  batch, with that node's settings, and the implicit function theorem.
- Outliers: the share of poses within a degree, against OpenCV's RANSAC and MAGSAC and PoseLib's
  LO-RANSAC, at the same threshold and confidence.

Run: ``pip install opencv-python-headless poselib``, then ``python benchmarks/pose.py [--threads
2]``
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import poselib
import torch
from common import Ratio, interleaved_ratios, markdown_table, save

from ddn_cvx.datasets import CameraScenes, make_camera_scenes
from ddn_cvx.dedicated.pose.perspective import solve_pose
from ddn_cvx.dedicated.pose.ransac import ransac_pose
from ddn_cvx.dedicated.pose.rotations import exponential

DOUBLE = torch.float64
FOCAL, CENTRE = 800.0, 320.0
CAMERA = torch.tensor([FOCAL, FOCAL, CENTRE, CENTRE], dtype=DOUBLE)
MATRIX = np.array([[FOCAL, 0, CENTRE], [0, FOCAL, CENTRE], [0, 0, 1]])
THRESHOLD, CONFIDENCE = 3.0, 0.9999
SOLVERS = {
    "SQPNP": cv2.SOLVEPNP_SQPNP,
    "EPNP": cv2.SOLVEPNP_EPNP,
    "ITERATIVE": cv2.SOLVEPNP_ITERATIVE,
}
REFINE = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 200, 1e-16)


def matched(scenes: CameraScenes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scene and image of each element, for OpenCV."""
    return list(zip(scenes.points.numpy(), scenes.image.numpy(), strict=True))


def degrees(R: np.ndarray | torch.Tensor, true: torch.Tensor) -> float:
    """The angle between two rotations."""
    cosine = (float((torch.as_tensor(R) * true).sum()) - 1) / 2
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))


# -- optimality ------------------------------------------------------------------------------------


def best_of_opencv(scene: np.ndarray, image: np.ndarray) -> float:
    """The least squared reprojection error of three solvers, refined."""
    best = math.inf
    for flag in SOLVERS.values():
        try:
            found, r, t = cv2.solvePnP(scene, image, MATRIX, None, flags=flag)
            if not found:
                continue
            r, t = cv2.solvePnPRefineLM(scene, image, MATRIX, None, r, t, REFINE)
        except cv2.error:
            continue
        R = cv2.Rodrigues(r)[0]
        if (scene @ R.T + t.T)[:, 2].min() > 0:
            shown = cv2.projectPoints(scene, r, t, MATRIX, None)[0][:, 0]
            best = min(best, float(((shown - image) ** 2).sum()))
    return best


def optimality() -> str:
    """How often our cost is above the best of OpenCV's, or below."""
    generator = np.random.default_rng(0)
    from rich.progress import track

    worse = better = failed = total = 0
    for n in track((4, 5, 6, 8, 12, 20, 50, 100, 200), "Optimality", transient=True):
        for planar in (False, True):
            depth, noise = math.exp(generator.uniform(0, math.log(50))), generator.uniform(0, 5)
            scenes = make_camera_scenes(56, n, noise=noise, depth=depth, planar=planar, seed=total)
            found = solve_pose(scenes.image, scenes.points, None, CAMERA)
            failed += int((found.status != 0).sum())
            for (X, x), cost in zip(matched(scenes), found.cost.tolist(), strict=True):
                theirs = best_of_opencv(X, x)
                worse += cost > theirs * (1 + 1e-6) + 1e-12
                better += cost < theirs * (1 - 1e-6)
                total += 1
    return (
        f"Of {total} scenes our cost is more than one part in a million above the best of OpenCV's "
        f"in {worse}, below it in {better}; {failed} without a solution."
    )


# -- time ------------------------------------------------------------------------------------------


def loop(scenes: CameraScenes, flag: int) -> Callable[[], None]:
    """OpenCV's solver, one call a pose."""
    pairs = matched(scenes)

    def run() -> None:
        for X, x in pairs:
            cv2.solvePnP(X, x, MATRIX, None, flags=flag)

    return run


def refined_loop(scenes: CameraScenes) -> Callable[[], None]:
    """SQPNP, then to the minimum that ours finds, one pose after the other."""
    pairs = matched(scenes)

    def run() -> None:
        for X, x in pairs:
            _, r, t = cv2.solvePnP(X, x, MATRIX, None, flags=cv2.SOLVEPNP_SQPNP)
            cv2.solvePnPRefineLM(X, x, MATRIX, None, r, t)

    return run


def ours(scenes: CameraScenes, *, backward: bool) -> Callable[[], None]:
    """One call, perhaps with the gradient for all points."""
    image = scenes.image.clone().requires_grad_(backward)
    scene = scenes.points.clone().requires_grad_(backward)

    def run() -> None:
        found = solve_pose(image, scene, None, CAMERA)
        if backward:
            torch.autograd.grad(found.R.sum() + found.t.sum(), (image, scene))

    return run


def shared_lbfgs(scenes: CameraScenes) -> Callable[[], None]:
    """Starts from a loop of EPnP-RANSAC, then one L-BFGS run for the whole batch, and the gradient.

    That is by the implicit function theorem, with a row of the Hessian from each of six passes.
    """
    pairs = matched(scenes)
    image = scenes.image.clone().requires_grad_()
    scene = scenes.points.clone().requires_grad_()

    def value(y: torch.Tensor, x: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
        z = X @ exponential(y[:, :3]).mT + y[:, 3:].unsqueeze(1)
        return (FOCAL * z[..., :2] / z[..., 2:] + CENTRE - x).square().sum()

    def run() -> None:
        starts = []
        for X, x in pairs:
            _, r, t, _ = cv2.solvePnPRansac(
                X, x, MATRIX, None, iterationsCount=1000, flags=cv2.SOLVEPNP_EPNP
            )
            starts.append(np.concatenate([r, t])[:, 0])
        y = torch.tensor(np.array(starts)).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [y], max_iter=1000, tolerance_grad=1e-40, tolerance_change=1e-40, history_size=100,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            cost = value(y, scenes.image, scenes.points)
            cost.backward()
            return cost

        optimizer.step(closure)
        (gradient,) = torch.autograd.grad(value(y, image, scene), y, create_graph=True)
        rows = [
            torch.autograd.grad(gradient[:, k].sum(), y, retain_graph=True)[0] for k in range(6)
        ]
        v = torch.linalg.solve(torch.stack(rows, 1), torch.ones_like(y).unsqueeze(-1)).squeeze(-1)
        torch.autograd.grad(gradient, (image, scene), -v)

    return run


def times() -> list[tuple[Any, ...]]:
    """Rows: what, batch, peer, ratio."""
    rows = []
    for batch in (1000, 4000):
        scenes = make_camera_scenes(batch, 100, noise=2.0)
        peers = {name: loop(scenes, flag) for name, flag in SOLVERS.items()}
        peers["SQPNP, refined to the minimum"] = refined_loop(scenes)
        ratios = interleaved_ratios(ours(scenes, backward=False), peers, repeats=7, warm=1)
        rows += [("forward", batch, f"loop of {name}", ratio) for name, ratio in ratios.items()]
    scenes = make_camera_scenes(256, 100, noise=2.0)
    peers = {name: loop(scenes, flag) for name, flag in SOLVERS.items()}
    ratios = interleaved_ratios(ours(scenes, backward=True), peers, repeats=9, warm=1)
    rows += [
        ("forward and backward, its forward", 256, f"loop of {name}", ratio)
        for name, ratio in ratios.items()
    ]
    scenes = make_camera_scenes(64, 100, noise=2.0)
    peer = "EPnP-RANSAC and a shared L-BFGS"
    ratios = interleaved_ratios(
        ours(scenes, backward=True), {peer: shared_lbfgs(scenes)}, repeats=9, warm=1
    )
    rows.append(("forward and backward", 64, peer, ratios[peer]))
    return rows


# -- outliers --------------------------------------------------------------------------------------


def by_opencv(flag: int) -> Callable[[CameraScenes], list[np.ndarray | None]]:
    """Rotations of OpenCV's RANSAC."""

    def run(scenes: CameraScenes) -> list[np.ndarray | None]:
        found: list[np.ndarray | None] = []
        for X, x in matched(scenes):
            try:
                good, r, _, _ = cv2.solvePnPRansac(
                    X, x, MATRIX, None, reprojectionError=THRESHOLD, confidence=CONFIDENCE,
                    iterationsCount=10000, flags=flag,
                )  # fmt: skip
            except cv2.error:
                good = False
            found.append(cv2.Rodrigues(r)[0] if good else None)
        return found

    return run


def by_poselib(scenes: CameraScenes) -> list[np.ndarray | None]:
    """Rotations of PoseLib's LO-RANSAC."""
    camera = {"model": "PINHOLE", "width": 640, "height": 640, "params": CAMERA.tolist()}
    options = {"max_reproj_error": THRESHOLD, "success_prob": CONFIDENCE, "max_iterations": 10000}
    return [
        poselib.estimate_absolute_pose(x, X, camera, options, {})[0].R for X, x in matched(scenes)
    ]


def by_us(scenes: CameraScenes) -> list[np.ndarray | None]:
    """Rotations of ours, NaN where there is none."""
    found = ransac_pose(
        scenes.image, scenes.points, None, CAMERA, threshold=THRESHOLD, confidence=CONFIDENCE,
        trials=10000,
    )  # fmt: skip
    return list(found.pose.R.numpy())


CONTENDERS: dict[str, Callable[[CameraScenes], list[np.ndarray | None]]] = {
    "ours": by_us,
    "OpenCV RANSAC (its default, EPnP)": by_opencv(cv2.SOLVEPNP_ITERATIVE),
    "OpenCV RANSAC (P3P)": by_opencv(cv2.SOLVEPNP_P3P),
    "OpenCV USAC_MAGSAC": by_opencv(cv2.USAC_MAGSAC),
    "PoseLib LO-RANSAC": by_poselib,
}


@dataclass
class Recall:
    """One contender at one share of outliers; the time is ours over its, per pose."""

    outliers: float
    name: str
    wrong: int
    poses: int
    time: float


def recalls(batch: int) -> list[Recall]:
    """Every contender on the same scenes."""
    from rich.progress import track

    lines = []
    for outliers in track((0.3, 0.5, 0.6, 0.7), "Outliers", transient=True):
        scenes = make_camera_scenes(batch, 100, noise=1.0, outliers=outliers, seed=7)
        by_us(scenes)  # warm
        seconds: dict[str, float] = {}
        wrong: dict[str, int] = {}
        for name, run in CONTENDERS.items():
            start = time.perf_counter()
            found = run(scenes)
            seconds[name] = time.perf_counter() - start
            wrong[name] = sum(
                R is None or not np.isfinite(R).all() or degrees(R, true) > 1
                for R, true in zip(found, scenes.R, strict=True)
            )
        lines += [
            Recall(outliers, name, wrong[name], batch, seconds["ours"] / seconds[name])
            for name in CONTENDERS
        ]
    return lines


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--poses", type=int, default=1000, help="poses a share of outliers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    said = optimality()
    rows: list[tuple[str, int, str, Ratio]] = times()
    lines = recalls(options.poses)
    speed = markdown_table(["pass", "batch", "peer", "our time / its time"], rows)
    outliers = markdown_table(
        ["outliers", "method", "poses wrong by over a degree", "our time / its time"],
        [(f"{x.outliers:.0%}", x.name, f"{x.wrong} of {x.poses}", f"{x.time:.2f}") for x in lines],
    )
    text = (
        f"{said}\n\n## Time\n\n100 points, 2 px of noise, float64. Ours refines to the minimum of "
        "the reprojection error and returns its Hessian; SQPNP and EPNP minimise an algebraic "
        f"error. Below one, ours is faster.\n\n{speed}\n\n## Outliers\n\n100 points, 1 px of "
        f"noise, threshold {THRESHOLD:g} px, confidence {CONFIDENCE}.\n\n{outliers}"
    )
    record = {"optimality": said, "times": rows, "outliers": lines}
    save("pose", "Perspective-n-point", text, record)


if __name__ == "__main__":
    main()
