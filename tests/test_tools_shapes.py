"""`torchrnn shapes`: the table that `explain` gives, from the command line; a paragraph for every mistake."""

import pytest
import torch
from tools_runs import torchrnn as command

import torchrnn
from torchrnn.tools.commands.shapes import KINDS

SIZES = ["--input-size=50", "--hidden-size=100", "--num-layers=2", "--seq=10", "--batch=3"]


def told(*arguments):
    result = command("shapes", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--bidirectional"], {"bidirectional": True}),
        (["--batch-first", "--batch-first-state"], {"batch_first": True, "batch_first_state": True}),
        (["--proj-size=20", "--no-bias"], {"proj_size": 20, "bias": False}),
        (["--bidirectional", "--merge-mode=sum"], {"bidirectional": True, "merge_mode": "sum"}),
        (["--no-return-sequences", "--residual"], {"return_sequences": False, "residual": True}),
    ],
)
def test_it_is_what_explain_prints(flags, options):
    layer = torchrnn.LSTM(50, 100, num_layers=2, **options)
    x = torch.randn((3, 10, 50) if layer.batch_first else (10, 3, 50))
    assert told("lstm", *SIZES, *flags) == f"{torchrnn.explain(layer, x)}\n"


def test_its_other_arguments():
    x = torch.randn(5, 3, 10)
    assert told("gru", "--lengths=5,2,1") == f"{torchrnn.explain(torchrnn.GRU(10, 20), x, lengths=[5, 2, 1])}\n"
    assert told("gru", "--return-all") == f"{torchrnn.explain(torchrnn.GRU(10, 20), x, return_all=True)}\n"
    assert told("gru", "--proj-size=4") == f"{torchrnn.explain(torchrnn.GRU(10, 20, proj_size=4), x)}\n"
    assert told("RNN", "--hidden-size=8,4") == f"{torchrnn.explain(torchrnn.RNN(10, [8, 4]), x)}\n"
    assert told("rnn", "--batch=0", "--batch-first").count("(T, I) = (5, 10)") == 1
    for kind in KINDS:
        assert told(kind).split("\n")[2] == f"{kind}(10, 20)"
    assert "(B, I) = (3, 10)" in told("lstm-cell")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lstn"], "There is no layer 'lstn': it must be one of rnn, lstm, gru, rnncell, lstmcell, grucell."),
        (["lstm", "--proj-size=30"], "--proj-size has to be smaller than --hidden-size, got 30 and 20."),
        (["lstm", "--hidden-size=0"], "--hidden-size must be greater than zero, got 0."),
        (["lstm", "--hidden-size=3,x"], "--hidden-size must be whole numbers separated by commas, such as 64,32"),
        (["lstm", "--hidden-size=8,4", "--num-layers=3"], "--hidden-size=[8, 4] and --num-layers=3 do not go together"),
        (["lstm", "--num-layers=0"], "--num-layers must be greater than zero, got 0."),
        (["lstm", "--lengths=3,2"], "--lengths must be (B,) = (3,), got (2,)"),
        (["lstm", "--lengths=9,9,9"], "--lengths must be between 0 and T = 5"),
        (["lstm", "--lengths=-1,2,3"], "--lengths must be whole numbers separated by commas"),
        (["lstm", "--merge-mode=avg"], "--merge-mode must be one of 'concat', 'sum', 'mean', 'mul', got 'avg'."),
        (["lstm", "--merge-mode=sum"], "--merge-mode='sum' and --bidirectional=False do not go together"),
        (["lstm", "--seq=0"], "--seq must be at least 1, got 0."),
        (["lstm", "--batch=-1"], "--batch must be at least 0, got -1."),
        (["lstm", "--input-size=0"], "--input-size must be at least 1, got 0."),
        (["lstmcell", "--num-layers=2"], "LSTMCell is a single step: it does not take --num-layers."),
        (["lstm", "--no-return-sequences", "--return-all"], "do not go together"),
    ],
)
def test_mistakes_are_explained(arguments, message):
    result = command("shapes", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (paragraph,) = result.stderr.splitlines()
    assert paragraph.startswith("error: ")
    assert message in paragraph


def test_what_no_memory_holds():
    result = command("shapes", "lstm", "--hidden-size=999999999999")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: Out of memory")


def test_a_warning_is_a_note():
    result = command("shapes", "gru", "--residual")
    assert result.exit_code == 0
    assert result.stderr.startswith("note: residual adds its input")
