"""The benchmarks measure what they say: their cases, the check before the clock, the ratios, one run end to end."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

import torchrnn
from benchmarks import measure, phases, report, run, targets
from benchmarks.cases import GATES, Case
from benchmarks.grid import FULL, QUICK, SEQUENCES, select
from benchmarks.measure import How, Ratio, Row
from benchmarks.rivals import RIVALS, installed
from benchmarks.subjects import Work, ours, torch_nn
from torchrnn import _extension

TINY = next(c for c in QUICK if c.name == "lstm-tiny")
ONCE = How(rounds=1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the benchmarks run; two threads on a busy machine wait for each other for seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_names_are_unique_and_the_grids_are_whole() -> None:
    assert len({c.name for c in FULL}) == len(FULL)
    assert set(QUICK) < set(FULL)
    assert len(QUICK) >= 20
    for kind in GATES:
        layers = [c for c in QUICK if c.kind == kind]
        assert any(c.T == c.B == 1 and c.states for c in layers)
        assert any(c.batch_first for c in layers)
        assert any(c.bidirectional and c.L == 2 for c in layers)
        assert any(c.packed for c in layers)
        assert {c.B for c in QUICK if c.kind == f"{kind}Cell"} == {1, 32}
        layers = [c for c in FULL if c.kind == kind]
        assert {(100, 32, 128, 256, False), (100, 32, 128, 256, True)} <= {
            (c.T, c.B, c.I, c.H, c.lengths) for c in layers
        }
        assert {5, 1000, 5000} <= {c.T for c in layers}
        assert any(c.steps == 60 for c in FULL if c.kind == f"{kind}Cell")
    assert sum("-" in c.name for c in FULL if c not in QUICK) > 40


SMALL = [c._replace(T=min(c.T, 6), steps=min(c.steps, 3), I=7, H=5, B=min(c.B, 5)) for c in FULL]


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_case_is_well_formed(case: Case) -> None:
    """At small sizes: the shapes are what the fields say, torch.nn takes them, and we give the same."""
    inputs = case.inputs(torch.Generator().manual_seed(0))
    again = case.inputs(torch.Generator().manual_seed(0))
    x = inputs[0]
    loop = (case.steps,) if case.steps > 1 else ()
    if case.is_cell:
        assert case.T == 0
        assert x.shape == (*loop, case.B, case.I)
        assert len(inputs) == 2
    elif case.packed:
        assert isinstance(x, PackedSequence)
        assert len(x.batch_sizes) == case.T
        assert x.batch_sizes[0] == case.B
        assert x.batch_sizes[-1] < case.B
        assert torch.equal(x.data, again[0].data)
    else:
        assert x.shape == (*loop, *((case.B, case.T) if case.batch_first else (case.T, case.B)), case.I)
        assert torch.equal(x, again[0])
        assert len(inputs) == 1 + case.states
    work = measure.prepare(case, training="training" in case.modes)
    assert list(work) == ["torchrnn", "torch.nn", *(["beside"] if case.by_hand else [])]


def test_what_is_done_by_hand() -> None:
    """Each thing for each layer in both sizes, and what its flags say."""
    for kind in GATES:
        own = [c for c in SEQUENCES if c.kind == kind]
        for by_hand in ("lengths", "holes", "left", "resets", "all"):
            assert {(c.T, c.B, c.H) for c in own if c.by_hand == by_hand} == {(64, 8, 128), (128, 32, 128)}
        assert [(c.T, c.B, c.H, c.modes) for c in own if c.by_hand == "stream"] == [(1000, 1, 128, ("inference",))]
    assert set(SEQUENCES) < set(FULL)
    (resets,) = select("lstm-resets128")
    assert resets.flags().shape == (128, 32)
    assert resets.flags().float().mean() == pytest.approx(0.03, abs=0.005)
    assert resets.flops(training=False) == resets._replace(by_hand="").flops(training=False)
    (left,) = select("lstm-left64")
    assert torch.equal(left.flags().sum(0), left.row_lengths())
    assert torch.equal(left.flags(), left.flags().cummax(0).values)  # once a row has begun it goes on
    assert left.flags().sum(0).min() == 6
    (holes,) = select("gru-holes64")
    assert holes.flags().float().mean() == pytest.approx(0.75, abs=0.05)
    assert (holes.flags().int().diff(dim=0) == 1).any(0).all()  # no right padding in any row


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("by_hand", ["holes", "left", "resets", "all"])
def test_by_hand_returns_every_gradient(kind: str, by_hand: str) -> None:
    """Of the input and the layer's own weights, none of them nought: it is their loop that is timed."""
    case = select(f"{kind.lower()}-{by_hand}64")[0]._replace(T=9, B=3, I=4, H=5)
    model = measure.module(case)
    work = torch_nn(case, model, case.inputs(torch.Generator().manual_seed(0)), True)
    results = work.run()
    assert all(g.abs().max() > 0 for g in results[-5:])
    states = 2 if kind == "LSTM" else 1
    extra = states + {"RNN": 1, "LSTM": 4, "GRU": 3}[kind] if by_hand == "all" else 0
    assert len(results) == 1 + states + extra + 5


def test_beside_a_case_is_the_same_call_without_the_argument() -> None:
    """It is timed, its answers are not compared, and it is nobody's rival."""
    row = measure.measure(select("rnn-resets64")[0]._replace(T=6, B=2, I=3, H=4), "inference", ONCE)
    assert list(row.microseconds) == ["torchrnn", "torch.nn", "beside"]
    assert row.ratios["beside"].median > 0
    assert row.best_rival() is None
    assert "beside" in report.line(row)
    assert "| beside |" in report.markdown([row])
    assert list(report.geometric_means([row])) == [
        ("RNN resets", "inference", "torch.nn"),
        ("RNN resets", "inference", "beside"),
    ]


def test_a_stream_is_for_inference() -> None:
    assert [mode for _, mode in run._each(select("lstm-stream"), "both")] == ["inference"]
    assert list(run._each(select("lstm-stream"), "training")) == []


def test_lengths_are_even() -> None:
    for case in FULL:
        lengths = case.row_lengths()
        assert lengths.shape == (case.B,)
        if case.by_hand == "holes":
            assert torch.equal(lengths, case.flags().sum(0))
        elif case.lengths or case.packed or case.by_hand == "left":
            assert lengths.max() == case.T
            assert lengths.min() == max(1, case.T // 10)
            assert lengths.double().mean() == pytest.approx(0.55 * case.T, rel=0.04)
            assert torch.equal(lengths, lengths.sort(descending=True).values) == case.packed
        else:
            assert set(lengths.tolist()) == {max(1, case.T)}


def test_flops() -> None:
    case = Case("a", "LSTM", T=3, B=2, I=5, H=7)
    once = 2 * 4 * 7 * (5 + 7) * 6
    assert case.flops(training=False) == once
    assert case.flops(training=True) == 3 * once
    assert case._replace(bidirectional=True, L=2).flops(training=False) == 2 * (once + 2 * 4 * 7 * (14 + 7) * 6)
    assert case._replace(T=10, lengths=True).flops(training=False) == once / 6 * 11
    assert Case("b", "GRUCell", T=0, B=2, I=5, H=7, steps=9).flops(training=False) == 2 * 3 * 7 * 12 * 18


def test_select() -> None:
    assert [c.name for c in select("lstm-tiny, *cell-b32")] == [
        "lstm-tiny",
        "rnncell-b32",
        "lstmcell-b32",
        "grucell-b32",
    ]
    assert select("*") == list(QUICK)
    assert select("*", "full") == list(FULL)
    assert [c.name for c in select("lstm-ptb")] == ["lstm-ptb"]  # spelt out, though not in the quick grid
    with pytest.raises(ValueError, match=r"no case matches 'nothing'; there are rnn-tiny, .*"):
        select("nothing")


@pytest.mark.parametrize("name", ["rnn-packed", "gru-bi2", "lstm-onestep", "lstmcell-b1", "rnncell-loop60"])
def test_training_returns_every_gradient(name: str) -> None:
    """Outputs and states, then a gradient for each floating input and each weight, by the same upstream gradients."""
    (case,) = select(name)
    positional, options = case.arguments()
    model = getattr(torch.nn, case.kind)(*positional, **options)
    inputs = case.inputs(torch.Generator().manual_seed(0))
    works = [subject(case, model, inputs, True) for subject in (torch_nn, ours)]
    results = [work.read(work.run()) for work in works]
    states = 2 if case.kind.startswith("LSTM") else 1
    given = 1 + (states if case.states or case.is_cell else 0)
    outputs = states + (not case.is_cell or case.steps > 1)
    assert len(results[0]) == outputs + given + len(list(model.parameters()))
    measure.check(name, results[1], results[0])
    assert all(g is not None and g.abs().max() > 0 for g in results[1])


def spoil(wrong: str) -> Any:
    def subject(*arguments: Any) -> Work:
        work = torch_nn(*arguments)

        def spoilt() -> list[torch.Tensor]:
            results = [t.detach().clone() for t in work.run()]
            if wrong == "shape":
                return [results[0][:-1], *results[1:]]
            if wrong == "fewer":
                return results[:-1]
            results[-1 if wrong == "last" else 0].view(-1)[-1] += float("nan") if wrong == "nan" else 1e-3
            return results

        return Work(spoilt)

    return subject


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("wrong", ["value", "nan", "shape", "fewer", "last"])
def test_a_wrong_answer_of_ours_stops_the_run(monkeypatch: pytest.MonkeyPatch, training: bool, wrong: str) -> None:
    monkeypatch.setattr(measure, "ours", spoil(wrong))
    with pytest.raises(measure.WrongAnswer, match="lstm-tiny: torchrnn"):
        measure.measure(TINY, "training" if training else "inference", ONCE)


def test_a_wrong_answer_of_a_rival_leaves_it_out(capsys: pytest.CaptureFixture[str]) -> None:
    row = measure.measure(TINY, "training", ONCE, {"spoilt": spoil("last"), "unable": lambda *_: None})
    assert list(row.microseconds) == ["torchrnn", "torch.nn"]
    assert "left out: spoilt of lstm-tiny: WrongAnswer: " in capsys.readouterr().err


def test_ratios() -> None:
    assert measure.ratio([2.0] * 11, [2.0] * 5 + [1.0] * 5 + [0.25]) == (2.0, 1.0, 2.0)
    assert measure.ratio([3.0], [1.0]) == (3.0, 3.0, 3.0)
    rows = [Row(TINY, "training", {}, {"torch.nn": Ratio(m, m, m)}) for m in (0.5, 2.0, 8.0)]
    assert report.geometric_means(rows) == {("LSTM", "training", "torch.nn"): pytest.approx(2.0)}
    assert math.isnan(measure.geometric_mean([]))


def test_the_best_rival_is_the_fastest_but_torch() -> None:
    ratios = {name: Ratio(m, m, m) for name, m in {"torch.nn": 3.0, "a": 0.5, "b": 0.9}.items()}
    assert Row(TINY, "training", {}, ratios).best_rival() == "b"
    assert Row(TINY, "training", {}, {"torch.nn": ratios["torch.nn"]}).best_rival() is None


def test_ratio_is_ours_over_theirs() -> None:
    def slow(*arguments: Any) -> Work:
        work = torch_nn(*arguments)
        return Work(lambda: [work.run() for _ in range(20)].pop())

    row = measure.measure(TINY, "inference", How(rounds=3), {"slow": slow})
    assert row.ratios["slow"].median < row.ratios["torch.nn"].median / 3
    assert row.microseconds["slow"] > row.microseconds["torchrnn"]
    assert row.sgemm > 0.1


def test_rounds_stop_after_a_time() -> None:
    times = measure.alternate({"a": lambda: None}, How(rounds=10**6, seconds=0.01))
    assert 5 <= len(times["a"]) < 10**5


@pytest.mark.parametrize("rival", ["flax", "equinox", "keras", "onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", GATES)
def test_rival_gives_the_same(rival: str, kind: str) -> None:
    """Every gate in its place, in two stacked directions, with states; where the library is installed."""
    if rival not in installed():
        pytest.skip(f"{rival} is not installed")
    case = Case("a", kind, T=3, B=2, I=3, H=4, L=2, bidirectional=True, batch_first=True, states=True)
    assert rival in measure.prepare(case, training=False, rivals=installed()) or (rival, kind) == ("equinox", "RNN")


def test_an_absent_rival_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "installed", dict)
    assert list(run._rivals("all")) == list(run._rivals("none")) == list(RIVALS)
    with pytest.raises(ValueError, match=r"not installed: flax; there are none \(torchrnn\[bench\]\)"):
        run._rivals("flax")


@pytest.mark.parametrize("backend", ["aten", "reference"])
def test_backend_is_forced_on_ours(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    ran = []
    for name in ("aten", "reference"):
        module = importlib.import_module(f"torchrnn.backends.{name}")
        monkeypatch.setattr(module, "run", lambda call, name=name, run=module.run: (ran.append(name), run(call))[1])
    measure.measure(TINY, "inference", How(1, backend=backend))
    assert set(ran) == {backend}


def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, table = tmp_path / "result.json", tmp_path / "table.md"
    assert run.main(["--cases", "gru-tiny", "--rounds", "3", "--json", str(file), "--markdown", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "torchrnn µs" in printed
    assert printed.count("\ngru-tiny") == 2
    assert table.read_text().count("| gru-tiny |") == 1
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
        assert set(row["microseconds"]) == set(row["gflops"]) == {"torchrnn", "torch.nn"}
        assert row["sgemm"] > 0
    assert {(m["kind"], m["mode"], m["rival"]) for m in result["geometric_means"]} == {
        ("GRU", "inference", "torch.nn"),
        ("GRU", "training", "torch.nn"),
    }


def measured(ratio: float) -> Row:
    ratios = {"torch.nn": Ratio(ratio, 1.0, 1.2), "flax": Ratio(0.5, 0.4, 0.6)}
    return Row(TINY, "inference", {"torchrnn": ratio, "torch.nn": 1.0, "flax": 2.0}, ratios, 100.0)


def test_limit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(run, "measure", lambda *_: measured(1.1))
    arguments = ["--cases", "lstm-tiny", "--mode", "inference"]
    assert run.main(arguments) == 0
    assert run.main([*arguments, "--limit", "1.15"]) == 0
    assert run.main([*arguments, "--limit", "1.05"]) == 1
    assert "over 1.05: lstm-tiny inference" in capsys.readouterr().err


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "picture.png"
    report.picture([measured(0.4), measured(1.4)._replace(mode="training")], file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_targets_answer_honestly() -> None:
    found = list(targets._against_torch([measured(0.5), measured(1.1)])) + list(
        targets._against_rivals([measured(1.1)])
    )
    answers = [(t.number, round(t.value, 2), t.met) for t in found if not math.isnan(t.value)]
    assert answers == [(1, 1.35, False), (1, 0.91, False), (2, 2.0, True), (2, 2.0, True)]
    assert "not measured" in str(found[0])
    assert not found[0].met
    assert "lstm-tiny inference (torch.nn); 1 of 2 below" in str(found[4])


def test_floats_kept() -> None:
    """What the equations of torch's LSTM are known to keep: more than the inputs, once a storage."""
    case = Case("a", "RNN", T=4, B=2, I=3, H=5, states=True)
    assert targets._floats_kept(torch.nn.RNN(3, 5), case) >= 4 * 2 * 5
    assert targets._floats_kept(torch.nn.Identity(), case._replace(states=False)) == 0


@pytest.mark.skipif(_extension.missing() is not None, reason="only our kernels count their phases")
def test_profile(capsys: pytest.CaptureFixture[str]) -> None:
    """Every phase of a training step, and none of backward's in inference; with the overhead they are the whole."""
    arguments = ["--profile", "--cases", "gru-bi2", "--rounds", "3"]
    assert run.main(arguments) == 0
    inference, training = capsys.readouterr().out.split("gru-bi2")[1:]
    for phase in torch.ops.torchrnn.phases().split(","):
        assert phase in training
        assert (phase in inference) == (phase in ("packing", "x-part", "sweep forward"))
    found = phases.profile(select("lstm-medium")[0], "training", How(rounds=3))
    assert list(found.phases) == [*torch.ops.torchrnn.phases().split(","), "overhead"]
    assert sum(found.phases.values()) == pytest.approx(found.wall)
    assert min(found.phases.values()) > 0
    assert found.phases["overhead"] < found.wall / 2
    with pytest.raises(RuntimeError, match=r"--profile counts one thread, got --threads 2"):
        run.main([*arguments, "--threads", "2"])


@pytest.mark.skipif(_extension.missing() is not None, reason="only our kernels count their phases")
def test_phases_are_counted_while_somebody_asks() -> None:
    """In this thread alone, where torch has no other; each reading starts anew."""
    layer, x = torchrnn.LSTM(8, 16), torch.randn(50, 8, 8)
    count = torch.ops.torchrnn.count_phases
    count(False)
    layer(x)
    assert count(True) == [0.0] * 6
    thread = threading.Thread(target=layer, args=(x,))
    thread.start()
    thread.join()
    assert count(True) == [0.0] * 6
    torch.set_num_threads(2)
    layer(x)
    torch.set_num_threads(1)
    assert count(True) == [0.0] * 6
    layer(x)
    seconds = count(False)
    assert all(s > 0 for s in seconds[:3])
    assert seconds[3:] == [0.0] * 3
    layer(x)
    assert count(False) == [0.0] * 6


def test_sequences_are_no_part_of_the_first_promises() -> None:
    row = measured(0.5)
    by_hand = row._replace(case=select("lstm-holes64")[0])
    found = itertools.islice(targets.targets([row, by_hand], ONCE), 7)
    assert [t.what.split(": ")[1] for t in found if t.what.startswith("LSTM") and t.what.endswith("cases")] == [
        "times torch.nn's speed, 0 cases",
        "times torch.nn's speed, 1 cases",
    ]


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [c.name for c in QUICK]
