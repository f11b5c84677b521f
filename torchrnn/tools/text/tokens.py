"""What a text is cut into: characters, bytes, or pieces that byte-pair encoding has found in it.

Index 0 is `<unknown>` in each, and no text of bytes or pieces ever has it.
"""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from torchrnn.tools.runs.errors import ToolError

UNKNOWN = 0  # the index of a character that the training text lacks
FILE = "tokenizer.json"
PART = 1_000_000  # characters that are cut into pieces at once


class Vocabulary(ABC):
    """The tokens of a text and their indices from 1."""

    unit: ClassVar[str]  # what one is called, of many

    @abstractmethod
    def __len__(self) -> int:
        """How many there are, with `<unknown>`."""

    @abstractmethod
    def encode(self, text: str) -> Tensor:
        """The indices of a text (tokens,)."""

    @abstractmethod
    def writer(self) -> Callable[[int], str]:
        """What makes text of one index after another: whole characters, as soon as they are whole."""

    @property
    @abstractmethod
    def counts(self) -> Tensor:
        """How many characters begin in each token (V,)."""

    @abstractmethod
    def remember(self) -> dict[str, Any]:
        """What makes it again."""


class Characters(Vocabulary):
    """The characters of the training text, in code point order from 1, and `<unknown>` at 0.

    Only the training text counts: a character that the validation text alone has is as new to the model as it would be
    in use, and the bits per character say so.
    """

    unit = "characters"

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._codes = _code_points(characters)

    @classmethod
    def of(cls, text: str) -> Characters:
        """The vocabulary of a training text."""
        return cls("".join(map(chr, np.unique(_code_points(text)))))

    def __len__(self) -> int:
        return len(self.characters) + 1

    def encode(self, text: str) -> Tensor:
        """The indices of the characters, UNKNOWN for those not in the vocabulary."""
        codes = _code_points(text)
        places = np.searchsorted(self._codes, codes)
        places = np.minimum(places, len(self._codes) - 1)
        indices = np.where(self._codes[places] == codes, places + 1, UNKNOWN)
        return torch.from_numpy(indices.astype(np.int64))  # (characters,)

    def decode(self, index: int) -> str:
        """The character with this index."""
        return "\N{REPLACEMENT CHARACTER}" if index == UNKNOWN else self.characters[index - 1]

    def writer(self) -> Callable[[int], str]:
        """Each index is a character."""
        return self.decode

    @property
    def counts(self) -> Tensor:
        """One in each."""
        return torch.ones(len(self))

    def remember(self) -> dict[str, Any]:
        """The characters."""
        return {"characters": self.characters}


class Bytes(Vocabulary):
    """The 256 bytes of UTF-8: nothing is unknown, in any script."""

    unit = "bytes"

    def __len__(self) -> int:
        return 257

    def encode(self, text: str) -> Tensor:
        """The bytes of the text, each one more than it is."""
        data = np.frombuffer(_whole(text).encode(), dtype=np.uint8)
        return torch.from_numpy(data.astype(np.int64) + 1)  # (bytes,)

    def writer(self) -> Callable[[int], str]:
        """Characters come when their last byte does."""
        return _writer([b"", *(bytes([value]) for value in range(256))])

    @property
    def counts(self) -> Tensor:
        """One for a byte that a character begins with, none for one that goes on with it."""
        return torch.tensor([0.0, *(float(_begun(bytes([value]))) for value in range(256))])

    def remember(self) -> dict[str, Any]:
        """Nothing: they are always the same."""
        return {}


class Pieces(Vocabulary):
    """Pieces of bytes by byte-pair encoding (Sennrich et al. 2016), learnt by the package tokenizers.

    It begins with the 256 bytes, so nothing is unknown, and joins the pair that is most frequent until there are as
    many pieces as asked for, or no pair comes twice.
    """

    unit = "pieces"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        shown = _bytes_shown()
        pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        if [index for _, index in pieces] != list(range(len(pieces))):
            raise ValueError("its indices are not 0, 1, 2, …")
        self.pieces = [b"", *(bytes(shown[character] for character in piece) for piece, _ in pieces)]
        if not {bytes([value]) for value in range(256)} <= set(self.pieces):
            raise ValueError("it lacks some of the 256 bytes")

    @classmethod
    def of(cls, text: str, size: int) -> Pieces:
        """Learn the pieces of a training text."""
        tokenizers = _tokenizers()
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(_parts(text), trainer)
        return cls(tokenizer)

    @classmethod
    def again(cls, data: dict[str, Any]) -> Pieces:
        """The pieces of a run."""
        tokenizers = _tokenizers()
        try:
            stored = data[FILE].decode()
            kinds = [json.loads(stored)[part]["type"] for part in ("model", "pre_tokenizer")]
            if kinds != ["BPE", "ByteLevel"]:
                raise ValueError(f"it is of the kinds {kinds}, not BPE of bytes")
            return cls(tokenizers.Tokenizer.from_str(stored))
        except Exception as error:  # that is what tokenizers raises
            reason = " ".join(str(error).split())[:200]
            raise ToolError(
                f"{FILE} in the run folder does not hold the pieces of this run: it is damaged ({reason}). Bring it "
                f"back from a copy, or start the run again with --overwrite."
            ) from error

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> Tensor:
        """The indices of the pieces, each one more than tokenizers gives it."""
        encodings = self._tokenizer.encode_batch_fast(list(_parts(_whole(text))))
        indices = np.concatenate([np.empty(0, np.int64), *(np.array(one.ids, np.int64) for one in encodings)])
        return torch.from_numpy(indices + 1)  # (pieces,)

    def writer(self) -> Callable[[int], str]:
        """Characters come when their last byte does."""
        return _writer(self.pieces)

    @property
    def counts(self) -> Tensor:
        """The characters that begin in each piece."""
        return torch.tensor([float(_begun(piece)) for piece in self.pieces])

    def remember(self) -> dict[str, Any]:
        """The file of tokenizers."""
        return {FILE: self._tokenizer.to_str(pretty=True).encode()}


def learn(kind: str, text: str, size: int) -> Vocabulary:
    """The vocabulary of a training text."""
    if kind == "bpe":
        return Pieces.of(text, size)
    return Bytes() if kind == "bytes" else Characters.of(text)


def known(kind: str, data: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a run."""
    if kind == "bpe":
        return Pieces.again(data)
    return Bytes() if kind == "bytes" else Characters(data["characters"])


def _tokenizers() -> Any:
    try:
        import tokenizers
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "tokenizers":
            raise
        raise ToolError(
            "--tokens bpe needs the package tokenizers, which is not installed: pip install 'torchrnn[tools]'. "
            "--tokens characters and --tokens bytes need none."
        ) from error
    return tokenizers


def _parts(text: str) -> Iterator[str]:
    """A long text in parts that end with a line, where there are any."""
    begin = 0
    while begin < len(text):
        end = text.rfind("\n", begin, begin + PART) + 1
        end = end if end > begin and begin + PART < len(text) else begin + PART
        yield text[begin:end]
        begin = end


def _bytes_shown() -> dict[str, int]:
    """Which byte each character stands for in tokenizers' byte-level pieces: visible ones for themselves."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in visible]
    return {chr(value): value for value in visible} | {chr(256 + place): value for place, value in enumerate(others)}


def _begun(data: bytes) -> int:
    return sum(byte & 0xC0 != 0x80 for byte in data)


def _writer(pieces: list[bytes]) -> Callable[[int], str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return lambda index: decoder.decode(pieces[index])


def _whole(text: str) -> str:
    # a prompt typed in another encoding reaches Python with surrogates, which are no characters
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _code_points(text: str) -> np.ndarray:
    # surrogates: a prompt typed in another encoding reaches Python as these; they are simply unknown
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
