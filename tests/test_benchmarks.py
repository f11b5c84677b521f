"""The benchmarks measure what they say: their cases, the check before the clock, the ratios, one run end to end."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

from benchmarks import run
from benchmarks.cases import CASES, Case, select
from benchmarks.subjects import RIVALS, ours, torch_nn

TINY = next(c for c in CASES if c.name == "lstm-tiny")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the benchmarks run; two threads on a busy machine wait for each other for seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_names_are_unique_and_the_grid_is_whole() -> None:
    assert len({c.name for c in CASES}) == len(CASES)
    assert len(CASES) >= 20
    for kind in ("RNN", "LSTM", "GRU"):
        layers = [c for c in CASES if c.kind == kind]
        assert any(c.T == c.B == 1 and c.states for c in layers)
        assert any(c.batch_first for c in layers)
        assert any(c.bidirectional and c.L == 2 for c in layers)
        assert any(c.packed for c in layers)
        assert {c.B for c in CASES if c.kind == f"{kind}Cell"} == {1, 32}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_case_is_well_formed(case: Case) -> None:
    """The shapes are what the name and the fields say, and torch.nn takes them."""
    positional, options = case.arguments()
    inputs = case.inputs(torch.Generator().manual_seed(0))
    again = case.inputs(torch.Generator().manual_seed(0))
    x = inputs[0]
    if case.is_cell:
        assert case.T == 0
        assert x.shape == (case.B, case.I)
        assert len(inputs) == 2
    elif case.packed:
        assert isinstance(x, PackedSequence)
        assert len(x.batch_sizes) == case.T
        assert x.batch_sizes[0] == case.B
        assert x.batch_sizes[-1] < case.B
        assert torch.equal(x.data, again[0].data)
    else:
        assert x.shape == ((case.B, case.T, case.I) if case.batch_first else (case.T, case.B, case.I))
        assert torch.equal(x, again[0])
        assert len(inputs) == 1 + case.states
    getattr(torch.nn, case.kind)(*positional, **options)(*inputs)


def test_select() -> None:
    assert [c.name for c in select("lstm-tiny, *cell-b32")] == [
        "lstm-tiny",
        "rnncell-b32",
        "lstmcell-b32",
        "grucell-b32",
    ]
    assert select("*") == list(CASES)
    with pytest.raises(ValueError, match=r"no case matches 'nothing'; there are rnn-tiny, .*"):
        select("nothing")


@pytest.mark.parametrize("name", ["rnn-packed", "gru-bi2", "lstm-onestep", "lstmcell-b1"])
def test_training_returns_every_gradient(name: str) -> None:
    """Outputs and states, then a gradient for each floating input and each weight, by the same upstream gradients."""
    (case,) = select(name)
    positional, options = case.arguments()
    model = getattr(torch.nn, case.kind)(*positional, **options)
    inputs = case.inputs(torch.Generator().manual_seed(0))
    results = [subject(case, model, inputs, True)() for subject in (torch_nn, ours)]
    states = 2 if case.kind.startswith("LSTM") else 1
    given = 1 + (states if case.states or case.is_cell else 0)
    assert len(results[0]) == states + (not case.is_cell) + given + len(list(model.parameters()))
    run.check(name, results[1], results[0])
    assert all(g.abs().max() > 0 for g in results[1])


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("wrong", ["value", "nan", "shape", "fewer", "last"])
def test_a_wrong_answer_stops_the_run(monkeypatch: pytest.MonkeyPatch, training: bool, wrong: str) -> None:
    def rival(*arguments: Any) -> Any:
        work = torch_nn(*arguments)

        def spoilt() -> list[torch.Tensor]:
            results = [t.detach().clone() for t in work()]
            if wrong == "shape":
                return [results[0][:-1], *results[1:]]
            if wrong == "fewer":
                return results[:-1]
            results[-1 if wrong == "last" else 0].view(-1)[-1] += float("nan") if wrong == "nan" else 1e-3
            return results

        return spoilt

    monkeypatch.setitem(RIVALS, "spoilt", rival)
    with pytest.raises(run.WrongAnswer, match="lstm-tiny: spoilt"):
        run.measure(TINY, "training" if training else "inference", rounds=1)


def test_ratios() -> None:
    values = [1.0] * 5 + [2.0] * 5 + [9.0]
    assert run._ratio(values) == (2.0, 1.0, 2.0)
    assert run._ratio([3.0]) == (3.0, 3.0, 3.0)
    rows = [run.Row(TINY, "training", {}, {"torch.nn": run.Ratio(m, m, m)}) for m in (0.5, 2.0, 8.0)]
    assert run.geometric_means(rows) == {("LSTM", "training", "torch.nn"): pytest.approx(2.0)}


def test_ratio_is_ours_over_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: Any) -> Any:
        work = torch_nn(*arguments)
        return lambda: [work() for _ in range(20)].pop()

    monkeypatch.setitem(RIVALS, "slow", slow)
    row = run.measure(TINY, "inference", rounds=3)
    assert row.ratios["slow"].median < 0.5 < row.ratios["torch.nn"].median * 2
    assert row.microseconds["slow"] > row.microseconds["torchrnn"]


@pytest.mark.parametrize("backend", ["aten", "reference"])
def test_backend_is_forced_on_ours(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    ran = []
    for name in ("aten", "reference"):
        module = importlib.import_module(f"torchrnn.backends.{name}")
        monkeypatch.setattr(module, "run", lambda call, name=name, run=module.run: (ran.append(name), run(call))[1])
    run.measure(TINY, "inference", rounds=1, backend=backend)
    assert set(ran) == {backend}


def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    assert run.main(["--cases", "gru-tiny", "--rounds", "3", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "torchrnn µs" in printed
    assert printed.count("gru-tiny") == 2
    assert "geometric means" in printed
    result = json.loads(file.read_text())
    assert [(r["case"]["name"], r["mode"]) for r in result["rows"]] == [
        ("gru-tiny", "inference"),
        ("gru-tiny", "training"),
    ]
    assert result["torch"] == torch.__version__
    for row in result["rows"]:
        ratio = row["ratios"]["torch.nn"]
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
        assert set(row["microseconds"]) == {"torchrnn", "torch.nn"}
    assert {(m["kind"], m["mode"], m["rival"]) for m in result["geometric_means"]} == {
        ("GRU", "inference", "torch.nn"),
        ("GRU", "training", "torch.nn"),
    }


def test_limit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    measured = run.Row(TINY, "inference", {"torchrnn": 1.1, "torch.nn": 1.0}, {"torch.nn": run.Ratio(1.1, 1.0, 1.2)})
    monkeypatch.setattr(run, "measure", lambda *_: measured)
    arguments = ["--cases", "lstm-tiny", "--mode", "inference"]
    assert run.main(arguments) == 0
    assert run.main([*arguments, "--limit", "1.15"]) == 0
    assert run.main([*arguments, "--limit", "1.05"]) == 1
    assert "over 1.05: lstm-tiny inference" in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [c.name for c in CASES]
