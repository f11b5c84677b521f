"""What was understood of a file, in lines: printed before training starts, and by `torchrnn evaluate`."""

from __future__ import annotations

from torchrnn.tools.forecast.data import Data, missing_values
from torchrnn.tools.forecast.scaling import Scaling
from torchrnn.tools.forecast.steps import Array
from torchrnn.tools.forecast.windows import Roles


def described(data: Data) -> list[str]:
    """What is in the file."""
    panel, series = data.panel, len(data.panel.names)
    many = "1 series" if series == 1 else f"{series:,} series of {_range(panel.lengths)} rows"
    lines = [
        f"file: {data.path}, {data.rows:,} rows, {many}, a row every {panel.step}, {panel.show(0)} … "
        f"{panel.show(panel.end - 1)}"
    ]
    roles = [("target", data.roles.targets), ("past", data.roles.past), ("known", data.roles.known)]
    roles.append(("calendar", data.roles.calendar))
    lines.append("columns: " + "; ".join(f"{name} {', '.join(columns)}" for name, columns in roles if columns))
    filled = len(panel) - data.rows
    if filled:
        lines.append(f"gaps: {filled:,} rows were put in where stamps are missing; their values are missing")
    missing = {name: missing_values(panel, name) for name in data.roles.marked}
    counts = ", ".join(f"{name} {count:,}" for name, count in missing.items() if count)
    lines.append(
        f"missing values: {counts}; read as 0 with a mark, and not counted" if counts else "missing values: none"
    )
    return lines


def told(data: Data) -> list[str]:
    """What was understood of the file, before training begins."""
    panel, lines = data.panel, described(data)
    parts = [
        f"{name} {panel.show(begin)} … {panel.show(end - 1)} ({end - begin:,} steps of time)"
        for name, (begin, end) in data.split.parts().items()
    ]
    unused = panel.end - data.split.test
    if unused:
        parts.append(f"{unused:,} steps after it are not used")
    lines.append("split: " + "; ".join(parts))
    lines.append(_scale_told(data.scaling, data.roles))
    counts = ", ".join(
        f"{len(windows):,} {name}"
        for name, windows in (("training", data.training), ("validation", data.validation), ("test", data.test))
    )
    lines.append(f"windows: {counts}; {data.training.sentence()}")
    if data.validated_every > 1:
        lines.append(f"validation: every {data.validated_every}th of its windows is used")
    lines.append("no target of one part is in another; windows may read what lies before the border")
    season = f"season of {data.season}" if 1 < data.season <= data.training.history else "no season"
    lines.append(f"baselines: persistence, {season}, linear with a ridge of {data.ridge:g} (chosen on validation)")
    return lines


def _scale_told(scaling: Scaling, roles: Roles) -> str:
    if scaling.kind == "none":
        return "scale: none, values are read as they are"
    names = "mean and standard deviation" if scaling.kind == "standard" else "median and quartile distance / 1.349"
    of = f"each of {len(scaling.of):,} series by its own; of all together" if scaling.of else "of all rows"
    pairs = zip(roles.columns[:4], scaling.center[-1], scaling.spread[-1], strict=False)
    shown = ", ".join(f"{name} {center:.4g} and {spread:.4g}" for name, center, spread in pairs)
    more = ", …" if len(roles.columns) > 4 else ""
    return f"scale: {names} of the training part, {of}: {shown}{more}"


def _range(lengths: Array) -> str:
    low, high = lengths.min(), lengths.max()
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
