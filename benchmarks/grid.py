"""Which cases are timed: a quick grid, and the full one with sizes from public models."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

from benchmarks.cases import Case

KINDS = ("RNN", "LSTM", "GRU")


def _layers(shapes: dict[str, dict[str, Any]]) -> tuple[Case, ...]:
    return tuple(Case(f"{k.lower()}-{name}", k, **shape) for name, shape in shapes.items() for k in KINDS)


def _cells(name: str, **shape: Any) -> tuple[Case, ...]:
    return tuple(Case(f"{k.lower()}cell-{name}", f"{k}Cell", T=0, **shape) for k in KINDS)


#: Each layer in seven shapes, each cell at two batch sizes.
QUICK: tuple[Case, ...] = (
    *_layers(
        {
            "tiny": {"T": 5, "B": 1, "I": 4, "H": 4},
            "onestep": {"T": 1, "B": 1, "I": 128, "H": 128, "states": True},  # as a loop calls a layer
            "small": {"T": 10, "B": 8, "I": 16, "H": 32},
            "medium": {"T": 50, "B": 32, "I": 64, "H": 128},
            "batchfirst": {"T": 20, "B": 16, "I": 32, "H": 64, "batch_first": True},
            "bi2": {"T": 20, "B": 16, "I": 32, "H": 64, "L": 2, "bidirectional": True},
            "packed": {"T": 20, "B": 16, "I": 32, "H": 64, "packed": True},
        }
    ),
    *_cells("b1", B=1, I=128, H=128),
    *_cells("b32", B=32, I=128, H=128),
)

_SHAPES: tuple[Case, ...] = (
    *_layers(
        {
            "large": {"T": 100, "B": 32, "I": 128, "H": 256},
            "lengths": {"T": 100, "B": 32, "I": 128, "H": 256, "lengths": True},
            "b1": {"T": 100, "B": 1, "I": 128, "H": 256},
            "notebook": {"T": 50, "B": 8, "I": 16, "H": 32},
            "t1000": {"T": 1000, "B": 4, "I": 64, "H": 128},
            "t5000": {"T": 5000, "B": 1, "I": 32, "H": 64},
            "stack4": {"T": 50, "B": 16, "I": 64, "H": 96, "L": 4},
            "bilarge": {"T": 100, "B": 16, "I": 256, "H": 256, "bidirectional": True},
        }
    ),
    # where recurrent networks are taught: a few names or days at a time
    Case("rnn-names", "RNN", T=5, B=3, I=5, H=7),
    Case("rnn-sine", "RNN", T=30, B=16, I=10, H=32, L=2),
    Case("rnn-taught", "RNN", T=10, B=1, I=100, H=200),
    Case("lstm-taught", "LSTM", T=10, B=3, I=50, H=100, L=2),
    Case("gru-taught", "GRU", T=5, B=3, I=10, H=20),
    # the word model of Zaremba et al., medium
    Case("lstm-ptb", "LSTM", T=35, B=20, I=650, H=650, L=2),
    *_cells("loop60", B=1, I=128, H=128, steps=60),
)

#: Layers and cells as public models run them, named after the model.
_WILD: tuple[Case, ...] = (
    Case("lstm-wlm", "LSTM", T=35, B=20, I=200, H=200, L=2),
    Case("gru-wlm", "GRU", T=35, B=20, I=200, H=200, L=2),
    Case("rnn-wlm", "RNN", T=35, B=20, I=200, H=200, L=2),
    Case("relu-wlm", "RNN", T=35, B=20, I=200, H=200, L=2, relu=True),
    Case("lstm-awd", "LSTM", T=35, B=10, I=400, H=1150),
    Case("lstm-crnn", "LSTM", T=26, B=8, I=512, H=256, bidirectional=True),
    Case("lstm-mnist", "LSTM", T=28, B=64, I=28, H=64, batch_first=True),
    Case("lstm-deepar", "LSTM", T=59, B=32, I=11, H=64, L=2, batch_first=True),
    Case("lstm-encodec", "LSTM", T=75, B=2, I=256, H=256, L=2),
    Case("lstm-openunmix", "LSTM", T=128, B=1, I=512, H=256, L=3, bidirectional=True),
    Case("lstm-pyannote", "LSTM", T=293, B=2, I=60, H=128, L=4, bidirectional=True, batch_first=True),
    Case("lstm-voice", "LSTM", T=160, B=16, I=40, H=256, L=3, batch_first=True),
    Case("gru-rnnoise", "GRU", T=296, B=8, I=256, H=256, batch_first=True),
    Case("gru-wavernn", "GRU", T=1100, B=4, I=512, H=512, batch_first=True),
    Case("gru-lstnet", "GRU", T=163, B=64, I=100, H=100),
    Case("gru-mappo", "GRU", T=3, B=120, I=64, H=64, L=2),
    Case("lstm-stanza", "LSTM", T=40, B=20, I=125, H=100, bidirectional=True, batch_first=True, packed=True),
    Case("gru-deepspeech", "GRU", T=100, B=4, I=512, H=512, packed=True),
    Case("lstm-ppo", "LSTM", T=1, B=4, I=512, H=128, states=True, steps=32),
    Case("lstm-torchbeast", "LSTM", T=1, B=4, I=519, H=519, L=2, states=True, steps=21),
    Case("lstmcell-silero", "LSTMCell", T=0, B=1, I=128, H=128, steps=60),
    Case("lstmcell-tacotron2", "LSTMCell", T=0, B=4, I=768, H=1024, steps=20),
    Case("lstmcell-timeseq", "LSTMCell", T=0, B=97, I=51, H=51, steps=250),
    Case("grucell-fargan", "GRUCell", T=0, B=4, I=272, H=160, bias=False, steps=48),
    Case("grucell-wavernn", "GRUCell", T=0, B=1, I=512, H=512, steps=50),
    Case("grucell-pymarl", "GRUCell", T=0, B=256, I=64, H=64, steps=60),
    Case("grucell-molecules", "GRUCell", T=0, B=1280, I=64, H=64),
)

_SIZES: tuple[dict[str, Any], ...] = ({"T": 64, "B": 8, "I": 128, "H": 128}, {"T": 128, "B": 32, "I": 128, "H": 128})

#: What we do in one call and a user of torch.nn by hand, and steps one at a time.
SEQUENCES: tuple[Case, ...] = (
    *(
        Case(f"{k.lower()}-{by_hand}{size['T']}", k, **size, by_hand=by_hand, lengths=by_hand == "lengths")
        for by_hand in ("lengths", "holes", "left", "resets", "all")
        for size in _SIZES
        for k in KINDS
    ),
    *(Case(f"{k.lower()}-stream", k, T=1000, B=1, I=128, H=128, by_hand="stream") for k in KINDS),
)

#: All of them.
FULL: tuple[Case, ...] = (*QUICK, *_SHAPES, *_WILD, *SEQUENCES)
GRIDS = {"quick": QUICK, "sequences": SEQUENCES, "full": FULL}


def select(pattern: str, grid: str = "quick") -> list[Case]:
    """The cases of a grid whose name matches a pattern such as ``lstm-*``; several are separated by commas.

    A name that is spelt out is found in the full grid, too.

    Raises:
        ValueError: none matches.
    """
    patterns = [p.strip() for p in pattern.split(",")]
    cases = GRIDS[grid]
    chosen = [c for c in FULL if c.name in patterns or (c in cases and any(fnmatch(c.name, p) for p in patterns))]
    if not chosen:
        raise ValueError(f"no case matches {pattern!r}; there are {', '.join(c.name for c in cases)}")
    return chosen
