"""A column of time stamps as whole numbers, and the refusal of rows that are not a step apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from torchrnn.tools.forecast.steps import Array, Step
from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.tables import Table

FORMATS = (  # year first: 1/2/2016 may be two days, so it is not guessed
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%Y-%m",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M%#z",
    "%Y-%m-%d %H:%M%#z",
)
ONE = {"are ": "is ", "repeat ": "repeats ", "do not": "does not", "come ": "comes ", "them": "it"}
SHOWN = 3  # offending rows that a message shows


@dataclass
class Clock:
    """How the stamps of a file are written; the first that is read decides it for all."""

    table: Table
    column: str
    format: str = ""  # given with --time-format, or found
    is_number: bool = False

    def read(self, stamps: pl.Series, before: int) -> Array:
        """Stamps as microseconds since 1970, or as the whole numbers they are; `before` rows stand before them."""
        if stamps.null_count():
            row = before + int(stamps.is_null().to_numpy().argmax()) + 1
            raise UsageError(
                f"{self.table.where(row)}, column {self.column!r}: the time is missing. Write it in, or leave the row "
                f"out."
            )
        if stamps.dtype.is_integer():
            self.is_number = True
            return stamps.cast(pl.Int64).to_numpy()
        if isinstance(stamps.dtype, pl.Datetime | pl.Date):
            return stamps.cast(pl.Datetime("us")).cast(pl.Int64).to_numpy()
        if stamps.dtype != pl.String:
            raise UsageError(
                f"--time {self.column!r}: {self.table.path}: the column must hold time stamps such as 2016-07-01 "
                f"13:00 or whole numbers, and it holds values of type {stamps.dtype}."
            )
        return self._parse(stamps.str.strip_chars(), before)

    def _parse(self, stamps: pl.Series, before: int) -> Array:
        if before == 0 and not self.format:
            self.is_number = stamps.head(1).str.contains(r"^[+-]?\d{1,18}$").all() and len(stamps[0]) != 8
            self.format = next((one for one in FORMATS if not parsed(stamps.head(1), one).null_count()), "")
        if self.is_number:
            found = stamps.cast(pl.Int64, strict=False)
            expected = "a whole number, as in the first row"
        elif self.format:
            found = parsed(stamps, self.format)
            expected = f"a time as {self.format} describes"
        else:
            raise UsageError(
                f"{self.table.where(1)}, column {self.column!r}: {stamps[0]!r} is no time stamp that is understood "
                f"(such as 2016-07-01, 2016-07-01 13:00:00 or 2016-07-01T13:00+02:00). Say how it is written: "
                f"--time-format '%d/%m/%Y %H:%M'."
            )
        wrong = found.is_null().to_numpy()
        if wrong.any():
            row = before + int(wrong.argmax()) + 1
            raise UsageError(
                f"{self.table.where(row)}, column {self.column!r}: expected {expected}, got "
                f"{stamps[int(wrong.argmax())]!r}. Correct it, or say how all are written: --time-format."
            )
        return found.cast(pl.Int64).to_numpy()


def parsed(stamps: pl.Series, format: str) -> pl.Series:
    """Stamps written in a format, null where one is not."""
    try:
        if format.endswith("z"):  # an offset from UTC: all in UTC
            return stamps.str.to_datetime(format, strict=False, time_unit="us", time_zone="UTC")
        if not any(part in format for part in ("%H", "%I", "%T", "%R", "%X")):
            text, days = (stamps + "-01", f"{format}-%d") if format == "%Y-%m" else (stamps, format)
            return text.str.to_date(days, strict=False).cast(pl.Datetime("us"))
        return stamps.str.to_datetime(format, strict=False, time_unit="us")
    except pl.exceptions.PolarsError as error:
        reason = " ".join(str(error).split())[:150]
        raise UsageError(
            f"--time-format {format!r} cannot be used ({reason}). Expected the parts of a date, such as '%d/%m/%Y'."
        ) from error


@dataclass
class Order:
    """The rows of a file by series and, within one, as they stand; and what stands between neighbours."""

    table: Table
    clock: Clock
    names: list[str]
    times: Array  # (rows,), by series
    codes: Array  # (rows,): which series, ascending
    rows: Array | None  # (rows,): where each stands in the file, from 0; None: right there

    def gaps(self) -> tuple[Array, Array]:
        """The differences of neighbouring times of a series, and the place of the later row."""
        same = np.flatnonzero(self.codes[1:] == self.codes[:-1]) + 1
        return self.times[same] - self.times[same - 1], same

    def step(self) -> Step:
        """The step of time; UsageError where rows go back, repeat, or there is nothing to tell it by."""
        gaps, later = self.gaps()
        if not len(gaps):
            raise UsageError(
                f"{self.table.path}: no series has two rows, so there is no step of time. If one column names many "
                f"series, each must have many rows; without such a column leave out --id."
            )
        shown = Step("numbers" if self.clock.is_number else "microseconds", 1)
        self._refuse(
            gaps < 0,
            later,
            shown,
            "are earlier than the row above them",
            "Sort the file by time. If it holds several series, name the column that tells them apart: --id.",
        )
        self._refuse(
            gaps == 0,
            later,
            shown,
            "repeat the time of the row above them",
            "If the file holds several series, name the column that tells them apart: --id. Clocks that were put back "
            "in autumn need UTC. Else leave one of each out.",
        )
        return Step.guess(self.times, gaps, self.clock.is_number)

    def ticks(self, step: Step, fill: bool) -> tuple[Array, int]:
        """The tick of each row and the time of tick 0; UsageError where a row is not one step after the one before."""
        origin = int(self.times.min())
        ticks = step.ticks(self.times, origin)
        odd = ticks != np.floor(ticks)
        gaps, later = self.gaps()
        repair = (
            f"The step of most rows is {step}. Bring all to one step (resample), or, if only rows between are "
            f"missing, put them in with empty values."
        )
        wrong = odd[later] & (gaps != step.size) if step.unit != "months" else odd[later]
        self._refuse(wrong, later, step, "do not lie on the step", repair)
        if odd.any():
            self._off_grid(int(odd.argmax()), step, origin)
        whole = ticks.astype(np.int64)
        jumps = whole[later] - whole[later - 1] != 1
        if not fill:
            lost = int((whole[later] - whole[later - 1] - 1).sum())
            self._refuse(
                jumps,
                later,
                step,
                "come later than one step after the row above them",
                f"The step of most rows is {step}; {lost:,} {'row is' if lost == 1 else 'rows are'} missing. "
                f"Put {'it' if lost == 1 else 'them'} in with empty values, or train with --fill-gaps, which does so.",
            )
        return whole, origin

    def _off_grid(self, place: int, step: Step, origin: int) -> None:
        name = self.names[int(self.codes[place])]
        raise UsageError(
            f"{self._where(place)}: series {name!r} stands at {step.show(int(self.times[place]))}, which is not a "
            f"whole number of steps of {step} after {step.show(origin)}, where the first series begins. All series "
            f"must be on one grid of time: bring them to it, or forecast this one by itself."
        )

    def _refuse(self, wrong: Array, later: Array, step: Step, what: str, repair: str) -> None:
        places = later[wrong]
        if not len(places):
            return
        told = "; ".join(self._told(int(place), step) for place in places[:SHOWN])
        count = f"{len(places):,} rows" if len(places) > 1 else "1 row"
        if len(places) == 1:
            for many, one in ONE.items():
                what = what.replace(many, one)
        more = f" (the first {SHOWN})" if len(places) > SHOWN else ""
        raise UsageError(f"--time {self.clock.column!r}: {count} of {self.table.path} {what}{more}: {told}. {repair}")

    def _told(self, place: int, step: Step) -> str:
        name = self.names[int(self.codes[place])]
        of = f" of series {name!r}" if name else ""
        before, this = (step.show(int(self.times[at])) for at in (place - 1, place))
        return f"{self._where(place)}{of}: {this} after {before}"

    def _where(self, place: int) -> str:
        row = place if self.rows is None else int(self.rows[place])
        return self.table.where(row + 1).removeprefix(f"{self.table.path}, ")
