"""The command `torchrnn forecast`: a run from its file to its back-test, what comes after, and what is refused."""

import csv
import math
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tools_runs import snapshot, torchrnn

from torchrnn.tools.forecast.job import ForecastJob
from torchrnn.tools.forecast.settings import ForecastSettings
from torchrnn.tools.runs.job import Share

SMALL = ["--hidden-size=8", "--batch-size=16", "--validate-every=10", "--threads=1", "--epochs=2"]
WINDOW = ["--history=12", "--horizon=4"]


def shops(folder, hours=240, name="shops.csv", known=True, missing=False, start=datetime(2024, 1, 1)):
    """Two shops whose sales follow the hour and the price, which changes from day to day."""
    rng = np.random.default_rng(0)
    lines = []
    for shop, level in (("north", 20), ("south", 200)):
        price = rng.integers(1, 4, hours)
        sold = level * (1 + 0.3 * np.sin(np.arange(hours) * 2 * np.pi / 24) - 0.2 * price) + rng.normal(0, 0.5, hours)
        for hour in range(hours):
            gone = missing and hour % 17 == 3
            stamp = start + timedelta(hours=hour)
            lines.append(f"{stamp:%Y-%m-%d %H:%M},{shop},{'' if gone else f'{sold[hour]:.3f}'},{price[hour]}")
    path = folder / name
    path.write_text("\n".join(["time,shop,sold,price", *lines]) + "\n")
    return path


def forecast(path, run, *options):
    return torchrnn(
        "forecast", path, "--time=time", "--target=sold", "--id=shop", *WINDOW, *SMALL, "--run", run, *options
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a known column and quantiles."""
    folder = tmp_path_factory.mktemp("forecast")
    path = shops(folder)
    result = forecast(path, folder / "run", "--known=price", "--quantiles=0.1,0.5,0.9")
    assert result.exit_code == 0, result.stderr
    return path, folder / "run", result


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def predicted(run, path, *options):
    result = torchrnn("predict", run, path, *options)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(run, path, *options):
    result = torchrnn("predict", run, path, *options)
    assert result.exit_code == 2
    return result.stderr


def test_it_says_what_it_understood_before_it_starts(trained):
    said = trained[2].stderr
    assert "480 rows, 2 series of 240 rows, a row every 1 hour, 2024-01-01 00:00 … 2024-01-10 23:00" in said
    assert "target sold; known price; calendar hour, dayofweek" in said
    assert "training 2024-01-01 00:00 … 2024-01-06 23:00 (144 steps of time)" in said
    assert "test 2024-01-09 00:00 … 2024-01-10 23:00 (48 steps of time)" in said
    assert "window 1 reads rows 1–12 (2024-01-01 00:00 … 2024-01-01 11:00) of series 'north' and predicts" in said
    assert said.index("window 1") < said.index("step     10")


def test_the_run_folder_has_tables_and_pictures(trained):
    _, run, result = trained
    for name in ("forecasts.png", "error_by_step.png", "lag.png", "loss.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    table = {row["model"]: row for row in rows(run / "backtest.csv") if row["target"] == "all"}
    assert set(table) == {"network", "persistence", "linear"}  # a season of 24 is longer than what is read
    for name, row in table.items():
        assert f"{name}" in result.stdout
        assert math.isfinite(float(row["mse"]))
    steps = [row for row in rows(run / "error_by_step.csv") if row["model"] == "network"]
    assert [row["step"] for row in steps] == ["1", "2", "3", "4"]
    assert np.mean([float(row["mse"]) for row in steps]) == pytest.approx(float(table["network"]["mse"]), rel=1e-4)
    levels = [row["quantile"] for row in rows(run / "quantiles.csv") if row["model"] == "network"]
    assert levels == ["0.1", "0.5", "0.9"]
    assert "step 1: " in result.stdout


def test_a_known_price_makes_the_network_better_than_the_linear_baseline(tmp_path):
    # the baseline reads the past of the target alone, and the price is drawn anew each hour
    result = forecast(shops(tmp_path, 480), tmp_path / "run", "--known=price", "--epochs=12", "--lr=0.01")
    assert result.exit_code == 0, result.stderr
    assert "the network is better than all baselines" in result.stdout
    table = {
        row["model"]: float(row["mse"]) for row in rows(tmp_path / "run" / "backtest.csv") if row["target"] == "all"
    }
    assert table["network"] < 0.7 * table["linear"]


def test_the_same_command_gives_the_same_run(tmp_path):
    path = shops(tmp_path, missing=True)
    runs = [tmp_path / name for name in ("one", "two")]
    for run in runs:
        assert forecast(path, run).exit_code == 0
    assert snapshot(runs[0]) == snapshot(runs[1])
    assert (runs[0] / "backtest.csv").read_text() == (runs[1] / "backtest.csv").read_text()


def test_a_run_goes_on_exactly_where_it_was(tmp_path):
    path = shops(tmp_path)
    runs = [tmp_path / name for name in ("whole", "resumed")]
    assert forecast(path, runs[0], "--lr-decay=none").exit_code == 0
    assert forecast(path, runs[1], "--lr-decay=none", "--steps=20").exit_code == 0
    assert torchrnn("forecast", "--resume", "--run", runs[1], "--steps=0").exit_code == 0
    assert snapshot(runs[0]) == snapshot(runs[1])
    assert (runs[0] / "backtest.csv").read_text() == (runs[1] / "backtest.csv").read_text()


def test_processes_share_a_batch(tmp_path):
    settings = ForecastSettings(time="time", target=("sold",), id="shop", history=12, horizon=4, batch_size=16)
    job = ForecastJob.prepare([shops(tmp_path)], settings)
    seen = []
    for step in range(job.steps_per_epoch):
        whole = job.batch(step, Share())
        parts = [job.batch(step, Share(rank, 3)) for rank in range(3)]
        together = torch.cat([part.rows for part in parts if part is not None])
        assert whole is not None
        assert sorted(together.tolist()) == sorted(whole.rows.tolist())
        seen += whole.rows.tolist()
    assert sorted(seen) == job.data.training.rows.tolist()  # each window once in an epoch
    again = job.batch(job.steps_per_epoch, Share())
    first = job.batch(0, Share())
    assert again is not None
    assert first is not None
    assert again.rows.tolist() != first.rows.tolist()  # another order in the next
    counts = [sum(len(batch.rows) for batch in job.validation(Share(rank, 3))) for rank in range(3)]
    assert sum(counts) == len(job.data.validation)


def test_another_file_is_refused_when_a_run_goes_on(trained, tmp_path):
    result = torchrnn("forecast", shops(tmp_path, 230), "--resume", "--run", trained[1], "--epochs=3")
    assert result.exit_code == 2
    assert "another or has changed" in result.stderr


def test_evaluate_on_the_test_part_and_on_another_file(trained, tmp_path):
    path, run, result = trained
    same = torchrnn("evaluate", run, path)
    assert same.exit_code == 0, same.stderr
    assert "only its test part is used" in same.stdout
    figures = [line for line in result.stdout.splitlines() if line.startswith(("  network", "  linear"))]
    assert len(figures) == 4
    for line in figures:
        assert line in same.stdout
    other = torchrnn("evaluate", run, shops(tmp_path, 60, start=datetime(2023, 5, 1)))
    assert other.exit_code == 0, other.stderr
    assert f"{2 * (60 - 12 - 4 + 1)} windows" in other.stdout


def test_predict_the_horizon_after_the_last_target(trained, tmp_path):
    path, run, _ = trained
    assert "price must be known for the 4 steps after the last observed target" in refused(run, path)
    lines = path.read_text().splitlines()
    more = {shop: [f"2024-01-11 0{hour}:00,{shop},,2" for hour in range(4)] for shop in ("north", "south")}
    text = [lines[0], *(line for line in lines if "north" in line), *more["north"]]
    text += [*(line for line in lines if "south" in line), *more["south"]]
    future = tmp_path / "future.csv"
    future.write_text("\n".join(text) + "\n")
    found = list(csv.DictReader(predicted(run, future).splitlines()))
    assert [row["time"] for row in found] == [f"2024-01-11 0{hour}:00" for hour in range(4)] * 2
    assert [row["shop"] for row in found] == ["north"] * 4 + ["south"] * 4
    for row in found:
        assert float(row["q0.1"]) <= float(row["q0.5"]) <= float(row["q0.9"])
        assert row["forecast"] == row["q0.5"]
    north, south = ([float(row["forecast"]) for row in part] for part in (found[:4], found[4:]))
    assert np.mean(south) > 3 * np.mean(north)  # each in its own scale
    # rows before those that are read change nothing
    short = tmp_path / "short.csv"
    short.write_text("\n".join([text[0], *text[1:245][-16:], *text[245:][-16:]]) + "\n")
    assert predicted(run, short) == predicted(run, future)


def test_predictions_are_written_in_each_form(tmp_path):
    path = shops(tmp_path, 120)
    assert forecast(path, tmp_path / "run", "--epochs=1").exit_code == 0
    text = predicted(tmp_path / "run", path)
    readers = {"csv": pl.read_csv, "parquet": pl.read_parquet, "jsonl": pl.read_ndjson}
    for ending, reader in readers.items():
        out = tmp_path / f"out.{ending}"
        assert "8 rows" in predicted(tmp_path / "run", path, "--out", out)
        frame = reader(out)
        assert frame.columns == ["time", "shop", "target", "forecast"]
        assert frame["forecast"].to_list() == pytest.approx(pl.read_csv(text.encode())["forecast"].to_list())
    assert "is there already" in refused(tmp_path / "run", path, "--out", tmp_path / "out.csv")
    assert "must end in" in refused(tmp_path / "run", path, "--out", tmp_path / "out.xls")
    assert "--top" in refused(tmp_path / "run", path, "--top=3")


def test_files_that_a_run_cannot_be_used_on(trained, tmp_path):
    _, run, _ = trained
    missing = torchrnn("evaluate", run, shops(tmp_path, 60, "missing.csv", missing=True))
    assert missing.exit_code == 2
    assert "column 'sold': 4 values of series 'north' are missing, the first at 2024-01-01 03:00" in missing.stderr
    short = torchrnn("evaluate", run, shops(tmp_path, 14, "short.csv"))
    assert short.exit_code == 2
    assert "no window" in short.stderr
    days = tmp_path / "days.csv"
    days.write_text("time,shop,sold,price\n" + "".join(f"2024-01-{day:02},north,1,1\n" for day in range(1, 30)))
    other = torchrnn("evaluate", run, days)
    assert other.exit_code == 2
    assert "a row every 1 day, and the run was trained on one every 1 hour" in other.stderr


def test_config_that_was_changed_isrefused(trained, tmp_path):
    path, run, _ = trained
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.toml", "model.safetensors", "linear.safetensors"):
        (copy / name).write_bytes((run / name).read_bytes())
    config = (copy / "config.toml").read_text()
    for before, after in (
        ('columns = ["sold", "price"]', 'columns = ["sold"]'),
        ("center = [[", "center = [[1.0, "),
        ('step = ["microseconds", 3600000000, false]', 'step = "hour"'),
        ("split = [", 'split = ["x", '),
    ):
        assert before in config
        (copy / "config.toml").write_text(config.replace(before, after))
        result = torchrnn("evaluate", copy, path)
        assert result.exit_code in (1, 2)
        assert "config.toml" in result.stderr
    (copy / "config.toml").write_text(config)
    (copy / "linear.safetensors").write_bytes(b"x" * 100)
    assert "linear.safetensors" in torchrnn("evaluate", copy, path).stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--time=when"], "--time 'when'"),
        (["--target=sould"], "Did you mean 'sold'"),
        (["--target=sold,sold"], "names 'sold' twice"),
        (["--target=shop"], "is the column of --id"),
        (["--past=sold"], "named by two of"),
        (["--known=weather"], "--known 'weather'"),
        (["--known=time"], "is the column of --time"),
        (["--quantiles=0.1,0.9"], "0.5 among them"),
        (["--quantiles=0.9,0.5"], "ascending"),
        (["--quantiles=a,0.5"], "--quantiles must be numbers"),
        (["--calendar=moon"], "--calendar must be"),
        (["--scale=log"], "--scale must be one of"),
        (["--horizon=0"], "--horizon must be at least 1"),
        (["--history=200"], "The training part has no window"),
        (["--test=٣"], "--test must be a fraction"),
        (["--test=2"], "The test part has no window"),
        (["--validation=0.9"], "each must have some"),
        (["--id="], "name the column that tells them apart: --id"),
        (["--target="], "--target is missing"),
        (["--time="], "--time is missing"),
        (["--cell=transformer"], "--cell must be one of"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, said):
    path = shops(tmp_path, 100)
    result = forecast(path, tmp_path / "run", *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


def test_one_file_and_no_more(tmp_path):
    path = shops(tmp_path, 100)
    for files in ([], [path, path]):
        result = torchrnn("forecast", *files, "--time=time", "--target=sold", "--run", tmp_path / "run")
        assert result.exit_code == 2
        assert "reads one FILE" in result.stderr


def test_several_targets_past_columns_and_a_point_forecast_by_mae(tmp_path):
    path = Path(shops(tmp_path))
    text = [line for line in path.read_text().splitlines() if "south" not in line]
    path.write_text("\n".join(text) + "\n")
    options = ["--time=time", "--target=sold,price", *WINDOW, *SMALL, "--loss=mae", "--season=6", "--calendar=none"]
    result = torchrnn("forecast", path, *options, "--no-linear", "--cell=lstm", "--run", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    table = rows(tmp_path / "run" / "backtest.csv")
    assert [(row["model"], row["target"]) for row in table][:6] == [
        ("network", "all"),
        ("network", "sold"),
        ("network", "price"),
        ("persistence", "all"),
        ("persistence", "sold"),
        ("persistence", "price"),
    ]
    assert {row["model"] for row in table} == {"network", "persistence", "seasonal naive", "linear"}
    metrics = rows(tmp_path / "run" / "metrics.csv")
    assert metrics[-1]["validation_loss"] == metrics[-1]["validation_mae"]
