"""Windows, scales, baselines and errors of a forecast, compared with computations of their own in NumPy."""

import numpy as np
import pytest
import torch

from torchrnn.tools.forecast.backtest import NETWORK, run, scales
from torchrnn.tools.forecast.baselines import RidgeFit, filled, fit_linear, persistence, seasonal_naive
from torchrnn.tools.forecast.model import CELLS, Forecaster
from torchrnn.tools.forecast.panel import Panel
from torchrnn.tools.forecast.scaling import Scaling
from torchrnn.tools.forecast.scores import Errors, QuantileErrors, lag_of, pinball
from torchrnn.tools.forecast.settings import ForecastSettings
from torchrnn.tools.forecast.split import Split
from torchrnn.tools.forecast.steps import Step
from torchrnn.tools.forecast.windows import Roles, Windows
from torchrnn.tools.runs.errors import UsageError

HOUR = Step("microseconds", 3_600_000_000)
T, H = 6, 3


def two_series(lengths=(20, 14), first=(0, 4), columns=2, missing=()):
    """A panel of two series; `missing` are pairs of row and column."""
    rows = sum(lengths)
    values = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32).cumsum(0)
    for row, column in missing:
        values[row, column] = np.nan
    starts = np.array([0, *np.cumsum(lengths)])
    return Panel(["a", "b"], starts, np.array(first), HOUR, 0, [f"c{n}" for n in range(columns)], values)


def windows_of(panel, begin=0, end=None, roles=None, kind="none"):
    scaling = Scaling.measure(panel, panel.end, kind, by_series=True)
    roles = roles or Roles(tuple(panel.columns))
    return Windows.between(panel, scaling, roles, T, H, begin, panel.end if end is None else end)


# windows


def test_windows_read_and_predict_the_rows_that_they_say():
    panel = two_series()
    windows = windows_of(panel, begin=8, end=14)
    found = set(zip(panel.series_of(windows.rows).tolist(), panel.ticks_before(windows.rows).tolist(), strict=True))
    # the targets of all lie at ticks 8 … 13; series b begins at tick 4, so its first has read ticks 4 … 9
    assert found == {(0, 8), (0, 9), (0, 10), (0, 11), (1, 10), (1, 11)}
    batch = windows.batch(np.arange(len(windows)))
    for place, row in enumerate(windows.rows):
        np.testing.assert_array_equal(batch.history[:, place], panel.values[row - T : row])
        np.testing.assert_array_equal(batch.target[:, place], panel.values[row : row + H])
        np.testing.assert_array_equal(batch.level[place], panel.values[row - 1])


def test_no_target_of_one_part_is_in_another_and_training_is_blind_to_the_rest():
    panel = two_series(lengths=(60, 50), first=(0, 10))
    settings = ForecastSettings(horizon=H, history=T)
    split = Split.of(panel, settings)
    assert split == Split(36, 48, 60)
    before = {}
    for name, (begin, end) in split.parts().items():
        windows = windows_of(panel, begin, end)
        assert len(windows)
        ticks = panel.ticks_before(windows.rows)
        assert begin <= ticks.min()
        assert ticks.max() + H <= end
        before[name] = windows
    batch = before["training"].batch(np.arange(len(before["training"])))
    scaling = Scaling.measure(panel, split.train, "standard", True)
    for series in range(2):
        panel.values[panel.rows(series, split.train, panel.end)] = np.nan  # the future vanishes
    again = windows_of(panel, 0, split.train)
    np.testing.assert_array_equal(again.rows, before["training"].rows)
    for part, was in zip(again.batch(np.arange(len(again))), batch, strict=True):
        assert (part is None) == (was is None)
        if part is not None:
            torch.testing.assert_close(part, was, rtol=0, atol=0)
    blind = Scaling.measure(panel, split.train, "standard", True)
    np.testing.assert_array_equal(blind.center, scaling.center)
    np.testing.assert_array_equal(blind.spread, scaling.spread)


def test_missing_values_are_zero_with_a_mark_and_a_mask():
    missing = [(7, 0), (7, 1), (3, 1), (10, 0)]
    panel = two_series(missing=missing)
    roles = Roles(("c0",), past=("c1",), calendar=("hour",), marked=("c0", "c1"))
    windows = windows_of(panel, roles=roles, kind="standard")
    number = int(np.flatnonzero(windows.rows == 9)[0])
    batch = windows.batch(np.array([number]))  # reads rows 3 … 8, predicts 9 … 11
    assert batch.past.shape == (T, 1, roles.input_size - 1)  # c1, marks of c0 and c1, hour as sine and cosine
    assert batch.past[0, 0, 0] == 0
    assert batch.past[:, 0, 1].tolist() == [0, 0, 0, 0, 1, 0]
    assert batch.past[:, 0, 2].tolist() == [1, 0, 0, 0, 1, 0]
    assert batch.mask is not None
    assert batch.mask[:, 0].tolist() == [True, True, True, True, False, True]
    assert batch.target[:, 0, 0].isnan().tolist() == [False, True, False]
    assert batch.history[:, 0, 0].isnan().tolist() == [False, False, False, False, True, False]


def test_windows_without_a_target_are_left_out():
    panel = two_series(missing=[(row, column) for row in range(6, 12) for column in range(2)])
    windows = windows_of(panel, end=20)
    rows = windows.rows[windows.rows < 20].tolist()
    for row in range(6, 18):
        past, future = panel.values[row - T : row], panel.values[row : row + H]
        assert (row in rows) == bool(np.isfinite(past).any() and np.isfinite(future).any())


def test_the_sentence_names_rows_and_times():
    panel = Panel.of(np.arange(20.0)[:, None], ["y"])
    assert (
        windows_of(panel)
        .sentence()
        .startswith(
            "window 1 reads rows 1–6 (1970-01-01 00:00 … 1970-01-01 05:00) and predicts rows 7–9 (1970-01-01 06:00 … "
            "1970-01-01 08:00); window 2 reads rows 2–7"
        )
    )


# scales


@pytest.mark.parametrize("kind", ["standard", "robust", "none"])
def test_scales_are_those_of_the_training_part(kind):
    panel = two_series(missing=[(2, 0)])
    scaling = Scaling.measure(panel, 10, kind, by_series=True)
    parts = [panel.values[0:10], panel.values[20:26]]
    for row, part in enumerate([*parts, np.concatenate(parts)]):
        for column in range(2):
            values = part[:, column].astype(float)
            values = values[np.isfinite(values)]
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            center, spread = {
                "standard": (values.mean(), values.std()),
                "robust": (middle, (high - low) / 1.349),
                "none": (0, 1),
            }[kind]
            assert scaling.center[row, column] == pytest.approx(center, rel=1e-12)
            assert scaling.spread[row, column] == pytest.approx(spread, rel=1e-12)
    assert scaling.rows_for(["b", "new", "a"]).tolist() == [1, 2, 0]
    again = Scaling.from_dict(scaling.to_dict())
    np.testing.assert_array_equal(again.center, scaling.center)


def test_a_constant_column_and_a_series_without_training_rows():
    panel = two_series(first=(0, 15))
    panel.values[:, 1] = 12345.678
    scaling = Scaling.measure(panel, 12, "standard", by_series=True)
    assert scaling.spread[:, 1].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(scaling.center[1], scaling.center[2])  # series b has no row before tick 12


# the split


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (60, 80, 100)),
        ({"validation": "10", "test": "30"}, (60, 70, 100)),
        ({"train": "50", "validation": "20", "test": "10"}, (50, 70, 80)),
        ({"validation": "1970-01-03", "test": "1970-01-04 00:00"}, (48, 72, 100)),
        ({"train": "1970-01-02", "validation": "1970-01-03", "test": "12"}, (24, 48, 60)),
    ],
)
def test_splits(given, expected):
    panel = Panel.of(np.arange(100.0)[:, None], ["y"])
    split = Split.of(panel, ForecastSettings(**given))
    assert (split.train, split.validation, split.test) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"validation": "0.6", "test": "0.5"},
        {"validation": "0", "test": "10"},
        {"validation": "1.5"},
        {"test": "soon"},
        {"test": "1975-01-01"},
        {"train": "90", "validation": "10", "test": "10"},
    ],
)
def test_splits_that_cannot_be(given):
    panel = Panel.of(np.arange(100.0)[:, None], ["y"])
    with pytest.raises(UsageError, match=r"--test|--validation"):
        Split.of(panel, ForecastSettings(**given))


# baselines


def random_history(missing=0.0, batch=5, targets=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    history = torch.randn(9, batch, targets, dtype=torch.float64, generator=generator)
    history[torch.rand(history.shape, generator=generator) < missing] = torch.nan
    return history


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_persistence_and_seasonal_naive_against_loops(missing):
    history, horizon, season = random_history(missing), 7, 4
    last, seasonal = persistence(history, horizon), seasonal_naive(history, horizon, season)
    for b in range(5):
        for k in range(2):
            line = history[:, b, k].tolist()
            seen = [value for value in line if value == value]
            newest = seen[-1] if seen else 0.0
            for i in range(horizon):
                assert last[i, b, k] == newest
                at = len(line) + i
                while at >= len(line) or (at >= 0 and line[at] != line[at]):
                    at -= season
                assert seasonal[i, b, k] == (line[at] if at >= 0 else newest), (b, k, i)


def test_filling_takes_the_value_before_or_else_the_one_after():
    nan = torch.nan
    line = torch.tensor([nan, nan, 3, nan, 5, nan]).view(6, 1, 1)
    assert filled(line).flatten().tolist() == [3, 3, 3, 3, 5, 5]
    assert filled(torch.full((4, 1, 1), nan)).flatten().tolist() == [0, 0, 0, 0]


def test_the_linear_baseline_is_a_ridge_regression():
    generator = torch.Generator().manual_seed(1)
    history = torch.randn(T, 40, 2, dtype=torch.float64, generator=generator)
    target = torch.randn(H, 40, 2, dtype=torch.float64, generator=generator)
    target[1, 3, 0] = torch.nan  # that window of that target is left out
    history[2, 5, 1] = torch.nan  # read as the value before it
    fit = RidgeFit(T, H, 2)
    fit.add(history[:, :25], target[:, :25])
    fit.add(history[:, 25:], target[:, 25:])
    linear = fit.solve(0.1)
    for k in range(2):
        used = [n for n in range(40) if not (k == 0 and n == 3)]
        past, came = filled(history)[:, used, k].numpy().T, target[:, used, k].numpy().T
        inputs = past - past[:, -1:]
        penalty = 0.1 * (inputs**2).sum(0).mean()
        # the same as least squares with rows of the penalty below, solved by another algorithm
        rows = np.vstack([np.c_[inputs, np.ones(len(used))], np.c_[np.sqrt(penalty) * np.eye(T), np.zeros(T)]])
        goals = np.vstack([came - past[:, -1:], np.zeros((T, H))])
        solution, *_ = np.linalg.lstsq(rows, goals, rcond=None)
        np.testing.assert_allclose(linear.weight[k], solution[:-1], atol=1e-8)
        np.testing.assert_allclose(linear.bias[k], solution[-1], atol=1e-8)
        expected = inputs @ solution[:-1] + solution[-1] + past[:, -1:]
        np.testing.assert_allclose(linear(history)[:, used, k], expected.T, atol=1e-8)


def test_the_linear_baseline_finds_a_linear_law_and_its_quantiles():
    generator = torch.Generator().manual_seed(2)
    history = torch.randn(T, 4000, 1, dtype=torch.float64, generator=generator)
    noise = torch.rand(1, 4000, 1, dtype=torch.float64, generator=generator)
    target = (0.5 * history[-1] - 0.25 * history[0] + 2 + noise).repeat(H, 1, 1)
    parts = [(history[:, :3000], target[:, :3000])], [(history[:, 3000:], target[:, 3000:])]
    linear, ridge = fit_linear(*parts, T, H, 1)
    assert ridge < 1
    np.testing.assert_allclose(linear.bias, 2.5, atol=0.05)
    quantiles = linear.with_offsets(parts[1], (0.1, 0.5, 0.9)).quantiles(history)
    below = (target[..., None] <= quantiles).double().mean((0, 1, 2))
    np.testing.assert_allclose(below, [0.1, 0.5, 0.9], atol=0.03)


def test_a_target_that_never_changes_is_foretold():
    linear, _ = fit_linear([(torch.full((T, 9, 1), 3.0), torch.full((H, 9, 1), 3.0))], [], T, H, 1)
    assert torch.allclose(linear(torch.full((T, 2, 1), 3.0)), torch.tensor(3.0))


# errors


def test_errors_against_numpy():
    rng = np.random.default_rng(3)
    forecast, target = rng.normal(size=(2, H, 10, 2))
    target[0, 2, 1] = target[2, :, 0] = np.nan
    spread = rng.uniform(1, 2, size=(10, 2))
    errors = Errors(H, 2)
    for part in (slice(0, 4), slice(4, 10)):
        errors.add(*(torch.tensor(array[..., part, :]) for array in (forecast, target, spread)))
    error = forecast - target
    terms = [error**2, abs(error), (spread * error) ** 2, abs(spread * error)]
    np.testing.assert_allclose(errors.overall(), [np.nanmean(term) for term in terms], rtol=1e-12)
    np.testing.assert_allclose(errors.by_target(), [np.nanmean(term, (0, 1)) for term in terms], rtol=1e-12)
    np.testing.assert_allclose(errors.by_step(), [np.nanmean(term, (1, 2)) for term in terms], rtol=1e-12)


def test_quantile_errors_against_numpy():
    rng = np.random.default_rng(4)
    levels = (0.1, 0.5, 0.9)
    target = rng.normal(size=(H, 10, 2))
    target[1, 1, 1] = np.nan
    forecast = np.sort(rng.normal(size=(H, 10, 2, 3)), -1)
    errors = QuantileErrors(levels, H)
    errors.add(torch.tensor(forecast), torch.tensor(target))
    for number, level in enumerate(levels):
        loss, below = [], []
        for value, quantile in zip(target.ravel(), forecast[..., number].ravel(), strict=True):
            if value == value:
                loss.append(level * (value - quantile) if value > quantile else (1 - level) * (quantile - value))
                below.append(value <= quantile)
        assert errors.pinball()[number] == pytest.approx(np.mean(loss), rel=1e-12)
        assert errors.coverage()[number] == pytest.approx(np.mean(below), rel=1e-12)


def test_the_pinball_loss_is_least_at_the_quantile():
    values = torch.tensor(np.random.default_rng(5).normal(size=2001))
    guesses = torch.linspace(-2, 2, 401, dtype=torch.float64)
    losses = torch.stack([pinball(guess.expand(2001, 1), values, (0.8,)).mean() for guess in guesses])
    assert guesses[losses.argmin()].item() == pytest.approx(float(values.quantile(0.8)), abs=0.02)


# the verdict on lateness


def verdict(forecast, series, step, season=1, lags=40):
    """Of forecasts by time: forecast[t] is of series[t] and was made `step` before."""
    times = np.arange(lags, len(series))
    past = np.stack([series[times - k] for k in range(lags)], 1)[..., None]
    return lag_of(step, season, forecast[times, None], past, series[times - step][:, None])


def test_copies_of_the_last_value_are_found_out():
    rng = np.random.default_rng(6)
    series = rng.normal(size=3000).cumsum()
    shifted = np.roll(series, 3) + rng.normal(0, 0.1, 3000)
    lag = verdict(shifted, series, step=3)
    assert lag.nearest == 3
    assert abs(lag.change) < 0.1
    assert lag.verdict.startswith("ONLY THE LAST VALUE")


def test_copies_of_the_season_are_found_out():
    rng = np.random.default_rng(7)
    series = np.tile(rng.normal(size=12), 300)[:3000] + 3 * np.repeat(rng.normal(size=250).cumsum(), 12)
    late = np.roll(series, 12)
    assert verdict(late, series, step=1, season=12).verdict.startswith("ONLY THE SEASON BEFORE")


def test_forecasts_that_foretell_are_not_called_late():
    rng = np.random.default_rng(8)
    series = np.sin(np.arange(3000) / 5) + rng.normal(0, 0.1, 3000)
    lag = verdict(np.sin(np.arange(3000) / 5), series, step=3)
    assert lag.nearest == 0
    assert lag.change > 0.9
    assert lag.verdict.startswith("follows what came")
    assert verdict(np.roll(series, 7), series, step=3).verdict.startswith("LATE")


def test_a_period_that_is_not_the_season_is_not_called_late():
    rng = np.random.default_rng(10)
    series = np.tile(np.arange(5.0), 600)
    forecast = series + rng.normal(0, 0.2, 3000)
    forecast[:-5] += 1e-9 * series[5:]
    lag = verdict(forecast, series + rng.normal(0, 0.01, 3000), step=1, season=7)
    assert lag.verdict.startswith("follows what came")


def test_a_series_that_does_not_change_has_no_verdict():
    series = np.full(300, 5.0)
    assert verdict(series, series, step=1).verdict.startswith("says nothing: the series did not change")


def test_the_distance_is_that_of_a_loop():
    rng = np.random.default_rng(9)
    series, forecast = rng.normal(size=(2, 200))
    lag = verdict(forecast, series, step=2, lags=5)
    for k in range(5):
        expected = np.mean([(forecast[t] - series[t - k]) ** 2 for t in range(5, 200)])
        assert lag.distance[k] == pytest.approx(expected, rel=1e-12)


# the network


def small(**given):
    settings = ForecastSettings(target=("c0", "c1"), horizon=H, history=T, hidden_size=5, dropout=0.0, **given)
    panel = two_series(missing=[(7, 0), (7, 1)])
    roles = Roles(("c0", "c1"), calendar=("hour",), marked=("c0", "c1"))
    torch.manual_seed(0)
    return settings, windows_of(panel, roles=roles, kind="standard"), roles


@pytest.mark.parametrize("cell", CELLS)
def test_the_network_is_its_equations(cell):
    settings, windows, roles = small(cell=cell, quantiles=("0.2", "0.5"))
    model = Forecaster(roles, settings).double()
    for weight in (*model.parameters(), *model.buffers()):
        torch.nn.init.normal_(weight, std=0.3)
    batch = windows.batch(np.arange(len(windows)))
    batch = batch._make(part.double() if part is not None and part.is_floating_point() else part for part in batch)
    found = model(batch)  # (h, B, K, Q)
    assert batch.mask is not None
    for b in range(len(windows)):
        line = batch.history[:, b]  # (T, K)
        d = torch.where(line.isnan(), torch.zeros_like(line), line - batch.level[b])
        state = None
        for t in range(T):
            if batch.mask[t, b]:
                x = torch.cat([d[t], batch.past[t, b]])
                state = model.encoder(x.view(1, 1, -1), state)[1]
        outputs = []
        for i in range(H):
            x = torch.cat([batch.future[i, b], torch.tensor([i / (H - 1)], dtype=torch.float64)])
            z, state = model.decoder(x.view(1, 1, -1), state)
            outputs.append(model.head(z).view(2, 2))
        whole = filled(line[:, None])[:, 0]
        for i in range(H):
            for k in range(2):
                linear = (whole[:, k] - whole[-1, k]) @ model.get_buffer("weight")[k, :, i]
                expected = outputs[i][k] + whole[-1, k] + linear + model.get_buffer("bias")[k, i]
                expected = expected + model.get_buffer("offsets")[i, k]
                torch.testing.assert_close(found[i, b, k], expected, rtol=0, atol=1e-12)


def test_training_starts_from_the_linear_baseline():
    settings, windows, roles = small()
    batch = windows.batch(np.arange(len(windows)))
    linear, _ = fit_linear([(batch.history, batch.target)], [], T, H, 2)
    model = Forecaster(roles, settings).eval()
    torch.testing.assert_close(model(batch)[..., 0], persistence(batch.history, H))
    model.start_from(linear)
    torch.testing.assert_close(model(batch)[..., 0], linear(batch.history).float(), rtol=1e-4, atol=1e-5)


def test_nothing_of_the_horizon_but_what_is_known_reaches_a_forecast():
    panel = two_series(columns=3)
    roles = Roles(("c0",), past=("c1",), known=("c2",))
    settings = ForecastSettings(target=("c0",), horizon=H, history=T, hidden_size=5)
    torch.manual_seed(0)
    model = Forecaster(roles, settings).eval()
    torch.nn.init.normal_(model.head.weight)
    number = np.array([3])
    windows = windows_of(panel, roles=roles)
    before, row = model(windows.batch(number)), int(windows.rows[3])
    panel.values[row : row + H, :2] += 100
    assert torch.equal(model(windows.batch(number)), before)
    panel.values[row + H - 1, 2] += 100
    assert not torch.equal(model(windows.batch(number)), before)


def test_the_back_test_against_a_loop():
    settings, windows, roles = small()
    model = Forecaster(roles, settings).eval()
    torch.nn.init.normal_(model.head.weight)
    batch = windows.batch(np.arange(len(windows)))
    linear, _ = fit_linear([(batch.history, batch.target)], [], T, H, 2)
    test = run(model, windows, linear, 3, ())
    assert set(test.errors) == {NETWORK, "persistence", "seasonal naive", "linear"}
    squares, units = [], []
    for number in range(len(windows)):
        one = windows.batch(np.array([number]))
        error = (model(one)[..., 0] - one.target).detach().double().numpy()[:, 0]
        row = windows.rows[number]
        series = 0 if row < 20 else 1
        assert scales(windows, np.array([row]))[1][0].tolist() == windows.scaling.spread[series].tolist()
        squares.append(error**2)
        units.append((error * windows.scaling.spread[series]) ** 2)
    np.testing.assert_allclose(
        test.errors[NETWORK].overall()[[0, 2]], [np.nanmean(squares), np.nanmean(units)], rtol=1e-5
    )
    assert [lag.step for lag in test.lags] == [1, 3]
