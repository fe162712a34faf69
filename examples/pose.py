"""Camera pose on real pictures' points, with correspondences among outliers, and without any.

1. RANSAC and perspective-n-point on 76 pairs of frames from a car, on five photographs of a palace
   and on a chessboard: errors against the poses on file.
2. Blind perspective-n-point: a small network is trained on generated scenes to tell, of points in a
   picture and points of a scene, which belong together, through optimal transport and the pose's
   own derivative; then it is tested on the car and the palace, their correspondences dropped.

Figures: ``recall.png``, the share of poses within an angle; ``matches.png``, what it matches in one
pair of frames.

Run: ``python examples/pose.py [--out FOLDER] [--data FOLDER] [--chessboards DEB]``. The data come
with pip, from the wheel of another project (see ``pose_real_data.py``), and go to a folder;
``--data none`` goes without. The chessboards need Debian's package (``apt-get download
opencv-doc``) and OpenCV (``pip install opencv-python-headless``).
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pose_real_data import View, car, chessboards, palace, wheel

from ddn_cvx.dedicated.pose.ransac import ransac_pose
from ddn_cvx.dedicated.pose.rotations import exponential
from ddn_cvx.nn import BlindPnP

# The matcher: widths of the neighbourhoods, sizes, and how often and far it moves the scene.
WIDTHS = (0.02, 0.05, 0.1, 0.2, 0.4)
CHANNELS, HEADS, ROUNDS, STEP = 64, 8, 4, 0.1
NEAREST = 0.1
BATCH, POINTS, LEARNING_RATE = 8, (64, 128), 3e-3
# The last part of the training also has the error of the pose in its loss.
POSE_STEPS = 0.2
# Generated motions: degrees, and shares of the scene's depth.
TURN, SHIFT = 4.0, 0.2
NOISE, UNSEEN = 1e-3, 0.1
GAMMA, THRESHOLD = 50.0, 0.004


# -- with correspondences --------------------------------------------------------------------------


def angle(R: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Between rotations ``(..., 3, 3)``, in degrees; 180 where one is not a number."""
    # By the sine of its half, which unlike the cosine tells small angles apart.
    sine = (R - other).square().sum((-1, -2)).sqrt() / math.sqrt(8)
    return (2 * sine.clamp_max(1).asin()).rad2deg().nan_to_num(nan=180.0)


def errors(views: Sequence[View], pixels: float) -> list[tuple[float, float, float]]:
    """Of RANSAC and perspective-n-point: degrees, distance, and residuals in pixels."""
    found = []
    for view in views:
        answer = ransac_pose(view.image, view.scene, threshold=pixels / view.focal)
        residual = (answer.pose.cost / answer.inliers.sum()).sqrt() * view.focal
        distance = (answer.pose.t - view.t).norm()
        found.append((float(angle(answer.pose.R, view.R)), float(distance), float(residual)))
    return found


def summary(name: str, found: Sequence[tuple[float, float, float]], unit: str) -> str:
    """One line."""
    turn, shift, residual = (statistics.median(column) for column in zip(*found, strict=True))
    worst = max(row[0] for row in found)
    return (
        f"{name:22s} {len(found):3d} pictures  rotation {turn:.4f} degrees (at most {worst:.4f})  "
        f"translation {shift:.5f} {unit}  residual {residual:.2f} px"
    )


# -- without ---------------------------------------------------------------------------------------


@dataclass
class Scenes:
    """A batch: image ``(B, n, 2)``, scene ``(B, m, 3)``, pose, and which points belong together.

    ``match[b, j]`` is the point of the image that shows the scene's point ``j``, or -1.
    """

    image: torch.Tensor
    scene: torch.Tensor
    R: torch.Tensor
    t: torch.Tensor
    match: torch.Tensor


def generated(batch: int, n: int, generator: torch.Generator) -> Scenes:
    """Points in front of a camera that has moved a little; some have left, others have come."""

    def uniform(*shape: int, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    view = torch.cat(
        [uniform(batch, 1, 1, low=low, high=high) for low, high in ((0.4, 0.9), (0.15, 0.6))], -1
    )
    spread = uniform(batch, 1, 1, low=0.1, high=0.8)

    def points() -> torch.Tensor:
        plane = uniform(batch, n, 2, low=-1, high=1) * view
        depth = (spread * torch.randn(batch, n, 1, generator=generator)).exp()
        return torch.cat([plane * depth, depth], -1)

    scene = points()
    axis = torch.nn.functional.normalize(torch.randn(batch, 3, generator=generator), dim=1)
    size = uniform(batch, 1, low=0.1, high=1)
    R = exponential(axis * size * math.radians(TURN))
    # Some cars drive straight on.
    sideways = torch.rand(batch, 1, generator=generator) < 0.5
    t = uniform(batch, 3, low=-SHIFT, high=SHIFT) * torch.tensor([1.0, 0.2, 1.0])
    t = size * t
    t[:, :2] *= sideways
    placed = scene @ R.mT + t.unsqueeze(1)
    gone = (torch.rand(batch, n, generator=generator) < UNSEEN) | (placed[..., 2] < NEAREST)
    image = seen(torch.where(gone.unsqueeze(-1), points(), placed))
    image = image + NOISE * torch.randn(image.shape, generator=generator)
    order = torch.rand(batch, n, generator=generator).argsort(1)
    match = torch.where(gone, -1, order.argsort(1))
    image = image.gather(1, order.unsqueeze(-1).expand(-1, -1, 2))
    return Scenes(image, scene, R, t, match)


def dropped(views: Sequence[View]) -> list[Scenes]:
    """Real views with the points of the image shuffled; depths are scaled to a median of one."""
    found = []
    for number, view in enumerate(views):
        size = view.scene[:, 2].median()
        order = torch.randperm(len(view.image), generator=torch.Generator().manual_seed(number))
        found.append(
            Scenes(
                view.image[order].float().unsqueeze(0),
                (view.scene / size).float().unsqueeze(0),
                view.R.float().unsqueeze(0),
                (view.t / size).float().unsqueeze(0),
                order.argsort().unsqueeze(0),
            )
        )
    return found


def from_the_last(views: Sequence[View]) -> list[View]:
    """The scene in the coordinates of the camera before, as if that one had measured it."""
    found = []
    for before, now in itertools.pairwise(views):
        R = now.R @ before.R.T
        scene = now.scene @ before.R.T + before.t
        found.append(View(now.image, scene, R, now.t - R @ before.t, now.focal))
    return found


class Matcher(torch.nn.Module):
    """Where the points of a scene appear, without knowing which of the image's points are theirs.

    Around the place where a point of the scene would appear if the camera had not moved, points of
    the image lie to one side, on average, if it has. From these averages, over some widths, and the
    point's depth, a small network votes for a motion; the scene is moved by it and looked at again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vote = torch.nn.Sequential(
            torch.nn.Linear(3 + 2 * len(WIDTHS), CHANNELS),
            torch.nn.GELU(),
            torch.nn.Linear(CHANNELS, CHANNELS),
            torch.nn.GELU(),
        )
        self.weight = torch.nn.Linear(CHANNELS, HEADS)
        self.motion = torch.nn.Sequential(
            torch.nn.Linear(HEADS * CHANNELS, CHANNELS),
            torch.nn.GELU(),
            torch.nn.Linear(CHANNELS, 6),
        )
        last = self.motion[-1]
        torch.nn.init.zeros_(last.weight)  # untrained, nothing moves
        torch.nn.init.zeros_(last.bias)

    def forward(
        self, image: torch.Tensor, scene: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Shapes ``(B, n, 2)`` and ``(B, m, 3)`` to ``(B, n, 2)`` and ``(B, m, 2)``."""
        for _ in range(ROUNDS):
            scene = self._moved(image, scene)
        return image, seen(scene)

    def _moved(self, image: torch.Tensor, scene: torch.Tensor) -> torch.Tensor:
        plane = seen(scene)
        apart = -torch.cdist(plane, image).square()
        sides = [(apart / (2 * s**2)).softmax(-1) @ image - plane for s in WIDTHS]
        scaled = [side / s for side, s in zip(sides, WIDTHS, strict=True)]
        vote = self.vote(torch.cat([plane, 1 / scene[..., 2:].clamp_min(NEAREST), *scaled], -1))
        pooled = self.weight(vote).softmax(1).mT @ vote
        turn, shift = (STEP * self.motion(pooled.flatten(1))).split(3, 1)
        return scene @ exponential(turn).mT + shift.unsqueeze(1)


def seen(scene: torch.Tensor) -> torch.Tensor:
    """Where points appear, ``(..., 3)`` to ``(..., 2)``."""
    return scene[..., :2] / scene[..., 2:].clamp_min(NEAREST)


def train(steps: int, seed: int = 0) -> tuple[Matcher, BlindPnP, list[float]]:
    """The network, its node, and the loss of each step."""
    from rich.progress import track

    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    matcher, node = Matcher(), BlindPnP(GAMMA, THRESHOLD, learnable=True)
    parameters = [*matcher.parameters(), *node.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, max(2, steps))
    losses = []
    for step in track(range(steps), "Training on generated scenes", transient=True):
        scenes = generated(BATCH, POINTS[step % len(POINTS)], generator)
        f2d, f3d = matcher(scenes.image, scenes.scene)
        if step < (1 - POSE_STEPS) * steps:
            plan = node.sinkhorn(torch.cdist(f2d, f3d).double())
            loss = likelihood(plan, scenes)
        else:
            R, t, plan = node(f2d, f3d, scenes.image, scenes.scene)
            apart = (
                (R - scenes.R).square().sum((1, 2)) + (t - scenes.t).square().sum(1)
            ).clamp_max(1)
            # Where there is no pose, the most that it can cost.
            loss = likelihood(plan, scenes) + apart.nan_to_num(1.0).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return matcher, node, losses


def likelihood(plan: torch.Tensor, scenes: Scenes) -> torch.Tensor:
    """Minus the mean logarithm of the right pairs' share in their column."""
    right = scenes.match >= 0
    share = plan.gather(1, scenes.match.clamp_min(0).unsqueeze(1)).squeeze(1) * plan.shape[2]
    return -(share.clamp_min(1e-12).log() * right).sum() / right.sum()


@dataclass
class Blind:
    """Of one picture: degrees and distance, and the share of right ones among the matches."""

    degrees: float
    distance: float
    right: float
    pairs: torch.Tensor
    good: torch.Tensor


def blind(scenes: Sequence[Scenes], matcher: Matcher, node: BlindPnP) -> list[Blind]:
    """Poses without correspondences: that of RANSAC among the plan's most probable pairs."""
    found = []
    for one in scenes:
        with torch.no_grad():
            f2d, f3d = matcher(one.image, one.scene)
            answer = node.solve(f2d, f3d, one.image, one.scene)
        pairs = answer.matches[0]
        good = one.match[0][pairs[:, 1]] == pairs[:, 0]
        pose = answer.ransac.pose
        found.append(
            Blind(
                float(angle(pose.R, one.R)),
                float((pose.t - one.t).norm().nan_to_num(nan=math.inf)),
                float(good.double().mean()),
                pairs,
                good,
            )
        )
    return found


# -- figures ---------------------------------------------------------------------------------------


def draw(
    out: Path,
    recalls: dict[str, tuple[list[Blind], list[Blind]]],
    shown: tuple[Scenes, Blind, Blind] | None,
) -> None:
    """Recall curves, and the matches of one pair of frames."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for colour, (name, (before, after)) in enumerate(recalls.items()):
        for runs, style, said in ((before, ":", "untrained"), (after, "-", "trained")):
            turns = sorted(run.degrees for run in runs)
            share = [(k + 1) / len(turns) for k in range(len(turns))]
            axis.step(
                [1e-4, *turns, 180], [0, *share, share[-1]], style, where="post",
                color=f"C{colour}", label=f"{name}, {said}",
            )  # fmt: skip
    axis.set(
        xscale="log", xlim=(1e-3, 180), ylim=(0, 1.02), xlabel="error of the rotation (degrees)",
        ylabel="share of pictures", title="Pose without correspondences",
    )  # fmt: skip
    axis.legend()
    figure.savefig(out / "recall.png", dpi=120)
    pyplot.close(figure)
    if shown is None:
        return
    scenes, *runs = shown
    figure, axes = pyplot.subplots(2, 1, figsize=(9, 6.4), sharex=True, layout="constrained")
    image, plane = scenes.image[0], seen(scenes.scene)[0]
    for axis, run, said in zip(axes, runs, ("untrained", "trained"), strict=True):
        for (i, j), right in zip(run.pairs.tolist(), run.good.tolist(), strict=True):
            ends = torch.stack([plane[j], image[i]])
            axis.plot(*ends.T, color="C2" if right else "C3", linewidth=0.8)
        axis.plot(*plane.T, ".", color="0.6", markersize=2, label="scene, seen from the last frame")
        axis.plot(*image.T, ".", color="k", markersize=2, label="image")
        axis.set(title=f"{said}: {run.right:.0%} of the most probable pairs are right", aspect=1)
        axis.invert_yaxis()
    handles, _ = axes[0].get_legend_handles_labels()
    for colour, said in (("C2", "right pair"), ("C3", "wrong pair")):
        handles.append(pyplot.Line2D([], [], color=colour, linewidth=0.8, label=said))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(out / "matches.png", dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Report and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("pose"), help="folder for the figures")
    parser.add_argument("--data", default="pose_data", help="folder for the data, or none")
    parser.add_argument("--chessboards", type=Path, help="Debian's opencv-doc package")
    parser.add_argument("--steps", type=int, default=400, help="of the training")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    tests = {"generated": generated_test()}
    if options.data != "none":
        path = wheel(Path(options.data))
        driven, built = car(path), palace(path)
        print("With correspondences: RANSAC, then perspective-n-point, against the poses on file")
        print(summary("car", errors(driven, 1.0), "m"))
        print(summary("palace", errors(built, 2.0), "units"))
        tests["car"] = dropped(driven[::4])
        tests["palace"] = dropped(from_the_last(built))
    if options.chessboards is not None:
        print(summary("chessboards", errors(chessboards(options.chessboards), 3.0), "squares"))
    fresh = BlindPnP(GAMMA, THRESHOLD)
    untrained = {name: blind(scenes, Matcher(), fresh) for name, scenes in tests.items()}
    matcher, node, losses = train(options.steps)
    trained = {name: blind(scenes, matcher, node) for name, scenes in tests.items()}
    print(f"\nWithout: trained on generated scenes, loss {losses[0]:.2f} to {losses[-1]:.2f}")
    for name, runs in trained.items():
        right = statistics.mean(run.right for run in runs)
        before = statistics.mean(run.right for run in untrained[name])
        turns = sorted(run.degrees for run in runs)
        within = sum(turn <= 1 for turn in turns) / len(turns)
        print(
            f"{name:10s} {len(runs):3d} pictures  right among the most probable pairs {right:.0%} "
            f"(untrained {before:.0%})  within a degree {within:.0%}  median "
            f"{statistics.median(turns):.3f} degrees"
        )
    recalls = {name: (untrained[name], trained[name]) for name in tests}
    name = "car" if "car" in tests else "generated"
    draw(options.out, recalls, (tests[name][0], untrained[name][0], trained[name][0]))
    print(f"\nFigures in {options.out}/")


def generated_test(count: int = 20) -> list[Scenes]:
    """Scenes that no training sees, one by one."""
    many = generated(count, 256, torch.Generator().manual_seed(12345))
    return [
        Scenes(*(getattr(many, name)[k : k + 1] for name in Scenes.__annotations__))
        for k in range(count)
    ]


if __name__ == "__main__":
    main()
