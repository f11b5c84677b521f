"""The order of training: which sequences an optimiser step reads follows from the seed and the step's number alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOW = 32  # batches, at most, whose sequences are sorted by length together
SHORT, WINDOW_OF_SHORT = 100, 4  # steps; of sequences so short padding is little, and length often tells the label

Places = tuple[np.ndarray, np.ndarray]  # (B,) the group of each sequence, and its place there


class Order:
    """Batches of sequences that stand in groups (the blocks of a file, or one group that holds all).

    In each epoch the groups come in a new order, and the sequences of `together` groups are mixed: no more of a file
    that is read block by block needs to be in memory at a time, and it is read once an epoch. In a window of 32
    batches (4 of short sequences), or of as many as those groups hold, the sequences are sorted by length, cut into
    batches, and the batches shuffled: little padding, and few steps of time at which only one long sequence still runs.
    """

    def __init__(self, lengths: Sequence[np.ndarray], batch_size: int, seed: int, together: int = 1) -> None:
        self.lengths, self.batch_size, self.seed, self.together = lengths, batch_size, seed, together
        self.sizes = np.array([len(group) for group in lengths])
        self.steps = -(-int(self.sizes.sum()) // batch_size)  # in an epoch
        mixed = int(self.sizes.sum()) * together // max(len(self.sizes), 1)  # sequences, on average
        longest = max((int(group.max()) for group in lengths if len(group)), default=0)
        self.window = min(max(mixed // batch_size, 1), WINDOW if longest > SHORT else WINDOW_OF_SHORT)
        self._window: tuple[int, list[Places]] = (-1, [])
        self._mixed: tuple[tuple[int, int], Places] | None = None

    def rows(self, step: int) -> Places:
        """The sequences of an optimiser step."""
        epoch, place = divmod(step, self.steps)
        number = epoch * -(-self.steps // self.window) + place // self.window
        if self._window[0] != number:
            self._window = number, self._batches(epoch, place // self.window)
        return self._window[1][place % self.window]

    def _batches(self, epoch: int, window: int) -> list[Places]:
        """The batches of a window."""
        size = self.window * self.batch_size
        groups, places = self._between(epoch, window * size, (window + 1) * size)
        lengths = np.empty(len(groups), dtype=np.int64)
        for group in np.unique(groups):
            lengths[groups == group] = self.lengths[group][places[groups == group]]
        order = np.argsort(lengths, kind="stable")
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        shuffled = np.random.default_rng([self.seed, 2, epoch, window]).permutation(len(batches))
        return [(groups[batches[index]], places[batches[index]]) for index in shuffled]

    def _between(self, epoch: int, begin: int, end: int) -> Places:
        """Group and place of the sequences from `begin` to `end` of an epoch's order."""
        turn = np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.sizes))
        groups, places, first = [], [], 0
        for start in range(0, len(turn), self.together):
            mixed = turn[start : start + self.together]
            count = int(self.sizes[mixed].sum())
            if first < end and first + count > begin:
                some = self._mix(epoch, start, mixed)
                groups.append(some[0][max(begin - first, 0) : end - first])
                places.append(some[1][max(begin - first, 0) : end - first])
            first += count
        return np.concatenate(groups), np.concatenate(places)

    def _mix(self, epoch: int, start: int, mixed: np.ndarray) -> Places:
        """All sequences of some groups in a new order."""
        if self._mixed is None or self._mixed[0] != (epoch, start):
            sizes = self.sizes[mixed]
            ends = np.cumsum(sizes)
            order = np.random.default_rng([self.seed, 1, epoch, start]).permutation(int(ends[-1]))
            index = np.searchsorted(ends, order, side="right")
            self._mixed = (epoch, start), (mixed[index], order - (ends - sizes)[index])
        return self._mixed[1]
