"""The classifier's scores, gradients and figures against plain computations."""

import numpy as np
import pytest
import torch
from torch import nn

from torchrnn.tools.classify import picture, scores, split, told
from torchrnn.tools.classify.encoded import IGNORED, Batch
from torchrnn.tools.classify.job import class_weights, examine, measured, sums
from torchrnn.tools.classify.learned import Counts, Learned
from torchrnn.tools.classify.model import Classifier
from torchrnn.tools.classify.settings import ClassifySettings

TORCH = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
LENGTHS = torch.tensor([4, 1, 7, 3])


def plain_scores(model, settings, sequence):
    """The scores of one sequence (n,) or (n, I) by torch.nn alone, without padding."""
    weights = {name.removeprefix("recurrent."): value for name, value in model.named_parameters()}
    width = model.recurrent.input_size
    layer = TORCH[settings.cell](width, settings.hidden_size, settings.num_layers, bidirectional=settings.bidirectional)
    x = sequence if sequence.is_floating_point() else weights["embedding.weight"][sequence]
    y, _ = torch.func.functional_call(layer.double(), {name: weights[name] for name, _ in layer.named_parameters()}, x)
    if not model.tagging:
        H = settings.hidden_size
        last = torch.cat((y[-1, :H], y[0, H:]))
        y = {"last": last, "mean": y.mean(0), "max": y.amax(0)}[settings.pool]
    return y @ weights["head.weight"].T + weights["head.bias"]


@pytest.mark.parametrize("pool", ["last", "mean", "max", "tagging"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("tokens", [True, False])
def test_scores_and_gradients_are_those_of_each_sequence_alone(pool, cell, tokens):
    torch.manual_seed(0)
    tagging = pool == "tagging"
    settings = ClassifySettings(
        cell=cell,
        pool="last" if tagging else pool,
        hidden_size=5,
        embedding_size=3,
        num_layers=2,
        bidirectional=pool != "mean",
        dropout=0.0,
    )
    model = Classifier(settings, 4, 6 if tokens else 0, 2, tagging).double()
    values = torch.randint(0, 6, (7, 4)) if tokens else torch.randn(7, 4, 2, dtype=torch.float64)
    valid = torch.arange(7)[:, None] < LENGTHS
    classes = torch.where(valid, torch.randint(0, 4, (7, 4)), IGNORED) if tagging else torch.tensor([0, 3, 1, 1])
    found = sums(model, Batch(values, LENGTHS, classes), 4, None)
    gradients = torch.autograd.grad(torch.as_tensor(found["loss"]), list(model.parameters()))

    loss, right = torch.zeros((), dtype=torch.float64), 0
    for row, n in enumerate(LENGTHS.tolist()):
        wanted = classes[:n, row] if tagging else classes[row : row + 1]
        one = plain_scores(model, settings, values[:n, row]).view(-1, 4)
        loss = loss - one.log_softmax(-1)[range(len(wanted)), wanted].sum()
        right += int((one.argmax(-1) == wanted).sum())
    torch.testing.assert_close(found["loss"], loss, rtol=1e-12, atol=0.0)
    assert found["terms"] == (int(LENGTHS.sum()) if tagging else 4)
    assert int(torch.as_tensor(found["right"]).sum()) == right
    named = zip(model.named_parameters(), gradients, torch.autograd.grad(loss, list(model.parameters())), strict=True)
    for (name, _), ours, theirs in named:
        if name == "embedding.weight":
            theirs = theirs.clone()
            theirs[0] = 0  # unknown tokens stay the zero vector
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=name)


def test_class_weights_make_labels_equal():
    counts = Counts()
    counts.labels[split.TRAINING].update({"a": 6, "b": 2})
    weights = class_weights(counts, ["a", "b"])
    torch.testing.assert_close(weights, torch.tensor([8 / 12, 8 / 4]))
    torch.manual_seed(0)
    model = Classifier(ClassifySettings(hidden_size=3, dropout=0.0), 2, 5, 0, False).double()
    batch = Batch(torch.randint(1, 5, (3, 4)), torch.tensor([3, 3, 3, 3]), torch.tensor([0, 1, 1, 0]))
    found = sums(model, batch, 2, weights.double())
    logs = model(batch.values, batch.lengths).log_softmax(-1)
    expected = torch.stack([-weights[c] * logs[row, c] for row, c in enumerate(batch.classes.tolist())]).sum()
    torch.testing.assert_close(found["loss"], expected, rtol=1e-6, atol=0.0)
    assert float(found["terms"]) == pytest.approx(float(weights[batch.classes].sum()))


def test_the_report_counts():
    true, said = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 0]
    matrix = scores.confusion(np.array(true), np.array(said), 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    rows = scores.report(matrix, list("abcd"))
    got = {row.label: (row.precision, row.recall, row.f1, row.support) for row in rows}
    assert got["a"] == pytest.approx((2 / 3, 2 / 3, 2 / 3, 3))
    assert got["b"] == pytest.approx((1 / 2, 1 / 2, 1 / 2, 2))
    assert got["c"] == (0, 0, 0, 1)
    assert got["d"] == (0, 0, 0, 0)
    figures = {"loss": 3.0, "terms": 6, "right": matrix.diagonal(), "said": matrix.sum(0), "true": matrix.sum(1)}
    assert measured(figures) == pytest.approx({"loss": 0.5, "accuracy": 0.5, "macro_f1": (2 / 3 + 1 / 2 + 0) / 3})


def test_batches_together_are_what_one_is():
    torch.manual_seed(0)
    model = Classifier(ClassifySettings(hidden_size=3, dropout=0.0), 3, 5, 0, False).eval()
    values, classes = torch.randint(1, 5, (4, 6)), torch.tensor([0, 1, 2, 0, 1, 2])
    lengths = torch.tensor([4, 3, 2, 1, 4, 4])
    learned = Learned(["a", "b", "c"])
    whole, matrix = examine(model, iter([Batch(values, lengths, classes)]), learned)
    parts = [Batch(values[:, rows], lengths[rows], classes[rows]) for rows in (slice(0, 1), slice(1, 6))]
    total, same = examine(model, iter(parts), learned)
    np.testing.assert_array_equal(matrix, same)
    assert measured(total) == pytest.approx(measured(whole), rel=1e-6)
    direct = sums(model, Batch(values, lengths, classes), 3, None)
    assert torch.as_tensor(direct["loss"]).item() == pytest.approx(whole["loss"], rel=1e-6)


def overlaps(figure):
    """The texts on a figure's axes that stand on one another or beyond its edge."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    axes = figure.axes[0]
    ticks = []
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, sorted(axes.get_ylim()))):
        ticks += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    texts = [*ticks, axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    edge = figure.bbox
    found = [one for one, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > edge.x1 + 1 or box.y1 > edge.y1 + 1]
    for place, (one, box) in enumerate(boxes):
        found += [f"{one} on {other}" for other, second in boxes[:place] if box.shrunk(0.9, 0.9).overlaps(second)]
    return found


@pytest.mark.parametrize("classes", [2, 3, 12, 25, 40, 41, 300])
def test_nothing_in_the_picture_overlaps(classes):
    rng = np.random.default_rng(0)
    labels = [f"{'class of a rather long name' if n % 3 == 0 else 'class'} {n}" for n in range(classes)]
    matrix = rng.integers(0, 30, (classes, classes)) + np.diag(rng.integers(100, 20_000, classes))
    names = [picture._short(label) for label in labels]
    draw = picture._matrix if classes <= picture.MATRIX else picture._mistakes
    assert overlaps(draw(matrix, names, "validation")) == []
    assert picture.confusion_picture(matrix, labels, "test").startswith(b"\x89PNG")


def test_labels_of_any_text_can_be_drawn_and_printed():
    labels = ["$x$", "a\nb", "[bold]", "é😀"[:1], ":smile:"]
    matrix = np.eye(5, dtype=int)
    assert picture.confusion_picture(matrix, labels, "test")
    lines = told.report_lines(scores.report(matrix, labels))
    assert len(lines) == 6
    assert [line.split()[0] for line in lines[1:]] == ["$x$", "a\\nb", "[bold]", "é", ":smile:"]


def test_of_many_labels_the_worst_are_printed():
    matrix = np.eye(60, dtype=int)
    matrix[7, 8] = 3
    lines = told.report_lines(scores.report(matrix, [f"c{n:02}" for n in range(60)]))
    assert len(lines) == 42
    assert lines[1].startswith("c07")
    assert lines[-1] == "(the 40 of 60 labels with the lowest F1)"
    assert told.report_csv(scores.report(matrix, [f"c{n:02}" for n in range(60)])).count("\n") == 61
