"""The bundled data are what their packages hold; the windows are the returns, in order."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from ddn_cvx.datasets import diabetes, rolling_returns, sp500_prices


def test_sp500_prices_are_twenty_positive_series_in_order() -> None:
    dates, names, prices = sp500_prices()
    assert prices.shape == (len(dates), len(names)) == (8313, 20)
    assert prices.dtype == torch.float64
    assert (prices > 0).all()
    assert list(dates) == sorted(set(dates))
    assert (dates[0].isoformat(), dates[-1].isoformat()) == ("1990-01-02", "2022-12-28")


def test_sp500_prices_are_those_that_skfolio_loads() -> None:
    from skfolio.datasets import load_sp500_dataset

    frame = load_sp500_dataset()
    dates, names, prices = sp500_prices()
    assert list(names) == list(frame.columns)
    assert [date.isoformat() for date in dates] == [str(day.date()) for day in frame.index]
    torch.testing.assert_close(prices, torch.as_tensor(frame.to_numpy().copy()), rtol=0, atol=0)


def test_diabetes_columns_are_centred_and_of_norm_one() -> None:
    X, y, names = diabetes()
    assert X.shape == (442, len(names)) == (442, 10)
    assert y.shape == (442,)
    assert X.dtype == y.dtype == torch.float64
    torch.testing.assert_close(X.sum(0), torch.zeros(10).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(X.square().sum(0), torch.ones(10).double(), rtol=0, atol=1e-12)


def test_each_window_is_a_slice_of_the_returns() -> None:
    generator = torch.Generator().manual_seed(0)
    prices = torch.rand(12, 3, generator=generator, dtype=torch.float64) + 0.5
    returns = prices[1:] / prices[:-1] - 1
    windows = rolling_returns(prices, window=4)
    assert windows.shape == (8, 4, 3)
    for start, window in enumerate(windows):
        assert torch.equal(window, returns[start : start + 4])


def test_the_product_of_a_window_is_the_ratio_of_its_prices() -> None:
    _, _, prices = sp500_prices()
    growth = (1 + rolling_returns(prices[:200], window=21)).prod(1)
    torch.testing.assert_close(growth, prices[21:200] / prices[:179], rtol=1e-12, atol=0)


@pytest.mark.parametrize("window", [0, 12, -1])
def test_a_window_must_fit(window: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 11"):
        rolling_returns(torch.ones(12, 3), window)


def test_prices_must_be_a_matrix() -> None:
    with pytest.raises(ValueError, match="days, assets"):
        rolling_returns(torch.ones(12), 3)


@pytest.mark.parametrize(("package", "load"), [("skfolio", sp500_prices), ("sklearn", diabetes)])
def test_a_missing_package_is_named_with_the_way_to_install_it(
    package: str, load: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (package, f"{package}.datasets"):
        monkeypatch.setitem(sys.modules, name, None)  # Python's own way to forbid an import
    with pytest.raises(ImportError, match=re.escape('pip install "ddn-cvx[examples]"')) as caught:
        load()
    assert caught.value.name == package


def test_the_prices_are_read_without_importing_skfolio_or_pandas() -> None:
    code = (
        "import sys; from ddn_cvx.datasets import sp500_prices; sp500_prices(); "
        "print(sorted({'skfolio', 'pandas', 'sklearn', 'cvxpy'} & sys.modules.keys()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == "[]"
