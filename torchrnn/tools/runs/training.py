"""Stateful truncated backpropagation through time on Lightning, and its exact continuation.

A Lightning epoch is a *round*: the steps from one validation to the next. Which chunk a step reads follows from its
number alone, and a checkpoint is written after each validation, so going on after a kill is: load it, start its round.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor
from torch.nn import functional

from torchrnn.tools.runs import checkpoint
from torchrnn.tools.text.model import CharModel, State, bits_per_character, detach, load_weights, weights_to_bytes
from torchrnn.tools.runs.errors import ToolError
from torchrnn.tools.runs.files import write_file
from torchrnn.tools.runs.runfolder import Record, RunFolder
from torchrnn.tools.runs.settings import Settings
from torchrnn.tools.text.corpus import Corpus


class Training(lightning.LightningModule):
    """A character model being trained: the model, where it is in the text, and what it has reached."""

    def __init__(self, model: CharModel, corpus: Corpus, settings: Settings, folder: RunFolder) -> None:
        super().__init__()
        self.model = model
        self.corpus = corpus
        self.settings = settings
        self.folder = folder
        self.record = Record()
        self.deadline = math.inf
        self.carried: State = None
        self._saved: dict[str, Any] = {}

    # where we are

    @property
    def total_steps(self) -> int:
        """The step at which the run ends if nothing ends it before."""
        by_epochs = self.settings.epochs * len(self.corpus.training)
        return min(by_epochs, self.settings.steps or by_epochs)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or too many validations brought nothing better."""
        patience = self.settings.patience
        return self.record.step >= self.total_steps or bool(patience and self.record.stale >= patience)

    def round(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The chunks from here to the next validation."""
        every, chunks = self.settings.validate_every, self.corpus.training
        start = self.record.step
        end = min((start // every + 1) * every, self.total_steps)
        return (chunks[step % len(chunks)] for step in range(start, end))

    # training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as the checkpoint left it."""
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.settings.lr, betas=(0.9, 0.99))
        if self._saved:
            optimizer.load_state_dict(self._saved["optimizer"])
        return optimizer

    def on_train_start(self) -> None:
        """Put back what only exists while training: the carried state and the random numbers to come."""
        if self._saved:
            self.carried = _to(self._saved["carried"], self.device)
            _set_random_state(self._saved["random"], self.device)

    def on_train_epoch_start(self) -> None:
        """A round's loss starts from nothing."""
        self._nats = torch.zeros((), device=self.device)
        self._characters = 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss on one chunk, from the state that the chunk before it left."""
        characters, targets = batch  # (T, B), (T, B)
        if self.record.step % len(self.corpus.training) == 0:
            self.carried = None  # the streams begin again
        scores, state = self.model(characters, self.carried)  # (T, B, V)
        self.carried = detach(state)
        loss = functional.cross_entropy(scores.flatten(0, 1), targets.flatten())
        self._nats += loss.detach() * targets.numel()
        self._characters += targets.numel()
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step; Lightning validates once more when it is told to stop."""
        self.record.step += 1
        if self.record.step >= self.total_steps or time.monotonic() >= self.deadline:
            self.trainer.should_stop = True

    # validation

    def on_validation_epoch_start(self) -> None:
        """The validation text is read from its beginning."""
        self._validation_state: State = None
        self._validation_nats = 0.0
        self._validation_characters = 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add up the loss on one chunk."""
        characters, targets = batch  # (T, B), (T, B)
        scores, self._validation_state = self.model(characters, self._validation_state)  # (T, B, V)
        loss = functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum")
        self._validation_nats += loss.item()
        self._validation_characters += targets.numel()

    def on_validation_epoch_end(self) -> None:
        """The end of a round: a row, a checkpoint, and the files derived from it."""
        train = bits_per_character(self._nats.item(), self._characters)
        validation = bits_per_character(self._validation_nats, self._validation_characters)
        if not (math.isfinite(train) and math.isfinite(validation)):
            raise ToolError(
                f"The loss is no longer a finite number at step {self.record.step:,}: the training diverged. Nothing "
                f"since the last validation was saved. Start again with a lower --lr or a lower --clip."
            )
        self.record.add(self.record.step / len(self.corpus.training), train, validation)
        self.folder.save(self.save)
        if self.finished:
            self.trainer.should_stop = True

    # keeping and restoring

    def _state(self) -> dict[str, Any]:
        (optimizer,) = self.trainer.optimizers
        return {
            "record": self.record.to_dict(),
            "optimizer": optimizer.state_dict(),
            "carried": _to(self.carried, torch.device("cpu")),
            "random": _random_state(self.device),
        }

    def save(self, folder: RunFolder) -> None:
        """Write a checkpoint of this moment, and what is derived from it."""
        weights = weights_to_bytes(self.model)
        checkpoint.save(folder.root, self.record.step, weights, self._state())
        self.publish(folder, weights)

    def publish(self, folder: RunFolder, weights: bytes) -> None:
        """Write what is derived from the checkpoint with these weights: the best model, and metrics.csv."""
        if self.record.stale == 0:
            write_file(folder.model, weights)
        folder.write_metrics(self.record)

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Go back to a checkpoint; the rest of it is put back when Lightning asks for it."""
        load_weights(self.model, saved.weights, saved.path / checkpoint.WEIGHTS)
        try:
            self.record = Record(**saved.state["record"])
            self._saved = {name: saved.state[name] for name in ("optimizer", "carried", "random")}
        except (KeyError, TypeError) as error:
            raise ToolError(
                f"The checkpoint {saved.path} was not written by this version of torchrnn ({error}). Resume with the "
                f"version in config.toml, or start again with --overwrite."
            ) from error
        self.publish(self.folder, saved.weights)


def fit(training: Training, report: lightning.Callback, deadline: float | None) -> None:
    """Train until the run is finished or `deadline` (of time.monotonic) has passed."""
    training.deadline = deadline or math.inf
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its tips are about other products
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*available but not used.*")  # --device cpu is no mistake
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # between Lightning and torch
        trainer = lightning.Trainer(
            accelerator={"cuda": "gpu"}.get(training.settings.device, training.settings.device),
            devices=1,
            max_epochs=-1,
            gradient_clip_val=training.settings.clip or None,
            callbacks=[report],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            plugins=[LightningEnvironment()],  # one process, whatever cluster this is
        )
        try:
            trainer.fit(training, Rounds(training), training.corpus.validation)
        except SystemExit as error:  # what Lightning makes of Ctrl-C and of SIGTERM
            raise KeyboardInterrupt from error


class Rounds:
    """What Lightning iterates over, once a round."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.training.round()


def _to(state: State, device: torch.device) -> State:
    if isinstance(state, tuple):
        return tuple(part.detach().clone().to(device) for part in state)
    return None if state is None else state.detach().clone().to(device)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        states[device.type] = getattr(torch, device.type).get_rng_state()
    return states


def _set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type in states and device.type != "cpu":  # a run that moved to another device begins a new sequence there
        getattr(torch, device.type).set_rng_state(states[device.type])
