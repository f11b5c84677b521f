"""Texts to tokens (characters, bytes or words) and tokens to numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

UNKNOWN = 0  # the number of a token that the training part lacks

Flat = Any  # the tokens of many texts one after another: code points or bytes (numpy), or words (polars)


def split(texts: pl.Series, kind: str) -> tuple[Flat, np.ndarray]:
    """The tokens of all texts one after another (N,), and how many each has (R,); a null has none.

    Words stand between white space; the elements of a list are its tokens, whatever the kind.
    """
    if isinstance(texts.dtype, pl.List | pl.Array):
        lists = texts.cast(pl.List(pl.String))
        return lists.explode(empty_as_null=False, keep_nulls=False), _lengths(lists.list.len())
    if kind == "words":
        lists = texts.fill_null("").str.extract_all(r"\S+")
        return lists.explode(empty_as_null=False, keep_nulls=False), _lengths(lists.list.len())
    texts = texts.fill_null("")
    joined = "".join(texts)
    if kind == "bytes":
        return np.frombuffer(joined.encode(), dtype=np.uint8), _lengths(texts.str.len_bytes())
    return np.frombuffer(joined.encode("utf-32-le"), dtype="<u4"), _lengths(texts.str.len_chars())


def _lengths(series: pl.Series) -> np.ndarray:
    return series.fill_null(0).to_numpy().astype(np.int64)


def count(flat: Flat) -> Counter[str]:
    """How often each token occurs."""
    if isinstance(flat, pl.Series):
        found = flat.value_counts()
        return Counter(dict(zip(found.to_series(0).to_list(), found.to_series(1).to_list(), strict=True)))
    counts = np.bincount(flat)  # no sorting: a character is below 2^21
    codes = np.flatnonzero(counts)
    return Counter(dict(zip(map(chr, codes), counts[codes].tolist(), strict=True)))


def only(flat: Any, chosen: np.ndarray) -> Any:
    """Of tokens, or of numbers (N, I), those where `chosen` (N,) is true."""
    return flat.filter(pl.Series(chosen)) if isinstance(flat, pl.Series) else flat[chosen]


class Vocabulary:
    """The tokens that the model knows, numbered from 1 in their order here; any other is UNKNOWN, 0."""

    def __init__(self, tokens: Sequence[str], single: bool) -> None:
        self.tokens = list(tokens)
        self.single = single  # each token is one character or byte
        self._numbers: np.ndarray | None = None  # by code point; beyond the largest known one stands UNKNOWN
        if single:
            codes = [ord(token) for token in tokens]
            self._numbers = np.full(max(codes) + 2, UNKNOWN, dtype=np.int32)
            self._numbers[codes] = np.arange(1, len(self))

    @classmethod
    def of(cls, counts: Counter[str], single: bool, size: int) -> Vocabulary:
        """The `size` most frequent tokens; characters in the order of their code points, words by frequency."""
        frequent = sorted(counts, key=lambda token: (-counts[token], token))[:size]
        return cls(sorted(frequent) if single else frequent, single)

    def __len__(self) -> int:
        return len(self.tokens) + 1

    def encode(self, flat: Flat) -> np.ndarray:
        """The numbers of tokens, (N,)."""
        if self._numbers is None:
            numbers = np.arange(1, len(self), dtype=np.int32)
            found = flat.replace_strict(self.tokens, numbers, default=UNKNOWN, return_dtype=pl.Int32)
            return found.to_numpy().astype(np.int32)
        return self._numbers[np.minimum(flat, len(self._numbers) - 1)]

    def shown(self, number: int) -> str:
        """A token as a message shows it."""
        return "<unknown>" if number == UNKNOWN else self.tokens[number - 1]
