"""Classification as a job: its batches, its loss, its figures, and the test at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from torchrnn.tools.classify import scores, split, survey, told
from torchrnn.tools.classify.data import Data
from torchrnn.tools.classify.encoded import IGNORED, Batch
from torchrnn.tools.classify.learned import Counts, Learned, learn
from torchrnn.tools.classify.model import Classifier
from torchrnn.tools.classify.settings import ClassifySettings
from torchrnn.tools.runs.errors import ToolError, UsageError
from torchrnn.tools.runs.job import Job, Measure, Share
from torchrnn.tools.runs.runfolder import RunFolder


class ClassifyJob(Job):
    """Sequences with a label each, or one at each step, and the model that says it."""

    name = "classify"
    settings_class = ClassifySettings
    measures = (
        Measure("loss", "nats a label", form=".4f"),
        Measure("accuracy", "accuracy", best="max", form=".4f"),
        Measure("macro_f1", "macro F1", best="max", form=".4f"),
    )
    unit = "rows"
    leaves = ("confusion.png", "confusion.csv", "report.csv")

    def __init__(self, data: Data, counts: Counts, settings: ClassifySettings) -> None:
        self.data, self.counts, self.settings = data, counts, settings
        self.tagging = data.sources[0].reader.tagging
        self.weights = class_weights(counts, data.learned.labels) if settings.class_weights == "balanced" else None

    @classmethod
    def prepare(cls, files: Sequence[Path], settings: ClassifySettings) -> ClassifyJob:
        """A new run's tables: read, checked, split."""
        settings.check_columns()
        found = survey.sources(files, settings)
        learned, counts = learn(found, settings)
        return cls(Data(found, learned, settings), counts, settings)

    @classmethod
    def again(cls, files: Sequence[Path], settings: ClassifySettings, data: dict[str, Any]) -> ClassifyJob:
        """The same tables again."""
        job = cls.prepare(files, settings)
        if job.digest != data.get("sha256"):
            raise UsageError(
                f"--resume goes on with the data of the run, and this is another: {' '.join(map(str, job.data.files))} "
                f"has changed. Name the FILE with those data, or start a new run with --overwrite."
            )
        learned, before = job.data.learned, Learned.from_dict(data)
        if (learned.labels, learned.to_dict().get("vocabulary")) != (before.labels, data.get("vocabulary")):
            raise ToolError(
                "config.toml of the run was changed by hand: labels or vocabulary are not those of its data. Bring it "
                "back from a copy, or start the run again with --overwrite."
            )
        return job

    @classmethod
    def check(cls, settings: ClassifySettings, data: dict[str, Any]) -> None:
        """Labels, and tokens or scales for each column."""
        super().check(settings, data)
        settings.check_columns()
        learned = Learned.read(data)
        if bool(learned.vocabulary) == bool(settings.steps_columns):
            raise ValueError("a vocabulary is for --text, mean and deviation are for --steps-columns")
        if not learned.vocabulary and len(learned.mean) != len(settings.steps_columns):
            raise ValueError("mean and deviation must hold a number for each of --steps-columns")

    @property
    def digest(self) -> str:
        """The SHA-256 of the SHA-256 of all files."""
        return hashlib.sha256("".join(source.table.digest for source in self.data.sources).encode()).hexdigest()

    def remember(self) -> dict[str, Any]:
        """The digest, the labels, the tokens or the scale."""
        return {"sha256": self.digest, "tagging": self.tagging, **self.data.learned.to_dict()}

    def understood(self) -> list[str]:
        """Columns, labels, lengths, parts, and the first row as the model reads it."""
        return told.understood(self.data, self.counts)

    # training

    @property
    def steps_per_epoch(self) -> int:
        """The batches of the training part."""
        return self.data.order.steps

    def batch(self, step: int, share: Share) -> Batch | None:
        """Sequences of similar length."""
        return self.data.training(step, share.rows)

    def units(self, batch: Batch | None) -> int:
        """Its sequences."""
        return len(batch.lengths) if batch else 0

    def validation(self, share: Share) -> Iterator[Batch]:
        """The validation part, by length."""
        return self.data.part(split.VALIDATION).in_order(self.settings.batch_size, share.rank, share.world)

    @classmethod
    def build(cls, settings: ClassifySettings, data: dict[str, Any]) -> Classifier:
        """The model of a run, with fresh weights."""
        return Classifier.of(settings, Learned.from_dict(data), bool(data.get("tagging")))

    def sums(self, model: nn.Module, batch: Batch, carried: Any) -> tuple[dict[str, Tensor | float], None]:
        """The cross-entropy, and by class how many were right, said and true."""
        weights = self.weights if model.training else None
        return sums(model, batch, len(self.data.learned.labels), weights), None

    def measured(self, sums: dict[str, Any]) -> dict[str, float]:
        """Loss, accuracy and macro F1."""
        return measured(sums)

    # afterwards

    def finish(self, folder: RunFolder, model: nn.Module) -> list[str]:
        """The test part, or if there is none the validation part: figures, report, pictures."""
        part = split.TEST if self.data.part(split.TEST).count else split.VALIDATION
        total, matrix = examine(model, self.data.part(part).in_order(self.settings.batch_size), self.data.learned)
        return told.results(folder, split.PARTS[part], measured(total), matrix, self.data.learned.labels)

    @classmethod
    def evaluate(cls, model: nn.Module, files: Sequence[Path], settings: ClassifySettings, data: dict[str, Any]) -> str:
        """The figures on other tables with the columns of the training."""
        from torchrnn.tools.classify.using import batches

        learned = Learned.from_dict(data)
        found = (batch for file in files for batch in batches(file, settings, learned, bool(data.get("tagging"))))
        total, matrix = examine(model, found, learned)
        return "\n".join(told.figures("data", measured(total), matrix, learned.labels))

    @classmethod
    def predict(
        cls, model: nn.Module, file: Path, settings: ClassifySettings, data: dict[str, Any], out: Path | None, top: int
    ) -> str:
        """The rows of a table with the label that the model gives each, and its probability."""
        from torchrnn.tools.classify.using import predict

        return predict(model, file, settings, Learned.from_dict(data), bool(data.get("tagging")), out, top)


def class_weights(counts: Counts, labels: list[str]) -> Tensor:
    """N / (C · n_c): each class counts as much as any other, and the mean over the training part is 1."""
    found = torch.tensor([counts.labels[split.TRAINING][label] for label in labels], dtype=torch.float32)
    return found.sum() / (len(labels) * found)


def sums(model: nn.Module, batch: Batch, classes: int, weights: Tensor | None) -> dict[str, Tensor | float]:
    """What a batch adds to the figures."""
    values, lengths, wanted = batch
    scores = model(values, lengths).flatten(0, -2)  # (B or T·B, C)
    wanted = wanted.flatten()
    if weights is not None:
        weights = weights.to(scores.device)
    loss = functional.cross_entropy(scores, wanted, weights, reduction="sum", ignore_index=IGNORED)
    valid = wanted != IGNORED
    true, said = wanted[valid], scores.detach()[valid].argmax(-1)
    terms = len(true) if weights is None else weights[true].sum()
    return {
        "loss": loss,
        "terms": terms,
        "right": torch.bincount(true[true == said], minlength=classes),
        "said": torch.bincount(said, minlength=classes),
        "true": torch.bincount(true, minlength=classes),
    }


def measured(sums: dict[str, Any]) -> dict[str, float]:
    """Loss, accuracy and macro F1."""
    right, said, true = (np.array(sums[name], dtype=float) for name in ("right", "said", "true"))
    return {
        "loss": sums["loss"] / sums["terms"],
        "accuracy": float(right.sum() / true.sum()),
        "macro_f1": scores.macro_f1(right, said, true),
    }


def examine(model: nn.Module, batches: Iterator[Batch], learned: Learned) -> tuple[dict[str, Any], np.ndarray]:
    """The sums over batches, and the confusion matrix."""
    classes = len(learned.labels)
    matrix = np.zeros((classes, classes), dtype=np.int64)
    total: dict[str, Any] = {}
    device = next(model.parameters()).device
    with torch.inference_mode():
        for values, lengths, wanted in batches:
            found = model(values.to(device), lengths).flatten(0, -2).cpu()
            wanted = wanted.flatten()
            valid = wanted != IGNORED
            true, said = wanted[valid], found[valid].argmax(-1)
            loss = functional.cross_entropy(found[valid].double(), true, reduction="sum").item()
            total["loss"] = total.get("loss", 0.0) + loss
            total["terms"] = total.get("terms", 0) + len(true)
            matrix += scores.confusion(true.numpy(), said.numpy(), classes)
    total |= {"right": matrix.diagonal(), "said": matrix.sum(0), "true": matrix.sum(1)}
    return total, matrix
