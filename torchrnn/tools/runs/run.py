"""One run of `torchrnn train`, from its arguments to its last lines."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from torchrnn.tools.runs import checkpoint
from torchrnn.tools.text import corpus as text
from torchrnn.tools.text.model import CharModel
from torchrnn.tools.runs.errors import Mishap, Stopped, ToolError, UsageError, explain_memory
from torchrnn.tools.runs.files import write_file
from torchrnn.tools.runs.runfolder import RunFolder
from torchrnn.tools.runs.settings import CHANGEABLE, Config, Settings, check_threads, option


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    files: list[Path]
    run: Path | None
    resume: bool
    overwrite: bool
    time_limit: float | None  # seconds
    given: dict[str, Any]  # the settings that were written out
    command: str

    @property
    def folder(self) -> RunFolder:
        """The folder named with --run, or runs/<name of the first FILE>."""
        return RunFolder(self.run or Path("runs") / (self.files[0].stem if self.files else "python-docs"))


def train(request: Request, console: Console) -> str:
    """Train as requested, showing progress on `console`; return the last lines, which say what was reached."""
    deadline = None if request.time_limit is None else time.monotonic() + request.time_limit
    if request.resume and request.overwrite:
        raise UsageError("--resume goes on with a run and --overwrite replaces it: give one of them.")
    folder = request.folder
    try:
        if request.resume:
            folder.read_config("--run")  # else the lock would be put in a folder of something else
            with folder.locked():
                return _work(folder, *_resume(request), console, deadline)
        config, corpus = _prepare(request)
        with folder.locked():
            folder.check_new(request.overwrite)  # once more: another process may have begun one there meanwhile
            folder.beginning = config
            return _work(folder, config, corpus, None, console, deadline)
    except Mishap as mishap:
        raise ToolError(f"{mishap} {_how_to_go_on(request, folder)}") from mishap


def _how_to_go_on(request: Request, folder: RunFolder) -> str:
    if not request.resume and (folder.beginning or not folder.is_run):
        earlier = ", and the earlier run is as it was" if folder.is_run else ""
        return f"Then give the command again: nothing was saved yet{earlier}."
    return f"Then go on with: torchrnn train --resume --run {folder.root}"


def _prepare(request: Request) -> tuple[Config, text.Corpus]:
    """A new run: all that can be checked before the folder is touched."""
    settings = Settings(**request.given)
    settings = replace(settings, device=_find_device(settings.device))
    check_threads(settings.threads)
    request.folder.check_new(request.overwrite)
    whole = text.read_text(request.files)
    corpus = text.prepare(whole, settings.validation, settings.batch_size, settings.sequence_length)
    config = Config(
        command=request.command,
        files=[str(path.absolute()) for path in request.files],
        text_sha256=text.digest(whole),
        characters=corpus.vocabulary.characters,
        settings=settings,
        versions=f"torchrnn {version('torchrnn')}, torch {torch.__version__}",
    )
    return config, corpus


def _resume(request: Request) -> tuple[Config, text.Corpus, checkpoint.Checkpoint | None]:
    """A run that goes on: the same settings, the same text, the last checkpoint."""
    config = request.folder.read_config("--run")
    for name, value in request.given.items():
        if name not in CHANGEABLE and value != getattr(config.settings, name):
            changeable = ", ".join(map(option, sorted(CHANGEABLE)))
            raise UsageError(
                f"--resume goes on with the settings of the run, where {option(name)} is "
                f"{getattr(config.settings, name)}, got {value}. Leave it out, or start a new run in another --run. "
                f"Only {changeable} and --time-limit may be given anew."
            )
    changed = {name: value for name, value in request.given.items() if name in CHANGEABLE}
    settings = replace(config.settings, **changed)
    settings = replace(settings, device=_find_device(settings.device))
    check_threads(settings.threads)
    whole = text.read_text(request.files or [Path(path) for path in config.files])
    if text.digest(whole) != config.text_sha256:
        raise UsageError(
            f"--resume goes on with the text of the run, and this is another: "
            f"{' '.join(map(str, request.files or config.files)) or 'the documentation of this Python'} has changed. "
            f"Name the FILE with that text, or start a new run with --overwrite."
        )
    saved = checkpoint.load_last(request.folder.root)
    config.settings = settings
    config.resumed.append(request.command)
    write_file(request.folder.config, config.to_toml().encode())
    corpus = text.prepare(whole, settings.validation, settings.batch_size, settings.sequence_length)
    return config, corpus, saved


def _work(
    folder: RunFolder,
    config: Config,
    corpus: text.Corpus,
    saved: checkpoint.Checkpoint | None,
    console: Console,
    deadline: float | None,
) -> str:
    # these take seconds to import, and the checks above need none of them
    from torchrnn.tools.runs.plot import write_loss_curve
    from torchrnn.tools.runs.report import Report
    from torchrnn.tools.runs.training import Training, fit

    torch.set_num_threads(config.settings.threads)
    torch.manual_seed(config.settings.seed)
    with explain_memory():
        model = CharModel.of(config.settings, len(corpus.vocabulary))
        training = Training(model, corpus, config.settings, folder)
        if saved:
            training.restore(saved)
        _introduce(console, training, corpus)
        if not training.finished:
            try:
                with Report(console, folder, training.record, deadline) as report:
                    fit(training, report, deadline)
            except KeyboardInterrupt as error:
                raise _stopped(training) from error
    write_loss_curve(folder, training.record)
    return _conclusion(training)


def _stopped(training: Any) -> Stopped:
    from torchrnn.tools.runs.plot import write_loss_curve

    if training.folder.beginning:
        earlier = ", and the earlier run is as it was" if training.folder.is_run else ""
        return Stopped(f"Stopped before the first checkpoint: nothing was saved yet{earlier}.")
    if training.record.rows:
        write_loss_curve(training.folder, training.record)
    return Stopped(
        f"Stopped. The last checkpoint is whole; go on with: torchrnn train --resume --run {training.folder.root}"
    )


def _introduce(console: Console, training: Any, corpus: text.Corpus) -> None:
    settings = training.settings
    weights = sum(weight.numel() for weight in training.model.parameters())
    unknown = f" ({corpus.unknown:,} not in the training text)" if corpus.unknown else ""
    start = f"going on after step {training.record.step:,}" if training.record.step else "from the beginning"
    for line in (
        f"text: {corpus.training.inputs.numel():,} characters to train on, {corpus.validation.inputs.numel():,} to "
        f"validate on{unknown}, {len(corpus.vocabulary.characters):,} different",
        f"model: {settings.num_layers} × {settings.cell} of {settings.hidden_size}, {weights:,} weights, on "
        f"{settings.device}; {start}",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _conclusion(training: Any) -> str:
    record, folder = training.record, training.folder
    best = min(record.rows, key=lambda row: row["validation_bpc"])
    if record.step >= training.total_steps:
        end = "all steps are done"
    elif training.finished:
        end = f"no better one since, for {record.stale} validations"
    else:
        end = f"the time limit ended it; go on with: torchrnn train --resume --run {folder.root}"
    return (
        f"validation: {best['validation_bpc']:.3f} bits per character at step {best['step']:,} of {record.step:,} "
        f"({end})\nmodel:      {folder.model}\nloss curve: {folder.plot}"
    )


def _find_device(name: str) -> str:
    """The device asked for, or the fastest here for "auto"; an error if it is not here."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [device for device, available in here.items() if available]
    if name == "auto":
        return present[0]
    if name not in present:
        raise UsageError(
            f"--device {name}: torch finds none here, only {', '.join(present)}. Choose one of these or auto."
        )
    return name
