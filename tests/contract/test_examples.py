"""The examples run, and compute what they say they compute."""

import importlib.util
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import central_difference, draw

ROOT = Path(__file__).parents[2]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"example_{name}", ROOT / "examples" / f"{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def portfolio() -> ModuleType:
    return example("portfolio")


def test_robust_pooling_draws_what_it_computes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pooling = example("robust_pooling")
    pooling.main(["--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"penalties.png", "moving_outlier.png"}
    assert "truncated quadratic  pooled +0.000" in capsys.readouterr().out
    far = pooling.moving_outlier(torch.tensor([50.0], dtype=torch.float64))
    assert float(far["quadratic"][0]) == pytest.approx(50 / 6)
    for name in ("welsch", "truncated_quadratic"):  # the outlier is let go
        alone = pooling.moving_outlier(torch.tensor([500.0], dtype=torch.float64))[name][0]
        torch.testing.assert_close(far[name][0], alone)


def test_projections_draws_what_it_computes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    projections = example("projections")
    projections.main(["--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"spheres.png", "gradients.png"}
    assert "L1 ball          of (0.9, 0.4): nearest (+0.750, +0.250)" in capsys.readouterr().out
    points = projections.grid(7)
    for norm, order in projections.NORMS.items():
        for kind in projections.SETS:
            u, gradient = projections.project(norm, kind, points)
            outside = torch.linalg.vector_norm(points, ord=order, dim=1) > 1
            size = torch.linalg.vector_norm(u, ord=order, dim=1)
            torch.testing.assert_close(size[outside], torch.ones_like(size[outside]))
            # What points outward is lost: along the way to the projection nothing changes.
            lost = (gradient * (points - u)).sum(1)[outside]
            assert float(lost.abs().max()) < 1e-12


def test_lasso_path_is_scikit_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    example("lasso_path").main(["--out", str(tmp_path)])
    assert (tmp_path / "lasso_path.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "60 values of lambda" in said
    errors = [float(line.split()[0]) for line in said.splitlines()[1:4]]
    assert errors[0] < 1e-9  # the optimality conditions
    assert max(errors) < 1e-8  # coefficients and slopes against the exact path


def test_lasso_path_for_an_orthonormal_design_is_soft_thresholding() -> None:
    """For ``X'X = I``, ``u_j = sign(c_j) max(|c_j| - lambda, 0)`` with ``c = X'y``."""
    pytest.importorskip("sklearn")
    centred = draw(12, 3)
    X = torch.linalg.qr(centred - centred.mean(0)).Q
    y = draw(12, seed=1)
    path = example("lasso_path").lasso_path(X, y, steps=7)
    correlation = X.mT @ y
    shrunk = (correlation.abs() - path.weights.unsqueeze(1)).clamp_min(0) * correlation.sign()
    torch.testing.assert_close(path.coefficients, shrunk, rtol=0, atol=1e-9)
    torch.testing.assert_close(path.slopes, -shrunk.sign(), rtol=0, atol=1e-7)


def test_portfolio_trains_and_draws(portfolio: ModuleType, tmp_path: Path) -> None:
    portfolios = portfolio.main(["--quick", "--out", str(tmp_path)])
    assert set(portfolios) == {
        "decision-focused",
        "predict-then-optimise",
        "minimum variance",
        "equal weights",
    }
    for weights in portfolios.values():
        assert (weights >= -1e-8).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]).double())
    assert {path.name for path in tmp_path.iterdir()} == {"learning_curve.png", "wealth_curve.png"}


def test_portfolio_factors_give_the_covariance_of_the_week(portfolio: ModuleType) -> None:
    """``F' F`` is five times the covariance of the past year's daily returns."""
    _, _, prices = portfolio.sp500_prices()
    decisions = portfolio.load_decisions()
    day = portfolio.PAST + 3 * portfolio.HORIZON  # of the fourth decision
    past = prices[day - portfolio.PAST : day + 1]
    covariance = portfolio.HORIZON * torch.cov((past[1:] / past[:-1] - 1).T)
    F = decisions.factors[3]
    torch.testing.assert_close(F.T @ F, covariance, rtol=1e-10, atol=1e-14)


def test_portfolio_looks_at_the_past_only(portfolio: ModuleType) -> None:
    """Other prices after the fourth decision change neither its features nor its factors."""
    before = portfolio.load_decisions()
    dates, names, prices = portfolio.sp500_prices()
    day = portfolio.PAST + 3 * portfolio.HORIZON
    changed = prices.clone()
    changed[day + 1 :] *= 1.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portfolio, "sp500_prices", lambda: (dates, names, changed))
        after = portfolio.load_decisions()
    assert torch.equal(before.features[:4], after.features[:4])
    assert torch.equal(before.factors[:4], after.factors[:4])
    assert not torch.equal(before.realised[3], after.realised[3])


def test_portfolio_gradient_is_the_central_difference(portfolio: ModuleType) -> None:
    """Realised utility, through the layer, in the forecast of a few weeks."""
    experiment = portfolio.Experiment(portfolio.load_decisions(), epochs=1, step=100)
    weeks = experiment.test
    shape = weeks.realised.shape
    mu, direction = 0.003 * draw(*shape), 0.003 * draw(*shape, seed=1)

    def utility(forecast: torch.Tensor) -> torch.Tensor:
        portfolios = experiment.portfolios(forecast, weeks)
        return torch.as_tensor(portfolio.realised_utility(portfolios, weeks))

    mu.requires_grad_()
    (gradient,) = torch.autograd.grad(utility(mu).sum(), mu)
    # The portfolio is piecewise affine in the forecast, so that central differences are exact but
    # for the solver's accuracy, 1e-9 at a portfolio of one asset, where the derivative is zero.
    with torch.no_grad():
        numeric = central_difference(lambda h: utility(mu + h * direction), 1e-3)
    torch.testing.assert_close((gradient * direction).sum(1), numeric, rtol=1e-6, atol=1e-8)


def fake_wheel(path: Path) -> torch.Tensor:
    """A car that drives on by a tenth, and two cameras of a palace, in the files' formats."""
    generator = torch.Generator().manual_seed(0)
    shape = torch.tensor([8.0, 4.0, 10.0], dtype=torch.float64)
    scene = (torch.rand(40, 3, dtype=torch.float64, generator=generator) - 0.5) * shape
    scene[:, 2] += 12
    factors = []
    for frame in range(3):
        X, Y, Z = (scene - torch.tensor([0.0, 0.0, 0.1 * frame]).double()).unbind(1)
        u, v = 700 * X / Z + 600, 700 * Y / Z + 180
        for k in range(40):
            values = (u[k], u[k] - 300 / Z[k], v[k], X[k], Y[k], Z[k])
            factors.append(" ".join(map(str, (frame, k, *(float(x) for x in values)))))
    poses = [f"{k} 1 0 0 0 0 1 0 0 0 0 1 {0.1 * k} 0 0 0 1" for k in range(3)]
    lines = ["# Bundle file v0.3", "2 40"]
    turn = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    for camera in range(2):
        lines += ["500 0 0", "1 0 0", "0 -1 0", "0 0 -1", f"{-0.5 * camera} 0 0"]
    for place in scene:
        lines += [" ".join(map(str, place.tolist())), "0 0 0"]
        marks = []
        for camera in range(2):
            seen = turn * place + torch.tensor([-0.5 * camera, 0, 0]).double()
            marks.append(f"{camera} 0 {-500 * seen[0] / seen[2]} {-500 * seen[1] / seen[2]}")
        lines.append("2 " + " ".join(marks))
    with zipfile.ZipFile(path, "w") as archive:
        folder = "gtsam/Data/"
        archive.writestr(folder + "VO_calibration00s.txt", "700 700 0 600 180 0.5")
        archive.writestr(folder + "VO_camera_poses00s.txt", "\n".join(poses))
        archive.writestr(folder + "VO_stereo_factors00s.txt", "\n".join(factors))
        archive.writestr(folder + "Balbianello.out", "\n".join(lines))
    return scene


def test_pose_reads_the_files_and_finds_the_motion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    fake_wheel(tmp_path / "gtsam-0-any.whl")
    pose = example("pose")
    views = pose.car(tmp_path / "gtsam-0-any.whl")
    assert len(views) == 2
    assert float(views[0].t[2]) == pytest.approx(-0.1)
    for turn, shift, residual in (*pose.errors(views, 1.0), *pose.errors(
        pose.palace(tmp_path / "gtsam-0-any.whl"), 1.0
    )):  # fmt: skip
        assert turn < 1e-4
        assert max(shift, residual) < 1e-4
    out = tmp_path / "out"
    pose.main(["--out", str(out), "--data", str(tmp_path), "--steps", "5"])
    assert {path.name for path in out.iterdir()} == {"recall.png", "matches.png"}
    said = capsys.readouterr().out
    assert "car                      2 pictures  rotation 0.0000 degrees" in said
    assert "generated   20 pictures" in said


def test_pose_generates_scenes_that_match() -> None:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        pose = example("pose")
    finally:
        sys.path.pop(0)
    scenes = pose.generated(3, 50, torch.Generator().manual_seed(0))
    shown = pose.seen(scenes.scene @ scenes.R.mT + scenes.t.unsqueeze(1))
    found = scenes.image.gather(1, scenes.match.clamp_min(0).unsqueeze(-1).expand(-1, -1, 2))
    far = (shown - found).norm(dim=-1)[scenes.match >= 0]
    assert float(far.max()) < 6 * pose.NOISE
    assert 0.8 < float((scenes.match >= 0).double().mean()) < 1
