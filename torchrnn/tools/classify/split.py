"""Which sequence is trained on, which validates, and which tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.tables.table import quoted

TRAINING, VALIDATION, TEST, LEFT_OUT = range(4)
PARTS = ("training", "validation", "test")
WORDS = {
    **dict.fromkeys(("train", "training"), TRAINING),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    "test": TEST,
}


def by_chance(codes: np.ndarray, kept: np.ndarray, validation: float, test: float, seed: int) -> np.ndarray:
    """Parts (R,) of sequences with these classes: of each class the same fractions, chosen by the seed.

    A class with too few sequences for all parts has them in the training part first. What is not `kept` is left out.
    """
    parts = np.full(len(codes), LEFT_OUT, dtype=np.uint8)
    rows = np.flatnonzero(kept)
    chance = np.random.default_rng([seed, 0])
    rows = rows[chance.permutation(len(rows))]
    rows = rows[np.argsort(codes[rows], kind="stable")]
    count = np.bincount(codes[rows], minlength=1)
    for group in np.split(rows, np.cumsum(count)[:-1]):
        n = len(group)
        for_validation, for_test = _share(n, validation), _share(n, test)
        for_test = min(for_test, max(n - 1 - for_validation, 0))  # one at least to train on
        for_validation = min(for_validation, max(n - 1, 0))
        parts[group] = TRAINING
        parts[group[:for_validation]] = VALIDATION
        parts[group[for_validation : for_validation + for_test]] = TEST
    return parts


def _share(n: int, fraction: float) -> int:
    """About n · fraction, and one at least where there are three and a part is wanted."""
    return max(int(n * fraction + 0.5), int(n >= 3 and fraction > 0))


def by_column(words: pl.Series, kept: np.ndarray, where: Callable[[int], str]) -> np.ndarray:
    """Parts (R,) from a column that says train, validation or test; `where` tells the place of a sequence."""
    small = words.cast(pl.String).str.strip_chars().str.to_lowercase()
    parts = small.replace_strict(WORDS, default=None, return_dtype=pl.UInt8)
    wrong = np.flatnonzero(parts.is_null().to_numpy() & kept)
    if len(wrong):
        raise UsageError(
            f"{where(int(wrong[0]))}, column {words.name!r}: --split must say train, validation or test, found "
            f"{quoted(words[int(wrong[0])])}. Correct it or leave the row out."
        )
    return np.where(kept, parts.fill_null(LEFT_OUT).to_numpy(), LEFT_OUT).astype(np.uint8)
