"""Training a job's model on Lightning, and its exact continuation.

A Lightning epoch is a *round*: the steps from one validation to the next. Which batch a step reads follows from its
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
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from torchrnn.tools.runs import checkpoint, together
from torchrnn.tools.runs.errors import AlreadyTold, ToolError
from torchrnn.tools.runs.files import write_file
from torchrnn.tools.runs.job import Job, Share
from torchrnn.tools.runs.record import Record
from torchrnn.tools.runs.runfolder import RunFolder
from torchrnn.tools.runs.sums import Sums
from torchrnn.tools.runs.weights import load_weights, weights_to_bytes

Batch = tuple[int, Any]  # of which step (a validation batch: which in order), and what the job gave for it


class Training(lightning.LightningModule):
    """A model being trained: the model, where it is in its data, and what it has reached."""

    def __init__(self, model: nn.Module, job: Job, folder: RunFolder, share: Share = Share()) -> None:  # noqa: B008
        super().__init__()
        self.model = model
        self.job = job
        self.settings = job.settings
        self.folder = folder
        self.share = share
        self.record = Record()
        self.deadline = math.inf
        self.carried: Any = None
        self.units = 0  # of the job, in this round, by this process
        self._late = False
        self._saved: dict[str, Any] = {}

    # where we are

    @property
    def total_steps(self) -> int:
        """The step at which the run ends if nothing ends it before."""
        by_epochs = self.settings.epochs * self.job.steps_per_epoch
        return min(by_epochs, self.settings.steps or by_epochs)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or too many validations brought nothing better."""
        patience = self.settings.patience
        return self.record.step >= self.total_steps or bool(patience and self.record.stale >= patience)

    def round(self) -> Iterator[Batch]:
        """The batches from here to the next validation."""
        every = self.settings.validate_every
        start = self.record.step
        end = min((start // every + 1) * every, self.total_steps)
        return ((step, self.job.batch(step, self.share)) for step in range(start, end))

    def validation(self) -> Iterator[Batch]:
        """The batches of the validation part."""
        return enumerate(self.job.validation(self.share))

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
            self.carried = _to(together.own_rows(self._saved["carried"], self.share), self.device)
            self._set_random()

    def on_train_epoch_start(self) -> None:
        """A round's figures start from nothing."""
        self._sums = Sums(self.device)
        self.units = 0

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """The learning rate follows from the step's number, so that it needs no state of its own."""
        if self.settings.lr_decay == "cosine":
            rate = self.settings.lr * (1 + math.cos(math.pi * batch[0] / self.total_steps)) / 2
            for optimizer in self.trainer.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss on one batch, from the state that the batch before it left."""
        step, content = batch
        if step % self.job.steps_per_epoch == 0:
            self.carried = None  # the data begin again
        sums: dict[str, Tensor | float] = {"loss": self._nothing(), "terms": 0}
        if content is not None:
            sums, self.carried = self.job.sums(self.model, content, self.carried)
            self.units += self.job.units(content)
        self._sums.add(sums)
        terms = torch.as_tensor(sums["terms"]).detach().to(self.device, torch.float32)
        late = torch.full_like(terms, time.monotonic() >= self.deadline)
        terms, late = together.added(torch.stack([terms, late]), self.share)  # all end at the same step
        self._late = bool(late)
        return torch.as_tensor(sums["loss"]) / terms

    def _nothing(self) -> Tensor:
        """A loss of zero whose gradient is zero, for a process that has no row of a batch."""
        return sum((weight.sum() * 0 for weight in self.model.parameters()), torch.zeros((), device=self.device))

    def on_after_backward(self) -> None:
        """The gradient is that of the whole batch."""
        together.add_gradients(self.model.parameters(), self.share)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Count the step; Lightning validates once more when it is told to stop."""
        self.record.step += 1
        alone_and_late = self.share.world == 1 and time.monotonic() >= self.deadline
        if self.record.step >= self.total_steps or self._late or alone_and_late:
            self.trainer.should_stop = True

    # validation

    def on_validation_epoch_start(self) -> None:
        """The validation part is read from its beginning."""
        self._validation_carried: Any = None
        self._validation_sums = Sums(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add up the figures of one batch."""
        sums, self._validation_carried = self.job.sums(self.model, batch[1], self._validation_carried)
        self._validation_sums.add(sums)

    def on_validation_epoch_end(self) -> None:
        """The end of a round: a row, a checkpoint, and the files derived from it."""
        train = self._measured(self._sums.total(self._sums, self.share))
        validation = self._measured(self._validation_sums.total(self._sums, self.share))
        if not all(math.isfinite(value) for value in (*train.values(), *validation.values())):
            if self.share.rank:
                raise AlreadyTold(ToolError.code)
            raise ToolError(
                f"The loss is no longer a finite number at step {self.record.step:,}: the training diverged. Nothing "
                f"since the last validation was saved. Start again with a lower --lr or a lower --clip."
            )
        self.record.add(self.record.step / self.job.steps_per_epoch, train, validation, self.job.measures[0])
        self._save()
        if self.finished:
            self.trainer.should_stop = True

    def _measured(self, sums: dict[str, float]) -> dict[str, float]:
        found = self.job.measured(sums)
        return {measure.column: found[measure.column] for measure in self.job.measures}

    # keeping and restoring

    def _save(self) -> None:
        """Write a checkpoint of this moment in the first process, from what all of them hold."""
        (optimizer,) = self.trainer.optimizers
        state = {
            "record": self.record.to_dict(),
            "optimizer": optimizer.state_dict(),
            "carried": together.joined_rows(_to(self.carried, torch.device("cpu")), self.share),
            "random": self._random(),
        }
        if self.share.rank == 0:
            self.folder.save(lambda folder: self._write(folder, state))
        together.added(torch.zeros(()), self.share)  # from here on the checkpoint is whole, as all know
        self.folder.beginning = None

    def _write(self, folder: RunFolder, state: dict[str, Any]) -> None:
        weights = weights_to_bytes(self.model)
        checkpoint.save(folder.root, self.record.step, weights, state)
        self.publish(folder, weights)

    def publish(self, folder: RunFolder, weights: bytes) -> None:
        """Write what is derived from the checkpoint with these weights: the best model, and metrics.csv."""
        if self.record.stale == 0:
            write_file(folder.model, weights)
        write_file(folder.metrics, self.record.to_csv(self.job.measures).encode())

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Go back to a checkpoint; the rest of it is put back when Lightning asks for it."""
        load_weights(self.model, saved.weights, saved.path / checkpoint.WEIGHTS)
        try:
            self.record = Record(**saved.state["record"])
            self.record.check(self.job.measures)
            self._saved = {name: saved.state[name] for name in ("optimizer", "carried", "random")}
            for states in self._saved["random"]:
                torch.Generator().set_state(states["cpu"])
            for weight, state in self.configure_optimizers().state.items():
                if any(part.shape not in ((), weight.shape) for part in state.values()):
                    raise ValueError("the optimiser's state is that of another model")
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ToolError(
                f"The checkpoint {saved.path} was not written by this version of torchrnn ({error}). Resume with the "
                f"version in config.toml, or start again with --overwrite."
            ) from error
        if self.share.rank == 0:
            self.publish(self.folder, saved.weights)

    def _random(self) -> list[dict[str, Tensor]]:
        """The random numbers to come, of each process."""
        states = {name: together.of_all(state, self.share) for name, state in _random_state(self.device).items()}
        return [{name: state[rank] for name, state in states.items()} for rank in range(self.share.world)]

    def _set_random(self) -> None:
        states = self._saved["random"]
        if len(states) == self.share.world:
            _set_random_state(states[self.share.rank], self.device)
        else:  # with another number of processes there is no such thing as the same numbers
            seed_share(self.settings.seed, self.record.step, self.share)


def seed_share(seed: int, step: int, share: Share) -> None:
    """Random numbers of its own for each process, from a step on."""
    torch.manual_seed((seed + 1_000_003 * step + 7_919 * (share.rank + 1)) % 2**63)


def fit(training: Training, report: lightning.Callback | None, deadline: float | None) -> None:
    """Train until the run is finished or `deadline` (of time.monotonic) has passed."""
    training.deadline = deadline or math.inf
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its tips are about other products
    world = training.share.world
    devices = together.on_this_machine()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*available but not used.*")  # --device cpu is no mistake
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # between Lightning and torch
        trainer = lightning.Trainer(
            accelerator="gpu" if training.settings.device == "cuda" else training.settings.device,
            devices=devices,
            num_nodes=world // devices,
            strategy=Processes() if world > 1 else "auto",
            precision="bf16-mixed" if training.settings.precision == "bf16" else "32-true",
            max_epochs=-1,
            gradient_clip_val=training.settings.clip or None,
            callbacks=[report] if report else [],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the job gives each process its rows
            plugins=[LightningEnvironment()],  # whatever cluster this is: we know how many processes there are
        )
        try:
            trainer.fit(training, Again(training.round), Again(training.validation))
        except SystemExit as error:  # what Lightning makes of Ctrl-C and of SIGTERM
            raise KeyboardInterrupt from error


class Processes(DDPStrategy):
    """Lightning's, but for the gradients: DDP's mean over the processes is wrong if one has fewer terms than another.

    And it adds them in pieces whose borders it moves after the first step, so a resumed run would round otherwise.
    """

    def configure_ddp(self) -> None:
        """Leave the model as it is; `Training.on_after_backward` adds the gradients."""


class Again:
    """What Lightning iterates over, begun anew each time."""

    def __init__(self, begin: Any) -> None:
        self.begin = begin

    def __iter__(self) -> Iterator[Batch]:
        return self.begin()


def _to(state: Any, device: torch.device) -> Any:
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
