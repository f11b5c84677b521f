"""One run of a job, from its arguments to its last lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from torchrnn.tools.runs import checkpoint, together, workers
from torchrnn.tools.runs.config import Config
from torchrnn.tools.runs.errors import AlreadyTold, Mishap, Stopped, ToolError, UsageError, explain_memory
from torchrnn.tools.runs.files import write_file
from torchrnn.tools.runs.job import Job, Share
from torchrnn.tools.runs.runfolder import RunFolder
from torchrnn.tools.runs.settings import CHANGEABLE, Settings, check_threads, default_threads, option


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    job: type[Job]
    files: list[Path]
    run: Path
    resume: bool
    overwrite: bool
    time_limit: float | None  # seconds
    given: dict[str, Any]  # the settings that were written out
    command: str

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.run)

    @property
    def again(self) -> str:
        """The command that goes on with the run."""
        return f"torchrnn {self.job.name} --resume --run {self.run}"


def train(request: Request, console: Console) -> str:
    """Train as requested, showing progress on `console`; return the last lines, which say what was reached."""
    deadline = None if request.time_limit is None else time.monotonic() + request.time_limit
    if request.resume and request.overwrite:
        raise UsageError("--resume goes on with a run and --overwrite replaces it: give one of them.")
    devices = _devices(request)
    if devices > together.world():
        workers.supervise(devices, request.folder, request.again)
        return ""
    folder, before = request.folder, workers.checkpoints(request.run)
    try:
        with together.joined() as share, ExitStack() as held:
            with together.first(share):
                ready = _begin(request, folder, share, held) if share.rank == 0 else None
            job, saved = ready or _begin(request, folder, share, held)
            return _work(request, folder, job, saved, share, console, deadline)
    except together.Lost as lost:
        folder.release()
        raise ToolError(f"{lost} {workers.how_to_go_on(request.run, before, request.again)}") from lost
    except Mishap as mishap:
        raise ToolError(f"{mishap} {_how_to_go_on(request, folder)}") from mishap


def _devices(request: Request) -> int:
    """How many processes are to train."""
    running, asked = together.world(), request.given.get("devices")
    if running > 1:
        if asked not in (None, running):
            raise UsageError(f"--devices is {asked}, and {running} processes were started: leave it out.")
        return running
    if asked is None and request.resume:
        return request.folder.read_config("--run").settings.devices
    return request.job.settings_class(**request.given).devices


def _begin(
    request: Request, folder: RunFolder, share: Share, held: ExitStack
) -> tuple[Job, checkpoint.Checkpoint | None]:
    """All that comes before the work; the first process keeps the others out of the folder, and writes."""
    if request.resume:
        folder.read_config("--run")  # else the lock would be put in a folder of something else
        if share.rank == 0:
            held.enter_context(folder.locked())
        return _resume(request, folder, share)
    config, job = _prepare(request, share)
    if share.rank == 0:
        held.enter_context(folder.locked())
        folder.check_new(request.overwrite)  # once more: another process may have begun one there meanwhile
    folder.beginning = config
    return job, None


def evaluate(run: Path, files: Sequence[Path]) -> str:
    """The figures of a run's best model on other data, as they are printed."""
    return _use(run, lambda config, model: config.job_class.evaluate(model, files, config.settings, config.data))


def predict(run: Path, file: Path, out: Path | None, top: int) -> str:
    """What a run's best model says of the rows of a file: into `out`, or the text of it."""
    return _use(
        run, lambda config, model: config.job_class.predict(model, file, config.settings, config.data, out, top)
    )


def _use(run: Path, task: Callable[[Config, Any], str]) -> str:
    """What `task` makes of a run and its best model."""
    from torchrnn.tools.runs.weights import check_size, load_weights, read_best

    folder = RunFolder(run)
    config = folder.read_config("RUN")
    try:
        with explain_memory():
            torch.set_num_threads(min(config.settings.threads, default_threads()))
            weights = read_best(folder, config.job)
            check_size(len(weights), config.settings, folder.model)
            model = config.job_class.build(config.settings, config.data)
            load_weights(model, weights, folder.model)
            return task(config, model.eval())
    except Mishap as mishap:
        raise ToolError(f"{mishap} Then give the command again.") from mishap


def _how_to_go_on(request: Request, folder: RunFolder) -> str:
    if not request.resume and (folder.beginning or not folder.is_run):
        earlier = ", and the earlier run is as it was" if folder.is_run else ""
        return f"Then give the command again: nothing was saved yet{earlier}."
    return f"Then go on with: {request.again}"


def _prepare(request: Request, share: Share) -> tuple[Config, Job]:
    """A new run: all that can be checked before the folder is touched."""
    settings = request.job.settings_class(**request.given)
    settings = _fitted(settings, request, share)
    request.folder.check_new(request.overwrite)
    job = request.job.prepare(request.files, settings)
    config = Config(
        command=request.command,
        files=[str(path.absolute()) for path in request.files],
        job=job.name,
        settings=settings,
        data=job.remember(),
        versions=f"torchrnn {version('torchrnn')}, torch {torch.__version__}",
    )
    return config, job


def _resume(request: Request, folder: RunFolder, share: Share) -> tuple[Job, checkpoint.Checkpoint | None]:
    """A run that goes on: the same settings, the same data, the last checkpoint."""
    config = request.folder.read_config("--run")
    if config.job != request.job.name:
        raise UsageError(
            f"--run {request.run} holds a run of `torchrnn {config.job}`. Go on with it: "
            f"torchrnn {config.job} --resume --run {request.run}."
        )
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
    settings = _fitted(settings, request, share)
    job = request.job.again(request.files or [Path(path) for path in config.files], settings, config.data)
    saved = checkpoint.load_last(request.folder.root)
    config.settings = settings
    config.resumed.append(request.command)
    folder.going_on = config
    return job, saved


def _work(
    request: Request,
    folder: RunFolder,
    job: Job,
    saved: checkpoint.Checkpoint | None,
    share: Share,
    console: Console,
    deadline: float | None,
) -> str:
    from torchrnn.tools.runs.training import Training, seed_share  # takes seconds; the checks above need it not
    from torchrnn.tools.runs.weights import check_size

    torch.set_num_threads(job.settings.threads)
    torch.manual_seed(job.settings.seed)
    with explain_memory():
        if saved:
            check_size(len(saved.weights), job.settings, saved.path / checkpoint.WEIGHTS)
        model = job.build(job.settings, job.remember())
        training = Training(model, job, folder, share)
        if share.world > 1:
            seed_share(job.settings.seed, 0, share)
        if saved:
            training.restore(saved)
        if share.rank == 0:
            if folder.going_on:
                write_file(folder.config, folder.going_on.to_bytes())
            _introduce(console, training)
        if not training.finished:
            try:
                _fit(training, console, deadline)
            except (KeyboardInterrupt, RuntimeError) as error:
                if not together.left_alone(error):
                    raise
                raise (AlreadyTold(Stopped.code) if share.rank else _stopped(request, training)) from error
        return "" if share.rank else _finish(request, training)


def _finish(request: Request, training: Any) -> str:
    from torchrnn.tools.runs.plot import write_loss_curve
    from torchrnn.tools.runs.weights import load_best

    folder, job = training.folder, training.job
    write_loss_curve(folder, training.record, job)
    model = load_best(training.model, folder, job.name)
    return "\n".join([*_conclusion(request, training), *job.finish(folder, model)])


def _fit(training: Any, console: Console, deadline: float | None) -> None:
    from torchrnn.tools.runs.report import Report
    from torchrnn.tools.runs.training import fit

    if training.share.rank:
        fit(training, None, deadline)
        return
    with Report(console, training, deadline) as report:
        fit(training, report, deadline)


def _stopped(request: Request, training: Any) -> Stopped:
    from torchrnn.tools.runs.plot import write_loss_curve

    if training.folder.beginning:
        earlier = ", and the earlier run is as it was" if training.folder.is_run else ""
        return Stopped(f"Stopped before the first checkpoint: nothing was saved yet{earlier}.")
    if training.record.rows:
        write_loss_curve(training.folder, training.record, training.job)
    return Stopped(f"Stopped. The last checkpoint is whole; go on with: {request.again}")


def _introduce(console: Console, training: Any) -> None:
    settings = training.settings
    weights = sum(weight.numel() for weight in training.model.parameters())
    start = f"going on after step {training.record.step:,}" if training.record.step else "from the beginning"
    together = f" × {training.share.world} processes" if training.share.world > 1 else ""
    model = (
        f"model: {settings.num_layers} × {settings.cell} of {settings.hidden_size}, {weights:,} weights, on "
        f"{settings.device}{together}; {start}"
    )
    for line in (*training.job.understood(), model):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _conclusion(request: Request, training: Any) -> list[str]:
    record, folder, measures = training.record, training.folder, training.job.measures
    best = record.best_row(measures[0])
    if record.step >= training.total_steps:
        end = f"all {'steps' if training.settings.steps == training.total_steps else 'epochs'} are done"
    elif training.finished:
        end = f"no better one since, for {record.stale} validations"
    else:
        end = f"the time limit ended it; go on with: {request.again}"
    figures = ", ".join(f"{measure.told(best[f'validation_{measure.column}'])} {measure.title}" for measure in measures)
    return [
        f"validation: {figures} at step {best['step']:,} of {record.step:,} ({end})",
        f"model:      {folder.model}",
        f"loss curve: {folder.plot}",
    ]


def _fitted(settings: Settings, request: Request, share: Share) -> Settings:
    """The settings as they are on this machine, with this number of processes."""
    threads = settings.threads
    if share.world > 1 and "threads" not in request.given and threads == default_threads():
        threads = max(1, threads // share.world)
    check_threads(threads)
    device = _find_device(settings.device)
    here = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device, share.world)
    if together.on_this_machine() > here:
        raise UsageError(
            f"--devices is {share.world}, and there are {here} of the device {device} here: each process needs one of "
            f"its own. Lower it, or choose --device cpu."
        )
    return replace(settings, device=device, devices=share.world, threads=threads)


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
