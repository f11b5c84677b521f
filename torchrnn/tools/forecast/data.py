"""The data of a run: a panel with its roles, scales, split and windows, and what config.toml keeps of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError

from torchrnn.tools.forecast.backtest import in_batches
from torchrnn.tools.forecast.baselines import Linear, fit_linear
from torchrnn.tools.forecast.calendar import FEATURES, suggested
from torchrnn.tools.forecast.panel import Panel
from torchrnn.tools.forecast.reading import Source, read_panel
from torchrnn.tools.forecast.scaling import Scaling
from torchrnn.tools.forecast.settings import AUTO, ForecastSettings
from torchrnn.tools.forecast.split import Split
from torchrnn.tools.forecast.steps import Step
from torchrnn.tools.forecast.windows import Roles, Windows
from torchrnn.tools.runs.errors import ToolError, UsageError
from torchrnn.tools.tables import Table, open_table

LINEAR_FILE = "linear.safetensors"
ERRORS = 4096  # validation windows whose errors give its quantiles, at most
VALIDATED = 20_000  # validation windows at most
FITTED = 200_000  # windows that the linear baseline is fitted on, at most: more do not change it


@dataclass(frozen=True)
class Data:
    """Series made ready: read, split, scaled, in windows."""

    path: Path
    digest: str
    rows: int  # of the file
    panel: Panel
    roles: Roles
    scaling: Scaling
    split: Split
    season: int
    training: Windows
    validation: Windows
    test: Windows
    linear: Linear
    ridge: float

    @classmethod
    def prepare(cls, path: Path, settings: ForecastSettings) -> Data:
        """A new run's data; the linear baseline is fitted on the training windows."""
        table, panel = _read(path, settings)
        roles = _roles(panel, settings)
        try:
            split = Split.of(panel, settings)
        except UsageError as error:
            raise UsageError(f"FILE {path}: {error}") from error
        scaling = Scaling.measure(panel, split.train, settings.scale, settings.scale_by == "series")
        season = settings.season or panel.step.season()
        parts = _windows(panel, scaling, roles, split, settings)
        for name, windows in parts.items():
            _refuse_none(path, name, windows, split, settings)
        some = replace(parts["training"], rows=parts["training"].rows[:: -(-len(parts["training"]) // FITTED)])
        linear, ridge = fit_linear(
            ((batch.history, batch.target) for batch in in_batches(some)),
            ((batch.history, batch.target) for batch in in_batches(parts["validation"])),
            settings.history,
            settings.horizon,
            len(roles.targets),
        )
        if settings.levels:
            every = parts["validation"]
            some = replace(every, rows=every.rows[:: -(-len(every) // ERRORS)])
            linear = linear.with_offsets(((batch.history, batch.target) for batch in in_batches(some)), settings.levels)
        linear = linear_from({LINEAR_FILE: linear_to(linear)}, settings)  # rounded as the file is
        return cls(
            path, table.digest, table.rows, panel, roles, scaling, split, season, **parts, linear=linear, ridge=ridge
        )

    @classmethod
    def again(cls, path: Path, settings: ForecastSettings, data: dict[str, Any]) -> Data:
        """The data of a run that goes on; UsageError if the file is another."""
        found = cls.other(path, settings, data)
        if found.digest != data["digest"]:
            raise UsageError(
                f"--resume goes on with the file of the run, and {path} is another or has changed. Name the FILE with "
                f"those rows, or start a new run with --overwrite."
            )
        return found

    @classmethod
    def other(cls, path: Path, settings: ForecastSettings, data: dict[str, Any]) -> Data:
        """Another file with the columns of a run, in its scales; its parts are those of the run's own file."""
        table, panel = _read(path, settings)
        step = _known_step(data)
        if panel.step != step:
            raise UsageError(f"FILE {path} has a row every {panel.step}, and the run was trained on one every {step}.")
        roles = roles_of(settings, data)
        _refuse_unmarked(path, panel, roles)
        try:
            scaling = Scaling.from_dict(data)
            split = Split(*(int(border) for border in data["split"]))
            season, ridge = int(data["season"]), float(data["ridge"])
        except (KeyError, TypeError, ValueError) as error:
            raise _changed(error) from error
        if scaling.center.shape[1] != len(roles.columns):
            raise _changed("center has not a number for each column")
        parts = _windows(panel, scaling, roles, split, settings)
        linear = linear_from(data, settings)
        return cls(
            path, table.digest, table.rows, panel, roles, scaling, split, season, **parts, linear=linear, ridge=ridge
        )

    @property
    def validated_every(self) -> int:
        """Of so many validation windows one is used: more than VALIDATED tell no more, and take time every time."""
        return -(-len(self.validation) // VALIDATED)

    def everything(self) -> Windows:
        """The windows of the whole file."""
        test = self.test
        return Windows.between(self.panel, self.scaling, self.roles, test.history, test.horizon, 0, self.panel.end)

    def to_dict(self) -> dict[str, Any]:
        """What a run keeps of its data: strings, numbers and lists."""
        step = self.panel.step
        return {
            "digest": self.digest,
            "step": [step.unit, step.size, step.month_end],
            "calendar": list(self.roles.calendar),
            "marked": list(self.roles.marked),
            "columns": list(self.roles.columns),
            "season": self.season,
            "split": [self.split.train, self.split.validation, self.split.test],
            "ridge": self.ridge,
        } | self.scaling.to_dict()


def _read(path: Path, settings: ForecastSettings) -> tuple[Table, Panel]:
    if not settings.time or not settings.target:
        lacking = "--target is missing: name the column of the values to foretell."
        raise UsageError(lacking if settings.time else "--time is missing: name the column of the time stamps.")
    table = open_table(path)
    columns = dict.fromkeys(settings.target, "--target") | dict.fromkeys(settings.past, "--past")
    columns |= {name: "--known" for name in settings.known if name in table.columns or name not in FEATURES}
    return table, read_panel(
        Source(table, settings.time, settings.id, columns, settings.time_format, settings.fill_gaps)
    )


def _roles(panel: Panel, settings: ForecastSettings) -> Roles:
    """The roles of a new run: the calendar that the step suggests, a mark for each column that misses values."""
    known = tuple(name for name in settings.known if name in panel.columns)
    features = [name for name in settings.known if name not in panel.columns]
    if settings.calendar == (AUTO,):
        features += suggested(panel.step)
    elif settings.calendar != ("none",):
        features += settings.calendar
    if features and panel.step.unit == "numbers":
        raise UsageError(
            f"--calendar {','.join(features)}: the column of --time holds numbers, without a calendar. Leave it out."
        )
    marked = tuple(name for name in panel.columns if missing_values(panel, name))
    return Roles(settings.target, settings.past, known, tuple(dict.fromkeys(features)), marked)


def roles_of(settings: ForecastSettings, data: dict[str, Any]) -> Roles:
    """The roles of a run, from its settings and what it remembers."""
    try:
        return _roles_in(settings, data)
    except (KeyError, TypeError, ValueError) as error:
        raise _changed(error) from error


def check(settings: ForecastSettings, data: dict[str, Any]) -> None:
    """Raise a KeyError, TypeError or ValueError unless `data` is what `Data.to_dict` gave of a run."""
    roles, scaling = _roles_in(settings, data), Scaling.from_dict(data)
    unit, size, month_end = data["step"]
    if unit not in ("microseconds", "months", "numbers") or type(size) is not int or type(month_end) is not bool:
        raise TypeError("step must be a unit, a number and a truth value")
    if scaling.center.shape[1] != len(roles.columns):
        raise ValueError("center has not a number for each column")
    borders = data["split"]
    if not all(type(number) is int for number in (*borders, data["season"])) or len(borders) != 3:
        raise TypeError("split must be three whole numbers, and season one")
    if not 0 < borders[0] < borders[1] < borders[2] or size < 1 or data["season"] < 1:
        raise ValueError("split must ascend from above 0, and step and season must be at least 1")
    if not isinstance(data["digest"], str) or not isinstance(data["ridge"], int | float):
        raise TypeError("digest must be a string, and ridge a number")


def _roles_in(settings: ForecastSettings, data: dict[str, Any]) -> Roles:
    known = tuple(name for name in settings.known if name in data["columns"])
    calendar, marked = tuple(data["calendar"]), tuple(data["marked"])
    roles = Roles(settings.target, settings.past, known, calendar, marked)
    if (
        list(roles.columns) != data["columns"]
        or not set(marked) <= set(roles.columns)
        or not set(calendar) <= set(FEATURES)
    ):
        raise ValueError("columns, calendar and marked do not fit the settings")
    return roles


def _changed(what: object) -> ToolError:
    return ToolError(f"config.toml of the run was changed by hand: {what}. Bring it back from a copy.")


def _known_step(data: dict[str, Any]) -> Step:
    try:
        unit, size, month_end = data["step"]
        return Step(str(unit), int(size), bool(month_end))
    except (KeyError, TypeError, ValueError) as error:
        raise _changed(f"step: {error}") from error


def missing_values(panel: Panel, name: str) -> int:
    """How many rows miss the value of a column."""
    column = panel.values[:, panel.indices([name])[0]]
    return int(sum(np.isnan(column[start : start + (1 << 20)]).sum() for start in range(0, len(column), 1 << 20)))


def _refuse_unmarked(path: Path, panel: Panel, roles: Roles) -> None:
    """Refuse values that are missing in a column where the file of the training had them all."""
    for series, name in enumerate(panel.names):
        part = panel.values[panel.starts[series] : panel.starts[series + 1]]
        seen = np.flatnonzero(np.isfinite(part[:, : len(roles.targets)]).any(1))
        # rows after the last target only say what is known of the horizon
        part = part[: seen[-1] + 1] if len(seen) else part
        for number, column in enumerate(panel.columns):
            lost = np.flatnonzero(np.isnan(part[:, number]))
            if len(lost) and column not in roles.marked:
                of = f" of series {name!r}" if name else ""
                first = panel.show(int(panel.first[series]) + int(lost[0]))
                raise UsageError(
                    f"FILE {path}, column {column!r}: {len(lost):,} values{of} are missing, the first at {first}, and "
                    f"in the file of the training none were, so the network never saw what that means. Fill them in, "
                    f"or train with a file that misses some."
                )


def _windows(
    panel: Panel, scaling: Scaling, roles: Roles, split: Split, settings: ForecastSettings
) -> dict[str, Windows]:
    sizes = settings.history, settings.horizon
    return {
        name: Windows.between(panel, scaling, roles, *sizes, begin, end) for name, (begin, end) in split.parts().items()
    }


def _refuse_none(path: Path, name: str, windows: Windows, split: Split, settings: ForecastSettings) -> None:
    if len(windows):
        return
    begin, end = split.parts()[name]
    needed = settings.history + settings.horizon if name == "training" else settings.horizon
    raise UsageError(
        f"FILE {path}: The {name} part has no window: it has {end - begin:,} steps of time, where a window needs "
        f"{needed:,} with observed targets ({'--history and --horizon' if name == 'training' else '--horizon'}). Give "
        f"more rows, lower these, or give the part more by --validation and --test."
    )


def linear_to(linear: Linear) -> bytes:
    """The linear baseline as a safetensors file."""
    parts = {name: getattr(linear, name).float().contiguous() for name in ("weight", "bias", "offsets")}
    return safetensors.torch.save(parts)


def linear_from(data: dict[str, Any], settings: ForecastSettings) -> Linear:
    """The linear baseline of a run."""
    try:
        tensors = safetensors.torch.load(data[LINEAR_FILE])
        K, T, h, Q = len(settings.target), settings.history, settings.horizon, max(1, len(settings.levels))
        for name, shape in (("weight", (K, T, h)), ("bias", (K, h)), ("offsets", (h, K, Q))):
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"{name} must be {shape}, got {tuple(tensors[name].shape)}")
            if not tensors[name].isfinite().all():
                raise ValueError(f"{name} has values that are no finite numbers")
        return Linear(tensors["weight"], tensors["bias"], tensors["offsets"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ToolError(f"{LINEAR_FILE} of the run is damaged ({error}). Bring it back from a copy.") from error
