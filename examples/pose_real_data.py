"""Real pictures' points for ``pose.py``: read from packages that others publish, never copied here.

- The wheel of GTSAM (PyPI) has a small structure-from-motion result, five cameras and 544 points
  in Bundler's format, and 77 frames of stereo visual odometry from a car.
- Debian's ``opencv-doc`` has 13 photographs of a chessboard, with the camera's calibration.
"""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

WHEEL = "gtsam==4.3.0"
CAR = "gtsam/Data/VO_{}00s.txt"
BUNDLER = "gtsam/Data/Balbianello.out"
BOARD = (9, 6)


@dataclass(frozen=True)
class View:
    """One picture: points of the scene, where they are seen, and the pose on file.

    Attributes:
        image: in normalised coordinates, without the lens's distortion, shape ``(n, 2)``.
        scene: shape ``(n, 3)``.
        R, t: of the pose, shapes ``(3, 3)`` and ``(3,)``.
        focal: pixels to a unit of the image.
    """

    image: torch.Tensor
    scene: torch.Tensor
    R: torch.Tensor
    t: torch.Tensor
    focal: float


def wheel(folder: Path) -> Path:
    """GTSAM's wheel, downloaded with pip where it is not there yet; it is not installed."""
    found = sorted(folder.glob("gtsam-*.whl"))
    if not found:
        if importlib.util.find_spec("pip") is None:  # as in the README's environments
            raise SystemExit(
                f"This environment has no pip. Fetch the data with another one's: "
                f"python3 -m pip download --no-deps {WHEEL} --dest {folder}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", WHEEL]
        subprocess.run([*command, "--dest", str(folder)], check=True)
        found = sorted(folder.glob("gtsam-*.whl"))
    return found[0]


def car(path: Path) -> list[View]:
    """Pairs of frames: the scene is what stereo saw in one, the image is the left one of the next.

    The scene is in the first frame's coordinates, so that the pose is the car's motion.
    """
    with zipfile.ZipFile(path) as archive:
        calibration, poses, factors = (
            np.loadtxt(io.BytesIO(archive.read(CAR.format(name))))
            for name in ("calibration", "camera_poses", "stereo_factors")
        )
    fx, fy, _, cx, cy = calibration[:5]
    world = {int(row[0]): row[1:].reshape(4, 4) for row in poses}
    frames = {frame: factors[factors[:, 0] == frame] for frame in world}
    views = []
    for frame in sorted(world)[1:]:
        before, now = frames[frame - 1], frames[frame]
        _, i, j = np.intersect1d(before[:, 1], now[:, 1], return_indices=True)
        motion = np.linalg.inv(world[frame]) @ world[frame - 1]
        image = (now[j][:, [2, 4]] - [cx, cy]) / [fx, fy]
        views.append(_view(image, before[i, 5:8], motion[:3, :3], motion[:3, 3], fx))
    return views


def palace(path: Path) -> list[View]:
    """The five cameras of Bundler's reconstruction.

    Bundler's cameras look along ``-z`` with ``y`` up (its manual, version 0.4): both are turned.
    """
    with zipfile.ZipFile(path) as archive:
        lines = [
            line for line in archive.read(BUNDLER).decode().splitlines() if not line.startswith("#")
        ]
    numbers = iter(" ".join(lines).split())
    cameras, points = int(next(numbers)), int(next(numbers))
    lenses, poses = [], []
    for _ in range(cameras):
        values = np.array([float(next(numbers)) for _ in range(15)])
        lenses.append(values[:3])
        poses.append((values[3:12].reshape(3, 3), values[12:]))
    scene = []
    seen: list[list[tuple[int, float, float]]] = [[] for _ in range(cameras)]
    for point in range(points):
        scene.append([float(next(numbers)) for _ in range(3)])
        for _ in range(3):
            next(numbers)  # its colour
        for _ in range(int(next(numbers))):
            camera, _ = int(next(numbers)), next(numbers)
            seen[camera].append((point, float(next(numbers)), float(next(numbers))))
    turn = np.diag([1.0, -1.0, -1.0])
    views = []
    for (f, k1, k2), (R, t), marks in zip(lenses, poses, seen, strict=True):
        rows = np.array(marks)
        image = _undistorted(rows[:, 1:] / f, k1, k2) * [1, -1]
        places = np.array(scene)[rows[:, 0].astype(int)]
        views.append(_view(image, places, turn @ R, turn @ t, f))
    return views


def chessboards(path: Path) -> list[View]:
    """The boards that OpenCV finds, with squares of length one; the pose on file is OpenCV's own.

    Raises:
        ModuleNotFoundError: OpenCV is not installed.
    """
    import cv2

    views = []
    folder = "./usr/share/doc/opencv-doc/examples/data/"
    scene = np.zeros((BOARD[0] * BOARD[1], 3))
    scene[:, :2] = np.mgrid[: BOARD[0], : BOARD[1]].T.reshape(-1, 2)
    with tarfile.open(fileobj=io.BytesIO(_data(path))) as archive:
        contents = {}
        for member in archive:
            name = member.name.removeprefix(folder)
            if name == "left_intrinsics.yml" or (name[:4] == "left" and name[4:6].isdigit()):
                file = archive.extractfile(member)
                contents[name] = b"" if file is None else file.read()
    storage = cv2.FileStorage(
        contents.pop("left_intrinsics.yml").decode(),
        cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY,
    )
    matrix = storage.getNode("camera_matrix").mat()
    lens = storage.getNode("distortion_coefficients").mat()
    for name in sorted(contents):
        picture = cv2.imdecode(np.frombuffer(contents[name], np.uint8), cv2.IMREAD_GRAYSCALE)
        found, corners = cv2.findChessboardCorners(picture, BOARD)
        if not found:
            continue
        ends = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_COUNT, 50, 1e-3)
        corners = cv2.cornerSubPix(picture, corners, (5, 5), (-1, -1), ends)
        image = cv2.undistortPoints(corners.astype(float), matrix, lens)[:, 0]
        _, r, t = cv2.solvePnP(scene, image, np.eye(3), None)
        R, t = cv2.Rodrigues(r)[0], t[:, 0]
        views.append(_view(image, scene.copy(), R, t, float(matrix[0, 0])))
    return views


def _view(image: np.ndarray, scene: np.ndarray, R: np.ndarray, t: np.ndarray, f: float) -> View:
    return View(*(torch.tensor(np.array(x)).double() for x in (image, scene, R, t)), float(f))


def _undistorted(shown: np.ndarray, k1: float, k2: float) -> np.ndarray:
    """Bundler's radial distortion undone, by iteration."""
    plain = shown.copy()
    for _ in range(50):
        r2 = (plain**2).sum(1, keepdims=True)
        plain = shown / (1 + k1 * r2 + k2 * r2**2)
    return plain


def _data(path: Path) -> bytes:
    """The files of a Debian package: a member of its ``ar`` archive."""
    content, position = path.read_bytes(), 8
    while position < len(content):
        name = content[position : position + 16].decode().strip()
        size = int(content[position + 48 : position + 58])
        start = position + 60
        if name.startswith("data.tar"):
            return content[start : start + size]
        position = start + size + size % 2
    raise ValueError(f"{path} has no data.tar: it is not a Debian package.")
