"""What a time stamp says about itself: hour, weekday, month …, each as a point on a circle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from torchrnn.tools.forecast.steps import MICRO, Array, Step

DAY, HOUR = MICRO["day"], MICRO["hour"]


def _year_part(times: Array) -> Array:
    stamps = times.astype("datetime64[us]")
    year = stamps.astype("datetime64[Y]")
    start, after = (moment.astype("datetime64[us]").astype(np.int64) for moment in (year, year + 1))
    return (times - start) / (after - start)


def _month_part(times: Array) -> Array:
    return (times.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64) % 12) / 12


# each: microseconds since 1970 to the part of its cycle that has passed, from 0 to below 1
FEATURES: dict[str, Callable[[Array], Array]] = {
    "minute": lambda times: times % HOUR / HOUR,
    "hour": lambda times: times % DAY // HOUR / 24,
    "dayofweek": lambda times: (times // DAY + 3) % 7 / 7,  # 1970 began on a Thursday
    "month": _month_part,
    "dayofyear": _year_part,
}


def suggested(step: Step) -> list[str]:
    """The features worth having at a step of time; none for a time column of numbers."""
    if step.unit == "numbers":
        return []
    if step.unit == "months":
        return ["month"]
    if step.size < HOUR:
        return ["minute", "hour", "dayofweek"]
    if step.size < DAY:
        return ["hour", "dayofweek"]
    return ["dayofweek"] if step.size % (7 * DAY) else []


def circles(times: Array, names: Sequence[str]) -> Array:
    """Sine and cosine of each feature, so that 23 and 0 o'clock are neighbours: (…) to (…, 2 · features).

    ```python
    import numpy as np
    from torchrnn.tools.forecast.calendar import circles

    six = np.array([6 * 3_600_000_000])
    assert circles(six, ["hour"]).round(3).tolist() == [[1, 0]]
    ```
    """
    parts = [2 * np.pi * FEATURES[name](times) for name in names]
    pairs = [function(part) for part in parts for function in (np.sin, np.cos)]
    if not pairs:
        return np.zeros((*times.shape, 0), np.float32)
    return np.stack(pairs, -1).astype(np.float32)
