"""The order of training: which sequences an optimiser step reads follows from the seed and the step's number alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOW = 32  # batches whose sequences are sorted by length together

Places = tuple[np.ndarray, np.ndarray]  # (B,) the group of each sequence, and its place there


class Order:
    """Batches of sequences that stand in groups (the blocks of a file, or one group that holds all).

    In each epoch the groups come in a new order, and so do the sequences of each group: a file that is read block by
    block is read once an epoch. In a window of 32 batches the sequences are sorted by length, cut into batches, and
    the batches shuffled: little padding, and few steps of time at which only one long sequence still runs.
    """

    def __init__(self, lengths: Sequence[np.ndarray], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.sizes = np.array([len(group) for group in lengths])
        self.steps = -(-int(self.sizes.sum()) // batch_size)  # in an epoch
        self._window: tuple[int, list[Places]] = (-1, [])

    def rows(self, step: int) -> Places:
        """The sequences of an optimiser step."""
        epoch, place = divmod(step, self.steps)
        number = epoch * -(-self.steps // WINDOW) + place // WINDOW
        if self._window[0] != number:
            self._window = number, self._batches(epoch, place // WINDOW)
        return self._window[1][place % WINDOW]

    def _batches(self, epoch: int, window: int) -> list[Places]:
        """The batches of a window."""
        begin = window * WINDOW * self.batch_size
        groups, places = self._between(epoch, begin, begin + WINDOW * self.batch_size)
        lengths = np.concatenate([self.lengths[group][places[groups == group]] for group in dict.fromkeys(groups)])
        order = np.argsort(lengths, kind="stable")
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        chance = np.random.default_rng([self.seed, 2, epoch, window])
        shuffled = chance.permutation(len(batches))
        return [(groups[batches[index]], places[batches[index]]) for index in shuffled]

    def _between(self, epoch: int, begin: int, end: int) -> Places:
        """Group and place of the sequences from `begin` to `end` of an epoch's order."""
        turn = np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.sizes))
        ends = np.cumsum(self.sizes[turn])
        groups, places = [], []
        for index, group in enumerate(turn):
            first = int(ends[index] - self.sizes[group])
            if first >= end or ends[index] <= begin:
                continue
            chance = np.random.default_rng([self.seed, 1, epoch, int(group)])
            chosen = chance.permutation(int(self.sizes[group]))[max(begin - first, 0) : end - first]
            places.append(chosen)
            groups.append(np.full(len(chosen), group))
        return np.concatenate(groups), np.concatenate(places)
