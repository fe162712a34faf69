"""Train a forecast through a portfolio layer, and against predict-then-optimise.

Every week a small network forecasts the next week's return of 20 stocks from their past prices,
and a Markowitz layer turns the forecast and the covariance of the past year into a portfolio. Two
ways to train the network, from the same start and with the same early stopping:

- decision-focused: maximise the utility that the layer's portfolio realised, through the layer;
- predict-then-optimise: minimise the squared error of the forecast, and use the layer afterwards.

The data are the S&P 500 prices that skfolio bundles, 1990 to 2022, split in the order of time. The
20 stocks were picked with hindsight and trading costs nothing here: compare the rows of the table
with one another, not with a bank account.

Run: ``python examples/portfolio.py [--out FOLDER] [--seeds N] [--quick]``
"""

from __future__ import annotations

import argparse
import copy
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ddn_cvx import DeclarativeLayer
from ddn_cvx.datasets import rolling_returns, sp500_prices
from ddn_cvx.problems import markowitz_portfolio

HORIZON = 5  # days from one decision to the next
PAST = 252  # days that a decision looks back
WEEKS = 252 / HORIZON  # in a year
RISK_AVERSION = 5.0
MOMENTUM = (5, 21, 63, 252)  # days of the return features
VALIDATION, TEST = datetime.date(2008, 1, 1), datetime.date(2014, 1, 1)

DECISION = "decision-focused"
PREDICT = "predict-then-optimise"
MINIMUM = "minimum variance"
EQUAL = "equal weights"


@dataclass(frozen=True, eq=False)
class Decisions:
    """One row for each week: what is known at its start, and what happened.

    Attributes:
        dates: the day of each decision.
        features: of each asset, from past prices only, shape ``(N, assets, features)``.
        factors: ``F`` with ``F' F`` the past year's weekly covariance, ``(N, assets, assets)``.
        realised: return until the next decision, shape ``(N, assets)``.
    """

    dates: tuple[datetime.date, ...]
    features: torch.Tensor
    factors: torch.Tensor
    realised: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> Decisions:
        """Some of the decisions, by their numbers."""
        return Decisions(
            tuple(self.dates[row] for row in rows.tolist()),
            self.features[rows],
            self.factors[rows],
            self.realised[rows],
        )

    def between(self, start: datetime.date, end: datetime.date, step: int = 1) -> Decisions:
        """The decisions of ``start <= date < end``, every ``step``-th of them."""
        rows = [row for row, date in enumerate(self.dates) if start <= date < end]
        return self[torch.tensor(rows[::step])]


def load_decisions() -> Decisions:
    """The weekly decisions of the bundled prices."""
    dates, _, prices = sp500_prices()
    start = torch.arange(PAST, len(dates) - HORIZON, HORIZON)  # the day of each decision
    windows = rolling_returns(prices, PAST)[start - PAST]  # (N, PAST, assets)
    centred = (windows - windows.mean(1, keepdim=True)) * (HORIZON / (PAST - 1)) ** 0.5
    volatility = windows.std(1)  # (N, assets)
    past = [
        (prices[start] / prices[start - days]).log() / (volatility * days**0.5) for days in MOMENTUM
    ]
    return Decisions(
        dates=tuple(dates[day] for day in start.tolist()),
        features=torch.stack([*past, volatility.log()], -1),
        # The triangular factor of QR has the same F' F as the whole window, and fewer rows.
        factors=torch.linalg.qr(centred, mode="r").R,
        realised=prices[start + HORIZON] / prices[start] - 1,
    )


class Forecast(torch.nn.Module):
    """Next week's return of each asset, one small network for all; ``(N, assets)``.

    Args:
        training: decisions that fix the scale of the features and of the returns.
    """

    def __init__(self, training: Decisions) -> None:
        super().__init__()
        features = training.features.shape[-1]
        self.register_buffer("mean", training.features.mean((0, 1)))
        self.register_buffer("deviation", training.features.std((0, 1)))
        self.register_buffer("scale", training.realised.mean().abs())
        self.network = torch.nn.Sequential(
            torch.nn.Linear(features, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
        ).double()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """From features ``(N, assets, features)`` to forecasts ``(N, assets)``."""
        standard = (features - self.mean) / self.deviation
        return self.scale * (1 + self.network(standard).squeeze(-1))


def realised_utility(portfolios: torch.Tensor, decisions: Decisions) -> torch.Tensor:
    """``r - gamma / 2 r^2`` with ``r`` the portfolio's return of the week; shape ``(N,)``."""
    returns = (portfolios * decisions.realised).sum(-1)
    return returns - RISK_AVERSION / 2 * returns.square()


@dataclass
class Trained:
    """A network at its best epoch, and its course in the validation weeks, epoch by epoch."""

    state: dict[str, torch.Tensor] = field(default_factory=dict)
    utility: list[float] = field(default_factory=list)  # percent a year
    error: list[float] = field(default_factory=list)  # root mean square, percent


class Experiment:
    """The layer, the data, and the two ways to train.

    Args:
        decisions: all weeks.
        epochs: passes over the training weeks.
        step: take every ``step``-th week only.
    """

    def __init__(self, decisions: Decisions, epochs: int, step: int = 1) -> None:
        self.training = decisions.between(datetime.date.min, VALIDATION, step)
        self.validation = decisions.between(VALIDATION, TEST, step)
        self.test = decisions.between(TEST, datetime.date.max, step)
        self.epochs = epochs
        assets = decisions.realised.shape[1]
        self.layer = DeclarativeLayer(markowitz_portfolio(assets, assets))

    def portfolios(self, forecast: torch.Tensor, decisions: Decisions) -> torch.Tensor:
        """The layer's answer to a forecast, shape ``(N, assets)``."""
        aversion = torch.tensor(RISK_AVERSION).double()
        (weights,) = self.layer(forecast, decisions.factors, aversion)
        return weights

    def train(self, method: str, seed: int, on_epoch: Callable[[], None]) -> Trained:
        """Train one network; both methods see the same start and the same mini-batches."""
        torch.manual_seed(seed)
        forecast, result = Forecast(self.training), Trained()
        optimizer = torch.optim.AdamW(forecast.parameters(), lr=3e-3, weight_decay=0.1)
        best = torch.inf
        for _ in range(self.epochs):
            for rows in torch.randperm(len(self.training.dates)).split(128):
                optimizer.zero_grad()
                utility, error = self._scores(forecast, self.training[rows], method == DECISION)
                # In percent, so that neither gradient drowns in the optimizer's epsilon.
                (1e4 * error if method == PREDICT else -100 * utility).backward()
                optimizer.step()
            with torch.no_grad():
                utility, error = self._scores(forecast, self.validation)
            result.utility.append(100 * WEEKS * float(utility))
            result.error.append(100 * float(error) ** 0.5)
            loss = float(error if method == PREDICT else -utility)
            if loss < best:
                best = loss
                result.state = copy.deepcopy(forecast.state_dict())
            on_epoch()
        return result

    def _scores(
        self, forecast: Forecast, decisions: Decisions, decide: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean utility (zero unless ``decide``), and mean squared error of the forecast."""
        mu = forecast(decisions.features)
        error = (mu - decisions.realised).square().mean()
        if not decide:
            return torch.zeros_like(error), error
        return realised_utility(self.portfolios(mu, decisions), decisions).mean(), error

    def tested(self, trained: Trained) -> torch.Tensor:
        """The test weeks' portfolios by a trained network."""
        forecast = Forecast(self.training)
        forecast.load_state_dict(trained.state)
        with torch.no_grad():
            return self.portfolios(forecast(self.test.features), self.test)

    def baselines(self) -> dict[str, torch.Tensor]:
        """Portfolios that need no forecast: without one, the layer minimises the variance."""
        nothing = torch.zeros_like(self.test.realised)
        return {
            MINIMUM: self.portfolios(nothing, self.test),
            EQUAL: torch.full_like(nothing, 1 / nothing.shape[1]),
        }


@dataclass(frozen=True)
class Outcome:
    """How portfolios did in the test weeks, in percent a year but for the turnover."""

    utility: float
    mean: float
    risk: float
    turnover: float  # fraction of the portfolio that is traded in a week


def outcome(portfolios: torch.Tensor, decisions: Decisions) -> Outcome:
    """Of portfolios ``(N, assets)`` in these decisions."""
    returns = (portfolios * decisions.realised).sum(-1)
    # What is held at the next decision before trading: the prices have moved.
    drifted = portfolios * (1 + decisions.realised) / (1 + returns).unsqueeze(1)
    traded = (portfolios[1:] - drifted[:-1]).abs().sum(1) / 2
    return Outcome(
        utility=100 * WEEKS * float(realised_utility(portfolios, decisions).mean()),
        mean=100 * WEEKS * float(returns.mean()),
        risk=100 * WEEKS**0.5 * float(returns.std()),
        turnover=float(traded.mean()),
    )


def difference(first: torch.Tensor, second: torch.Tensor, decisions: Decisions) -> str:
    """Utility of the first less that of the second, with the standard error over the weeks."""
    gap = realised_utility(first, decisions) - realised_utility(second, decisions)
    gap = gap.reshape(-1, len(decisions.dates)).mean(0)  # over the seeds, (N,)
    error = float(gap.std()) / len(gap) ** 0.5
    mean = float(gap.mean())
    verdict = "more than" if abs(mean) > 2 * error else "less than"
    return (
        f"{100 * WEEKS * mean:+.1f} ± {100 * WEEKS * error:.1f} percent a year, "
        f"{verdict} two standard errors"
    )


def run(
    experiment: Experiment, seeds: int
) -> tuple[dict[str, list[Trained]], dict[str, torch.Tensor]]:
    """Train every network; test portfolios by method, shape ``(seeds, N, assets)``."""
    from rich.progress import Progress

    trained: dict[str, list[Trained]] = {PREDICT: [], DECISION: []}
    with Progress() as progress:
        for method, results in trained.items():
            task = progress.add_task(method, total=seeds * experiment.epochs)
            results += [
                experiment.train(method, seed, lambda task=task: progress.advance(task))
                for seed in range(seeds)
            ]
    portfolios = {
        method: torch.stack([experiment.tested(result) for result in results])
        for method, results in trained.items()
    }
    for name, weights in experiment.baselines().items():
        portfolios[name] = weights.unsqueeze(0)
    return trained, portfolios


def report(portfolios: dict[str, torch.Tensor], test: Decisions) -> None:
    """Print the table and what it says."""
    from rich.console import Console
    from rich.table import Table

    def cell(values: Sequence[float], digits: int) -> str:
        middle, half = (max(values) + min(values)) / 2, (max(values) - min(values)) / 2
        return f"{middle:.{digits}f}" + (f" ± {half:.{digits}f}" if half else "")

    table = Table(
        title=f"Test weeks {test.dates[0]} to {test.dates[-1]}",
        caption="Percent a year, turnover a week; ± spans the seeds.",
    )
    table.add_column("portfolio", no_wrap=True)
    for heading in ("utility", "return", "risk", "turnover"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, weights in portfolios.items():
        outcomes = [outcome(one, test) for one in weights]
        table.add_row(
            name,
            cell([one.utility for one in outcomes], 1),
            cell([one.mean for one in outcomes], 1),
            cell([one.risk for one in outcomes], 1),
            cell([one.turnover for one in outcomes], 2),
        )
    console = Console()
    console.print(table)
    for other in (PREDICT, EQUAL):
        gap = difference(portfolios[DECISION], portfolios[other], test)
        console.print(f"Utility of {DECISION} less {other}: {gap}.")


def draw(
    trained: dict[str, list[Trained]],
    portfolios: dict[str, torch.Tensor],
    test: Decisions,
    folder: Path,
) -> None:
    """Save ``learning_curve.png`` and ``wealth_curve.png``."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    colours = {DECISION: "#0b6e99", PREDICT: "#d1731f", MINIMUM: "#7a7a7a", EQUAL: "#222222"}

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    figure.get_layout_engine().set(wspace=0.08)
    axes = figure.subplots(1, 2)
    for axis, quantity, label in (
        (axes[0], "utility", "utility, percent a year"),
        (axes[1], "error", "forecast error (RMS), percent"),
    ):
        for method, results in trained.items():
            curves = torch.tensor([getattr(result, quantity) for result in results])
            epochs = range(1, curves.shape[1] + 1)
            low, high = curves.amin(0), curves.amax(0)
            axis.fill_between(epochs, low, high, color=colours[method], alpha=0.2, linewidth=0)
            axis.plot(epochs, curves.mean(0), color=colours[method], label=method)
        axis.set(xlabel="epoch", ylabel=label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.suptitle("Validation weeks, mean and range over the seeds", fontsize=11)
    figure.savefig(folder / "learning_curve.png", dpi=150)

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, weights in portfolios.items():
        returns = (weights * test.realised).sum(-1)  # (seeds, N)
        wealth = (1 + returns).cumprod(1)
        for one in wealth if len(wealth) > 1 else ():
            axis.plot(test.dates, one, color=colours[name], alpha=0.25, linewidth=0.7)
        middle = wealth.log().mean(0).exp()
        style = "--" if name in (MINIMUM, EQUAL) else "-"
        axis.plot(test.dates, middle, style, color=colours[name], linewidth=1.6, label=name)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.set(ylabel="wealth, start = 1", title="Test weeks (thin: each seed)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(folder / "wealth_curve.png", dpi=150)


def main(arguments: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
    """Run the experiment; the test portfolios by name, each of shape ``(seeds, N, assets)``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the figures")
    parser.add_argument("--seeds", type=int, default=3, help="networks trained by each method")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="seconds: few weeks, epochs, seeds")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.epochs = 1, 2
    experiment = Experiment(load_decisions(), options.epochs, step=8 if options.quick else 1)
    trained, portfolios = run(experiment, options.seeds)
    report(portfolios, experiment.test)
    draw(trained, portfolios, experiment.test, options.out)
    print(f"Figures: {options.out}/learning_curve.png, {options.out}/wealth_curve.png")
    return portfolios


if __name__ == "__main__":
    torch.set_num_threads(1)  # the linear systems are small: more threads wait for one another
    main()
