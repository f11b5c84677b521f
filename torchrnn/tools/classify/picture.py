"""The picture of a confusion matrix; of many classes, the most frequent mistakes."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MATRIX = 40  # classes that fit side by side
NUMBERS = 25  # with so many classes there is room for the counts
MISTAKES = 30


def confusion_picture(matrix: np.ndarray, labels: list[str], part: str) -> bytes:
    """A PNG."""
    names = [_short(label) for label in labels]
    figure = _matrix(matrix, names, part) if len(labels) <= MATRIX else _mistakes(matrix, names, part)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    return data.getvalue()


def _short(label: str, length: int = 22) -> str:
    label = "".join(character if character.isprintable() else "?" for character in label)
    half = length // 2
    if len(label) > length:  # what tells labels apart is often at the end
        label = f"{label[: length - half]}…{label[-half + 1 :]}"
    return label.replace("$", r"\$")  # a dollar would begin a formula


def _matrix(matrix: np.ndarray, names: list[str], part: str) -> Figure:
    classes = len(names)
    side = max(4.2, 0.34 * classes + 2.2)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes: Axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 9 if classes <= NUMBERS else 7
    axes.set_xticks(range(classes), names, rotation=90, fontsize=size)
    axes.set_yticks(range(classes), names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    right = matrix.trace() / max(matrix.sum(), 1)
    axes.set_title(f"{part} part: {right:.1%} of {matrix.sum():,} right", fontsize=11)
    if classes <= NUMBERS:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            color = "white" if shares[row, column] > 0.55 else "black"
            count = int(matrix[row, column])
            axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=_fit(count), color=color)
    figure.colorbar(image, ax=axes, label="share of the true label", shrink=0.8)
    return figure


def _fit(count: int) -> float:
    """The size of a number that stays in its square."""
    return {1: 8, 2: 8, 3: 7, 4: 6}.get(len(str(count)), 4.5)


def _mistakes(matrix: np.ndarray, names: list[str], part: str) -> Figure:
    wrong = matrix - np.diag(matrix.diagonal())
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:MISTAKES]
    pairs = [divmod(int(place), len(names)) for place in order if wrong.flat[place]]
    figure = Figure(figsize=(8, max(2.5, 0.27 * len(pairs) + 1.4)), layout="constrained")
    axes: Axes = figure.add_subplot()
    axes.barh(range(len(pairs)), [int(wrong[pair]) for pair in pairs], color="tab:blue")
    axes.set_yticks(range(len(pairs)), [f"{names[true]} → {names[said]}" for true, said in pairs], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("how often")
    axes.set_ylabel("true → predicted")
    axes.set_title(
        f"{part} part: {matrix.trace() / max(matrix.sum(), 1):.1%} of {matrix.sum():,} right\n"
        f"the most frequent mistakes ({len(names)} labels)",
        fontsize=10,
    )
    return figure
