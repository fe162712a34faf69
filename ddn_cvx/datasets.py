"""Data as tensors: real ones that other packages carry, and generated ones; no downloads."""

from __future__ import annotations

import csv
import datetime
import gzip
import importlib.util
from pathlib import Path
from typing import NamedTuple

import torch

from ddn_cvx.dedicated.pose.rotations import exponential

__all__ = [
    "CameraScenes",
    "Prices",
    "diabetes",
    "make_camera_scenes",
    "rolling_returns",
    "sp500_prices",
]

_INSTALL = 'install it with: pip install "ddn-cvx[examples]"'
_SP500 = Path("datasets", "data", "sp500_dataset.csv.gz")


class Prices(NamedTuple):
    """Daily prices of several assets.

    Attributes:
        dates: the trading days, oldest first.
        names: the assets' ticker symbols.
        prices: float64, shape ``(days, assets)``.

    Example:
        >>> from ddn_cvx.datasets import sp500_prices
        >>> stocks = sp500_prices()
        >>> len(stocks.dates) == len(stocks.prices), stocks.names[-1]
        (True, 'XOM')
    """

    dates: tuple[datetime.date, ...]
    names: tuple[str, ...]
    prices: torch.Tensor


def sp500_prices() -> Prices:
    """Daily adjusted closing prices of 20 stocks of the S&P 500, 1990 to 2022.

    Read from the file that skfolio bundles, without importing skfolio. The stocks were chosen with
    hindsight (all of them were still listed in 2022), so returns earned on them are flattered.

    Returns:
        ``(dates, names, prices)``; prices are float64, shape ``(8313, 20)``.

    Raises:
        ImportError: skfolio is not installed.
        FileNotFoundError: this version of skfolio does not carry the file.

    Example:
        >>> from ddn_cvx.datasets import sp500_prices
        >>> dates, names, prices = sp500_prices()
        >>> dates[0].isoformat(), names[:3], prices.shape
        ('1990-01-02', ('AAPL', 'AMD', 'BAC'), torch.Size([8313, 20]))
    """
    package = importlib.util.find_spec("skfolio")
    if package is None or package.origin is None:
        raise ImportError(f"The S&P 500 prices come with skfolio; {_INSTALL}", name="skfolio")
    path = Path(package.origin).parent / _SP500
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    dates = tuple(datetime.date.fromisoformat(row[0]) for row in rows)
    prices = [[float(price) for price in row[1:]] for row in rows]
    return Prices(dates, tuple(header[1:]), torch.tensor(prices, dtype=torch.float64))


def diabetes() -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """Progression of diabetes in 442 patients, with ten measurements of each.

    From scikit-learn; Efron, Hastie, Johnstone and Tibshirani, "Least angle regression", 2004.

    Returns:
        ``(X, y, names)``: the measurements, each column centred and of norm one, float64, shape
        ``(442, 10)``; the progression after a year, float64, shape ``(442,)``; the columns' names.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> from ddn_cvx.datasets import diabetes
        >>> X, y, names = diabetes()
        >>> X.shape, y.shape, names[:3]
        (torch.Size([442, 10]), torch.Size([442]), ('age', 'sex', 'bmi'))
    """
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        raise ImportError(
            f"The diabetes data come with scikit-learn; {_INSTALL}", name="sklearn"
        ) from error
    data = load_diabetes()
    return (
        torch.as_tensor(data.data, dtype=torch.float64),
        torch.as_tensor(data.target, dtype=torch.float64),
        tuple(data.feature_names),
    )


def rolling_returns(prices: torch.Tensor, window: int) -> torch.Tensor:
    """Every window of consecutive simple returns ``p_t / p_(t-1) - 1``.

    Args:
        prices: positive, shape ``(days, assets)``.
        window: number of returns in a window.

    Returns:
        Shape ``(days - window, window, assets)``, a view of the returns: element ``i`` holds the
        returns of days ``i + 1`` to ``i + window``, oldest first.

    Raises:
        ValueError: ``window`` is not between 1 and ``days - 1``, or ``prices`` is not a matrix.

    Example:
        >>> import torch
        >>> from ddn_cvx.datasets import rolling_returns
        >>> rolling_returns(torch.tensor([[1.0], [2.0], [3.0], [6.0]]), window=2).squeeze(-1)
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]])
    """
    if prices.ndim != 2:
        raise ValueError(f"prices must have shape (days, assets); got {tuple(prices.shape)}.")
    days = prices.shape[0]
    if not 1 <= window < days:
        raise ValueError(f"window must be between 1 and {days - 1}, the returns; got {window}.")
    returns = prices[1:] / prices[:-1] - 1  # (days - 1, assets)
    return returns.unfold(0, window, 1).mT


class CameraScenes(NamedTuple):
    """Generated scenes and what a camera sees of them; all in float64.

    Attributes:
        image: points of the image in pixels, shape ``(B, n, 2)``.
        points: of the scene, shape ``(B, n, 3)``.
        R: true rotations, shape ``(B, 3, 3)``.
        t: true translations, shape ``(B, 3)``.
        camera: ``(fx, fy, cx, cy)`` of all of them, shape ``(4,)``.
        outlier: which points of the image are anywhere, bool, shape ``(B, n)``.

    Example:
        >>> from ddn_cvx.datasets import make_camera_scenes
        >>> scenes = make_camera_scenes(3, 20)
        >>> ahead = scenes.points @ scenes.R.mT + scenes.t.unsqueeze(1)
        >>> bool((ahead[..., 2] > 0).all())
        True
    """

    image: torch.Tensor
    points: torch.Tensor
    R: torch.Tensor
    t: torch.Tensor
    camera: torch.Tensor
    outlier: torch.Tensor


def make_camera_scenes(
    batch: int,
    n: int,
    *,
    noise: float = 0.0,
    outliers: float = 0.0,
    planar: bool = False,
    depth: float = 5.0,
    seed: int = 0,
) -> CameraScenes:
    """Normal points within two units of the origin, seen by a camera of 800 pixels' focal length.

    Args:
        batch: number of scenes.
        n: points of each.
        noise: standard deviation of each coordinate in the image, in pixels.
        outliers: probability that a point is anywhere in an image of 640 by 640 pixels.
        planar: put the points in a plane.
        depth: of the scene's centre, less four units.
        seed: of the draws.

    Example:
        >>> from ddn_cvx.datasets import make_camera_scenes
        >>> make_camera_scenes(3, 20, noise=1.0, outliers=0.5).image.shape
        torch.Size([3, 20, 2])
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    points = normal(batch, n, 3).clamp(-2, 2)
    if planar:
        points[..., 2] = 0
    R, t = exponential(2 * normal(batch, 3)), 0.3 * normal(batch, 3)
    t[:, 2] = depth + 4
    y = points @ R.mT + t.unsqueeze(1)
    image = 800 * y[..., :2] / y[..., 2:] + 320 + noise * normal(batch, n, 2)
    outlier = torch.rand(batch, n, generator=generator) < outliers
    anywhere = 640 * torch.rand(image.shape, dtype=torch.float64, generator=generator)
    image = torch.where(outlier.unsqueeze(-1), anywhere, image)
    camera = torch.tensor([800.0, 800.0, 320.0, 320.0], dtype=torch.float64)
    return CameraScenes(image, points, R, t, camera, outlier)
