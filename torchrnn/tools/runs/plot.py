"""The picture of a run: its curves."""

import io

from matplotlib.figure import Figure

from torchrnn.tools.runs.files import write_file
from torchrnn.tools.runs.job import Job
from torchrnn.tools.runs.record import Record
from torchrnn.tools.runs.runfolder import RunFolder


def write_loss_curve(folder: RunFolder, record: Record, job: Job) -> None:
    """Draw the first measure of every validation, the one that decides, and mark the best."""
    measure = job.measures[0]
    steps = [row["step"] for row in record.rows]
    figure = Figure(figsize=(7, 4.2), layout="constrained")  # no pyplot: no window system, no global state
    axes = figure.add_subplot()
    during = "training (with dropout)" if job.settings.dropout else "training"
    for part, label in (("train", during), ("validation", "validation")):
        axes.plot(steps, [row[f"{part}_{measure.column}"] for row in record.rows], marker=".", label=label)
    best = record.best_row(measure)
    value = best[f"validation_{measure.column}"]
    label = f"best: {measure.told(value)}"
    axes.plot(best["step"], value, "o", color="black", fillstyle="none", markersize=9, label=label)
    axes.set_xlabel("training step")
    axes.set_ylabel(measure.title)
    axes.grid(alpha=0.3)
    axes.legend()
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    write_file(folder.plot, data.getvalue())
