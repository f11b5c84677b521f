"""The picture of a run: its loss curve."""

import io

from matplotlib.figure import Figure

from torchrnn.tools.runs.files import write_file
from torchrnn.tools.runs.runfolder import Record, RunFolder


def write_loss_curve(folder: RunFolder, record: Record) -> None:
    """Draw the bits per character of every validation, and mark the best."""
    steps = [row["step"] for row in record.rows]
    figure = Figure(figsize=(7, 4.2), layout="constrained")  # no pyplot: no window system, no global state
    axes = figure.add_subplot()
    axes.plot(steps, [row["train_bpc"] for row in record.rows], marker=".", label="training text (with dropout)")
    axes.plot(steps, [row["validation_bpc"] for row in record.rows], marker=".", label="validation text")
    best = min(record.rows, key=lambda row: row["validation_bpc"])
    label = f"best: {best['validation_bpc']:.3f}"
    axes.plot(best["step"], best["validation_bpc"], "o", color="black", fillstyle="none", markersize=9, label=label)
    axes.set_xlabel("training step")
    axes.set_ylabel("bits per character")
    axes.grid(alpha=0.3)
    axes.legend()
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    write_file(folder.plot, data.getvalue())
