"""The parts of the data as batches: held in memory where they fit, else read again block by block."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from torchrnn.tools.classify import split, tokens
from torchrnn.tools.classify.encoded import Batch, Encoded, joined
from torchrnn.tools.classify.learned import Learned
from torchrnn.tools.classify.order import Order
from torchrnn.tools.classify.reading import Block
from torchrnn.tools.classify.settings import ClassifySettings
from torchrnn.tools.classify.survey import Source

MEBIBYTE = 2**20


class Part:
    """The sequences of one part, in groups: one that holds all, or the blocks of the files."""

    def __init__(self, found: Sequence[Source], part: int, learned: Learned, budget: int) -> None:
        self.sources, self.part, self.learned, self.budget = found, part, learned, budget
        self.blocks = [
            (source, index)
            for source in found
            for index in range(source.reader.block_count)
            if (source.parts[source.starts[index] : source.starts[index + 1]] == part).any()
        ]
        self.lengths = [_lengths(source, index, part) for source, index in self.blocks]
        self.count = sum(map(len, self.lengths))
        self._held: OrderedDict[int, Encoded] = OrderedDict()
        self.streamed = sum(map(self._bytes, self.lengths)) > budget
        if not self.streamed and self.blocks:
            whole = joined([self._read(*block) for block in self.blocks])
            self.lengths, self._held[0] = [whole.lengths], whole

    def _bytes(self, lengths: np.ndarray) -> int:
        width = 1 if self.learned.vocabulary else len(self.learned.mean)
        return 4 * int(lengths.sum()) * (width + self.sources[0].reader.tagging) + 20 * len(lengths)

    @property
    def together(self) -> int:
        """How many groups may be mixed: half of those that the budget holds, since a batch may lie in two mixtures."""
        largest = max((self._bytes(lengths) for lengths in self.lengths), default=1)
        return max(1, min(self.budget // max(largest, 1) // 2, len(self.lengths)))

    def group(self, index: int) -> Encoded:
        """The sequences of a group; of a part that is streamed, two are held, and more if the budget allows."""
        if index not in self._held:
            encoded = self._read(*self.blocks[index])
            while len(self._held) > 1 and sum(other.size for other in self._held.values()) + encoded.size > self.budget:
                self._held.popitem(last=False)
            self._held[index] = encoded
        self._held.move_to_end(index)
        return self._held[index]

    def take(self, groups: np.ndarray, places: np.ndarray) -> Batch:
        """Sequences of several groups as a batch."""
        found = dict.fromkeys(groups.tolist())
        return joined([self.group(group).take(places[groups == group]) for group in found]).batch()

    def in_order(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """All sequences, group after group, in a group by length; every `world`-th batch from `rank` on."""
        number = 0
        for index, lengths in enumerate(self.lengths):
            order = np.argsort(lengths, kind="stable")
            for start in range(0, len(order), batch_size):
                if number % world == rank:
                    yield self.group(index).take(order[start : start + batch_size]).batch()
                number += 1

    def _read(self, source: Source, index: int) -> Encoded:
        parts = source.parts[source.starts[index] : source.starts[index + 1]]
        return encode(source.reader.block(index), parts == self.part, self.learned, source.reader.tagging)


def _lengths(source: Source, index: int, part: int) -> np.ndarray:
    here = slice(source.starts[index], source.starts[index + 1])
    return source.lengths[here][source.parts[here] == part]


def encode(block: Block, chosen: np.ndarray, learned: Learned, tagging: bool) -> Encoded:
    """The chosen sequences of a block as numbers; without labels, all classes are −1."""
    steps = np.repeat(chosen, block.lengths)
    flat = tokens.only(block.flat, steps)
    lengths = block.lengths[chosen]
    labelled = steps if tagging else chosen
    if len(block.labels):
        classes = learned.classes(tokens.only(block.labels, labelled))
    else:
        classes = np.full(int(labelled.sum()), -1, dtype=np.int32)
    return Encoded(learned.encode(flat), lengths, classes, tagging)


class Data:
    """All parts of a run, and the order of training."""

    def __init__(self, found: Sequence[Source], learned: Learned, settings: ClassifySettings) -> None:
        self.sources, self.learned, self.settings = found, learned, settings
        budget = settings.memory * MEBIBYTE
        sizes = [sum(int((source.parts == part).sum()) for source in found) for part in range(len(split.PARTS))]
        # each part its share of the memory, by its number of sequences
        self._budgets = [budget * size // max(sum(sizes), 1) for size in sizes]
        self._parts: dict[int, Part] = {}
        training = self.part(split.TRAINING)
        self.order = Order(training.lengths, settings.batch_size, settings.seed, training.together)

    def part(self, part: int) -> Part:
        """A part; what it holds is read when it is first asked for."""
        if part not in self._parts:
            self._parts[part] = Part(self.sources, part, self.learned, self._budgets[part])
        return self._parts[part]

    @property
    def files(self) -> list[Path]:
        """Where the data come from."""
        return [source.table.path for source in self.sources]

    def training(self, step: int, rows: Callable[[int], slice]) -> Batch | None:
        """Of the batch of an optimiser step the sequences that `rows` chooses of their number, or None."""
        groups, places = self.order.rows(step)
        chosen = rows(len(groups))
        return self.part(split.TRAINING).take(groups[chosen], places[chosen]) if len(groups[chosen]) else None
