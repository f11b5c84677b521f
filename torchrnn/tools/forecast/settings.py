"""The settings of a forecast: the columns, the windows, the split, the loss; their defaults are the command line's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torchrnn.tools.forecast.calendar import FEATURES
from torchrnn.tools.forecast.scaling import KINDS
from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.runs.settings import Settings

AUTO = "auto"


@dataclass(frozen=True)
class ForecastSettings(Settings):
    """All that decides a forecast; lists of columns are tuples, lists of numbers are as they were written."""

    choices: ClassVar[dict[str, tuple[str, ...]]] = Settings.choices | {
        "scale": KINDS,
        "scale_by": ("series", "all"),
        "loss": ("mse", "mae"),
    }
    sizes: ClassVar[tuple[str, ...]] = (*Settings.sizes, "horizon", "history")

    cell: str = "gru"
    hidden_size: int = 64
    dropout: float = 0.1
    batch_size: int = 64
    lr: float = 0.001
    lr_decay: str = "cosine"
    epochs: int = 5
    validate_every: int = 100
    time: str = ""
    target: tuple[str, ...] = ()
    id: str = ""
    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    calendar: tuple[str, ...] = (AUTO,)
    time_format: str = ""
    fill_gaps: bool = False
    horizon: int = 24
    history: int = 168
    season: int = 0  # 0: as the step of time suggests
    quantiles: tuple[str, ...] = ()
    loss: str = "mse"
    scale: str = "standard"
    scale_by: str = "series"
    linear: bool = True  # the network corrects the linear baseline
    train: str = ""  # "": all that is before the validation part
    validation: str = "0.2"
    test: str = "0.2"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("season", self.season >= 0, "at least 1 (0: as the step of time suggests)")
        for name in ("target", "known", "past"):
            columns = getattr(self, name)
            double = next((column for column in columns if columns.count(column) > 1), None)
            if double is not None:
                raise UsageError(f"--{name} names {double!r} twice: name it once.")
        every = (*self.target, *self.past, *self.known)
        double = next((column for column in every if every.count(column) > 1), None)
        if double is not None:
            raise UsageError(
                f"{double!r} is named by two of --target, --past and --known. A target's past is read anyway; a column "
                f"known for the horizon is no --past: name it once."
            )
        self._check_calendar()
        self._check_quantiles()

    def _check_calendar(self) -> None:
        names = self.calendar
        if len(names) > 1 and (AUTO in names or "none" in names):
            raise UsageError(f"--calendar must be {AUTO}, none, or features, got {','.join(names)}.")
        for name in names:
            if name not in (AUTO, "none", *FEATURES):
                raise UsageError(f"--calendar must be {AUTO}, none, or some of {', '.join(FEATURES)}, got {name!r}.")

    def _check_quantiles(self) -> None:
        levels = self.levels
        good = all(0 < level < 1 for level in levels) and list(levels) == sorted(set(levels))
        if levels and not (good and 0.5 in levels):
            raise UsageError(
                f"--quantiles must be numbers between 0 and 1, ascending, 0.5 among them (it is the point forecast), "
                f"such as 0.1,0.5,0.9; got {','.join(self.quantiles)}."
            )

    @property
    def levels(self) -> tuple[float, ...]:
        """The quantiles as numbers; none for a point forecast."""
        try:
            return tuple(float(text) for text in self.quantiles)
        except ValueError as error:
            raise UsageError(
                f"--quantiles must be numbers separated by commas, such as 0.1,0.5,0.9, got {','.join(self.quantiles)}."
            ) from error
