"""``from torchrnn import nn`` is torch.nn with our six in place."""

import torch

import torchrnn
from torchrnn import nn

SIX = ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"]


def test_our_six_and_torchs_rest() -> None:
    for name in dir(torch.nn):
        if name in SIX:
            assert getattr(nn, name) is getattr(torchrnn, name)
        elif not name.startswith("_"):
            assert getattr(nn, name) is getattr(torch.nn, name), name
    assert set(dir(torch.nn)) == set(dir(nn))


def test_isinstance_is_true_for_ours() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 5))
    assert [type(m) for m in model.modules() if isinstance(m, nn.LSTM)] == [torchrnn.LSTM]
    assert isinstance(model, torch.nn.Module)


def test_submodules_are_torchs_own() -> None:
    import torchrnn.nn.functional as F  # pyright: ignore
    from torchrnn.nn.utils.rnn import pack_sequence  # pyright: ignore

    assert F is torch.nn.functional
    nn.LSTM(2, 3)(pack_sequence([torch.randn(4, 2)]))


def test_submodules() -> None:
    from torchrnn.nn import functional, utils  # pyright: ignore

    assert functional is torch.nn.functional
    assert utils.rnn.pack_sequence is torch.nn.utils.rnn.pack_sequence
