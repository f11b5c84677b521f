"""Series from files: what is understood of times and columns, and what is refused with which rows."""

import tracemalloc
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from torchrnn.tools.forecast import reading
from torchrnn.tools.forecast.calendar import circles, suggested
from torchrnn.tools.forecast.reading import Source, read_panel
from torchrnn.tools.forecast.steps import Step
from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.tables import open_table

HOUR = 3_600_000_000


def write(folder, rows, name="series.csv"):
    """A CSV file of these lines under the header time,y or time,shop,y."""
    header = "time,shop,y" if rows[0].count(",") == 2 else "time,y"
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def read(path, id="", **options):
    columns = {"y": "--target"}
    return read_panel(Source(open_table(path), "time", id, columns, **options))


def refusal(path, **options):
    with pytest.raises(UsageError) as error:
        read(path, **options)
    return str(error.value)


def stamps(step, count, start=datetime(2024, 1, 1), format="%Y-%m-%d %H:%M:%S"):
    return [(start + step * row).strftime(format) for row in range(count)]


@pytest.mark.parametrize(
    ("step", "format", "told", "season"),
    [
        (timedelta(hours=1), "%Y-%m-%d %H:%M:%S", "1 hour", 24),
        (timedelta(minutes=15), "%Y-%m-%dT%H:%M", "15 minutes", 96),
        (timedelta(days=1), "%Y-%m-%d", "1 day", 7),
        (timedelta(days=7), "%Y/%m/%d", "7 days", 52),
        (timedelta(seconds=30), "%Y-%m-%d %H:%M:%S", "30 seconds", 2880),
        (timedelta(hours=1), "%Y-%m-%dT%H:%M:%SZ", "1 hour", 24),
        (timedelta(hours=1), "%Y-%m-%dT%H:%MZ", "1 hour", 24),
        (timedelta(hours=1), "%Y-%m-%d %H:%M+00:00", "1 hour", 24),
    ],
)
def test_stamps_of_many_forms(tmp_path, step, format, told, season):
    path = write(tmp_path, [f"{stamp},{row}" for row, stamp in enumerate(stamps(step, 9, format=format))])
    panel = read(path)
    assert str(panel.step) == told
    assert panel.step.season() == season
    assert panel.values[:, 0].tolist() == list(range(9))
    assert panel.origin == np.datetime64("2024-01-01", "us").astype(np.int64)


@pytest.mark.parametrize(
    ("dates", "told"),
    [
        (["2023-11", "2023-12", "2024-01", "2024-02", "2024-03"], "1 month"),
        (["2023-10-31", "2023-11-30", "2023-12-31", "2024-01-31", "2024-02-29"], "1 month"),
        (["2023-01-01", "2023-04-01", "2023-07-01", "2023-10-01"], "3 months"),
        (["2019-12-31", "2020-12-31", "2021-12-31", "2022-12-31"], "12 months"),
    ],
)
def test_months_are_a_step(tmp_path, dates, told):
    panel = read(write(tmp_path, [f"{date},1" for date in dates]))
    assert str(panel.step) == told
    assert [panel.show(tick) for tick in range(len(dates))] == [
        date if len(date) > 7 else f"{date}-01" for date in dates
    ]
    assert suggested(panel.step) == ["month"]


def test_the_month_after_the_last_row(tmp_path):
    dates = ["2023-10-31", "2023-11-30", "2023-12-31", "2024-01-31"]
    panel = read(write(tmp_path, [f"{date},1" for date in dates]))
    assert panel.show(4) == "2024-02-29"
    assert panel.show(13) == "2024-11-30"


def test_whole_numbers_are_a_time_column(tmp_path):
    panel = read(write(tmp_path, [f"{5 + 2 * row},{row}" for row in range(6)]))
    assert panel.step == Step("numbers", 2)
    assert panel.show(3) == "11"
    assert suggested(panel.step) == []


def test_a_format_of_ones_own(tmp_path):
    path = write(tmp_path, [f"{stamp},1" for stamp in stamps(timedelta(days=1), 40, format="%d/%m/%Y")])
    assert "01/01/2024" in refusal(path)
    assert "--time-format" in refusal(path)
    assert read(path, time_format="%d/%m/%Y").show(39) == "2024-02-09"
    assert "--time-format" in refusal(path, time_format="%Q")
    message = refusal(path, time_format="%m/%d/%Y")
    assert "row 13 (line 14)" in message
    assert "13/01/2024" in message


def test_times_that_go_back_are_refused(tmp_path):
    message = refusal(write(tmp_path, [f"2024-01-{day:02},1" for day in [1, 2, 5, 4, 6]]))
    assert "1 row of" in message
    assert "row 4 (line 5): 2024-01-04 00:00 after 2024-01-05 00:00" in message
    assert "Sort the file" in message


def test_times_that_repeat_are_refused(tmp_path):
    message = refusal(write(tmp_path, [f"2024-01-{day:02},1" for day in [1, 2, 3, 3, 4]]))
    assert "row 4 (line 5): 2024-01-03 00:00 after 2024-01-03 00:00" in message
    assert "--id" in message


def test_the_first_offending_rows_are_named(tmp_path):
    days = [1, 2, 3, 4, 6, 7, 9, 11, 13, 14, 15, 16]
    message = refusal(write(tmp_path, [f"2024-01-{day:02},1" for day in days]))
    assert "4 rows of" in message
    assert "(the first 3)" in message
    assert "row 5 (line 6): 2024-01-06 after 2024-01-04" in message
    assert "row 8 (line 9)" in message
    assert "row 9 " not in message
    assert "4 rows are missing. Put them in with empty values, or train with --fill-gaps" in message


def test_gaps_are_filled_when_asked(tmp_path):
    days = [1, 2, 3, 6, 7]
    panel = read(write(tmp_path, [f"2024-01-{day:02},{day}" for day in days]), fill_gaps=True)
    np.testing.assert_array_equal(panel.values[:, 0], [1, 2, 3, np.nan, np.nan, 6, 7])


def test_a_row_between_two_steps_is_refused(tmp_path):
    rows = [*stamps(timedelta(hours=1), 5), "2024-01-01 05:20:00", "2024-01-01 06:00:00"]
    for fill in (False, True):
        message = refusal(write(tmp_path, [f"{stamp},1" for stamp in rows]), fill_gaps=fill)
        assert "row 6 (line 7): 2024-01-01 05:20 after 2024-01-01 04:00" in message
        assert "1 hour" in message


def test_series_between_each_other(tmp_path):
    hours = stamps(timedelta(hours=1), 6)
    rows = [f"{hours[h]},{shop},{10 * h + n}" for h in range(6) for n, shop in enumerate("ab") if shop == "a" or h > 1]
    panel = read(write(tmp_path, rows), id="shop")
    assert panel.names == ["a", "b"]
    assert panel.first.tolist() == [0, 2]
    assert panel.starts.tolist() == [0, 6, 10]
    assert panel.values[:, 0].tolist() == [0, 10, 20, 30, 40, 50, 21, 31, 41, 51]


def test_series_on_another_grid_are_refused(tmp_path):
    rows = [f"{stamp},a,1" for stamp in stamps(timedelta(hours=1), 4)]
    rows += [f"{stamp},b,1" for stamp in stamps(timedelta(hours=1), 4, start=datetime(2024, 1, 1, 0, 30))]
    message = refusal(write(tmp_path, rows), id="shop")
    assert "'b'" in message
    assert "2024-01-01 00:30" in message


def test_a_duplicate_in_one_series_names_it(tmp_path):
    rows = [f"{stamp},{shop},1" for shop in "ab" for stamp in stamps(timedelta(hours=1), 4)]
    rows.insert(5, rows[4])
    message = refusal(write(tmp_path, rows), id="shop")
    assert "row 6 (line 7) of series 'b'" in message


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["2024-01-01,1", ",2"], "row 2 (line 3), column 'time'"),
        (["2024-01-01,1", "yesterday,2"], "row 2 (line 3), column 'time': expected a time"),
        (["yesterday,1", "today,2"], "row 1 (line 2), column 'time': 'yesterday' is no time"),
        (["1,1", "2,2", "x,3"], "row 3 (line 4), column 'time': expected a whole number"),
        (["2024-01-01,1", "2024-01-02,two"], "row 2 (line 3), column 'y'"),
        (["2024-01-01,1", "2024-01-02,inf"], "row 2 (line 3), column 'y'"),
        (["2024-01-01,1", "2024-01-02,1e35"], "row 2 (line 3), column 'y': expected a number of at most 1e30"),
        (["2024-01-01,", "2024-01-02,"], "no value at all"),
        (["2024-01-01,1"], "no series has two rows"),
    ],
)
def test_bad_rows_are_refused(tmp_path, rows, said):
    assert said in refusal(write(tmp_path, rows))


def test_a_missing_name_is_refused(tmp_path):
    assert "row 2 (line 3), column 'shop'" in refusal(write(tmp_path, ["2024-01-01,a,1", "2024-01-02,,1"]), id="shop")


def test_missing_columns_are_refused(tmp_path):
    table = open_table(write(tmp_path, ["2024-01-01,1", "2024-01-02,1"]))
    with pytest.raises(UsageError, match=r"--time 'date'.*has no such column"):
        read_panel(Source(table, "date", "", {"y": "--target"}))
    with pytest.raises(UsageError, match=r"--past 'yy'.*Did you mean 'y'"):
        read_panel(Source(table, "time", "", {"yy": "--past"}))
    with pytest.raises(UsageError, match="is the column of --time"):
        read_panel(Source(table, "time", "", {"time": "--target"}))


def test_filling_does_not_make_a_file_many_times_longer(tmp_path):
    rows = ["2024-01-01 00:00:00,1", "2024-01-01 00:00:01,1", "2024-01-01 00:00:02,1", "2024-01-09 00:00:00,1"]
    assert "--fill-gaps would make 691,201 rows out of 4" in refusal(write(tmp_path, rows), fill_gaps=True)


def test_parquet_larger_than_the_budget_lies_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "IN_MEMORY", 1 << 20)
    count, width = 300_000, 8
    start = datetime(2000, 1, 1)
    frame = pl.DataFrame(
        {"time": pl.datetime_range(start, start + timedelta(minutes=count - 1), "1m", eager=True)}
        | {f"c{n}": np.arange(count, dtype=np.float32) + n for n in range(width)}
        | {f"unused{n}": np.zeros(count) for n in range(8)}
    )
    frame.write_parquet(tmp_path / "long.parquet", row_group_size=20_000)
    del frame
    tracemalloc.start()
    columns = {f"c{n}": "--target" for n in range(width)}
    panel = read_panel(Source(open_table(tmp_path / "long.parquet"), "time", "", columns))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(panel.values, np.memmap)
    assert panel.values.shape == (count, width)
    assert panel.values[123_456].tolist() == [123_456 + n for n in range(width)]
    assert held < panel.values.nbytes  # numpy reports to tracemalloc, and the values are not there


def test_the_calendar_says_what_a_calendar_says():
    moments = [datetime(2024, 2, 29, 13, 45), datetime(1969, 12, 31, 23, 0), datetime(2023, 12, 31)]
    times = np.array(moments, "datetime64[us]").astype(np.int64)
    found = circles(times, ["minute", "hour", "dayofweek", "month", "dayofyear"])
    for row, moment in zip(found, moments, strict=True):
        leap = moment.year % 4 == 0
        day = (moment - datetime(moment.year, 1, 1)) / timedelta(days=366 if leap else 365)
        parts = [moment.minute / 60, moment.hour / 24, moment.weekday() / 7, (moment.month - 1) / 12, day]
        expected = [f(2 * np.pi * part) for part in parts for f in (np.sin, np.cos)]
        np.testing.assert_allclose(row, expected, atol=1e-6)
